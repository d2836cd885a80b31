"""What a workload gets in a cluster beyond what its template says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hpo_core.launch.cluster.diagnosis import Trouble
from hpo_core.launch.cluster.dress import dress
from hpo_core.launch.cluster.pods import named, pod_templates
from hpo_core.launch.cluster.sidecar import (
    METRICS_FOLDER,
    SIDECAR,
    Duty,
    Sidecar,
    grace_s,
    has_sidecar,
    is_working,
    last_word,
    sidecar_trouble,
)
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID
from hpo_core.sidecar.order import Order
from hpo_core.tuner.pod_store import STORE_ENVIRONMENT

OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "anchor", "uid": "u1"}}
OURS = Sidecar("registry/kfp-hpo:1", "s3://bucket/prefix", STORE_ENVIRONMENT)
MASTER = {"training.kubeflow.org/job-role": "master"}


def duty(**changes: Any) -> Duty:
    return Duty(OURS, **{"attempt": "small-a1", "experiment": "team/small", "label": "00001-1", **changes})


def workload(pod: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    """A Job as the renderer makes it; further keywords are the primary container's fields."""
    main = {"name": "main", "image": "trainer:1", "command": ["python3", "train.py"], **container}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "small-a1",
            "namespace": "team",
            "labels": {LABEL_EXPERIMENT: "small", LABEL_TRIAL: "small-a1", LABEL_UID: "u0"},
        },
        "spec": {"template": {"spec": {"containers": [main], "restartPolicy": "Never", **(pod or {})}}},
    }


def replicas(kind: str, field: str, *roles: str) -> dict[str, Any]:
    """A workload of the training operator, with a template for each role."""
    document = workload()
    template = document["spec"]["template"]
    specs = {role: {"replicas": 1, "template": copy.deepcopy(template)} for role in roles}
    return {**document, "apiVersion": "kubeflow.org/v1", "kind": kind, "spec": {field: specs}}


def dressed(document: dict[str, Any], of: Duty | None = None, *, deadline_s: float | None = None) -> dict[str, Any]:
    return dress(document, primary_container="main", owner=OWNER, deadline_s=deadline_s, duty=of or duty())


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]["template"]["spec"]
    return spec


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    found = named(pod["initContainers"], SIDECAR)
    assert found is not None
    return dict(found)


def helped(document: dict[str, Any]) -> list[str]:
    """The fields that lead to each template with a sidecar."""
    return [".".join(path) for path, template in pod_templates(document) if has_sidecar(template)]


def order_of(pod: dict[str, Any], **labels: str) -> Order:
    """The order as the program reads it, after Kubernetes has put the pod's labels in."""
    words = sidecar_of(pod)["args"]
    for index, value in enumerate(labels.values()):
        words = [word.replace(f"$(HPO_LABEL_{index})", value) for word in words]
    return Order.of([word.replace("$$", "$") for word in words])


# --- golden


def test_a_job_with_a_sidecar_is_written_as_it_was() -> None:
    golden = Path(__file__).parent / "golden" / "dressed_job.json"
    of = duty(metrics_file="/var/log/katib/metrics.log")
    found = dressed(workload({"terminationGracePeriodSeconds": 5}), of, deadline_s=90.0)
    assert json.loads(json.dumps(found)) == json.loads(golden.read_text())


def test_a_job_without_one_gets_labels_owner_and_a_folder_alone() -> None:
    found = dress(workload(), primary_container="main", owner=OWNER, deadline_s=90.0)
    pod = pod_of(found)
    assert not has_sidecar(found)
    assert found["spec"]["activeDeadlineSeconds"] == 90
    assert "terminationGracePeriodSeconds" not in pod
    assert pod["containers"][0]["env"] == [{"name": "HPO_OUTPUT_DIR", "value": "/hpo/output"}]


def test_the_template_itself_is_left_alone() -> None:
    document = workload()
    before = copy.deepcopy(document)
    dressed(document)
    assert document == before


# --- what the sidecar is told


def test_the_program_reads_what_the_renderer_writes() -> None:
    order = order_of(pod_of(dressed(workload(), duty(metrics_file="/var/log/katib/metrics.log"))))
    assert order == Order(
        "small-a1",
        "team/small",
        "s3://bucket/prefix",
        "00001-1",
        Path("/hpo/output"),
        600.0,
        Path("/hpo/metrics/metrics.log"),
        True,
        Path("/dev/termination-log"),
    )


def test_a_dollar_sign_reaches_the_program_as_one() -> None:
    pod = pod_of(dressed(workload(), duty(metrics_file="/logs/$(HOME).log")))
    assert f"--metrics={METRICS_FOLDER}/$$(HOME).log" in sidecar_of(pod)["args"]
    assert order_of(pod).metrics == Path(f"{METRICS_FOLDER}/$(HOME).log")


@pytest.mark.parametrize(("label", "is_primary"), [("master", True), ("", False), ("worker", False)])
def test_where_several_pods_share_a_template_their_labels_tell_the_primary_one(label: str, is_primary: bool) -> None:
    found = dressed(replicas("TFJob", "tfReplicaSpecs", "Worker"), duty(pod_labels=MASTER))
    pod = found["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    assert order_of(pod, role=label).is_primary is is_primary
    assert sidecar_of(pod)["env"] == [
        {
            "name": "HPO_LABEL_0",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['training.kubeflow.org/job-role']"}},
        }
    ]


# --- where it is put


@pytest.mark.parametrize(
    ("document", "where"),
    [
        (workload(), ["spec.template"]),
        (
            replicas("PyTorchJob", "pytorchReplicaSpecs", "Master", "Worker"),
            ["spec.pytorchReplicaSpecs.Master.template"],
        ),
        (replicas("TFJob", "tfReplicaSpecs", "Chief", "Worker", "PS"), ["spec.tfReplicaSpecs.Chief.template"]),
        (replicas("TFJob", "tfReplicaSpecs", "Worker"), ["spec.tfReplicaSpecs.Worker.template"]),
        (replicas("MPIJob", "mpiReplicaSpecs", "Launcher", "Worker"), ["spec.mpiReplicaSpecs.Launcher.template"]),
    ],
    ids=["Job", "PyTorchJob", "TFJob with a chief", "TFJob of workers", "MPIJob"],
)
def test_it_stands_in_the_primary_pod_alone_where_that_can_be_told(document: dict[str, Any], where: list[str]) -> None:
    labels = {} if document["kind"] == "Job" else MASTER
    assert helped(dressed(document, duty(pod_labels=labels))) == where


def test_a_template_without_the_primary_container_gets_none() -> None:
    document = replicas("PyTorchJob", "pytorchReplicaSpecs", "Master", "Worker")
    document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["name"] = "other"
    found = dressed(document)
    assert helped(found) == ["spec.pytorchReplicaSpecs.Master.template"]


def test_a_workload_without_pod_templates_is_left_without() -> None:
    document = {**workload(), "kind": "TrainJob", "spec": {"runtimeRef": {"name": "torch"}}}
    assert dressed(document)["spec"] == {"runtimeRef": {"name": "torch"}}


def test_it_comes_after_the_templates_own_init_containers() -> None:
    """So that it is ended first, while a proxy of the template's is still there."""
    pod = pod_of(dressed(workload({"initContainers": [{"name": "proxy", "image": "p"}]})))
    assert [container["name"] for container in pod["initContainers"]] == ["proxy", SIDECAR]


# --- what it may


def test_credentials_are_told_to_the_sidecar_alone_and_by_reference() -> None:
    pod = pod_of(dressed(workload()))
    assert sidecar_of(pod)["envFrom"] == [{"secretRef": {"name": "hpo-store", "optional": False}}]
    assert "envFrom" not in pod["containers"][0]
    assert [variable["name"] for variable in pod["containers"][0]["env"]] == ["HPO_OUTPUT_DIR"]


def test_the_trainer_does_not_see_the_sidecars_process_nor_so_its_environment() -> None:
    assert "shareProcessNamespace" not in pod_of(dressed(workload({"shareProcessNamespace": True})))


@pytest.mark.parametrize(
    ("of_pod", "of_container", "expected"),
    [
        ({}, {}, {"runAsNonRoot": True}),
        ({"runAsUser": 1000, "runAsGroup": 7}, {}, {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 7}),
        ({"runAsUser": 1000}, {"runAsUser": 2000}, {"runAsNonRoot": True, "runAsUser": 2000}),
        ({}, {"runAsUser": 0}, {"runAsNonRoot": False, "runAsUser": 0}),
    ],
)
def test_it_is_the_trainers_user_where_that_is_told(
    of_pod: dict[str, Any], of_container: dict[str, Any], expected: dict[str, Any]
) -> None:
    pod = pod_of(dressed(workload({"securityContext": of_pod}, securityContext=of_container)))
    security = sidecar_of(pod)["securityContext"]
    assert {name: value for name, value in security.items() if name.startswith("runAs")} == expected


# --- the metrics file


def test_its_folder_is_shared_and_read_only_for_the_sidecar() -> None:
    pod = pod_of(dressed(workload(), duty(metrics_file="/var/log/katib/metrics.log")))
    assert {"name": "hpo-metrics", "mountPath": "/var/log/katib"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "hpo-metrics", "mountPath": METRICS_FOLDER, "readOnly": True} in sidecar_of(pod)["volumeMounts"]
    assert {"name": "hpo-metrics", "emptyDir": {}} in pod["volumes"]


def test_a_volume_that_the_template_has_there_is_used() -> None:
    mount = {"name": "logs", "mountPath": "/var/log/katib/", "subPath": "a"}
    document = workload({"volumes": [{"name": "logs", "emptyDir": {}}]}, volumeMounts=[mount])
    pod = pod_of(dressed(document, duty(metrics_file="/var/log/katib/metrics.log")))
    assert [volume["name"] for volume in pod["volumes"]] == ["logs", "hpo-output"]
    assert sidecar_of(pod)["volumeMounts"][1] == {**mount, "mountPath": METRICS_FOLDER, "readOnly": True}


def test_a_file_within_the_output_needs_no_volume_of_its_own() -> None:
    pod = pod_of(dressed(workload(), duty(metrics_file="/hpo/output/logs/metrics.log")))
    assert [volume["name"] for volume in pod["volumes"]] == ["hpo-output"]
    assert order_of(pod).metrics == Path("/hpo/output/logs/metrics.log")


# --- time


@pytest.mark.parametrize(("given", "expected"), [(None, 615), (5, 615), (3600, 3600)])
def test_the_grace_is_long_enough_for_an_upload(given: int | None, expected: int) -> None:
    pod = {} if given is None else {"terminationGracePeriodSeconds": given}
    assert pod_of(dressed(workload(pod)))["terminationGracePeriodSeconds"] == expected
    assert grace_s(workload(pod), "main") == (30 if given is None else given)


def test_a_jobs_deadline_leaves_time_for_the_upload() -> None:
    assert dressed(workload(), deadline_s=90.0)["spec"]["activeDeadlineSeconds"] == 690


# --- how it ended


def pod_with(state: dict[str, Any], **container: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "main"}], "initContainers": [{"name": SIDECAR, **container}]},
        "status": {"initContainerStatuses": [{"name": SIDECAR, "state": state}]},
    }


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"running": {}}, (None, "")),
        ({"terminated": {"exitCode": 0}}, (0, "")),
        ({"terminated": {"exitCode": 0, "message": "not kept: x"}}, (0, "not kept: x")),
        ({"terminated": {"exitCode": 1, "message": "the key is wrong"}}, (1, "the key is wrong")),
        (
            {"terminated": {"exitCode": 137}},
            (137, "its sidecar did not finish: it was ended by force, after its grace or for its memory"),
        ),
    ],
)
def test_its_end_is_told_by_the_pods_status(state: dict[str, Any], expected: tuple[int | None, str]) -> None:
    assert last_word(pod_with(state)) == expected
    assert is_working(pod_with(state)) is ("running" in state)


def test_a_pod_that_is_being_deleted_is_not_waited_for() -> None:
    pod = pod_with({"running": {}})
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not is_working(pod)


def test_a_cluster_that_takes_it_for_a_container_that_must_end_first_is_told() -> None:
    assert sidecar_trouble(pod_with({"running": {}}, restartPolicy="Always"), OURS, None) is None
    trouble = sidecar_trouble(pod_with({"running": {}}), OURS, None)
    assert trouble is not None
    assert (trouble.reason, trouble.patience_s) == ("NoSidecars", 0.0)


def test_a_missing_secret_is_told_with_what_it_is_for() -> None:
    pod = pod_with({"waiting": {}}, restartPolicy="Always")
    found = sidecar_trouble(pod, OURS, Trouble("CannotStart", 'x: secret "hpo-store" not found', 15.0))
    assert found is not None
    assert found.message.endswith("address and credentials for what trials leave; create it in their namespace")
