"""A Dockerfile's text as instructions, with every syntax error told by its line.

The grammar itself (directives, comments, continuations, JSON forms, heredocs, substitution) is the library's, a port of
BuildKit's parser. It stops at the first error; here the rest is read as well. What the instructions do is `stages`'.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from e2b_dockerfile_utils import (
    DockerfileAst,
    DockerfileInstruction,
    DockerfileSyntaxError,
    ShellLex,
    parse_dockerfile_ast,
)

from hpo_core.errors import BuildError, Problem

INSTRUCTIONS = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_IGNORED = "ONBUILD"  # the one instruction whose arguments the parser never looks at
_JSON_BEGINS = re.compile(r"\[\s*(['\"]|\]\s*$)")

Instruction = DockerfileInstruction


@dataclass(frozen=True)
class StageText:
    """The lines of one stage.

    Attributes:
        start: Its FROM; None when the file has none before these lines.
        name: What follows AS, in lower case; empty without.
        body: Its other instructions.
    """

    start: Instruction | None
    name: str
    body: tuple[Instruction, ...]


@dataclass(frozen=True)
class Script:
    """A Dockerfile that was read; instructions with a syntax error are left out.

    Attributes:
        label: How messages name the file.
        escape: The escape character, a backslash or a backtick.
        header: The ARG lines before the first FROM.
        stages: In the order of the file, at least one.
    """

    label: str
    escape: str
    header: tuple[Instruction, ...]
    stages: tuple[StageText, ...]

    def where(self, instruction: Instruction) -> str:
        """Returns `Dockerfile:LINE` for messages."""
        return f"{self.label}:{instruction.start_line}"

    def expand(self, word: str, variables: Mapping[str, str], *, keep_quotes: bool = False) -> str:
        """Replaces `$NAME`, `${NAME:-default}` and the like, then takes quotes and escapes away.

        Args:
            word: As written.
            variables: Values; what is missing counts as empty.
            keep_quotes: Quotes are text, as in a heredoc.

        Raises:
            BuildError: Not a substitution that Docker knows, or `${NAME:?message}` without a value.
        """
        lexer = ShellLex(self.escape, env=variables, skip_unset_env=False, skip_process_quotes=keep_quotes)
        try:
            return lexer.process_word(word)
        except ValueError as error:
            raise BuildError(
                f"{error}; allowed are $NAME, ${{NAME}}, ${{NAME:-default}} and ${{NAME:+other}}"
            ) from None


def parse(text: str, label: str) -> tuple[Script, list[Problem]]:
    """Reads a Dockerfile.

    Args:
        text: Its content.
        label: How messages name the file.

    Returns:
        The script, and everything that is wrong with its syntax, sorted by line.
    """
    problems: dict[int, Problem] = {}
    lines = text.split("\n")
    while True:
        try:
            ast = parse_dockerfile_ast("\n".join(lines))
            break
        except DockerfileSyntaxError as error:
            number = error.line or 1
            if number in problems:  # cannot be mended by leaving it out
                ast = DockerfileAst([], "\\")
                break
            problems[number] = Problem(f"{label}:{number}", _syntax_message(str(error), lines[number - 1]))
            lines = _without(lines, number, str(error))
    for instruction in ast.instructions:
        if message := _bad_json(instruction) or _bad_from(instruction):
            problems[instruction.start_line] = Problem(f"{label}:{instruction.start_line}", message)
    good = [each for each in ast.instructions if each.start_line not in problems or each.name == "FROM"]
    header, stages = _split(good)
    if stages[0].start is None:
        at = stages[0].body[0].start_line if stages[0].body else 0
        where = f"{label}:{at}" if at else label
        problems[at] = Problem(where, "no FROM before this; begin with one, for example FROM python:3.12-slim")
    return Script(label, ast.escape_token, header, stages), [problems[number] for number in sorted(problems)]


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the closest known word, else an empty text."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _split(instructions: list[Instruction]) -> tuple[tuple[Instruction, ...], tuple[StageText, ...]]:
    """Returns the ARG lines before the first stage, and the stages."""
    length = next((at for at, each in enumerate(instructions) if each.name != "ARG"), len(instructions))
    starts = [at for at, each in enumerate(instructions) if each.name == "FROM" or at == length] or [length]
    ends = [*starts[1:], len(instructions)]
    return tuple(instructions[:length]), tuple(
        _stage_text(instructions[at:end]) for at, end in zip(starts, ends, strict=True)
    )


def _stage_text(lines: list[Instruction]) -> StageText:
    if not lines or lines[0].name != "FROM":
        return StageText(None, "", tuple(lines))
    named = len(lines[0].args) == 3
    return StageText(lines[0], lines[0].args[2].lower() if named else "", tuple(lines[1:]))


def _without(lines: list[str], number: int, error: str) -> list[str]:
    """Returns the lines with the bad one made harmless, so that those after it are read too."""
    bad = lines[number - 1]
    if "unterminated heredoc" in error:
        return lines[: number - 1]
    mended = "#" if bad.lstrip().startswith("#") else re.sub(r"\S+", _IGNORED, bad, count=1)
    return [*lines[: number - 1], mended, *lines[number:]]


def _syntax_message(error: str, line: str) -> str:
    message = error.split(": ", 1)[-1]
    if not message.startswith("unknown instruction"):
        return f"{message}; found {line.strip()!r}"
    word = line.split()[0]
    near = suggestion(word.upper(), INSTRUCTIONS)
    return f"unknown instruction {word}" + (near or "; is a backslash missing at the end of the line above it?")


def _bad_from(instruction: Instruction) -> str | None:
    words = instruction.args
    if instruction.name != "FROM" or len(words) == 1 or (len(words) == 3 and words[1].upper() == "AS"):
        return None
    return f"FROM {' '.join(words)} is not understood; allowed are FROM image and FROM image AS name"


def _bad_json(instruction: Instruction) -> str | None:
    if instruction.name not in ("ADD", "CMD", "COPY", "ENTRYPOINT", "SHELL") or instruction.json:
        return None
    arguments = " ".join(instruction.args)
    if instruction.name != "SHELL" and not _JSON_BEGINS.match(arguments):
        return None
    return (
        f"{instruction.name} {arguments} is not valid JSON; "
        f'write {instruction.name} ["one", "two"], with double quotes, commas between and none at the end'
    )
