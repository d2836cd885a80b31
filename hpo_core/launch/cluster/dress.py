"""What a workload needs in a cluster beyond what its template says: labels, owner, and bounds of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from hpo_core.manifest import LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID

ISTIO = "sidecar.istio.io/inject"
"""Label and annotation by which Istio leaves a pod alone; its sidecar would never let a Job end."""


OUTPUT_FOLDER, OUTPUT_VOLUME = "/hpo/output", "hpo-output"
"""Where in the primary container what is to be kept is written, and the volume behind it."""


def dress(
    manifest: Mapping[str, Any], *, primary_container: str, owner: Mapping[str, Any], deadline_s: float | None
) -> dict[str, Any]:
    """Return a rendered workload as it is created in a cluster.

    Args:
        manifest: As rendered, with name, namespace and our labels.
        primary_container: The container that gets the folder for what is to be kept.
        owner: The object whose deletion removes the workload.
        deadline_s: Seconds that it may run; None for no bound.
    """
    dressed: dict[str, Any] = copy.deepcopy(dict(manifest))
    metadata = dressed["metadata"]
    metadata["ownerReferences"] = [owner_reference(owner)]
    ours = {name: metadata["labels"][name] for name in (LABEL_EXPERIMENT, LABEL_TRIAL, LABEL_UID)}
    for template in pod_templates(dressed):
        marks = template.setdefault("metadata", {})
        marks["labels"] = {**(marks.get("labels") or {}), **ours, ISTIO: "false"}
        marks["annotations"] = {**(marks.get("annotations") or {}), ISTIO: "false"}
        _add_output_folder(template, primary_container)
    if dressed["kind"] == "Job":
        # Kubernetes would try a failing trainer six times more with the same values.
        dressed["spec"].setdefault("backoffLimit", 0)
        if deadline_s is not None:
            dressed["spec"]["activeDeadlineSeconds"] = max(round(deadline_s), 1)
    return dressed


def _add_output_folder(template: MutableMapping[str, Any], container_name: str) -> None:
    """Give the primary container a folder for what is to be kept, and tell it in HPO_OUTPUT_DIR."""
    spec = template["spec"]
    for container in spec["containers"]:
        if container.get("name") == container_name:
            variables = [v for v in container.get("env") or [] if v.get("name") != "HPO_OUTPUT_DIR"]
            container["env"] = [*variables, {"name": "HPO_OUTPUT_DIR", "value": OUTPUT_FOLDER}]
            mount = {"name": OUTPUT_VOLUME, "mountPath": OUTPUT_FOLDER}
            container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
            spec["volumes"] = [*(spec.get("volumes") or []), {"name": OUTPUT_VOLUME, "emptyDir": {}}]
            return


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Write the reference by which an object goes when its owner goes."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }


def pod_templates(document: MutableMapping[str, Any]) -> Iterator[MutableMapping[str, Any]]:
    """Find every pod template in a workload of any kind: each mapping whose `spec` holds `containers`."""
    spec = document.get("spec")
    if isinstance(spec, Mapping) and isinstance(spec.get("containers"), list):
        yield document
    for value in document.values():
        if isinstance(value, MutableMapping):
            yield from pod_templates(value)
