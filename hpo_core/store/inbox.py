"""What others ask of the one writer: a folder of requests that anybody may add to and only the writer empties."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hpo_core.errors import NotFound, Problem, SpecError
from hpo_core.objects import ABSENT, ObjectStore

STOP = "stop"
"""Suspend the experiment, or end its retraining."""
STOP_TRIAL = "stop-trial"
"""End one trial as Killed."""
EDIT = "edit"
"""Change the budget."""

REFUSED_S = 300.0
"""How long a refusal waits for whoever asked; who has given up or died never fetches his."""
_REFUSED = "refused/"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What somebody asks of the writer.

    Attributes:
        kind: `stop`, `stop-trial` or `edit`.
        by: Who asks, for the log.
        trial: The number of the trial that is to be stopped; 0 for none.
        budgets: The new value of each budget field that is to change, by its name in the spec.
        key: Where it lies; "" before it is sent.
    """

    kind: str
    by: str = ""
    trial: int = 0
    budgets: Mapping[str, int] = field(default_factory=dict)
    key: str = ""


class Inbox:
    """The requests of one experiment.

    Args:
        objects: Where they lie.
        prefix: Begins the key of each.
    """

    def __init__(self, objects: ObjectStore, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix

    def send(self, request: Request) -> Request:
        """Ask something of the writer, who looks once a second; returns the request with its key."""
        key = f"{self._prefix}{_ulid()}.json"
        body: dict[str, Any] = {"kind": request.kind, "by": request.by}
        if request.trial:
            body |= {"trial": request.trial}
        if request.budgets:
            body |= {"budgets": dict(request.budgets)}
        self._objects.put(key, json.dumps(body).encode(), expect=ABSENT)
        return replace(request, key=key)

    def requests(self) -> list[Request]:
        """Return what others asked for, the oldest first; empty when nobody did."""
        found = []
        for key in self._objects.list(self._prefix, deep=False):
            if key.endswith("/"):
                continue
            try:
                found.append(_parsed(self._objects.get(key).data, key))
            except NotFound:
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                _log.warning("request.unreadable key=%s", key)
                self._objects.delete(key)
        return found

    def consume(self, request: Request) -> None:
        """Remove a request that has been dealt with. Idempotent."""
        self._objects.delete(request.key)

    def refuse(self, request: Request, refused: SpecError) -> None:
        """Say why a request is not fulfilled, to whoever waits for that, and remove it."""
        problems = [[problem.path, problem.message] for problem in refused.problems]
        self._objects.put(self._refusal_key(request), json.dumps(problems).encode())
        self.consume(request)

    def check_fulfilled(self, request: Request) -> None:
        """Look what became of a request that is pending no longer.

        Raises:
            SpecError: The writer has refused it.
        """
        try:
            told = self._objects.get(self._refusal_key(request)).data
        except NotFound:
            return
        self._objects.delete(self._refusal_key(request))
        raise SpecError([Problem(path, message) for path, message in json.loads(told)])

    def drop_refusals(self) -> None:
        """Remove the refusals that nobody fetches any more; for the writer."""
        for key in self._objects.list(f"{self._prefix}{_REFUSED}"):
            with contextlib.suppress(NotFound):
                if self._objects.get(key).age_s > REFUSED_S:
                    self._objects.delete(key)

    def _refusal_key(self, request: Request) -> str:
        return f"{self._prefix}{_REFUSED}{request.key.removeprefix(self._prefix)}"

    def is_pending(self, request: Request) -> bool:
        """Tell whether the writer has not dealt with a request that was sent."""
        return request.key in self._objects.list(request.key)


def _parsed(data: bytes, key: str) -> Request:
    body = json.loads(data)
    budgets = {str(name): int(value) for name, value in body.get("budgets", {}).items()}
    return Request(str(body["kind"]), str(body.get("by", "")), int(body.get("trial", 0)), budgets, key)


def _ulid() -> str:
    """A name that sorts by its time: 48 bits of milliseconds and 80 random ones, in Crockford's base 32."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(number >> shift) & 31] for shift in range(125, -1, -5))
