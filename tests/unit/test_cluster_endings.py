"""What pods tell of their ends and troubles; the documents are a real cluster's, without what plays no part."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from hpo_core.launch.cluster.diagnosis import event_trouble, helper_trouble, pod_trouble, restart_trouble
from hpo_core.launch.cluster.endings import Ending, ending, started_at

AT = "2026-11-29T18:48:05Z"
LATER_S = datetime.fromisoformat("2026-11-29T18:50:00Z").timestamp()
Document = dict[str, Any]


def pod(
    *states: Document,
    phase: str = "Running",
    policy: str = "Never",
    last: Document | None = None,
    restarts: int = 0,
    deleted: str = "",
    grace: int = 30,
    **status: Any,
) -> Document:
    """A pod with a container `main`, and `second` where two states are given."""
    names = ["main", "second"][: len(states)]
    metadata: Document = {"name": "small-0123456789-abcde", "creationTimestamp": "2026-11-29T18:48:00Z"}
    if deleted:
        metadata |= {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": grace}
    statuses = [
        {"name": name, "state": state, "lastState": {"terminated": last} if last else {}, "restartCount": restarts}
        for name, state in zip(names, states, strict=True)
    ]
    return {
        "metadata": metadata,
        "spec": {"restartPolicy": policy, "containers": [{"name": name} for name in names]},
        "status": {"phase": phase, "containerStatuses": statuses, **status},
    }


def ended(code: int, reason: str = "Error", *, at: str = AT, message: str = "") -> Document:
    said = {"message": message} if message else {}
    return {"exitCode": code, "reason": reason, "startedAt": "2026-11-29T18:48:04Z", "finishedAt": at, **said}


def disrupted(reason: str) -> Document:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


RUNS = {"running": {"startedAt": "2026-11-29T18:48:04Z"}}
BACKS_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=main"}}
FULL = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". '
NOWHERE = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    'unable to start container process: exec: "/nowhere/trainer": stat /nowhere/trainer: no such file or directory'
)


@pytest.mark.parametrize(
    ("document", "gone", "how"),
    [
        (pod(RUNS), False, None),
        (pod({"terminated": ended(0, "Completed")}), False, Ending(0, at=AT)),
        (pod({"terminated": ended(3)}), False, Ending(3, at=AT)),
        (
            pod({"terminated": ended(137, "OOMKilled")}),
            False,
            Ending(137, "OutOfMemory", "the kernel ended it at its memory limit", AT),
        ),
        (pod({"terminated": ended(128, "StartError", message=NOWHERE)}), False, Ending(127, "", NOWHERE, AT)),
        (
            pod({"terminated": ended(137)}, phase="Failed", reason="Evicted", message=FULL),
            False,
            Ending(137, "Evicted", f"{FULL.rstrip('. ')}; raise that limit, or let it write less", AT),
        ),
        (
            pod({}, phase="Failed", reason="NodeAffinity", message="no fit"),
            False,
            Ending(None, "NodeAffinity", "no fit"),
        ),
        (
            pod({"terminated": ended(137)}, phase="Failed", deleted=AT, **disrupted("PreemptionByScheduler")),
            False,
            Ending(None, "Lost", "it was preempted by a pod of higher priority", AT),
        ),
        (
            pod(RUNS, deleted=AT, **disrupted("DeletionByTaintManager")),
            False,
            Ending(None, "Lost", "its node was lost or drained"),
        ),
        (
            pod({"terminated": ended(143)}, phase="Failed", deleted="2026-11-29T18:48:35Z"),
            False,
            Ending(143, "Lost", "its pod was deleted by somebody", AT),
        ),
        (pod(RUNS), True, Ending(None, "Lost", "its pod was deleted by somebody")),
        (pod({"terminated": ended(3)}, deleted="2026-11-29T18:49:00Z"), True, Ending(3, at=AT)),
        # restarted in place, until its Job has had enough of that and removes it
        (pod({"terminated": ended(3)}, policy="OnFailure"), False, None),
        (pod(BACKS_OFF, policy="OnFailure", last=ended(3), restarts=1), False, None),
        (pod(RUNS, policy="OnFailure", last=ended(3), restarts=1), False, None),
        (pod({"terminated": ended(0, "Completed")}, policy="OnFailure"), False, Ending(0, at=AT)),
        (pod({"terminated": ended(3)}, policy="OnFailure", phase="Failed"), False, Ending(3, at=AT)),
        (
            pod(
                {"terminated": ended(143, at="2026-11-29T18:48:09Z")},
                policy="OnFailure",
                last=ended(3),
                deleted="2026-11-29T18:48:09Z",
                grace=1,
            ),
            False,
            Ending(3, at=AT),
        ),
    ],
)
def test_a_pods_end_is_told_by_its_cause(document: Document, gone: bool, how: Ending | None) -> None:
    assert ending(document, "main", gone=gone) == how


def test_a_container_that_was_restarted_has_been_running_since_its_first_start() -> None:
    assert started_at(pod(BACKS_OFF, last=ended(3)), "main") == "2026-11-29T18:48:04Z"
    assert started_at(pod({"terminated": ended(128, "StartError")}), "main") == ""


def waiting(reason: str, message: str = "") -> Document:
    return pod({"waiting": {"reason": reason, "message": message}}, phase="Pending")


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are ready.",
}


@pytest.mark.parametrize(
    ("document", "reason", "words"),
    [
        (pod(phase="Pending", conditions=[UNSCHEDULABLE]), "Unschedulable", "no node can take its pod: 0/1 nodes"),
        (waiting("ErrImagePull", "not found"), "ImagePullFailed", "imagePullSecrets"),
        (waiting("ImagePullBackOff", "Back-off"), "ImagePullFailed", "cannot be pulled: Back-off"),
        (waiting("InvalidImageName", "couldn't parse"), "InvalidImage", "couldn't parse"),
        (
            waiting("CreateContainerConfigError", 'secret "s" not found'),
            "CannotStart",
            "create it in the trial's names",
        ),
        (
            waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            "CannotStart",
            "securityContext.runAsUser",
        ),
        (pod({"terminated": ended(0)}, RUNS), "SidecarNeverEnds", "'second' goes on"),
        (pod(RUNS, deleted=AT), "Lost", "its node does not do so"),
    ],
)
def test_what_keeps_a_pod_from_running_or_ending_is_told_with_the_next_step(
    document: Document, reason: str, words: str
) -> None:
    trouble = pod_trouble(document, "main", now_s=LATER_S)
    assert trouble is not None
    assert trouble.reason == reason
    assert words in trouble.message


@pytest.mark.parametrize("document", [pod(RUNS), waiting("ContainerCreating"), pod({"terminated": ended(3)})])
def test_a_pod_that_only_takes_its_time_has_no_trouble(document: Document) -> None:
    assert pod_trouble(document, "main", now_s=LATER_S) is None


def test_a_pod_that_is_being_removed_in_its_grace_has_no_trouble() -> None:
    before_s = datetime.fromisoformat("2026-11-29T18:48:00Z").timestamp()
    assert pod_trouble(pod(RUNS, deleted=AT), "main", now_s=before_s) is None


def test_a_sidecar_that_never_ends_leaves_the_verdict_to_the_primary_container() -> None:
    trouble = pod_trouble(pod({"terminated": ended(3)}, RUNS), "main", now_s=LATER_S)
    assert trouble is not None
    assert trouble.ending is not None
    assert (trouble.ending.code, trouble.ending.reason) == (3, "")


def test_our_own_native_sidecar_may_go_on() -> None:
    document = pod({"terminated": ended(0)})
    document["spec"]["initContainers"] = [{"name": "ours", "restartPolicy": "Always"}]
    document["status"]["initContainerStatuses"] = [{"name": "ours", "state": RUNS}]
    assert pod_trouble(document, "main", now_s=LATER_S) is None


def test_a_container_that_fails_again_and_again_is_given_up_with_its_exit_code() -> None:
    trouble = restart_trouble(pod(BACKS_OFF, policy="OnFailure", last=ended(3), restarts=2), "main")
    assert trouble is not None
    assert trouble.ending is not None
    assert trouble.ending.code == 3
    assert restart_trouble(pod(BACKS_OFF, policy="OnFailure", last=ended(3), restarts=1), "main") is None


def test_a_worker_is_broken_when_it_has_failed_for_good_and_lost_when_it_was_preempted() -> None:
    failed = pod({"terminated": ended(3)}, phase="Failed")
    preempted = pod({"terminated": ended(137)}, phase="Failed", **disrupted("PreemptionByScheduler"))
    found = [helper_trouble([document], now_s=LATER_S) for document in (failed, preempted, pod(RUNS))]
    assert [trouble and trouble.reason for trouble in found] == ["WorkerFailed", "Lost", None]


def test_the_last_warning_tells_why_there_is_no_pod() -> None:
    quota = {"reason": "FailedCreate", "message": "Error creating: pods is forbidden: exceeded quota: limits"}
    security = {
        "reason": "FailedCreatePod",
        "message": 'pods "a" is forbidden: violates PodSecurity "restricted:latest"',
    }
    other = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
    found = [event_trouble(events) for events in ([quota, security], [security, quota, other], [other])]
    assert [trouble and trouble.reason for trouble in found] == ["RefusedByAdmission", "QuotaExceeded", None]
