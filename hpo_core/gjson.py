"""Success and failure conditions: GJSON expressions over a workload's document, and Katib's rule when one holds.

It reads the part of GJSON that conditions use: keys, indexes, `#`, queries, `@this` and `[path,path]`, joined by `.` or
`|`. All else is refused, so that what is read means what it means to Katib; only that a text which holds brackets stays
a text, where GJSON would walk into it behind a pipe. Which condition is asked first, and what follows when it holds, is
the caller's. GJSON: https://github.com/tidwall/gjson/blob/master/SYNTAX.md
"""

from __future__ import annotations

import glob
import json
import operator
import re
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final, NoReturn


class Missing(Enum):
    """The type of `MISSING`, which is no value at all; JSON's null is a value, and is None."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


@dataclass(frozen=True)
class _Key:
    name: str
    index: int | None


class _Word(Enum):
    THIS = "@this"
    LENGTH = "#"


@dataclass(frozen=True)
class _Each:
    """`#.path`."""

    path: _Path


@dataclass(frozen=True)
class _Many:
    """`[path,path]`."""

    paths: tuple[_Path, ...]


@dataclass(frozen=True)
class _Query:
    """`#(path op value).then`; no operator asks whether anything is at the path, no path asks the element itself."""

    path: _Path
    op: str
    value: str
    every: bool
    then: _Path


_Step = _Key | _Word | _Each | _Many | _Query
_Path = tuple[_Step, ...]

_PLAIN = r'(?:\\[^\x00-\x20]|[^\\.|*?#"()\[\]{},:!=<>%\x00-\x20])'
_KEY = re.compile(rf"{_PLAIN}(?: *{_PLAIN})*")
_INDEX = re.compile(r"[0-9]{1,18}")
_BLANK = re.compile(r"[\x00-\x20]*")
_OPERATOR = re.compile(r"(?:==|!=|<=|>=|!%|[=<>%])?")
_QUOTED = re.compile(r'"(?!~|\\u007[eE])(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_BARE = re.compile(r'[^\x00-\x20"\\()\[\]{}!=<>%~](?: *[^\x00-\x20"\\()\[\]{}])*')
_DIGITS = "[0-9](?:_?[0-9])*"
_FINITE = rf"[+-]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:e[+-]?{_DIGITS})?"
_NUMBER = re.compile(rf"{_FINITE}|[+-]?inf(?:inity)?|nan", re.IGNORECASE)
_LONE_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")
_QUERY_ENDS = "=!<>%)"
_ORDER = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Held:
    """What the document says about a condition that holds; "" where it says nothing."""

    reason: str
    message: str


@dataclass(frozen=True)
class Condition:
    """A GJSON expression that was read."""

    text: str
    path: _Path

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read an expression.

        Raises:
            ValueError: It is outside the part of GJSON that is read here; says what was found where, what is allowed.
        """
        return cls(text, _read_path(text, 0, "")[0])

    def evaluate(self, document: object) -> object:
        """Return what is found in a JSON document of dicts, lists and scalars; `MISSING` when nothing is."""
        return _get(document, self.path)

    def holds(self, document: object) -> Held | None:
        """Apply Katib's rule: a condition holds when it finds an object, or an array that is not empty.

        Returns:
            The texts `reason` and `message` of the object or of the array's first element; None when it does not hold.
        """
        found = self.evaluate(document)
        if not isinstance(found, dict | list) or found == []:
            return None
        told = found[0] if isinstance(found, list) else found
        texts = [told.get(name) if isinstance(told, dict) else None for name in ("reason", "message")]
        reason, message = (text if isinstance(text, str) else "" for text in texts)
        return Held(reason, message)


def check(text: str) -> str:
    """Return in one sentence why an expression cannot be read; "" when it can."""
    try:
        Condition.parse(text)
    except ValueError as error:
        return str(error)
    return ""


def _refuse(text: str, at: int, allowed: str) -> NoReturn:
    found = repr(text[at : at + 12]) if at < len(text) else "the end"
    raise ValueError(f"found {found} at character {at + 1} of the condition {text!r}: {allowed}")


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _read_path(text: str, at: int, ends: str) -> tuple[_Path, int]:
    """Read steps up to the end of the text or a character of `ends`; return them, and where they end."""
    steps: list[_Step] = []
    while True:
        step, at = _read_step(text, at, ends)
        steps.append(step)
        after = _skip(_BLANK, text, at)
        if ")" in ends and text.startswith(tuple(_QUERY_ENDS), after):
            at = after
        if at == len(text) or text[at] in ends:
            return tuple(steps), at
        if text[at] not in ".|":
            _refuse(text, at, "a path goes on with . or |, an index is written .0, and comparisons stand inside #(…)")
        at += 1


def _read_step(text: str, at: int, ends: str) -> tuple[_Step, int]:
    if text.startswith("#(", at):
        return _read_query(text, at, ends)
    if text.startswith("#.", at):
        path, end = _read_inner(text, at + 2, ends)
        return _Each(path), end
    if text.startswith("#", at):
        return _Word.LENGTH, at + 1
    if text.startswith(("[", "@"), at) and "\\" in text[:at]:
        _refuse(text, at, "this must stand before any key with a backslash, because GJSON may misread it there")
    if text.startswith("[", at):
        return _read_many(text, at)
    raw = text[at : _skip(_KEY, text, at)]
    if raw == "@this":
        return _Word.THIS, at + len(raw)
    if not raw or raw[0] == "@":
        steps = 'a key, an index, #, #(key=="value"), #(…)#, @this or [path,path]'
        _refuse(text, at, f"allowed is {steps}; a backslash before a special character makes it part of a key")
    return _Key(re.sub(r"\\(.)", r"\1", raw), int(raw) if _INDEX.fullmatch(raw) else None), at + len(raw)


def _read_inner(text: str, at: int, ends: str) -> tuple[_Path, int]:
    """Read what is asked of each element, which ends at the first `|`; refuse where GJSON takes another."""
    path, end = _read_path(text, at, ends + "|")
    if (isinstance(path[0], _Query) and "|" in text[at:end]) or text[at : end + 1].endswith(".#|"):
        _refuse(text, at, "GJSON itself misreads the | in this part: write it without")
    return path, end


def _read_query(text: str, at: int, ends: str) -> tuple[_Query, int]:
    path: _Path = ()
    end = _skip(_BLANK, text, at + 2)
    if not text.startswith(tuple("=!<>%"), end):
        path, end = _read_path(text, end, _QUERY_ENDS)
    op, value = text[end : _skip(_OPERATOR, text, end)], ""
    if op:
        value, end = _read_value(text, _skip(_BLANK, text, end + len(op)))
    if "%" in op and _LONE_BACKSLASH.search(value):
        _refuse(text, end, "a pattern does not end with a lone backslash")
    if not text.startswith(")", end):
        _refuse(text, end, "a query is #(path) or #(path==value), and compares with ==, !=, <, <=, >, >=, % or !%")
    every = text.startswith("#", end + 1)
    end = _skip(_BLANK, text, end + 1 + every)
    then: _Path = ()
    if text.startswith(".", end):
        then, end = _read_inner(text, end + 1, ends)
    return _Query(path, op, value, every, then), end


def _read_value(text: str, at: int) -> tuple[str, int]:
    end = _skip(_QUOTED, text, at)
    value = str(json.loads(text[at:end])) if end > at else text[at : (end := _skip(_BARE, text, at))]
    if end == at:
        _refuse(text, at, 'a value is a number, true, false or a text as in "Complete", and begins with no ~')
    return value, _skip(_BLANK, text, end)


def _read_many(text: str, at: int) -> tuple[_Many, int]:
    if "#" in text[:at]:
        _refuse(text, at, "a list of paths must stand before any #, because GJSON may misread it there")
    paths: list[_Path] = []
    end = at
    while not paths or text.startswith(",", end):
        path, end = _read_path(text, end + 1, ",]")
        paths.append(path)
    if not text.startswith("]", end):
        _refuse(text, end, "a list of paths ends with ]")
    return _Many(tuple(paths)), end + 1


def _get(value: object, path: _Path) -> object:
    """Walk a path: each step sees what the one before it found, and only `[…]` makes something of `MISSING`."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if step is _Word.THIS:
        return _get(value, rest)
    if isinstance(step, _Many):
        return _get(_present([_get(value, each) for each in step.paths]), rest)
    if isinstance(value, dict):
        return _get(value.get(step.name, MISSING) if isinstance(step, _Key) else MISSING, rest)
    if not isinstance(value, list):
        return MISSING
    if isinstance(step, _Query):
        return _query(value, step, rest)
    if isinstance(step, _Each):
        return _get(_present([_get(element, step.path) for element in value]), rest)
    if step is _Word.LENGTH:
        return _get(len(value), rest)
    return _get(value[step.index] if step.index is not None and step.index < len(value) else MISSING, rest)


def _present(found: list[object]) -> list[object]:
    return [value for value in found if value is not MISSING]


def _query(elements: list[object], query: _Query, rest: _Path) -> object:
    matched = [element for element in elements if _matches(element, query)]
    if query.then and not matched:
        rest = ()  # GJSON finds the pipe behind `then` when the first element matches, and else never.
    if query.every:
        return _get(_present([_get(element, query.then) for element in matched]), rest)
    return _get(_get(matched[0], query.then) if matched else MISSING, rest)


def _matches(element: object, query: _Query) -> bool:
    """Compare as GJSON does: by the type of what is found, so that null and objects match no comparison."""
    found = _get(element, query.path) if isinstance(element, dict | list) == bool(query.path) else MISSING
    op, value = query.op, query.value
    if not op or found is MISSING:
        return found is not MISSING
    if isinstance(found, bool):
        return _compare_bool(found, op, value)
    if isinstance(found, int | float) and op in _ORDER:
        return bool(_ORDER[op](float(found), float(value) if _NUMBER.fullmatch(value) else 0.0))
    if isinstance(found, str) and op in _ORDER:
        return bool(_ORDER[op](found, value))
    return isinstance(found, str) and fnmatchcase(found, _as_fnmatch(value)) == (op == "%")


def _compare_bool(found: bool, op: str, value: str) -> bool:
    same = value == ("true" if found else "false")
    if op in ("=", "==", "!="):
        return same == (op != "!=")
    opposite = value == ("false" if found else "true")
    return (op[0] == (">" if found else "<")) and (op in ("<=", ">=") or opposite)


def _as_fnmatch(pattern: str) -> str:
    """Write a GJSON pattern, where a backslash makes a character plain and [ is plain, as one of fnmatch."""
    return re.sub(r"\\(.)|\[", lambda found: glob.escape(found[1] or "["), pattern, flags=re.DOTALL)
