"""What a workload needs in a cluster beyond what its template says: labels, owner, and bounds of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hpo_core.launch.cluster.kinds import adapt
from hpo_core.launch.cluster.pods import Changing, container_of, pod_templates
from hpo_core.launch.cluster.sidecar import OUTPUT_FOLDER, OUTPUT_VOLUME, Duty, add_sidecar
from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID

ISTIO = "sidecar.istio.io/inject"
"""Label and annotation by which Istio leaves a pod alone; its sidecar would never let a Job end."""


def dress(
    manifest: Mapping[str, Any],
    *,
    primary_container: str,
    owner: Mapping[str, Any],
    deadline_s: float | None,
    duty: Duty | None = None,
) -> dict[str, Any]:
    """Return a rendered workload as it is created in a cluster.

    Args:
        manifest: As rendered, with name, namespace and our labels.
        primary_container: The container that gets the folder for what is to be kept.
        owner: The object whose deletion removes the workload.
        deadline_s: Seconds that it may run; None for no bound.
        duty: What a sidecar of ours has to do beside it; None for no sidecar.
    """
    dressed: dict[str, Any] = copy.deepcopy(dict(manifest))
    metadata = dressed["metadata"]
    metadata["ownerReferences"] = [owner_reference(owner)]
    ours = {name: metadata["labels"][name] for name in (LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID)}
    for _, template in pod_templates(dressed):
        marks = template.setdefault("metadata", {})
        marks["labels"] = {**(marks.get("labels") or {}), **ours, ISTIO: "false"}
        marks["annotations"] = {**(marks.get("annotations") or {}), ISTIO: "false"}
        _add_output_folder(template, primary_container)
    if duty is not None:
        add_sidecar(dressed, primary_container, duty)
    adapt(dressed, deadline_s=deadline_s)
    if dressed["kind"] == "Job":
        # Kubernetes would try a failing trainer six times more with the same values.
        dressed["spec"].setdefault("backoffLimit", 0)
        if deadline_s is not None:
            # Keeping the output is no part of the trial's time; that is watched by whoever follows it.
            more_s = duty.sidecar.upload_s if duty else 0
            dressed["spec"]["activeDeadlineSeconds"] = max(round(deadline_s), 1) + more_s
    return dressed


def _add_output_folder(template: Changing, container_name: str) -> None:
    """Give the primary container a folder for what is to be kept, and tell it in HPO_OUTPUT_DIR."""
    container, spec = container_of(template, container_name), template["spec"]
    if container is None:
        return
    variables = [v for v in container.get("env") or [] if v.get("name") != "HPO_OUTPUT_DIR"]
    container["env"] = [*variables, {"name": "HPO_OUTPUT_DIR", "value": OUTPUT_FOLDER}]
    mount = {"name": OUTPUT_VOLUME, "mountPath": OUTPUT_FOLDER}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    spec["volumes"] = [*(spec.get("volumes") or []), {"name": OUTPUT_VOLUME, "emptyDir": {}}]


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Write the reference by which an object goes when its owner goes."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
