"""An algorithm's settings: declared once in a frozen dataclass, then read, checked and documented from it.

The field's type says what a text may be: `int`, `float`, `bool`, `str`, a `Literal` of words, or one of these `| None`.
Whether the settings suit the experiment is the algorithm's own question.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hpo_core.experiment import Findings
from hpo_core.experiment.document import near_miss

REQUIRED: Any = MISSING
"""The default of a setting that the user must give."""

S = TypeVar("S")

_HOLDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare one setting, as a field of an algorithm's `Settings`.

    Args:
        default: The value when the user gives none; REQUIRED when there is no sensible one.
        help: What it does, for users, in one sentence without a full stop.
        minimum: Smallest value allowed; None for no bound, here and below.
        maximum: Largest value allowed.
        above: Values must be greater than this.
        below: Values must be smaller than this.
    """
    bounds = {"at least": minimum, "at most": maximum, "above": above, "below": below}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    return field(default=default, metadata={"help": help, "bounds": given})


@dataclass(frozen=True)
class _Rule:
    """What the text of one setting may be."""

    name: str
    type: type
    words: tuple[str, ...]
    optional: bool
    default: Any
    bounds: Mapping[str, float]
    help: str

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.type]
        bounds = " and ".join(f"{words} {bound:g}" for words, bound in self.bounds.items())
        return " ".join(part for part in (kind, bounds, "or None" if self.optional else "") if part)

    def parse(self, text: str) -> Any:
        """Read the setting's text.

        Raises:
            ValueError: It is not what is allowed.
        """
        if self.optional and text == "None":
            return None
        if self.words:
            value: Any = text if text in self.words else None
        elif self.type is bool:
            value = {"true": True, "false": False}.get(text.lower())
        else:
            value = self.type(text)
        if value is None or (isinstance(value, float) and not math.isfinite(value)) or not self._is_within(value):
            raise ValueError(text)
        return value

    def _is_within(self, value: Any) -> bool:
        return all(_HOLDS[words](value, bound) for words, bound in self.bounds.items())


def read_settings(settings: type[S], texts: Mapping[str, str], findings: Findings) -> S | None:
    """Read an algorithm's settings from the texts that the user gave.

    Args:
        settings: The algorithm's dataclass; its fields were made by `setting`.
        texts: Text by setting name, as `algorithmSettings` holds them.
        findings: Gets every unknown, missing or wrong setting, with its path.

    Returns:
        The settings with their defaults filled in; None when a problem was found.
    """
    rules = {rule.name: rule for rule in _rules(settings)}
    values: dict[str, Any] = {}
    before = len(findings.problems)
    for name, text in texts.items():
        if name not in rules:
            findings.problem(_path(name), _unknown(name, tuple(rules)))
            continue
        try:
            values[name] = rules[name].parse(text)
        except ValueError:
            findings.problem(_path(name), f"must be {rules[name].allowed}, got {text!r}")
    for rule in rules.values():
        if rule.default is MISSING and rule.name not in texts:
            findings.problem(_path(rule.name), f"missing: {rule.help}; must be {rule.allowed}")
    return settings(**values) if len(findings.problems) == before else None


def settings_table(settings: type[Any]) -> str:
    """Write an algorithm's settings as a Markdown table; one sentence where there are none."""
    rules = _rules(settings)
    if not rules:
        return "It has no settings.\n"
    lines = ["| setting | default | allowed | what it does |", "|---|---|---|---|"]
    for rule in rules:
        default = "must be given" if rule.default is MISSING else f"`{_text(rule.default)}`"
        lines.append(f"| `{rule.name}` | {default} | {rule.allowed} | {rule.help} |")
    return "\n".join(lines) + "\n"


def _rules(settings: type[Any]) -> tuple[_Rule, ...]:
    hints = get_type_hints(settings)
    return tuple(_rule(declared, hints[declared.name]) for declared in fields(settings))


def _rule(declared: Field[Any], hint: Any) -> _Rule:
    kinds = [hint] if get_origin(hint) is Literal or not get_args(hint) else list(get_args(hint))
    kind = next(kind for kind in kinds if kind is not NoneType)
    words = get_args(kind)
    return _Rule(
        name=declared.name,
        type=str if words else kind,
        words=words,
        optional=NoneType in kinds,
        default=declared.default,
        bounds=declared.metadata["bounds"],
        help=declared.metadata["help"],
    )


def _path(name: str) -> str:
    return f"spec.algorithm.algorithmSettings[{name}]"


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = near_miss(name, known)
    if near:
        return f"unknown setting, did you mean {near}?"
    return f"unknown setting, this algorithm knows {', '.join(known) or 'none'}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
