"""Objects in a real MinIO that fails in every way that could be had: what is kept, and what is said."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import minio.time
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from hpo_core.errors import Conflict, HpoError, StoreError, TransientError
from hpo_core.objects import ABSENT, RecordStore, open_objects
from hpo_core.objects.s3 import ANSWER_S
from tests.contracts.store_suite import all_at_once
from tests.lossy_proxy import CONDITION, lossy_proxy
from tests.s3_server import PASSWORD, USER, MinioServer, free_port, minio_server
from tests.small_disk import MOUNT, find_way_in

pytestmark = pytest.mark.e2e

BUCKET = "bucket"
ADDRESS = f"s3://{BUCKET}/prefix"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A server whose bucket is there; tests that hurt it use one of their own."""
    with minio_server(tmp_path_factory.mktemp("minio") / "objects") as started:
        make_bucket(started)
        yield started


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MinioServer]:
    with minio_server(tmp_path / "objects") as started:
        make_bucket(started)
        yield started


def make_bucket(server: MinioServer) -> None:
    lock = opened(server).lock("made", {})
    assert lock is not None
    lock.release()


def opened(server: MinioServer, address: str = ADDRESS, **environment: str) -> RecordStore:
    return open_objects(address, {**server.settings(), **environment})


def named(server: MinioServer, address: str = ADDRESS) -> str:
    """How messages name the store."""
    return re.escape(f"{address} at {server.settings()['AWS_ENDPOINT_URL']}")


# --- answers that are lost


def test_a_repeated_write_whose_answer_was_lost_counts_as_done(server: MinioServer) -> None:
    with lossy_proxy(server.endpoint) as proxy:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{proxy.endpoint}")
        tag = ABSENT
        for data in (b"first", b"second"):
            proxy.lose_answers(1)
            with pytest.raises(TransientError, match=r"cannot write lost/a in s3://bucket/prefix .*connection broke"):
                store.put("lost/a", data, expect=tag)
            assert opened(server).get("lost/a").data == data
            tag = store.put("lost/a", data, expect=tag)
            assert tag == store.get("lost/a").etag


def test_a_repeated_write_of_what_a_competitor_has_written_meanwhile_is_a_conflict(server: MinioServer) -> None:
    with lossy_proxy(server.endpoint) as proxy:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{proxy.endpoint}")
        proxy.lose_answers(1)
        with pytest.raises(TransientError, match="connection broke"):
            store.put("lost/b", b"mine", expect=ABSENT)
        opened(server).put("lost/b", b"theirs")
        with pytest.raises(Conflict, match="s3://bucket/prefix/lost/b was written by somebody else meanwhile"):
            store.put("lost/b", b"mine", expect=ABSENT)
        assert store.get("lost/b").data == b"theirs"


def test_a_lock_whose_taking_was_not_answered_can_be_taken_again(server: MinioServer) -> None:
    with lossy_proxy(server.endpoint) as proxy:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{proxy.endpoint}")
        ready = store.lock("lost/first", {})
        assert ready is not None
        proxy.lose_answers(1)
        with pytest.raises(TransientError, match="connection broke"):
            store.lock("lost/lease", {})
        assert opened(server).list("lost/lease") == ["lost/lease"]
        lock = store.lock("lost/lease", {})
        assert lock is not None
        lock.release()
        ready.release()


# --- servers that ignore conditions


def test_a_server_that_ignores_conditions_is_found_out_by_the_lock(server: MinioServer) -> None:
    with lossy_proxy(server.endpoint, drop=CONDITION) as proxy:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{proxy.endpoint}")
        with pytest.raises(StoreError, match=r"the server ignores conditional writes, .*set HPO_SINGLE_WRITER=yes if"):
            store.lock("probed/lease", {})
        assert opened(server).list("probed/") == opened(server).list(".probe/") == []


def test_a_server_that_ignores_conditions_serves_a_single_writer(server: MinioServer) -> None:
    with lossy_proxy(server.endpoint, drop=CONDITION) as proxy:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{proxy.endpoint}", HPO_SINGLE_WRITER="yes")
        lock = store.lock("single/lease", {"by": "me"})
        assert lock is not None
        assert store.lock("single/lease", {"by": "another"}) is None
        tag = store.put("single/a", b"1", expect=ABSENT)
        with pytest.raises(Conflict, match="by somebody else"):
            store.put("single/a", b"2", expect=ABSENT)
        store.put("single/a", b"3", expect=tag)
        assert store.get("single/a").data == b"3"
        lock.release()
        assert not store.is_locked("single/lease")


# --- holders that are paused, servers that restart


HOLDER = """
import os, sys
from hpo_core.errors import Conflict
from hpo_core.objects.s3 import S3Store
from hpo_core.objects.settings import S3Settings
store = S3Store("bucket", "prefix", S3Settings.of(os.environ), lease_s=1.0)
lock = store.lock("paused/lease", {"by": "the one that is paused"})
print("locked", flush=True)
sys.stdin.readline()
try:
    lock.confirm()
    print("still mine", flush=True)
except Conflict as error:
    print(error, flush=True)
lock.release()
print("released", flush=True)
"""


def test_a_holder_that_was_paused_past_its_time_learns_that_it_was_replaced(server: MinioServer) -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.settings()
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            store = opened(server)
            time.sleep(2.0)  # twice the lease; it is renewed
            assert store.lock("paused/lease", {}) is None
            holder.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            while (lock := store.lock("paused/lease", {"by": "the next one"})) is None:
                assert time.monotonic() < stopped + 10
                time.sleep(0.1)
            # It renewed last at most a third of its time before it was stopped.
            assert time.monotonic() - stopped > 1.0 - 1.0 / 3
            holder.send_signal(signal.SIGCONT)
            holder.stdin.write("go on\n")
            holder.stdin.flush()
            said = holder.stdout.readline()
            assert re.match("the lease paused/lease was taken over by process .*, since this process was thought", said)
            assert holder.stdout.readline() == "released\n"
            lock.confirm()
            assert store.is_locked("paused/lease")
            lock.release()
        finally:
            holder.kill()


def test_a_server_that_is_killed_and_started_again_has_lost_nothing(own_server: MinioServer) -> None:
    store = opened(own_server)
    lock = store.lock("lease", {"by": "me"})
    assert lock is not None
    tag = store.put("a", b"before", expect=ABSENT)
    own_server.kill()
    with pytest.raises(TransientError, match=f"cannot read a in {named(own_server)}: nobody accepts connections there"):
        store.get("a")
    own_server.start()
    lock.confirm()
    assert store.put("a", b"after", expect=tag) == opened(own_server).get("a").etag
    assert store.is_locked("lease")
    lock.release()


def test_a_paused_server_is_told_from_a_dead_one_in_time_and_may_answer_late(own_server: MinioServer) -> None:
    store = opened(own_server)
    store.put("a", b"1")
    own_server.pause()
    started = time.monotonic()
    with pytest.raises(TransientError, match=f"cannot write b in {named(own_server)}: it does not answer in time"):
        store.put("b", b"2", expect=ABSENT)
    assert ANSWER_S <= time.monotonic() - started < ANSWER_S + 3
    own_server.resume()
    # The server has the first try still in its hands, and may do it before or after the second.
    assert store.put("b", b"2", expect=ABSENT) == store.get("b").etag
    assert store.get("b").data == b"2"


# --- words for what is wrong


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "nobody"},
            "it does not know the access key; check AWS_ACCESS_KEY_ID or MINIO_ACCESS_KEY",
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"},
            "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or MINIO_SECRET_KEY",
        ),
        ({"AWS_SESSION_TOKEN": "a-wrong-token"}, "the session token is wrong; check AWS_SESSION_TOKEN"),
    ],
)
def test_wrong_credentials_are_told_apart_and_not_shown(
    server: MinioServer, environment: dict[str, str], said: str
) -> None:
    store = opened(server, **environment)
    for action in (partial(store.lock, "a", {}), partial(store.get, "a"), partial(store.list, "")):
        with pytest.raises(StoreError, match=f"{named(server)}: {said}") as caught:
            action()
        assert "a-wrong" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


@pytest.fixture
def admin(server: MinioServer) -> MinioAdmin:
    return MinioAdmin(endpoint=server.endpoint, credentials=StaticProvider(USER, PASSWORD), secure=False)


def test_a_user_without_rights_is_told_which_ones_are_needed(server: MinioServer, admin: MinioAdmin) -> None:
    admin.user_add("guest", "guest-secret")
    store = opened(server, AWS_ACCESS_KEY_ID="guest", AWS_SECRET_ACCESS_KEY="guest-secret")
    with pytest.raises(
        StoreError, match=f"cannot open {named(server)}: its credentials do not allow this; ask for s3:"
    ):
        store.lock("a", {})


def test_a_user_needs_no_more_than_the_rights_that_are_named(server: MinioServer, admin: MinioAdmin) -> None:
    objects = {
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/prefix/*", "arn:aws:s3:::missing/*"],
    }
    buckets = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
        "Resource": [f"arn:aws:s3:::{BUCKET}", "arn:aws:s3:::missing"],
    }
    admin.policy_add("tuner", policy={"Version": "2012-10-17", "Statement": [objects, buckets]})
    admin.user_add("tuner", "tuner-secret")
    admin.policy_set("tuner", user="tuner")
    credentials = {"AWS_ACCESS_KEY_ID": "tuner", "AWS_SECRET_ACCESS_KEY": "tuner-secret"}
    store = opened(server, **credentials)
    lock = store.lock("tuner/lease", {})
    assert lock is not None
    lock.release()
    store.delete("tuner/lease")
    assert store.list("tuner/") == []
    with pytest.raises(
        StoreError, match="there is no bucket 'missing', and these credentials may not make it; let som"
    ):
        opened(server, "s3://missing/p", **credentials).lock("lease", {})


def test_a_missing_bucket_is_empty_and_is_made_by_the_first_locks(server: MinioServer) -> None:
    store = opened(server, "s3://new-bucket/p")
    assert store.list("") == []
    assert not store.is_locked("lease")
    store.delete("lease")
    with pytest.raises(
        StoreError, match=r"there is no bucket 'new-bucket' for s3://new-bucket/p at .*; the first experi"
    ):
        store.put("a", b"")
    stores = [opened(server, "s3://new-bucket/p") for _ in range(8)]
    locks = all_at_once([partial(store.lock, f"lease-{number}", {}) for number, store in enumerate(stores)])
    assert all(store.is_locked(f"lease-{number}") for number, store in enumerate(stores))
    for lock in locks:
        assert lock is not None
        lock.release()


@pytest.mark.parametrize("bucket", ["Upper", "a", "under_score", "dot..dot", "-dash", "b" * 64])
def test_a_name_that_no_bucket_can_have_is_refused_with_what_is_allowed(server: MinioServer, bucket: str) -> None:
    with pytest.raises(
        StoreError, match=rf"s3://{bucket}/p at .*: that is no name for a bucket; take 3 to 63 small letters, digits"
    ):
        opened(server, f"s3://{bucket}/p").lock("a", {})


def test_a_server_that_is_down_may_come_back(server: MinioServer) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    store = opened(server, AWS_ENDPOINT_URL=f"http://{endpoint}")
    with pytest.raises(TransientError, match=f"cannot open {ADDRESS} at http://{endpoint}: nobody accepts connections"):
        store.lock("a", {})


def test_a_host_that_is_not_known_may_become_known(server: MinioServer) -> None:
    store = opened(server, AWS_ENDPOINT_URL="http://no-such-host.invalid:9000")
    with pytest.raises(TransientError, match=f"cannot open {ADDRESS} at http://no-such.*: its name is not known here"):
        store.lock("a", {})


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Page(Quiet):
    """Shows its page at every address, as applications in a browser do."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><html><body>Hello<br></body></html>")


@contextmanager
def web_server(handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("handler", "status"), [(Quiet, 404), (Page, 200)])
@pytest.mark.parametrize("region", ["", "us-east-1"])
def test_a_web_server_that_is_no_s3_is_told_so(
    server: MinioServer, handler: type[SimpleHTTPRequestHandler], status: int, region: str
) -> None:
    with web_server(handler) as endpoint:
        store = opened(server, AWS_ENDPOINT_URL=f"http://{endpoint}", AWS_REGION=region)
        with pytest.raises(
            StoreError, match=rf"cannot list .* at http://{endpoint}: the answer is not S3's \({status}\)"
        ):
            store.list("")
        with pytest.raises(StoreError, match=rf"{ADDRESS} at http://{endpoint}: .*(not S3's|ignores conditional|5)"):
            store.lock("a", {})


def test_tls_asked_of_a_server_without_it_is_told(server: MinioServer) -> None:
    store = opened(server, AWS_ENDPOINT_URL=f"https://{server.endpoint}")
    with pytest.raises(StoreError, match=f"{ADDRESS} at https://{server.endpoint}: it does not speak TLS, or its cert"):
        store.lock("a", {})


def test_a_server_with_tls_is_trusted_by_its_authority_only_and_does_not_speak_without_it(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: that TLS works, and what is said of a wrong certificate, is unproven")
    certificates = tmp_path / "certs"
    certificates.mkdir()
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(certificates / "private.key"), "-out", str(certificates / "public.crt")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with minio_server(tmp_path / "objects", scheme="https") as started:
        trusting = opened(started, AWS_CA_BUNDLE=str(certificates / "public.crt"))
        lock = trusting.lock("lease", {})
        assert lock is not None
        lock.release()
        with pytest.raises(StoreError, match="its certificate is not trusted; check http or https, or AWS_CA_BUNDLE"):
            opened(started).get("a")
        with pytest.raises(
            StoreError, match=r"the answer is not S3's \(400\); check .* whether it wants http or https"
        ):
            opened(started, AWS_ENDPOINT_URL=f"http://{started.endpoint}").get("a")


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[MinioServer]:
    """A server on a disk of 64 MiB."""
    way_in = find_way_in()
    if way_in is None:
        pytest.skip("no full server here: neither root nor a user namespace may mount a tmpfs")
    folder = tmp_path / "objects"
    with minio_server(folder, way_in=(*way_in, "sh", "-c", MOUNT, str(folder), "64m")) as started:
        make_bucket(started)
        yield started


def test_a_server_that_has_no_room_for_a_file_is_waited_for(small_server: MinioServer, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 80_000_000)
    store = opened(small_server)
    with pytest.raises(
        TransientError, match=f"cannot write large in {named(small_server)}: the server's disk or quota"
    ):
        store.put("large", large)
    assert store.list("large") == []


def test_a_full_server_is_waited_for_and_goes_on_reading_and_deleting(small_server: MinioServer) -> None:
    """When it takes writes again is its own affair: what was deleted may take up room for minutes."""
    store = opened(small_server)
    with pytest.raises(TransientError, match=f"cannot write pieces/.* in {named(small_server)}: .*(full|waiting)"):
        write_without_end(store)
    written = len(store.list("pieces/"))
    assert written > 100
    assert store.get("pieces/0").data == b"x" * 200_000
    store.delete("pieces/0")
    assert len(store.list("pieces/")) == written - 1


def write_without_end(store: RecordStore) -> None:
    for number in itertools.count():
        store.put(f"pieces/{number}", b"x" * 200_000, expect=ABSENT)


def test_a_clock_that_is_wrong_is_told(server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock cannot be set here, so the client's is."""
    right = minio.time.utcnow
    monkeypatch.setattr(minio.time, "utcnow", lambda: right() + timedelta(hours=1))
    with pytest.raises(StoreError, match="the clock of this machine differs from the server's by more than 15 minutes"):
        opened(server).lock("a", {})


def test_no_message_shows_a_secret_or_a_signature(server: MinioServer) -> None:
    said = []
    for endpoint in (server.endpoint, f"127.0.0.1:{free_port()}", "no-such-host.invalid"):
        for scheme in ("http", "https"):
            store = opened(server, AWS_ENDPOINT_URL=f"{scheme}://{endpoint}", AWS_SECRET_ACCESS_KEY="wrong-secret")
            with suppress(Conflict):
                for action in (partial(store.get, "a"), partial(store.put, "a", b"", expect=ABSENT)):
                    with pytest.raises(HpoError, match=f"{scheme}://{endpoint}") as caught:
                        action()
                    said.append(str(caught.value))
    assert len(said) == 12
    assert not re.search(f"wrong-secret|{PASSWORD}|Signature=|X-Amz", " ".join(said))
