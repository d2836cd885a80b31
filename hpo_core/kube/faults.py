"""What an API server means when it does not do what it is asked to: what will pass, and what to do about the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3

from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, TransientError

GRANT = "`kubectl apply -k manifests/base` grants what is needed; docs/kubernetes.md tells it for every kind of trial"
WAIT_S = 1.0
"""When to try again where the server does not say."""

_PASSING = (408, 429, 500, 502, 503, 504)
_WRITES = ("create", "patch")
_LACKS_PERMISSION = re.compile(r'User "(?P<user>[^"]*)" cannot \S+ (resource|path) ')
_REFUSES_OBJECT = re.compile(r"exceeded quota|admission|violates PodSecurity|because it is being terminated")
_NO_TRUST = re.compile(r"certificate|WRONG_VERSION_NUMBER", re.IGNORECASE)


class Refused(LaunchError):
    """The API server will not have this object, whoever asks: it is invalid, above a quota or against a policy."""


class Forbidden(LaunchError):
    """This account may not do that.

    Args:
        user: The account, as the server names it; "" where it does not.
    """

    def __init__(self, message: str, user: str) -> None:
        super().__init__(message)
        self.user = user


class NotServed(LaunchError):
    """The API server does not know this kind."""


class Gone(TransientError):
    """The version from which the server was to go on is too old for it, or from before its own restoration."""


@dataclass(frozen=True)
class Refusal:
    """An answer that is no success.

    Attributes:
        code: Its HTTP status.
        message: What the server says.
        reason: Kubernetes's word for it; "" when the answer is not Kubernetes's.
        details: What it is about: name, kind, causes.
        retry_after_s: When to try again, in seconds.
    """

    code: int
    message: str
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float = WAIT_S

    @classmethod
    def of(cls, status: Mapping[str, Any], *, code: int = 0, retry_after: str = "") -> Refusal:
        """Read a Status object, the form in which Kubernetes refuses.

        Args:
            status: The object.
            code: The answer's HTTP status; 0 for what the object says.
            retry_after: The answer's header of that name.
        """
        details = status.get("details") or {}
        code = code or int(status.get("code") or 500)
        wait = retry_after if retry_after.isdigit() else details.get("retryAfterSeconds")
        message = str(status.get("message") or f"status {code}")
        return cls(code, message, str(status.get("reason") or ""), details, float(wait or WAIT_S))

    @classmethod
    def read(cls, code: int, body: bytes, retry_after: str = "") -> Refusal:
        """Read the body of an answer, which need not be Kubernetes's: a proxy may have answered."""
        try:
            status = json.loads(body)
        except ValueError:
            status = {"message": " ".join(body[:200].decode(errors="replace").split())}
        return cls.of(status if isinstance(status, dict) else {}, code=code, retry_after=retry_after)

    @property
    def is_gone(self) -> bool:
        """Whether one has to list again before one can go on watching."""
        return self.code == 410 or "Too large resource version" in self.message

    def error(self, attempt: str, verb: str) -> HpoError:
        """Return what is to be raised for it.

        Args:
            attempt: What could not be done, and where.
            verb: What was to be done, in Kubernetes's word.
        """
        told = f"{attempt}: {self.message}"
        if self.is_gone:
            return Gone(told)
        if self.code in _PASSING or (self.code == 400 and "waiting to start" in self.message):
            return TransientError(f"{told}; waiting for it", self.retry_after_s)
        if self.code == 401:
            return LaunchError(
                f"{told}; the server does not take the credentials: log in anew, or check the kubeconfig"
            )
        if self.code == 403:
            return self._forbidden(told, verb)
        if self.code == 404 and verb == "create" and self.details.get("name"):
            return LaunchError(f"{told}; create it, or name another")  # it is the namespace that is missing
        if self.code == 404:
            return NotFound(told) if self.details.get("name") else NotServed(told)
        if self.code == 409:
            return self._in_conflict(told, verb)
        if verb in _WRITES and self.code in (400, 413, 422):
            return Refused(told)
        return LaunchError(f"{told} ({self.code})")

    def _forbidden(self, told: str, verb: str) -> LaunchError:
        """Tell who may not from what may not be."""
        lacks = _LACKS_PERMISSION.search(self.message)
        if verb in _WRITES and (_REFUSES_OBJECT.search(self.message) or not lacks):
            return Refused(told)
        if lacks and lacks["user"] == "system:anonymous":
            return LaunchError(f"{told}; no credentials were sent: log in, or check the kubeconfig")
        return Forbidden(f"{told}; {GRANT}", lacks["user"] if lacks else "")

    def _in_conflict(self, told: str, verb: str) -> HpoError:
        if verb == "create" and self.reason != "AlreadyExists":
            return TransientError(f"{told}; trying again", self.retry_after_s)  # a quota that many count on at once
        return Conflict(told)


def of_the_way(attempt: str, server: str, error: Exception) -> LaunchError | TransientError:
    """Return the error for a request that got no answer, or no whole one.

    Args:
        attempt: What could not be done.
        server: The API server's address.
        error: What happened.
    """
    if isinstance(error, urllib3.exceptions.SSLError) and _NO_TRUST.search(str(error)):
        advice = "it does not speak TLS, or its certificate is not trusted; check the kubeconfig's server and authority"
        return LaunchError(f"{attempt} at {server}: {advice}: {error}")
    if isinstance(error, urllib3.exceptions.LocationParseError):
        return LaunchError(f"{attempt}: {server} is no address; check the kubeconfig")
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        met = "its name is not known here"
    elif isinstance(error, urllib3.exceptions.NewConnectionError):
        met = "nobody accepts connections there"
    elif isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError):
        met = "it does not answer in time"
    else:
        met = f"the connection broke ({type(error).__name__})"
    return TransientError(f"{attempt} at {server}: {met}; waiting for it", WAIT_S)
