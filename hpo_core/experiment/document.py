"""The document: the only place that knows YAML, and typed access to its fields that collects every problem.

A `Node` is one mapping of the document with its path. Reading a field of the wrong type records a problem and gives the
default, so that a reader goes on and the user sees everything at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from hpo_core.errors import Problem, SpecError


class _Loader(yaml.CSafeLoader):
    """PyYAML's safe loader that refuses a key given twice and reads 1e-3 as a number, as YAML 1.2 and Kubernetes do."""


def _mapping_without_duplicates(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    result: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return result


def _text_as_written(loader: Any, node: yaml.ScalarNode) -> str:  # noqa: ARG001  the signature is PyYAML's
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)
# Dates stay text: no field of ours is a date, and a categorical item that looks like one must arrive as written.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text_as_written)


class _Dumper(yaml.CSafeDumper):
    """PyYAML's safe dumper that never writes anchors, which people do not expect."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  the signature is PyYAML's
        return True


# The dumper must know it too, or it would write the text "1e-3" without its quotes.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str) -> Any:
    """Read one YAML document.

    Args:
        text: The document's text; JSON is YAML too.

    Returns:
        What it holds, None for an empty document.

    Raises:
        SpecError: It is not YAML, or it holds more than one document.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError([Problem(place, f"this is not valid YAML: {what}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError([Problem("", f"this is not valid YAML: {error}")]) from error


def dump_yaml(document: Any) -> str:
    """Write a document as YAML, keys in their order."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


@dataclass
class Findings:
    """What was found while reading one document.

    Attributes:
        problems: What must be mended before it can run.
        warnings: What runs, but not as one may think.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, path: str, message: str) -> None:
        """Record something that must be mended."""
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        """Record something that the user should know."""
        self.warnings.append(Problem(path, message))


@dataclass(frozen=True)
class Node:
    """One mapping of the document: its fields are read with a type, problems go to `findings`."""

    value: Mapping[str, Any]
    path: str
    findings: Findings

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def check_fields(self, allowed: Iterable[str]) -> None:
        """Report fields that are not among the allowed ones: a near miss as a problem, a stranger as a warning."""
        names = tuple(allowed)
        for name in self.value:
            if name not in names:
                self._report_unknown(str(name), names)

    def _report_unknown(self, name: str, allowed: tuple[str, ...]) -> None:
        near = near_miss(name, allowed)
        if near and near not in self.value:
            self.findings.problem(self.at(name), f"unknown field, did you mean {near}?")
        elif near:
            self.findings.problem(self.at(name), f"unknown field beside {near}: remove one of the two")
        else:
            self.findings.warn(self.at(name), f"unknown field, ignored; known here: {', '.join(sorted(allowed))}")

    def text(self, name: str, *, required: bool = False) -> str:
        """Read a text; a number is taken as its text, since the field's quotes are easily forgotten."""
        value = self.value.get(name)
        if value is None or value == "":
            if required:
                self.findings.problem(self.at(name), "missing, a text is needed here")
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.findings.problem(self.at(name), f"must be a text, got {describe(value)}; put it in quotes")
            return ""
        return str(value)

    def integer(self, name: str, *, minimum: int, maximum: int = 2**31 - 1) -> int | None:
        """Read a whole number within these bounds; None when the field is absent or wrong."""
        value = self.value.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.findings.problem(self.at(name), f"must be a whole number, got {describe(value)}")
            return None
        if not minimum <= value <= maximum:
            bound = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            self.findings.problem(self.at(name), f"must be {bound}, got {describe(value)}")
            return None
        return value

    def number(self, name: str) -> float | None:
        """Read a finite number, given as a number or as its text; None when the field is absent or wrong."""
        value = self.value.get(name)
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            self.findings.problem(self.at(name), f"must be a number, got {describe(value)}")
            return None
        return number

    def choice(self, name: str, allowed: Iterable[str], *, default: str = "") -> str:
        """Read one of a few words; the default, or "" where there is none, when it is absent or wrong."""
        words = tuple(allowed)
        value = self.value.get(name)
        if value is None or value == "":
            if not default:
                self.findings.problem(self.at(name), f"missing, must be one of {', '.join(words)}")
            return default
        if value not in words:
            hint = near_miss(str(value), words)
            suffix = f"; did you mean {hint}?" if hint else ""
            self.findings.problem(self.at(name), f"got {describe(value)}, must be one of {', '.join(words)}{suffix}")
            return ""
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of texts; empty when it is absent or wrong."""
        return tuple(
            str(value)
            for index, value in enumerate(self._list(name))
            if self._is_text(f"{self.at(name)}[{index}]", value)
        )

    def child(self, name: str, *, required: bool = False) -> Node | None:
        """Read a mapping; None when it is absent or wrong."""
        value = self.value.get(name)
        if value is None:
            if required:
                self.findings.problem(self.at(name), "missing")
            return None
        return as_node(value, self.at(name), self.findings)

    def children(self, name: str) -> Iterator[Node]:
        """Read a list of mappings; those that are none are reported and left out."""
        for index, value in enumerate(self._list(name)):
            node = as_node(value, f"{self.at(name)}[{index}]", self.findings)
            if node is not None:
                yield node

    def _list(self, name: str) -> list[Any]:
        value = self.value.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.findings.problem(self.at(name), f"must be a list, got {describe(value)}")
            return []
        return value

    def _is_text(self, path: str, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.findings.problem(path, f"must be a text, got {describe(value)}; put it in quotes")
            return False
        return True


def as_node(value: object, path: str, findings: Findings) -> Node | None:
    """Take a value as a mapping; None, and a problem, when it is something else."""
    if isinstance(value, Mapping):
        return Node(value, path, findings)
    findings.problem(path, f"must be a mapping of fields, got {describe(value)}")
    return None


def describe(value: object) -> str:
    """Tell what a value is, in words short enough for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def near_miss(name: str, allowed: Iterable[str]) -> str:
    """Return the allowed word that was probably meant, "" when none is near."""
    by_lower = {word.lower(): word for word in allowed}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[found[0]] if found else ""
