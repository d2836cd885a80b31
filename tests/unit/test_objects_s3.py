"""What is made of an S3 server's answers, with one that answers what the test says; real ones are in tests/e2e."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects import ABSENT, MemoryStore, RecordStore, open_objects
from hpo_core.objects.probe import PROBERS, keeps_writers_apart
from hpo_core.objects.s3 import DENIED_S
from tests.forward_proxy import ForwardProxy, forward_proxy
from tests.s3_server import free_port

SECRETS = {"AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_SESSION_TOKEN": "the-token"}
XML = {"Content-Type": "application/xml"}
LISTING = """<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
ENTRY = "<Contents><Key>{}</Key><Size>1</Size></Contents>"
FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass
class ScriptedServer:
    """Gives its answers one after the other, the last one for ever, and keeps the requests."""

    answers: list[Answer]
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    url: str = ""

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer([])

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            scripted.requests.append((self.command, self.path, dict(self.headers.items())))
            answer = scripted.next()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        scripted.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield scripted
        http.shutdown()
        thread.join()


def opened(server: ScriptedServer, *answers: Answer, **environment: str) -> RecordStore:
    server.answers = list(answers)
    told = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "key", "AWS_REGION": "us-east-1", **SECRETS}
    return open_objects("s3://bucket/p", {**told, **environment})


def refused(status: int, code: str, message: str = "it said") -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(), XML)


PAGE = b"<!DOCTYPE html><html><body>Hello<br></body></html>"
HTML = {"Content-Type": "text/html"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refused(503, "SlowDown"), r"the server answers SlowDown \(it said\); waiting for it"),
        (refused(500, "InternalError"), r"the server answers InternalError \(it said\); waiting for it"),
        (refused(400, "RequestTimeout"), r"the server answers RequestTimeout \(it said\); waiting for it"),
        (refused(409, "OperationAborted"), r"the server answers OperationAborted \(it said\); waiting for it"),
        (
            refused(409, "ConditionalRequestConflict"),
            r"the server answers ConditionalRequestConflict \(it said\); waiting for it",
        ),
        (refused(400, "IncompleteBody"), r"the server answers IncompleteBody \(it said\); waiting for it"),
        (refused(507, "XMinioStorageFull"), "the server's disk or quota is full; make room there"),
        (refused(500, "InternalError", "no space left on device"), "the server's disk or quota is full; make room"),
        (refused(403, "QuotaExceeded"), "the server's disk or quota is full; make room there"),
        (Answer(502, PAGE, HTML), "the server answers 502; waiting for it"),
        (Answer(429), "the server answers 429; waiting for it"),
        (Answer(200, b"half", length=9), "the connection broke"),
    ],
)
@pytest.mark.parametrize("action", ["read", "write"])
def test_what_is_likely_to_pass_is_transient(server: ScriptedServer, answer: Answer, said: str, action: str) -> None:
    store = opened(server, answer)
    with pytest.raises(
        TransientError, match=f"^cannot {action} a/b in s3://bucket/p at http://127.*: {said}"
    ) as caught:
        do(store, action)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refused(403, "AccessDenied"), r"its credentials do not allow this; ask for s3:ListBucket.*\(AccessDenied\)"),
        (refused(403, "InvalidAccessKeyId"), "it does not know the access key; check AWS_ACCESS_KEY_ID or MINIO_ACC"),
        (refused(403, "SignatureDoesNotMatch"), "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or MINIO_SEC"),
        (refused(400, "ExpiredToken"), "the session token has expired; get new credentials"),
        (refused(403, "RequestTimeTooSkewed"), "the clock of this machine differs from the server's"),
        (refused(301, "PermanentRedirect"), "it is in another region; set AWS_REGION"),
        (refused(307, "TemporaryRedirect"), "it is in another region; set AWS_REGION"),
        (refused(501, "NotImplemented"), "it lacks something that is needed; use another server, or set HPO_SINGLE_WR"),
        (refused(418, "Teapot", "I am one"), "the server answers Teapot: I am one$"),
        (
            Answer(400, PAGE, HTML),
            r"the answer is not S3's \(400\); check the server's address, and whether it wants http",
        ),
        (Answer(404, PAGE, HTML), r"the answer is not S3's \(404\); check the server's address"),
        (Answer(400, b"<html/>", XML), r"the answer is not S3's \(400\); check the server's address"),
        (Answer(400, b"no xml", XML), "the answer is not S3's"),
        (Answer(302, b"", {"Location": "/elsewhere"}), r"the answer is not S3's \(302\)"),
    ],
)
@pytest.mark.parametrize("action", ["read", "write"])
def test_what_will_not_pass_says_what_to_do(server: ScriptedServer, answer: Answer, said: str, action: str) -> None:
    store = opened(server, answer)
    with pytest.raises(StoreError, match=f"^cannot {action} a/b in s3://bucket/p at http://127.*: {said}") as caught:
        do(store, action)
    assert caught.value.__cause__ is not None
    denied = action == "write" and "AccessDenied" in said  # MinIO may mean it for an instant only
    assert len(server.requests) == (len(DENIED_S) if denied else 1)
    assert not any(secret in str(caught.value) for secret in (*SECRETS.values(), "Signature="))


def do(store: RecordStore, action: str) -> None:
    if action == "read":
        store.get("a/b")
    else:
        store.put("a/b", b"x", expect=ABSENT)


def test_a_web_page_is_no_list_of_objects(server: ScriptedServer) -> None:
    with pytest.raises(StoreError, match=r"cannot list ns/ in s3://bucket/p .*the answer is not S3's \(200\)"):
        opened(server, Answer(200, PAGE, HTML)).list("ns/")


def test_what_consoles_make_to_show_an_empty_folder_is_no_object(server: ScriptedServer) -> None:
    found = "".join([ENTRY.format("p/ns/"), ENTRY.format("p/ns/a"), FOLDER.format("p/ns/b/")])
    flat = opened(server, Answer(200, LISTING.format(found).encode(), XML)).list("ns/", deep=False)
    assert flat == ["ns/a", "ns/b/"]
    found = "".join(ENTRY.format(f"p/{key}") for key in ("ns/", "ns/a", "ns/b/"))
    assert opened(server, Answer(200, LISTING.format(found).encode(), XML)).list("") == ["ns/a"]


def test_a_tag_that_was_weakened_on_its_way_is_the_tag_that_the_server_knows(server: ScriptedServer) -> None:
    store = opened(server, Answer(200, b"x", {"ETag": 'W/"abc-2"'}), Answer(200, b"", {"ETag": '"def"'}))
    tag = store.get("a").etag
    assert store.put("a", b"y", expect=tag) == "def"
    assert server.requests[-1][2]["If-Match"] == '"abc-2"'


def test_an_object_whose_age_is_not_told_is_new(server: ScriptedServer) -> None:
    assert opened(server, Answer(200, b"x", {"ETag": '"abc"'})).get("a").age_s == 0.0


@pytest.mark.parametrize("answer", [refused(412, "PreconditionFailed"), Answer(412), refused(404, "NoSuchKey")])
def test_a_version_that_is_gone_is_a_conflict(server: ScriptedServer, answer: Answer) -> None:
    with pytest.raises(Conflict, match="s3://bucket/p/a was written by somebody else meanwhile"):
        opened(server, answer).put("a", b"x", expect="abc")


def test_a_bucket_that_is_gone_is_no_conflict(server: ScriptedServer) -> None:
    store = opened(server, refused(404, "NoSuchBucket"))
    with pytest.raises(NotFound, match=r"there is no bucket 'bucket' for s3://bucket/p at .*check bucket and address"):
        store.put("a", b"x", expect="abc")
    assert store.list("") == []
    store.delete("a")


def test_a_bucket_that_somebody_else_has_just_made_is_as_good_as_made(server: ScriptedServer) -> None:
    missing, made = refused(404, "NoSuchBucket"), refused(409, "BucketAlreadyOwnedByYou")
    absent, written = refused(404, "NoSuchKey"), Answer(200, b"", {"ETag": '"abc"'})
    store = opened(server, missing, made, absent, absent, written, HPO_SINGLE_WRITER="yes")
    lock = store.lock("lease", {})
    assert lock is not None
    lock.release()
    assert [(method, path.partition("?")[0]) for method, path, _ in server.requests[:3]] == [
        ("GET", "/bucket/p/.probe/none"),
        ("PUT", "/bucket"),
        ("GET", "/bucket/p/lease"),
    ]


def test_a_write_that_was_not_answered_counts_as_done_when_it_is_repeated(server: ScriptedServer) -> None:
    """Each has its own bytes, since records tell who writes them; so what lies there can only be ours."""
    there = Answer(200, b"mine", {"ETag": '"abc"'})
    store = opened(server, Answer(503), refused(412, "PreconditionFailed"), there)
    with pytest.raises(TransientError, match="503"):
        store.put("a", b"mine", expect=ABSENT)
    assert store.put("a", b"mine", expect=ABSENT) == "abc"


@pytest.mark.parametrize("found", [Answer(200, b"theirs", {"ETag": '"abc"'}), refused(404, "NoSuchKey")])
def test_a_repeated_write_whose_object_is_another_one_is_a_conflict(server: ScriptedServer, found: Answer) -> None:
    store = opened(server, Answer(503), refused(412, "PreconditionFailed"), found)
    with pytest.raises(TransientError, match="503"):
        store.put("a", b"mine", expect=ABSENT)
    with pytest.raises(Conflict, match="by somebody else"):
        store.put("a", b"mine", expect=ABSENT)


def test_another_write_after_one_that_was_not_answered_is_no_repetition(server: ScriptedServer) -> None:
    store = opened(server, Answer(503), refused(412, "PreconditionFailed"))
    with pytest.raises(TransientError, match="503"):
        store.put("a", b"mine", expect=ABSENT)
    with pytest.raises(Conflict, match="by somebody else"):
        store.put("a", b"another", expect=ABSENT)
    assert [method for method, *_ in server.requests] == ["PUT", "PUT"]


def test_a_session_token_is_sent_with_reads_and_writes(server: ScriptedServer) -> None:
    store = opened(server, Answer(200, b"", {"ETag": '"abc"'}))
    store.get("a")
    store.put("a", b"")
    (_, _, headers), (_, path, _) = server.requests
    assert headers["X-Amz-Security-Token"] == "the-token"
    assert "X-Amz-Security-Token=the-token" in path


def test_a_user_who_vouches_for_a_single_writer_gets_conditions_without_the_server(server: ScriptedServer) -> None:
    there, written = Answer(200, b"x", {"ETag": '"abc"'}), Answer(200, b"", {"ETag": '"def"'})
    store = opened(server, there, written, there, refused(404, "NoSuchKey"), written, HPO_SINGLE_WRITER="yes")
    assert store.put("a", b"y", expect="abc") == "def"
    with pytest.raises(Conflict, match="by somebody else"):
        store.put("a", b"y", expect="another")
    assert store.put("b", b"z", expect=ABSENT) == "def"
    assert [method for method, *_ in server.requests] == ["GET", "PUT", "GET", "GET", "PUT"]
    assert not any(name.startswith("If-") for *_, headers in server.requests for name in headers)


def test_a_server_without_conditional_writes_is_refused_by_the_first_lock(server: ScriptedServer) -> None:
    store = opened(server, Answer(200, b"", {"ETag": '"abc"'}))
    with pytest.raises(
        StoreError,
        match=r"s3://bucket/p at http://127.*: the server ignores conditional writes, .* or set HPO_SINGLE_WRITER=yes",
    ):
        store.lock("lease", {})


class Lenient(MemoryStore):
    """Ignores some conditions, as some servers do."""

    def __init__(self, *ignored: str) -> None:
        super().__init__()
        self._ignored = ignored

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        kind = {None: "none", ABSENT: "create"}.get(expect, "replace")
        return super().put(key, data, expect=None if kind in self._ignored else expect)


class Strict(MemoryStore):
    """Refuses to replace any version, as a server that compares tags wrongly."""

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        if expect:
            raise Conflict("never")
        return super().put(key, data, expect=expect)


@pytest.mark.parametrize(
    ("objects", "keeps_apart"),
    [
        (MemoryStore(), True),
        (Lenient("create"), False),
        (Lenient("replace"), False),
        (Lenient("create", "replace"), False),
        (Strict(), False),
    ],
)
def test_the_probe_finds_out_who_ignores_conditions_and_leaves_nothing(objects: MemoryStore, keeps_apart: bool) -> None:
    assert keeps_writers_apart(objects) is keeps_apart
    assert objects.list("") == []


@dataclass
class Busy:
    """Answers to some of those who create an object at the same time that they may try again."""

    losers: int
    wrapped: MemoryStore = field(default_factory=MemoryStore)

    def __post_init__(self) -> None:
        self.get, self.list, self.delete = self.wrapped.get, self.wrapped.list, self.wrapped.delete

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        if self.losers and expect == ABSENT:
            self.losers -= 1
            raise TransientError("ConditionalRequestConflict")
        return self.wrapped.put(key, data, expect=expect)


def test_who_is_told_to_try_again_has_not_won_the_probe() -> None:
    assert keeps_writers_apart(Busy(PROBERS - 1))


def test_a_probe_that_nobody_wins_because_the_server_is_busy_tells_nothing() -> None:
    with pytest.raises(TransientError, match="ConditionalRequestConflict"):
        keeps_writers_apart(Busy(PROBERS))


# --- the way by a proxy

NAME = "s3.invalid:9000"
"""An address that nobody but the proxy can resolve."""


@pytest.fixture
def proxy(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    """A proxy that the environment names, and that wants to know who comes."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with forward_proxy({NAME: server.url.removeprefix("http://")}) as started:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:a%20word@{started.endpoint}")
        yield started


def test_reads_and_writes_go_by_the_proxy_that_the_environment_names(
    server: ScriptedServer, proxy: ForwardProxy
) -> None:
    store = opened(server, Answer(200, b"data", {"ETag": '"1"'}), AWS_ENDPOINT_URL=f"http://{NAME}")
    assert store.get("a").data == b"data"
    store.put("a", b"new")
    assert [(method, target.partition("?")[0]) for method, target in proxy.asked] == [
        ("GET", f"http://{NAME}/bucket/p/a"),
        ("PUT", f"http://{NAME}/bucket/p/a"),
    ]
    assert proxy.authorizations == {"Basic bWU6YSB3b3Jk"}, "me:a word"
    assert [headers["Host"] for _, _, headers in server.requests] == [NAME, NAME]


@pytest.mark.parametrize("named", ["s3.invalid", ".invalid", "*"])
def test_a_server_that_the_environment_excepts_is_asked_directly(
    server: ScriptedServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("NO_PROXY", named)
    store = opened(server, Answer(200), AWS_ENDPOINT_URL=f"http://{NAME}")
    with pytest.raises(TransientError, match=r"in s3://bucket/p at http://s3.invalid:9000: its name is not known here"):
        store.get("a")
    assert proxy.asked == []


def test_a_server_of_this_machine_is_asked_directly(server: ScriptedServer, proxy: ForwardProxy) -> None:
    assert opened(server, Answer(200, b"data", {"ETag": '"1"'})).get("a").data == b"data"
    assert proxy.asked == []


def test_a_proxy_that_is_not_there_is_waited_for_and_named_without_its_password(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"me:word@127.0.0.1:{port}")
    store = opened(server, Answer(200), AWS_ENDPOINT_URL=f"http://{NAME}")
    with pytest.raises(
        TransientError, match=f"at http://{NAME} by the proxy 127.0.0.1:{port}: the proxy cannot be reached; waiting"
    ) as caught:
        store.get("a")
    assert "word" not in str(caught.value)


def test_a_proxy_that_lets_nobody_through_is_told(
    server: ScriptedServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.refuses = True
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.endpoint}")
    with pytest.raises(StoreError, match="the proxy does not let us through: Tunnel connection failed: 407"):
        opened(server, Answer(200), AWS_ENDPOINT_URL=f"https://{NAME}").get("a")
    with pytest.raises(StoreError, match=r"by the proxy 127.0.0.1:\d+: the answer is not S3's \(407\)"):
        opened(server, Answer(200), AWS_ENDPOINT_URL=f"http://{NAME}").get("a")


def test_a_proxy_of_another_kind_is_refused(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(StoreError, match="give HTTP_PROXY and HTTPS_PROXY as http://HOST:PORT"):
        opened(server, Answer(200), AWS_ENDPOINT_URL=f"http://{NAME}")
