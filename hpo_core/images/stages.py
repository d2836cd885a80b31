"""What a Dockerfile's instructions do: from the script and the context to the tree and configuration of the last stage.

Nothing is executed and nothing is downloaded: RUN lines are noted as skipped. Stages that the last one does not need
are not looked at. COPY and ADD are `sources`'; hashing and writing are `local`'s.
"""

from __future__ import annotations

import platform
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpo_core.errors import BuildError, Problem
from hpo_core.images.context import Context
from hpo_core.images.dockerfile import Instruction, Script, suggestion
from hpo_core.images.sources import Request, carry_out, read_request
from hpo_core.images.tree import Files, Tree, links_that_leave

# What Docker gives a container whose image sets no PATH; a base image's own cannot be known here.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}
_ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64"}


@dataclass
class Stage:
    """A stage while its instructions are carried out.

    Attributes:
        number: Its place in the Dockerfile, from 0.
        base: The image that the chain of FROM begins with; it is not looked at.
        tree: Its files, without those of the base.
        env: What ENV set.
        args: What ARG set.
        workdir: Absolute path in the image.
        entrypoint: ENTRYPOINT; the shell form begins with the shell.
        cmd: CMD, likewise.
        own_cmd: CMD was given in this very stage.
        shell: What the shell form begins with.
        skipped: Line and text of what a container engine would have done in addition.
        runs: Whether RUN lines are among the skipped.
    """

    number: int
    base: str = ""
    tree: Tree = field(default_factory=Tree)
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    own_cmd: bool = False
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    skipped: list[tuple[int, str]] = field(default_factory=list)
    runs: bool = False

    def variables(self) -> dict[str, str]:
        """Returns what substitution sees: ENV wins over ARG."""
        return {"PATH": _PATH, **self.args, **self.env}

    def child(self, number: int) -> Stage:
        """Returns the stage of that number, which begins with `FROM` this one."""
        env, args, skipped = dict(self.env), dict(self.args), list(self.skipped)
        return replace(self, number=number, tree=Tree(self.tree), env=env, args=args, skipped=skipped, own_cmd=False)


@dataclass(frozen=True)
class _Build:
    """What the instructions of one build share: its inputs, the finished stages by number, the problems by line."""

    script: Script
    context: Context
    scratch: Path
    build_args: Mapping[str, str]
    platform_args: Mapping[str, str]
    header_args: dict[str, str]
    finished: dict[int, Stage]
    problems: list[tuple[int, Problem]]


def evaluate(
    script: Script, context: Context, scratch: Path, build_args: Mapping[str, str]
) -> tuple[Stage, list[Problem]]:
    """Carries out what can be carried out without a container engine.

    Args:
        script: The Dockerfile.
        context: The user's folder.
        scratch: An existing folder for what ADD unpacks; it must live until the tree is written.
        build_args: Values for ARG by name.

    Returns:
        The last stage, and everything that is wrong, by line; with problems the stage is incomplete.
    """
    build = _Build(script, context, scratch, build_args, _platform_args(), {}, {}, [])
    for instruction in script.header:
        with _noting(build, instruction):
            build.header_args.update(_args(build, instruction, {}, {**build.platform_args, **build.header_args}))
    stage = _stage(build, len(script.stages) - 1)
    problems = [problem for _, problem in sorted(build.problems, key=lambda pair: pair[0])]
    problems += [
        Problem(script.label, f"the symlink /{path} leads out of the image") for path in links_that_leave(stage.tree)
    ]
    return stage, problems + _unknown_build_args(build)


def _stage(build: _Build, number: int) -> Stage:
    if number in build.finished:
        return build.finished[number]
    text, stage = build.script.stages[number], Stage(number)
    if text.start is not None:
        with _noting(build, text.start):
            stage = _from(build, text.start, number)
    for instruction in text.body:
        if do := _ACTIONS.get(instruction.name):
            with _noting(build, instruction):
                do(build, stage, instruction)
    return build.finished.setdefault(number, stage)


@contextmanager
def _noting(build: _Build, instruction: Instruction) -> Iterator[None]:
    """Turns a BuildError into problems of this line, so that the next instruction is looked at as well."""
    try:
        yield
    except BuildError as error:
        where = build.script.where(instruction)
        build.problems.extend((instruction.start_line, Problem(where, line)) for line in str(error).split("\n"))


def _number(build: _Build, name: str) -> int | None:
    """Returns the number of the stage with this name, the last one when several have it."""
    found = [number for number, text in enumerate(build.script.stages) if text.name and text.name == name.lower()]
    return found[-1] if found else None


def _from(build: _Build, instruction: Instruction, number: int) -> Stage:
    if not instruction.args:  # told as a syntax error
        return Stage(number)
    word = instruction.args[0]
    base = build.script.expand(word, {**build.platform_args, **build.header_args})
    if not base:
        raise BuildError(f"FROM {word}: the variable has no value; set it by ARG before FROM, or by a build argument")
    parent = _number(build, base)
    return _stage(build, parent).child(number) if parent is not None and parent < number else Stage(number, base)


def _args(
    build: _Build, instruction: Instruction, inherited: Mapping[str, str], variables: Mapping[str, str]
) -> dict[str, str]:
    """Returns the values that an ARG gives; a name without any value is left out."""
    values: dict[str, str] = {}
    for word in instruction.args:
        name, equals, default = word.partition("=")
        if name in build.build_args:
            values[name] = build.build_args[name]
        elif equals:
            values[name] = build.script.expand(default, {**variables, **values})
        elif name in inherited:
            values[name] = inherited[name]
    return values


def _arg(build: _Build, stage: Stage, instruction: Instruction) -> None:
    inherited = {**build.platform_args, **build.header_args}
    stage.args.update(_args(build, instruction, inherited, stage.variables()))


def _env(build: _Build, stage: Stage, instruction: Instruction) -> None:
    if not instruction.args:
        raise BuildError("ENV needs a name and a value, as in ENV NAME=value")
    variables, words = stage.variables(), instruction.args
    for name, value in zip(words[::3], words[1::3], strict=True):
        stage.env[build.script.expand(name, variables)] = build.script.expand(value, variables)


def _workdir(build: _Build, stage: Stage, instruction: Instruction) -> None:
    path = build.script.expand(" ".join(instruction.args), stage.variables())
    if not path:
        raise BuildError("WORKDIR needs a path, as in WORKDIR /app")
    stage.workdir = "/" + posixpath.normpath(posixpath.join("/", stage.workdir, path)).lstrip("/")
    stage.tree.make_folder(stage.workdir.lstrip("/"))


def _entrypoint(_: _Build, stage: Stage, instruction: Instruction) -> None:
    stage.entrypoint = _command(stage, instruction)
    stage.cmd = stage.cmd if stage.own_cmd else ()  # as Docker does: an inherited CMD was meant for another program


def _cmd(_: _Build, stage: Stage, instruction: Instruction) -> None:
    stage.cmd, stage.own_cmd = _command(stage, instruction), True


def _command(stage: Stage, instruction: Instruction) -> tuple[str, ...]:
    if instruction.json or not instruction.args:
        return tuple(instruction.args)
    return (*stage.shell, instruction.args[0])


def _shell(_: _Build, stage: Stage, instruction: Instruction) -> None:
    stage.shell = tuple(instruction.args)


def _skip(_: _Build, stage: Stage, instruction: Instruction) -> None:
    text = " ".join(instruction.original.split())
    bodies = [f"{heredoc.content}{heredoc.name}" for heredoc in instruction.heredocs]
    stage.skipped.append((instruction.start_line, "\n".join([text, *bodies])))
    stage.runs = stage.runs or instruction.name == "RUN"


def _copy(build: _Build, stage: Stage, instruction: Instruction) -> None:
    request = read_request(build.script, instruction, stage.variables(), stage.workdir)
    carry_out(request, _files(build, stage, request), stage.tree, build.scratch)


def _files(build: _Build, stage: Stage, request: Request) -> Files:
    name = request.stage
    if not name:
        return build.context
    number = int(name) if name.isdecimal() else _number(build, name)
    advice = "build on a machine with docker or podman and name that image in the Experiment, or COPY from the context"
    if number is None or number >= stage.number:
        near = suggestion(name.lower(), [text.name for text in build.script.stages[: stage.number] if text.name])
        raise BuildError(
            f"COPY --from={name}: no earlier stage, and other images need a container engine{near}; {advice}"
        )
    other = _stage(build, number)
    if other.runs:
        lines = ", ".join(str(line) for line, text in other.skipped if text.upper().startswith("RUN"))
        raise BuildError(
            f"COPY --from={name}: that stage has RUN (line {lines}), which needs a container engine; {advice}"
        )
    return other.tree


def _platform_args() -> dict[str, str]:
    """Returns what Docker sets by itself for ARG TARGETARCH and the like."""
    machine = platform.machine()
    architecture = _ARCHITECTURES.get(machine, machine)
    values = {"PLATFORM": f"linux/{architecture}", "OS": "linux", "ARCH": architecture, "VARIANT": ""}
    return {f"{side}{name}": value for side in ("TARGET", "BUILD") for name, value in values.items()}


def _unknown_build_args(build: _Build) -> list[Problem]:
    instructions = [*build.script.header, *(each for stage in build.script.stages for each in stage.body)]
    declared = {word.partition("=")[0] for each in instructions if each.name == "ARG" for word in each.args}
    return [
        Problem(f"build argument {name}", f"no ARG {name} in {build.script.label}{suggestion(name, sorted(declared))}")
        for name in build.build_args
        if name not in declared and name.upper() not in _PROXIES
    ]


_ACTIONS: dict[str, Callable[[_Build, Stage, Instruction], None]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "RUN": _skip,
    "SHELL": _shell,
    "USER": _skip,
    "WORKDIR": _workdir,
}
