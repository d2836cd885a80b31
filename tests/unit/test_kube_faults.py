"""Each answer that is no success becomes the error that tells what to do about it."""

from __future__ import annotations

import json
import ssl

import pytest
import urllib3

from hpo_core.errors import Conflict, HpoError, LaunchError, NotFound, TransientError
from hpo_core.kube.faults import Forbidden, Gone, NotServed, Refusal, Refused, of_the_way

LACKS = 'jobs.batch is forbidden: User "system:serviceaccount:team:runner" cannot create resource "jobs" in API group'
WEBHOOK = 'admission webhook "policy.example" denied the request: User "x" cannot create resource '


def error_of(code: int, message: str = "words", *, verb: str = "create", reason: str = "", name: str = "") -> HpoError:
    status = {"kind": "Status", "message": message, "reason": reason, "details": {"name": name}}
    return Refusal.read(code, json.dumps(status).encode()).error("cannot do it", verb)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_will_pass_is_transient(code: int) -> None:
    assert isinstance(error_of(code), TransientError)


@pytest.mark.parametrize(
    ("code", "message", "verb", "kind"),
    [
        (401, "Unauthorized", "get", LaunchError),
        (403, LACKS, "create", Forbidden),
        (403, 'jobs "j" is forbidden: exceeded quota: full', "create", Refused),
        (403, 'pods "p" is forbidden: violates PodSecurity "restricted:latest": ...', "create", Refused),
        (403, 'pods "p" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi', "create", Refused),
        (
            403,
            'pods "p" is forbidden: unable to create new content in namespace x because it is being',
            "patch",
            Refused,
        ),
        (403, WEBHOOK, "create", Refused),
        (400, WEBHOOK, "create", Refused),
        (400, "strict decoding error", "create", Refused),
        (413, "too large", "create", Refused),
        (422, "is invalid", "patch", Refused),
        (400, "container x is not valid for pod p", "get", LaunchError),
        (400, 'container "x" in pod "p" is waiting to start: ContainerCreating', "get", TransientError),
        (410, "too old resource version: 1 (2)", "watch", Gone),
        (504, "Too large resource version: 9, current: 5", "watch", Gone),
        (302, "moved", "get", LaunchError),
    ],
)
def test_what_will_not_pass_is_told_from_what_lacks_permission(
    code: int, message: str, verb: str, kind: type[HpoError]
) -> None:
    error = error_of(code, message, verb=verb)
    assert type(error) is kind
    assert str(error).startswith(f"cannot do it: {message}")


def test_a_missing_permission_names_the_way_out() -> None:
    error = error_of(403, LACKS)
    assert "`kubectl apply -k manifests/base` grants" in str(error)
    assert isinstance(error, Forbidden)
    assert error.user == "system:serviceaccount:team:runner"


def test_somebody_without_a_name_is_told_to_log_in() -> None:
    told = str(error_of(403, 'pods is forbidden: User "system:anonymous" cannot list resource "pods" in', verb="list"))
    assert "no credentials were sent" in told
    assert "kubectl apply" not in told


def test_a_missing_object_a_missing_kind_and_a_missing_namespace_differ() -> None:
    assert type(error_of(404, verb="get", name="one")) is NotFound
    assert type(error_of(404, verb="get")) is NotServed
    assert type(error_of(404, 'namespaces "x" not found', verb="create", name="x")) is LaunchError


def test_a_conflict_of_quotas_passes_and_one_of_names_does_not() -> None:
    """Objects that are created at the same time compete for the quota's own version."""
    assert type(error_of(409, reason="AlreadyExists")) is Conflict
    assert type(error_of(409, reason="Conflict", verb="patch")) is Conflict
    assert type(error_of(409, "Operation cannot be fulfilled on resourcequotas", reason="Conflict")) is TransientError


@pytest.mark.parametrize(
    ("header", "body", "wait_s"), [("7", {}, 7.0), ("", {"details": {"retryAfterSeconds": 3}}, 3.0), ("", {}, 1.0)]
)
def test_the_server_says_when_to_come_back(header: str, body: dict[str, object], wait_s: float) -> None:
    error = Refusal.read(429, json.dumps(body).encode(), retry_after=header).error("cannot do it", "get")
    assert isinstance(error, TransientError)
    assert error.retry_after_s == wait_s


@pytest.mark.parametrize("body", [b"<html>\n  bad\n gateway</html>", b"[]", b"", b"\xff\xfe"])
def test_an_answer_that_is_not_the_servers_is_told_in_one_line(body: bytes) -> None:
    error = Refusal.read(502, body).error("cannot do it", "get")
    assert isinstance(error, TransientError)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (urllib3.exceptions.ReadTimeoutError(None, "", ""), TransientError, "does not answer in time"),  # type: ignore[arg-type]
        (TimeoutError(), TransientError, "does not answer in time"),
        (urllib3.exceptions.ProtocolError("x"), TransientError, "the connection broke"),
        (ConnectionResetError(), TransientError, "the connection broke"),
        (urllib3.exceptions.SSLError(ssl.SSLEOFError()), TransientError, "the connection broke"),
        (urllib3.exceptions.SSLError(ssl.SSLError(1, "[SSL] internal error")), TransientError, "the connection broke"),
        (
            urllib3.exceptions.SSLError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")),
            LaunchError,
            "does not speak TLS",
        ),
        (
            urllib3.exceptions.SSLError(ssl.SSLCertVerificationError(1, "certificate verify failed")),
            LaunchError,
            "its certificate is not trusted",
        ),
        (urllib3.exceptions.LocationParseError("http://["), LaunchError, "is no address"),
    ],
)
def test_what_happens_on_the_way_is_told_with_the_address(error: Exception, kind: type[HpoError], told: str) -> None:
    translated = of_the_way("cannot do it", "https://here", error)
    assert type(translated) is kind
    assert told in str(translated)
    assert "https://here" in str(translated)
