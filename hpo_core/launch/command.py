"""What a Job's manifest means on this machine: the command of its primary container, and what is left aside.

With a local image the paths of the image are mapped to its folder; with any other the command runs as it stands.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_core.errors import LaunchError
from hpo_core.experiment import Draft
from hpo_core.experiment.document import Node
from hpo_core.experiment.model import pod_templates
from hpo_core.images import LocalImage, find_local_image, localise
from hpo_core.launch import Job
from hpo_core.manifest import primary_container

GRACE_S = 10.0
"""Between asking a trial to end and ending it by force, where its pod template does not say."""

_EXPANSION = re.compile(r"\$\$|\$\(([^)]*)\)")
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(|k|[KMGTPE]i?|m|[eE][+-]?\d+)")
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3} | {
    f"{letter}{i}": (1024.0 if i else 1000.0) ** power for power, letter in enumerate("KMGTPE", 1) for i in ("", "i")
}


@dataclass(frozen=True)
class Command:
    """A container's command as it runs on this machine.

    Attributes:
        argv: The words, paths of the image already mapped.
        environment: The container's own variables, those of its image under them.
        directory: Where it runs.
        memory_bytes: The container's memory limit; 0 for none.
        grace_s: Seconds between the wish to end it and force.
    """

    argv: list[str]
    environment: Mapping[str, str]
    directory: Path
    memory_bytes: int
    grace_s: float


def read_command(job: Job, *, images_root: Path, directory: Path) -> Command:
    """Read from a job what is to be run.

    Args:
        job: Whose document `check` found no problem in.
        images_root: Where local images lie.
        directory: Working directory where there is no local image.

    Raises:
        BuildError: The local image that it names is not on this machine.
        LaunchError: There is no command, neither in the template nor in the image, or no directory to run it in.
    """
    container = primary_container(job.manifest, job.primary_container)
    image = find_local_image(str(container.get("image", "")), images_root)
    argv, environment = _words(container, image), _variables(container)
    where = directory / str(container.get("workingDir") or "")
    if image is not None:
        where = image.rootfs / str(container.get("workingDir") or image.workdir).lstrip("/")
        argv, environment = localise(image, argv, {**image.env, **environment})
    expanded: dict[str, str] = {}
    for name, value in environment.items():
        expanded[name] = expand(value, expanded)  # a variable can refer to those above it
    if not argv:
        raise LaunchError(f"cannot start {job.name}: neither its template nor its image says a command")
    where = where if where.is_dir() else directory
    if not where.is_dir():
        raise LaunchError(f"cannot start {job.name}: its directory {where} is gone")
    limits = (container.get("resources") or {}).get("limits") or {}
    return Command(
        argv=[expand(word, expanded) for word in argv],
        environment=expanded,
        directory=where,
        memory_bytes=int(parse_quantity(limits.get("memory", 0))),
        grace_s=grace_s(job.manifest),
    )


def trial_environment(command: Command, *, output_dir: Path, threads: int) -> dict[str, str]:
    """Return a trial's whole environment: this process's, what every trial gets, and above both the container's own.

    Args:
        command: The trial's command.
        output_dir: Where it may leave what is to be kept.
        threads: Its share of the cores, for OpenMP, unless somebody has set that.
    """
    everything = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "HPO_OUTPUT_DIR": str(output_dir),
        **command.environment,
    }
    # `python3` is the interpreter that runs us, with the packages that the user installed beside us.
    own = str(Path(sys.executable).parent)
    return {**everything, "PATH": os.pathsep.join([own, everything.get("PATH", os.defpath)])}


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Expand `$(NAME)` as Kubernetes does: `$$` is a dollar sign, an unknown name stays as it is."""
    return _EXPANSION.sub(lambda m: "$" if m[1] is None else environment.get(m[1], m[0]), text)


def parse_quantity(text: str | int | float) -> float:
    """Read a Kubernetes quantity such as `1Gi`, `500m` or `0.5`.

    Raises:
        LaunchError: It is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise LaunchError(f"{text!r} is no quantity; write 512Mi, 1Gi, 0.5 or 500m")
    number, suffix = match.groups()
    return float(number + suffix) if suffix[1:].strip("+-").isdecimal() else float(number) * _FACTORS[suffix]


def check(draft: Draft) -> None:
    """Add to a draft's findings what this machine cannot run, and what it would leave aside."""
    template, path, findings = draft.template, "spec.trialTemplate.trialSpec", draft.findings
    if template is None:
        return
    if template.kind != "Job":
        findings.problem(f"{path}.kind", f"got {template.kind}: on this machine a trial is a batch/v1 Job")
        return
    if draft.metrics_file:
        findings.problem(
            "spec.metricsCollectorSpec.collector.kind",
            f"got File: on this machine all trials would write the same {draft.metrics_file}; let the trainer print "
            "its metrics and write StdOut, or run it with --backend kubernetes",
        )
    job = Node(template.trial_spec, path, findings).child("spec", required=True)
    job_template = job.child("template", required=True) if job else None
    pod = job_template.child("spec", required=True) if job_template else None
    if job is None or pod is None:
        return
    job.integer("activeDeadlineSeconds", minimum=1)
    pod.integer("terminationGracePeriodSeconds", minimum=0)
    for name in ("initContainers", "volumes"):
        if pod.value.get(name):
            findings.warn(pod.at(name), "has no meaning on this machine and is left aside")
    for name in ("parallelism", "completions"):
        if (job.integer(name, minimum=0) or 0) > 1:
            findings.warn(job.at(name), "on this machine one process is started for a trial")
    for container in pod.children("containers"):
        if container.value.get("name") == template.primary_container_name:
            _check_primary(container)
        else:
            findings.warn(container.path, "only the primary container runs on this machine")


def _check_primary(container: Node) -> None:
    findings = container.findings
    variables = list(container.children("env"))
    for variable in variables:
        variable.text("name", required=True)
        variable.text("value")
    if container.value.get("envFrom") or any("valueFrom" in variable.value for variable in variables):
        findings.warn(container.at("env"), "values from the cluster (valueFrom, envFrom) are empty on this machine")
    resources = container.child("resources")
    limits = resources.child("limits") if resources else None
    for name, value in limits.value.items() if limits else ():
        if name == "memory":
            _check_quantity(value, f"{limits.path}.memory" if limits else "", container)
        elif name != "cpu":
            findings.warn(f"{container.path}.resources.limits[{name}]", "is not reserved on this machine")
    image = str(container.value.get("image", ""))
    if not image.startswith("local/"):
        if not container.value.get("command"):
            findings.problem(container.at("command"), "missing: without a local image the command must be given here")
        hint = "the command runs as it stands; `hpo build DIR` makes one"
        findings.warn(container.at("image"), f"{image!r} is no local image: {hint}")


def _check_quantity(value: Any, path: str, container: Node) -> None:
    try:
        parse_quantity(value)
    except LaunchError as error:
        container.findings.problem(path, str(error))


def _words(container: Mapping[str, Any], image: LocalImage | None) -> list[str]:
    """The command line, by Kubernetes' rules: `command` replaces the image's entrypoint and its default arguments."""
    command, arguments = container.get("command"), container.get("args")
    if command or image is None:
        return [*map(str, command or []), *map(str, arguments or [])]
    return [*image.entrypoint, *(map(str, arguments) if arguments else image.cmd)]


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {str(item["name"]): str(item.get("value") or "") for item in container.get("env") or []}


def grace_s(manifest: Mapping[str, Any]) -> float:
    """Return the seconds between the wish to end a workload and force."""
    given = next(pod for _, pod in pod_templates(manifest, "")).get("terminationGracePeriodSeconds")
    return GRACE_S if given is None else float(given)
