"""The container of ours that is put beside a trainer: what it is told, and what its end says.

It keeps what the trainer leaves in HPO_OUTPUT_DIR, with credentials that the trainer does not get, and prints the lines
of a metrics file. It is a native sidecar: the cluster ends it after the trainer, and waits for it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hpo_core.launch.cluster.diagnosis import Trouble
from hpo_core.launch.cluster.pods import Changing, Document, container_of, named, pod_templates

SIDECAR = "hpo-sidecar"
"""Name of the container."""
OUTPUT_FOLDER, OUTPUT_VOLUME = "/hpo/output", "hpo-output"
"""Where in the primary container what is to be kept is written, and the volume behind it."""
METRICS_FOLDER, METRICS_VOLUME = "/hpo/metrics", "hpo-metrics"
"""Where in the sidecar the metrics file's folder is, and the volume behind it."""
UPLOAD_S = 600
MARGIN_S = 15
"""How long before it is ended by force a sidecar gives up, to say so."""
USUAL_GRACE_S = 30
"""Seconds between the wish to end a pod and force, where its template does not say."""

_ROLES = ("Master", "Chief", "Launcher")
"""Replicas of the training operator's kinds of which there is one, and which then is the primary pod."""
_LISTENS = (
    "i=0; until grep -q '^SigBlk:.*[4-7c-f]...$' /proc/1/status || [ $i -ge 200 ]; do i=$((i+1)); sleep 0.05; done"
)
"""Waits until the sidecar's program keeps SIGTERM, which would be lost before; the trainer is started after that."""


@dataclass(frozen=True)
class Sidecar:
    """What the sidecars of all workloads have in common.

    Attributes:
        image: The engine's image.
        store: The store's address.
        environment: The fields of its container, `env` and `envFrom`, by which it gets the store's server and
            credentials; by reference to Secrets in the workloads' namespace.
        upload_s: How long it may take to bring an output to the store, in seconds.
    """

    image: str
    store: str
    environment: Mapping[str, Any]
    upload_s: int = UPLOAD_S


@dataclass(frozen=True)
class Duty:
    """What one workload's sidecar has to do.

    Attributes:
        sidecar: What all have in common.
        attempt: The workload's name.
        experiment: `NAMESPACE/NAME`.
        label: What its output is filed under; "" when it is not to be kept.
        metrics_file: The file in the primary container whose lines are to be printed; "" for none.
        pod_labels: What the labels of the one pod are whose output counts, where a workload has several.
    """

    sidecar: Sidecar
    attempt: str
    experiment: str
    label: str = ""
    metrics_file: str = ""
    pod_labels: Mapping[str, str] = field(default_factory=dict)


def add_sidecar(document: Changing, container_name: str, duty: Duty) -> None:
    """Put the sidecar beside the primary container, in each pod template that may be the primary pod's.

    Args:
        document: The workload; its primary container has its output folder already.
        container_name: The primary container.
        duty: What the sidecar has to do.
    """
    found = [(path, template) for path, template in pod_templates(document) if container_of(template, container_name)]
    single = [item for item in found if len(item[0]) > 1 and item[0][-2] in _ROLES] if duty.pod_labels else []
    for _, template in single or found:
        _add(template["spec"], container_name, duty)


def has_sidecar(document: Document) -> bool:
    """Tell whether a workload, or a pod, has been given one."""
    templates = [template for _, template in pod_templates(document)]
    return any(named(template["spec"].get("initContainers"), SIDECAR) for template in templates)


def last_word(pod: Document) -> tuple[int | None, str]:
    """Return the exit code of a pod's sidecar and what it has said; None while it has not ended, or nobody saw it."""
    status = named((pod.get("status") or {}).get("initContainerStatuses"), SIDECAR) or {}
    ended = (status.get("state") or {}).get("terminated")
    if not ended:
        return None, ""
    code, said = int(ended.get("exitCode", -1)), str(ended.get("message") or "").strip()
    if code and not said:
        forced = "it was ended by force, after its grace or for its memory" if code == 137 else f"exit code {code}"
        said = f"its sidecar did not finish: {forced}"
    return code, said


def is_working(pod: Document) -> bool:
    """Tell whether a pod's sidecar has not ended, and will by itself."""
    status = named((pod.get("status") or {}).get("initContainerStatuses"), SIDECAR) or {}
    return "running" in (status.get("state") or {}) and not pod["metadata"].get("deletionTimestamp")


def sidecar_trouble(pod: Document, sidecar: Sidecar, found: Trouble | None) -> Trouble | None:
    """Tell what keeps a pod from running that has to do with the sidecar; else what was found already."""
    container = named(pod["spec"].get("initContainers"), SIDECAR)
    if container is not None and container.get("restartPolicy") != "Always":
        return Trouble(
            "NoSidecars",
            "this cluster, or the operator of this kind, knows no native sidecars, and would wait for ever for "
            f"{SIDECAR!r}: Kubernetes 1.29 or later and an operator of that age are needed",
            0.0,
        )
    if found is not None and found.reason == "CannotStart" and _lacks_secret(found.message, sidecar):
        advice = "it holds the store's address and credentials for what trials leave; create it in their namespace"
        return replace(found, message=f"{found.message}; {advice}")
    return found


def _lacks_secret(said: str, sidecar: Sidecar) -> bool:
    whole = [source["secretRef"] for source in sidecar.environment.get("envFrom", ())]
    keys = [variable.get("valueFrom", {}).get("secretKeyRef", {}) for variable in sidecar.environment.get("env", ())]
    return any(f'secret "{secret.get("name")}" not found' in said for secret in (*whole, *keys))


def grace_s(document: Document, container_name: str) -> int:
    """Return the seconds that a template gives its primary container between the wish to end it and force."""
    for _, template in pod_templates(document):
        if container_of(template, container_name):
            given = template["spec"].get("terminationGracePeriodSeconds")
            return int(given) if isinstance(given, int) else USUAL_GRACE_S
    return USUAL_GRACE_S


def _add(pod: Changing, container_name: str, duty: Duty) -> None:
    primary = named(pod["containers"], container_name) or {}
    mounts = [{"name": OUTPUT_VOLUME, "mountPath": OUTPUT_FOLDER, "readOnly": True}]
    metrics = ""
    if duty.metrics_file:
        metrics, more = _share_metrics(pod, primary, duty.metrics_file)
        mounts += more
    sidecar = duty.sidecar
    names = [f"HPO_LABEL_{index}" for index in range(len(duty.pod_labels))]
    container = {
        "name": SIDECAR,
        "image": sidecar.image,
        "restartPolicy": "Always",
        "command": ["python", "-m", "hpo_core.sidecar"],
        "args": [*_arguments(duty, metrics), *_conditions(names, duty.pod_labels)],
        **sidecar.environment,
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", _LISTENS]}}},
        "resources": {
            "requests": {"cpu": "10m", "memory": "48Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
        "securityContext": _security(pod, primary),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if names:
        container["env"] = [
            *container.get("env", []),
            *(
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}
                for name, label in zip(names, duty.pod_labels, strict=True)
            ),
        ]
    pod["initContainers"] = [*(pod.get("initContainers") or []), container]
    pod.pop("shareProcessNamespace", None)  # it would show the trainer the sidecar's environment
    given = pod.get("terminationGracePeriodSeconds")
    pod["terminationGracePeriodSeconds"] = max(
        given if isinstance(given, int) else USUAL_GRACE_S, sidecar.upload_s + MARGIN_S
    )


def _arguments(duty: Duty, metrics: str) -> list[str]:
    told = {
        "attempt": duty.attempt,
        "experiment": duty.experiment,
        "store": duty.sidecar.store,
        "label": duty.label,
        "output": OUTPUT_FOLDER,
        "seconds": str(duty.sidecar.upload_s),
        "metrics": metrics,
    }
    # Kubernetes would take $(…) in a value for a variable's name.
    return [f"--{name}={value.replace('$', '$$')}" for name, value in told.items() if value]


def _conditions(names: list[str], labels: Mapping[str, str]) -> list[str]:
    """The part of the command line that compares the pod's own labels; a label that it lacks shows as "" there."""
    return [word for name, wanted in zip(names, labels.values(), strict=True) for word in _condition(name, wanted)]


def _condition(name: str, wanted: str) -> list[str]:
    return ["--only-if", f"$({name})", str(wanted)]


def _share_metrics(pod: Changing, primary: Changing, path: str) -> tuple[str, list[dict[str, Any]]]:
    """Let the sidecar see the folder of the metrics file, by a volume where it is not one already.

    Returns:
        The file's path in the sidecar, and the sidecar's mounts for that.
    """
    folder, name = posixpath.split(path)
    if folder == OUTPUT_FOLDER or folder.startswith(f"{OUTPUT_FOLDER}/"):
        return path, []
    given = [mount for mount in primary.get("volumeMounts") or [] if str(mount.get("mountPath")).rstrip("/") == folder]
    if given:
        mount = {**given[0], "mountPath": METRICS_FOLDER, "readOnly": True}
    else:
        pod["volumes"] = [*(pod.get("volumes") or []), {"name": METRICS_VOLUME, "emptyDir": {}}]
        theirs = {"name": METRICS_VOLUME, "mountPath": folder}
        primary["volumeMounts"] = [*(primary.get("volumeMounts") or []), theirs]
        mount = {"name": METRICS_VOLUME, "mountPath": METRICS_FOLDER, "readOnly": True}
    return f"{METRICS_FOLDER}/{name}", [mount]


def _security(pod: Document, primary: Document) -> dict[str, Any]:
    """What the level `restricted` asks for; and the trainer's user, where it is told, who can read what it leaves."""
    levels = [level.get("securityContext") or {} for level in (primary, pod)]
    told = {
        name: next((level[name] for level in levels if level.get(name) is not None), None)
        for name in ("runAsUser", "runAsGroup")
    }
    return {
        "runAsNonRoot": told["runAsUser"] != 0,
        **{name: number for name, number in told.items() if number is not None},
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
