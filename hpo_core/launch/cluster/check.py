"""What a cluster could not do with an Experiment, told before anything is started."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from hpo_core.experiment import Draft
from hpo_core.experiment.model import pod_templates
from hpo_core.launch.cluster.kinds import pod_label


def check(draft: Draft) -> None:
    """Add to a draft's findings what would be lost or never end on Kubernetes."""
    template, path, findings = draft.template, "spec.trialTemplate", draft.findings
    if template is None:
        return
    pods = list(pod_templates(template.trial_spec, f"{path}.trialSpec"))
    if not pods:
        lost = "HPO_OUTPUT_DIR" if template.kind == "TrainJob" else "KATIB_TRIAL_NAME, HPO_PHASE or HPO_OUTPUT_DIR"
        findings.warn(
            f"{path}.trialSpec",
            f"holds no pod template: its pods are found by the label {pod_label(template.kind)}, and get no {lost}",
        )
    if draft.metrics_file and not pods:
        findings.problem(
            "spec.metricsCollectorSpec.collector.kind",
            f"got File: without a pod template nobody can read {draft.metrics_file}; print the metrics, write StdOut",
        )
    for where, pod in pods:
        for index, container in enumerate(pod["containers"]):
            for name in ("name", "image"):
                if not container.get(name):
                    findings.problem(
                        f"{where}.containers[{index}].{name}", "missing, a container in a cluster needs it"
                    )
            if draft.metrics_file and container.get("name") == template.primary_container_name:
                _check_metrics_folder(draft, container, f"{where}.containers[{index}]")
        if pod.get("shareProcessNamespace"):
            findings.warn(
                f"{where}.shareProcessNamespace",
                "is left out where outputs are kept or metrics read from a file: it would show the trainer the store's "
                "credentials",
            )
        if template.kind == "Job" and pod.get("restartPolicy") not in ("Never", "OnFailure"):
            findings.problem(f"{where}.restartPolicy", "must be Never or OnFailure in a Job; write Never")


def _check_metrics_folder(draft: Draft, container: Mapping[str, Any], where: str) -> None:
    """Warn where the volume for the metrics file would hide what the container runs."""
    folder = posixpath.dirname(draft.metrics_file)
    lines = [given for given in (container.get("command"), container.get("args")) if isinstance(given, list)]
    for word in map(str, [word for line in lines for word in line] + [container.get("workingDir")]):
        if word == folder or (word.startswith(f"{folder}/") and word != draft.metrics_file):
            draft.findings.warn(
                where,
                f"{word} is in the image's folder {folder}, which an empty volume for the metrics file hides: write "
                "the metrics to a folder of their own",
            )
            return
