"""Single requests: what is sent, and what becomes of a server that is slow, gone or no Kubernetes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpo_core.errors import LaunchError, NotFound, TransientError
from hpo_core.kube import Kube, client, wire
from tests.fake_kubernetes import FakeKubernetes
from tests.fake_kubernetes.kinds import KINDS


def secret(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"it": "yes"}}}


def test_a_server_that_is_gone_is_transient_and_served_again_when_it_is_back(fake: FakeKubernetes, kube: Kube) -> None:
    assert kube.list("v1", "Secret") == []
    with (
        fake.unreachable(),
        pytest.raises(TransientError, match=f"cannot list secrets in namespace team at {fake.url}"),
    ):
        kube.list("v1", "Secret")
    assert kube.list("v1", "Secret") == []


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_the_time_is_the_servers_whatever_our_clock_shows(fake: FakeKubernetes, kube: Kube, ahead_s: float) -> None:
    fake.objects.ahead_s = ahead_s
    before_s = time.time()
    kube.list("v1", "Secret")
    now_s = kube.now_s() - ahead_s
    assert before_s - 1.0 <= now_s <= time.time()  # the server tells whole seconds


def test_nothing_is_tried_twice_behind_the_loops_back(fake: FakeKubernetes, kube: Kube) -> None:
    kube.resource("v1", "Secret")
    fake.refuse(1, 503, retryAfterSeconds=4)
    before = len(fake.requests)
    with pytest.raises(TransientError, match="refused with 503; waiting for it") as caught:
        kube.create(secret("one"))
    assert caught.value.retry_after_s == 4
    assert len(fake.requests) == before + 1


def test_a_server_that_does_not_answer_in_time_is_transient(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.Wire.open, "__kwdefaults__", {"wait_s": 0.2, "interruption": None})
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        fake.port = deaf.getsockname()[1]
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
        with pytest.raises(TransientError, match="it does not answer in time"):
            Kube.connect().server_version()


@pytest.mark.parametrize("answer", [b"<html>log in</html>", b"[]"])
def test_something_else_that_answers_there_is_told_as_such(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        fake.port = other.getsockname()[1]
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))

        def serve() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))

        threading.Thread(target=serve).start()
        with pytest.raises(LaunchError, match="the answer is not Kubernetes's; check the kubeconfig's server"):
            Kube.connect().server_version()


def test_a_list_whose_version_expires_between_two_pages_begins_again(
    fake: FakeKubernetes, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 1)
    for name in ("a", "b"):
        kube.create(secret(name))
    enter = fake.enter

    def forget_before_the_second_page(call: object) -> None:
        enter(call)  # type: ignore[arg-type]
        if len([request for request in fake.requests if request.startswith("list /api/v1/namespaces")]) == 2:
            fake.objects.compact()

    monkeypatch.setattr(fake, "enter", forget_before_the_second_page)
    assert [item["metadata"]["name"] for item in kube.list("v1", "Secret")] == ["a", "b"]


def test_kinds_are_asked_for_once_and_a_missing_one_again(fake: FakeKubernetes, kube: Kube) -> None:
    fake.kinds = tuple(kind for kind in KINDS if kind.group != "kubeflow.org")
    for _ in range(2):
        kube.list("v1", "Secret")
        with pytest.raises(LaunchError, match=r"no kind TFJob in kubeflow\.org/v1 here"):
            kube.list("kubeflow.org/v1", "TFJob")
    fake.kinds = KINDS
    assert kube.list("kubeflow.org/v1", "TFJob") == []
    asked = [request for request in fake.requests if request in ("list /api/v1", "list /apis/kubeflow.org/v1")]
    assert asked == ["list /api/v1", *["list /apis/kubeflow.org/v1"] * 3]


def test_a_server_that_has_just_come_back_is_not_believed_when_it_says_no(
    fake: FakeKubernetes, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has read all of its rules it allows nothing, and until it knows all kinds it serves few."""
    monkeypatch.setattr(wire, "SETTLE_S", 0.5)
    with fake.unreachable(), pytest.raises(TransientError, match="nobody accepts connections there"):
        kube.server_version()
    fake.deny("create", "secrets")
    fake.kinds = tuple(kind for kind in KINDS if kind.group != "kubeflow.org")
    with pytest.raises(TransientError, match=r'cannot create resource "secrets".* tried again'):
        kube.create(secret("one"))
    with pytest.raises(TransientError, match="tried again"):
        kube.list("kubeflow.org/v1", "TFJob")
    time.sleep(0.6)
    with pytest.raises(LaunchError, match='cannot create resource "secrets"'):
        kube.create(secret("one"))
    with pytest.raises(LaunchError, match=r"no kind TFJob in kubeflow\.org/v1 here"):
        kube.list("kubeflow.org/v1", "TFJob")


def test_a_kind_that_is_no_longer_served_is_told_so(fake: FakeKubernetes, kube: Kube) -> None:
    assert kube.list("kubeflow.org/v1", "TFJob") == []
    fake.kinds = tuple(kind for kind in KINDS if kind.group != "kubeflow.org")
    for _ in range(2):
        with pytest.raises(LaunchError, match=r"no kind TFJob in kubeflow\.org/v1 here"):
            kube.list("kubeflow.org/v1", "TFJob")


def test_everything_is_never_deleted_by_an_empty_selector(kube: Kube) -> None:
    with pytest.raises(ValueError, match="must be selected by its labels"):
        kube.delete_all("v1", "Secret", selector="")


def test_names_cannot_lead_to_another_path(kube: Kube) -> None:
    kube.create(secret("one"))
    kube.delete("v1", "Secret", "x/../one")
    assert len(kube.list("v1", "Secret")) == 1


def test_many_threads_may_ask_at_once(kube: Kube) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: kube.create(secret(f"s{number}")), range(200)))
    assert len(kube.list("v1", "Secret", selector="it=yes")) == 200


def test_a_log_that_breaks_off_is_transient_and_what_came_before_is_given(fake: FakeKubernetes, kube: Kube) -> None:
    fake.start_pod("talker")
    fake.append_log("talker", b"one\n")
    pieces = iter(kube.pod_log("talker", "main", follow=True))
    assert next(pieces) == b"one\n"
    fake.logs.cut()
    with pytest.raises(TransientError, match=r"cannot get the log of main in pods talker .*: the connection broke"):
        next(pieces)


def test_a_log_may_be_silent_for_so_long_only(
    fake: FakeKubernetes, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOG_SILENCE_S", 0.3)
    fake.start_pod("talker")
    fake.append_log("talker", b"one\n")
    pieces = iter(kube.pod_log("talker", "main", follow=True))
    next(pieces)
    began = time.monotonic()
    with pytest.raises(TransientError, match="it does not answer in time"):
        next(pieces)
    assert 0.2 < time.monotonic() - began < 2


def test_a_log_can_be_closed_before_it_begins(fake: FakeKubernetes, kube: Kube) -> None:
    log = kube.pod_log("none", "main", follow=True)
    log.close()
    log.close()
    assert list(log) == []
    assert fake.requests == []


def test_a_closed_log_leaves_the_connections_of_others_alone(fake: FakeKubernetes, kube: Kube) -> None:
    """Its connection may have gone back to where the next request takes one from."""
    fake.start_pod("talker")
    fake.append_log("talker", b"one\n")
    fake.finish_pod("talker")
    log = kube.pod_log("talker", "main", follow=True)
    assert list(log) == [b"one\n"]
    log.close()
    assert kube.list("v1", "Secret") == []


def test_a_refused_log_leaves_the_connections_of_others_alone(fake: FakeKubernetes, kube: Kube) -> None:
    fake.start_pod("talker")
    refused = kube.pod_log("none", "main", follow=True)
    with pytest.raises(NotFound, match="not found"):
        list(refused)
    fake.append_log("talker", b"one\n")
    pieces = iter(kube.pod_log("talker", "main", follow=True))  # over the connection that the refusal came by
    assert next(pieces) == b"one\n"
    refused.close()
    fake.append_log("talker", b"two\n")
    assert next(pieces) == b"two\n"


def test_connections_notice_a_peer_that_is_dead(kube: Kube) -> None:
    kube.server_version()
    pool = kube._wire._access.pool.connection_from_url(kube.server)
    assert pool.pool is not None
    connection = pool.pool.get_nowait()
    assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    connection.close()
