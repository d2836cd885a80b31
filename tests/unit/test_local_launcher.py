"""What a template says, as it is run on this machine: command, environment, directory, local image, limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import BuildError, LaunchError, TransientError
from hpo_core.images import build, images_root
from hpo_core.launch import Job
from hpo_core.launch.command import check, expand, parse_quantity
from hpo_core.launch.local import LocalLauncher
from hpo_core.manifest import render
from tests.contracts.launcher_suite import process_job, run
from tests.experiments import REMOVED, Changes, make_draft, make_experiment, parameter

TELL = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "prefix": sys.prefix}))
"""
CORES = len(os.sched_getaffinity(0))
CONTAINER = "spec.trialTemplate.trialSpec.spec.template.spec.containers.0"


def launcher_in(folder: Path, *, parallel: int = 1) -> LocalLauncher:
    return LocalLauncher(
        folder / "scratch", images_root=images_root(folder / "store"), directory=folder, parallel=parallel
    )


def told(folder: Path, job: Job, *, parallel: int = 1) -> dict[str, Any]:
    """What a job that runs TELL says about itself."""
    exited, printed = run(launcher_in(folder, parallel=parallel), job)
    assert exited.code == 0, printed
    return dict(json.loads(printed))


def tell_job(*arguments: str, env: Mapping[str, str] | None = None, **container: Any) -> Job:
    return process_job("a", ["python3", "-c", TELL, *arguments], env=env, **container)


def test_a_trial_finds_its_name_its_phase_and_an_output_directory(tmp_path: Path) -> None:
    env = told(tmp_path, tell_job())["env"]
    assert (env["KATIB_TRIAL_NAME"], env["HPO_PHASE"]) == ("a", "trial")
    assert Path(env["HPO_OUTPUT_DIR"]).is_dir()
    assert Path(env["HPO_OUTPUT_DIR"]).is_absolute()


def test_python3_is_the_interpreter_that_runs_us(tmp_path: Path) -> None:
    """With everything that is installed beside us, whatever PATH the template sets."""
    for env in ({}, {"PATH": "/usr/bin:/bin"}):
        assert told(tmp_path / str(len(env)), tell_job(env=env))["prefix"] == sys.prefix


def test_what_a_trial_prints_is_not_held_back_unless_the_template_says_so(tmp_path: Path) -> None:
    assert told(tmp_path, tell_job())["env"]["PYTHONUNBUFFERED"] == "1"
    assert told(tmp_path / "2", tell_job(env={"PYTHONUNBUFFERED": ""}))["env"]["PYTHONUNBUFFERED"] == ""


@pytest.mark.parametrize(("parallel", "threads"), [(1, CORES), (CORES, 1), (10 * CORES, 1), (2, max(CORES // 2, 1))])
def test_parallel_trials_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert told(tmp_path, tell_job(), parallel=parallel)["env"]["OMP_NUM_THREADS"] == str(threads)


def test_the_users_number_of_threads_wins_and_the_templates_over_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert told(tmp_path, tell_job())["env"]["OMP_NUM_THREADS"] == "7"
    assert told(tmp_path / "2", tell_job(env={"OMP_NUM_THREADS": "5"}))["env"]["OMP_NUM_THREADS"] == "5"


def test_a_trial_has_the_environment_of_its_tuner_and_the_templates_over_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_HOST", "here")
    monkeypatch.setenv("DATA_PORT", "1")
    env = told(tmp_path, tell_job(env={"DATA_PORT": "2"}))["env"]
    assert (env["DATA_HOST"], env["DATA_PORT"]) == ("here", "2")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "x"),
        ("--a=$(A)/$(B)", "--a=x/y z"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$x"),
        ("$$$$", "$$"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$()", "$()"),
        ("$(A", "$(A"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(C)", "$(A)"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "x", "B": "y z", "C": "$(A)"}) == expanded


def test_a_variable_can_refer_to_those_above_it(tmp_path: Path) -> None:
    env = {"A": "x$$(y)", "B": "<$(A)>", "C": "<$(B)>", "EARLY": "$(LATE)", "LATE": "1"}
    found = told(tmp_path, tell_job("$(C)", "$(LATE)", env=env))
    assert {name: found["env"][name] for name in env} == {
        "A": "x$(y)",
        "B": "<x$(y)>",
        "C": "<<x$(y)>>",
        "EARLY": "$(LATE)",
        "LATE": "1",
    }
    assert found["argv"] == ["<<x$(y)>>", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "$(HOME)",
        "$$(HOME)",
        "$$",
        "a$b$$c$",
        'it\'s "quoted"',
        "two  words ",
        "line\nbreak\ttab",
        ";rm -rf $HOME",
        "`id` && id | id > x",
        "*",
        "-",
        "\\",
        "größer 😀",
        "",
    ],
)
def test_a_value_reaches_the_trainers_argv_as_it_is(tmp_path: Path, text: str) -> None:
    space = [parameter("text", "categorical", list=[text, "other"])]
    changes = {f"{CONTAINER}.env": [{"name": "TEXT", "value": "${trialParameters.text}"}]}
    experiment = make_experiment(space, command=["python3", "-c", TELL], changes=changes)
    found = told(tmp_path, Job("a", render(experiment, {"text": text}, "a"), "training-container"))
    assert found["argv"] == [f"--text={text}"]
    assert found["env"]["TEXT"] == text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a local image in its store."""
    context = tmp_path / "context"
    (context / "data").mkdir(parents=True)
    (context / "tell.py").write_text(TELL)
    (context / "data/set.csv").write_text("1")
    (context / "Dockerfile").write_text(
        "FROM python:3.11-slim\n"
        "WORKDIR /app\n"
        "ENV DATA=/app/data MODE=fast ROOT=/\n"
        "COPY . /app/\n"
        'ENTRYPOINT ["python3", "/app/tell.py"]\n'
        'CMD ["--data", "/app/data/set.csv"]\n'
    )
    return tmp_path


def image_of(folder: Path, *, dockerfile: str = "Dockerfile") -> tuple[str, str]:
    """Builds the image; its reference, and its root on this machine."""
    image = build(folder / "context", store_root=folder / "store", dockerfile=dockerfile)
    return image.reference, str(image.rootfs.resolve())


def test_with_a_local_image_paths_of_the_image_are_paths_on_this_machine(folder: Path) -> None:
    image, root = image_of(folder)
    words = ["/app/data", "--data=/app/data/set.csv", "/app/none", "--x=/app/none", "x/app", "/", "--sep=/", "/etc"]
    found = told(folder, process_job("a", ["python3", "/app/tell.py", *words], image=image))
    assert found["argv"] == [
        f"{root}/app/data",
        f"--data={root}/app/data/set.csv",
        "/app/none",
        "--x=/app/none",
        "x/app",
        "/",
        "--sep=/",
        "/etc",
    ]


def test_with_a_local_image_its_environment_holds_and_the_templates_wins(folder: Path) -> None:
    image, root = image_of(folder)
    env = {"MODE": "slow", "MORE": "/app/data/set.csv", "VIA": "$(DATA)/x"}
    found = told(folder, process_job("a", ["python3", "/app/tell.py", "$(MORE)"], image=image, env=env))
    shown = {name: found["env"][name] for name in ("DATA", "MODE", "ROOT", "MORE", "VIA")}
    assert shown == {
        "DATA": f"{root}/app/data",
        "MODE": "slow",
        "ROOT": "/",
        "MORE": f"{root}/app/data/set.csv",
        "VIA": f"{root}/app/data/x",
    }
    assert found["argv"] == [f"{root}/app/data/set.csv"]


@pytest.mark.parametrize(
    ("container", "argv"),
    [
        ({"command": []}, ["--data", "ROOT/app/data/set.csv"]),
        ({"command": [], "args": ["--lr", "1"]}, ["--lr", "1"]),
        ({"command": ["python3", "/app/tell.py"], "args": ["x"]}, ["x"]),
        ({"command": ["python3", "/app/tell.py"]}, []),
    ],
)
def test_command_and_args_replace_entrypoint_and_cmd_as_in_kubernetes(
    folder: Path, container: Mapping[str, Any], argv: list[str]
) -> None:
    image, root = image_of(folder)
    job = process_job("a", container["command"], image=image, args=container.get("args", []))
    assert told(folder, job)["argv"] == [word.replace("ROOT", root) for word in argv]


def test_a_trial_works_where_its_image_or_its_template_says(folder: Path) -> None:
    image, root = image_of(folder)
    for name, says, where in (("a", "", "/app"), ("b", "/app/data", "/app/data")):
        job = process_job(name, ["python3", "/app/tell.py"], image=image, workingDir=says)
        assert told(folder, job)["cwd"] == root + where
    job = process_job("c", ["python3", "/app/tell.py"], image=image, workingDir="/nowhere")
    assert told(folder, job)["cwd"] == str(folder)


def test_without_a_local_image_a_trial_works_in_the_directory_given(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert told(tmp_path, tell_job("a"))["cwd"] == str(tmp_path)
    job = process_job("b", ["python3", "-c", TELL], workingDir="sub")
    assert told(tmp_path, job)["cwd"] == str(tmp_path / "sub")


def test_an_image_that_is_not_here_is_refused_with_the_next_step(folder: Path) -> None:
    image = f"local/trainer@sha256:{'0' * 64}"
    with pytest.raises(BuildError, match=r"is not in .*/store/\.images; .*run `hpo build DIR` here"):
        launcher_in(folder).submit(process_job("a", ["true"], image=image))


def test_a_job_without_any_command_is_refused(folder: Path) -> None:
    (folder / "context/Bare").write_text("FROM scratch\nCOPY tell.py /\n")
    image, _ = image_of(folder, dockerfile="Bare")
    with pytest.raises(LaunchError, match="cannot start a: neither its template nor its image says a command"):
        launcher_in(folder).submit(process_job("a", [], image=image))


@pytest.mark.parametrize("job", [process_job("a", ["tr\0ue"]), process_job("a", ["true"], env={"A=B": "c"})])
def test_what_no_system_can_start_is_refused(tmp_path: Path, job: Job) -> None:
    with pytest.raises(LaunchError, match=r"cannot start a: its command or environment has an (embedded null|illegal)"):
        launcher_in(tmp_path).submit(job)


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "scratch", images_root=tmp_path, directory=tmp_path / "gone")
    with pytest.raises(LaunchError, match=r"cannot start a: its directory .*/gone is gone"):
        launcher.submit(process_job("a", ["true"]))


def test_scratch_space_that_cannot_be_written_is_named_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(TransientError, match=r"cannot start a in .*/scratch/a: Not a directory"):
        launcher_in(tmp_path).submit(process_job("a", ["true"]))


def test_what_is_forgotten_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    launcher = launcher_in(tmp_path)
    for name in ("a", "b"):
        run(launcher, process_job(name, ["true"]))
    launcher.forget("a")
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["b"]
    launcher.forget("b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        (7, 7),
        (0.5, 0.5),
        ("500m", 0.5),
        ("2k", 2e3),
        ("128M", 128e6),
        ("1.5Gi", 1.5 * 2**30),
        (".5Ki", 512),
        ("5.", 5),
        ("129e6", 129e6),
        ("1E3", 1000),
        ("1E", 1e18),
        ("2Ei", 2 * 2**60),
        ("3Pi", 3 * 2**50),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str | float, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "lots", "1ki", "1 Gi", "-1", "1GB", "1mi", ".", "e5", "None"])
def test_what_is_no_quantity_is_refused_with_examples(text: str) -> None:
    with pytest.raises(LaunchError, match=r"is no quantity; write 512Mi, 1Gi, 0\.5 or 500m"):
        parse_quantity(text)


POD = "spec.trialTemplate.trialSpec.spec.template.spec"
IMAGE_WARNING = f"{POD}.containers[0].image"


@pytest.mark.parametrize(
    ("changes", "problems", "warnings"),
    [
        ({}, [], [IMAGE_WARNING]),
        ({f"{CONTAINER}.image": f"local/a@sha256:{'0' * 64}"}, [], []),
        ({f"{CONTAINER}.resources": {"limits": {"memory": "1Gi", "cpu": 1}}}, [], [IMAGE_WARNING]),
        (
            {f"{CONTAINER}.resources": {"limits": {"memory": "lots"}}},
            [f"{POD}.containers[0].resources.limits.memory"],
            [IMAGE_WARNING],
        ),
        (
            {f"{CONTAINER}.resources": {"limits": {"nvidia.com/gpu": 1}}},
            [],
            [f"{POD}.containers[0].resources.limits[nvidia.com/gpu]", IMAGE_WARNING],
        ),
        (
            {f"{CONTAINER}.env": [{"name": "A", "valueFrom": {}}]},
            [],
            [f"{POD}.containers[0].env", IMAGE_WARNING],
        ),
        ({f"{POD}.volumes": [{"name": "v"}]}, [], [f"{POD}.volumes", IMAGE_WARNING]),
        ({f"{POD}.initContainers": [{"name": "i"}]}, [], [f"{POD}.initContainers", IMAGE_WARNING]),
        ({f"{POD}.terminationGracePeriodSeconds": "soon"}, [f"{POD}.terminationGracePeriodSeconds"], [IMAGE_WARNING]),
        (
            {"spec.trialTemplate.trialSpec.spec.parallelism": 2},
            [],
            ["spec.trialTemplate.trialSpec.spec.parallelism", IMAGE_WARNING],
        ),
        (
            {f"{POD}.containers.1": {"name": "sidecar", "image": "b:1"}},
            [],
            [IMAGE_WARNING, f"{POD}.containers[1]"],
        ),
        (
            {"spec.trialTemplate.trialSpec.kind": "PyTorchJob"},
            ["spec.trialTemplate.trialSpec.kind"],
            [],
        ),
    ],
)
def test_what_this_machine_cannot_do_is_told_before_anything_starts(
    changes: Changes, problems: list[str], warnings: list[str]
) -> None:
    draft = make_draft(changes=changes)
    check(draft)
    assert [problem.path for problem in draft.findings.problems] == problems
    assert [warning.path for warning in draft.findings.warnings] == warnings


def test_without_a_local_image_the_command_must_be_given() -> None:
    changes = {f"{CONTAINER}.command": REMOVED, f"{CONTAINER}.args": ["${trialParameters.lr}"]}
    draft = make_draft([parameter("lr", "double", min="0.01", max="0.05")], changes=changes)
    check(draft)
    assert [problem.path for problem in draft.findings.problems] == [f"{POD}.containers[0].command"]


def test_an_outdated_compiled_supervisor_is_not_run(tmp_path: Path) -> None:
    """It may lie there where PYTHONDONTWRITEBYTECODE keeps the interpreter from renewing it."""
    program = """
import os
from pathlib import Path
from hpo_core.launch import supervisor
from hpo_core.launch.local import supervisor_program
compiled = Path(supervisor_program())
print(compiled.suffix, compiled.stem.split(".")[0])
os.utime(compiled, (1.0, 1.0))
print(supervisor_program() == supervisor.__file__)
compiled.unlink()
print(supervisor_program() == supervisor.__file__)
"""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [".pyc supervisor", "True", "True"]
