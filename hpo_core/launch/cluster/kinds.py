"""What is known of single kinds of workloads; a kind that is not named here is served by what its template says."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from hpo_core.manifest import LABEL_TRIAL

KEEPS_DEADLINE = ("Job", "TrainJob")
"""Kinds that take `spec.activeDeadlineSeconds` and end what runs longer."""
COUNTS_RESTARTS = ("Job",)
"""Kinds that fail by themselves when their containers were restarted too often."""
_POD_LABELS = {
    "TrainJob": "jobset.sigs.k8s.io/jobset-name",
    "Workflow": "workflows.argoproj.io/workflow",
}
"""The label in which pods name their workload, for kinds whose manifests hold no pod template to be labelled."""
_REPLICAS = ("pytorchReplicaSpecs", "tfReplicaSpecs", "xgbReplicaSpecs", "mpiReplicaSpecs")


def pod_label(kind: str) -> str:
    """Return the label by which a pod names the workload that it belongs to."""
    return _POD_LABELS.get(kind, LABEL_TRIAL)


def is_labelled(kind: str) -> bool:
    """Tell whether pods of a kind carry the labels that we give."""
    return kind not in _POD_LABELS


def adapt(manifest: MutableMapping[str, Any], *, deadline_s: float | None) -> None:
    """Set the bounds that a kind keeps itself, Job apart, where its template does not set them."""
    kind, spec = manifest["kind"], manifest["spec"]
    if kind == "TrainJob" and deadline_s is not None:
        spec["activeDeadlineSeconds"] = max(round(deadline_s), 1)
    for replicas in _REPLICAS:
        for replica in (spec.get(replicas) or {}).values():
            # The operator would start a failing one anew for ever, in its own default.
            replica.setdefault("restartPolicy", "Never")
