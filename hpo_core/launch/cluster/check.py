"""What a cluster could not do with an Experiment, told before anything is started."""

from __future__ import annotations

from hpo_core.experiment import Draft
from hpo_core.experiment.model import pod_templates


def check(draft: Draft) -> None:
    """Add to a draft's findings what would be lost or never end on Kubernetes."""
    template, path, findings = draft.template, "spec.trialTemplate", draft.findings
    if template is None:
        return
    pods = list(pod_templates(template.trial_spec, f"{path}.trialSpec"))
    if not pods:
        findings.warn(
            f"{path}.trialSpec",
            f"holds no pod template: its pods are found by the label {template.kind} gives them, and get no "
            "KATIB_TRIAL_NAME, HPO_PHASE or HPO_OUTPUT_DIR",
        )
    for where, pod in pods:
        for name in ("name", "image"):
            for index, container in enumerate(pod["containers"]):
                if not container.get(name):
                    findings.problem(
                        f"{where}.containers[{index}].{name}", "missing, a container in a cluster needs it"
                    )
        if template.kind == "Job" and pod.get("restartPolicy") not in ("Never", "OnFailure"):
            findings.problem(f"{where}.restartPolicy", "must be Never or OnFailure in a Job; write Never")
