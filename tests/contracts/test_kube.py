"""What `hpo_core.kube` relies on, proven of the fake and of a real cluster, so that the fake can stand for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_core.errors import Conflict, LaunchError, NotFound, TransientError
from hpo_core.kube import Changed, Kube, Listed, Refused, client
from hpo_core.kube.access import in_pod
from hpo_core.kube.wire import Wire
from tests.contracts.cluster_machine import RESTRICTED
from tests.contracts.kube_suite import SITES, RealSite, Site, document, owner, parameters, read_log, real_site, until


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Kube]:
    """Connects by a kubeconfig."""

    def by(path: Path) -> Kube:
        with monkeypatch.context() as patch:
            patch.setenv("KUBECONFIG", str(path))
            return Kube.connect()

    return by


@pytest.fixture(params=parameters())
def site(request: pytest.FixtureRequest, tmp_path: Path, connect: Callable[[Path], Kube]) -> Iterator[Site]:
    with SITES[request.param](tmp_path, connect) as site:
        yield site


@pytest.fixture
def kube(site: Site) -> Kube:
    return site.kube


@pytest.fixture
def real(tmp_path: Path, connect: Callable[[Path], Kube]) -> Iterator[RealSite]:
    with real_site(tmp_path, connect) as site:
        yield site


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    return document("ConfigMap", name, labels=labels, data=data)


def job(name: str, **spec: Any) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}
    spec = {"suspend": True, "template": {"spec": pod}, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def names(items: Any) -> list[str]:
    return [item["metadata"]["name"] for item in items]


# --- objects


def test_what_was_created_is_what_is_got_with_identity_and_version(kube: Kube) -> None:
    created = kube.create(config_map("one", {"a": "b"}, key="value"))
    assert created == kube.get("v1", "ConfigMap", "one")
    assert (created["data"], created["metadata"]["labels"]) == ({"key": "value"}, {"a": "b"})
    assert created["metadata"]["namespace"] == kube.namespace
    assert created["metadata"]["uid"]
    assert created["metadata"]["resourceVersion"]
    assert created["metadata"]["creationTimestamp"].endswith("Z")


def test_a_second_object_of_one_name_is_a_conflict(kube: Kube) -> None:
    kube.create(config_map("one"))
    with pytest.raises(Conflict, match=r'cannot create configmaps one in .*: configmaps "one" already exists'):
        kube.create(config_map("one"))


def test_an_object_in_a_namespace_that_is_missing_is_told_so(kube: Kube) -> None:
    manifest = {**config_map("one"), "metadata": {"name": "one", "namespace": "missing"}}
    with pytest.raises(LaunchError, match='namespaces "missing" not found; create it'):
        kube.create(manifest)


@pytest.mark.parametrize(
    ("name", "spec", "told"),
    [("Capital", {}, "metadata.name: Invalid value"), ("j", {"template": {"spec": {}}}, "containers: Required value")],
)
def test_an_invalid_object_is_refused_in_the_servers_words(kube: Kube, name: str, spec: Any, told: str) -> None:
    with pytest.raises(Refused, match=f'cannot create jobs {name} .*: Job.batch "{name}" is invalid: .*{told}'):
        kube.create(job(name, **spec))


def test_an_object_above_a_quota_is_refused(site: Site) -> None:
    site.fill_quota()
    with pytest.raises(Refused, match="exceeded quota: full"):
        site.kube.create(job("j"))


def test_what_is_not_there_is_not_found(kube: Kube) -> None:
    with pytest.raises(NotFound, match=r'cannot get configmaps one in namespace .*: configmaps "one" not found'):
        kube.get("v1", "ConfigMap", "one")
    with pytest.raises(NotFound, match=r'jobs\.batch "one" not found'):
        kube.patch("batch/v1", "Job", "one", {"spec": {"suspend": True}})


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("", ["a", "b", "c"]),
        ("app=x", ["a", "b"]),
        ("app=x,part=2", ["b"]),
        ("app!=x", ["c"]),
        ("part in (1, 3)", ["a", "c"]),
        ("part notin (1,3),app", ["b"]),
        ("!part", []),
    ],
)
def test_a_list_holds_what_the_selector_wants_and_says_what_it_is(kube: Kube, selector: str, found: list[str]) -> None:
    for name, labels in {"a": ("x", "1"), "b": ("x", "2"), "c": ("y", "3")}.items():
        kube.create(document("Secret", name, labels={"app": labels[0], "part": labels[1]}))
    items = kube.list("v1", "Secret", selector=selector)
    assert names(items) == found
    assert all((item["apiVersion"], item["kind"]) == ("v1", "Secret") for item in items)


def test_a_long_list_comes_in_pages_and_is_whole(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):
        kube.create(config_map(f"c{number}", {"mine": "yes"}))
    assert names(kube.list("v1", "ConfigMap", selector="mine=yes")) == ["c0", "c1", "c2", "c3", "c4"]


def test_a_patch_is_merged_and_none_removes(kube: Kube) -> None:
    kube.create(config_map("one", keep="1", drop="2"))
    patched = kube.patch("v1", "ConfigMap", "one", {"data": {"drop": None, "new": "3"}})
    assert patched["data"] == {"keep": "1", "new": "3"}
    assert patched == kube.get("v1", "ConfigMap", "one")


def test_a_patch_that_changes_nothing_makes_no_version(kube: Kube) -> None:
    created = kube.create(config_map("one", key="1"))
    assert kube.patch("v1", "ConfigMap", "one", {"data": {"key": "1"}}) == created


def test_a_patch_of_a_version_that_is_no_more_is_a_conflict(kube: Kube) -> None:
    version = kube.create(config_map("one"))["metadata"]["resourceVersion"]
    kube.patch("v1", "ConfigMap", "one", {"data": {"key": "1"}})
    with pytest.raises(Conflict, match="the object has been modified"):
        kube.patch("v1", "ConfigMap", "one", {"metadata": {"resourceVersion": version}, "data": {"key": "2"}})


def test_a_status_is_not_changed_by_a_patch(kube: Kube) -> None:
    kube.create(job("one"))
    assert "succeeded" not in kube.patch("batch/v1", "Job", "one", {"status": {"succeeded": 1}}).get("status", {})


# --- deleting


def test_what_is_deleted_is_gone_and_may_be_deleted_again(kube: Kube) -> None:
    kube.create(config_map("one"))
    kube.delete("v1", "ConfigMap", "one")
    kube.delete("v1", "ConfigMap", "one")
    with pytest.raises(NotFound, match="not found"):
        kube.get("v1", "ConfigMap", "one")


def test_what_it_owns_goes_after_it(kube: Kube) -> None:
    anchor = kube.create(config_map("anchor"))
    owned = config_map("owned", {"of": "anchor"})
    owned["metadata"]["ownerReferences"] = [owner(anchor)]
    kube.create(owned)
    kube.create(config_map("other", {"of": "anchor"}))
    kube.delete("v1", "ConfigMap", "anchor")
    until(lambda: names(kube.list("v1", "ConfigMap", selector="of=anchor")) == ["other"])


def test_what_it_owns_goes_before_it_in_the_foreground(kube: Kube) -> None:
    anchor = kube.create(config_map("anchor", {"it": "yes"}))
    owned = config_map("owned", {"it": "yes"})
    owned["metadata"]["ownerReferences"] = [owner(anchor)]
    kube.create(owned)
    watch = kube.watch("v1", "ConfigMap", selector="it=yes")
    changes = iter(watch)
    assert isinstance(next(changes), Listed)
    time.sleep(1.0)  # a real collector must have seen the child, which it watches too
    kube.delete("v1", "ConfigMap", "anchor", foreground=True)
    deleted: list[str] = []
    while len(deleted) < 2:
        change = next(changes)
        assert isinstance(change, Changed)
        deleted += names([change.object]) if change.type == "DELETED" else []
    watch.stop()
    assert deleted == ["owned", "anchor"]


def test_all_that_is_selected_is_deleted_and_nothing_else(kube: Kube) -> None:
    for name, label in {"a": "x", "b": "x", "c": "y"}.items():
        kube.create(config_map(name, {"app": label}))
    kube.delete_all("v1", "ConfigMap", selector="app=x")
    kube.delete_all("v1", "ConfigMap", selector="app=x")
    assert names(kube.list("v1", "ConfigMap", selector="app")) == ["c"]


# --- watching


def test_a_watch_lists_and_then_tells_each_change_in_order(kube: Kube) -> None:
    kube.create(config_map("old", {"it": "yes"}))
    watch = kube.watch("v1", "ConfigMap", selector="it=yes")
    changes = iter(watch)
    listed = next(changes)
    assert isinstance(listed, Listed)
    assert names(listed.items) == ["old"]
    kube.create(config_map("new", {"it": "yes"}))
    kube.patch("v1", "ConfigMap", "old", {"data": {"key": "1"}})
    kube.delete("v1", "ConfigMap", "new")
    told = [next(changes) for _ in range(3)]
    watch.stop()
    assert list(changes) == []
    assert [(c.type, c.object["metadata"]["name"]) for c in told if isinstance(c, Changed)] == [
        ("ADDED", "new"),
        ("MODIFIED", "old"),
        ("DELETED", "new"),
    ]
    assert all(isinstance(c, Changed) and c.object["kind"] == "ConfigMap" for c in told)


def test_what_no_longer_matches_is_deleted_for_a_watch(kube: Kube) -> None:
    kube.create(config_map("one", {"it": "yes"}))
    watch = kube.watch("v1", "ConfigMap", selector="it=yes")
    changes = iter(watch)
    next(changes)
    kube.patch("v1", "ConfigMap", "one", {"metadata": {"labels": {"it": "no"}}})
    kube.patch("v1", "ConfigMap", "one", {"metadata": {"labels": {"it": "yes"}}})
    told = [next(changes), next(changes)]
    watch.stop()
    assert [change.type for change in told if isinstance(change, Changed)] == ["DELETED", "ADDED"]


def test_a_watch_can_choose_by_a_field(kube: Kube) -> None:
    watch = kube.watch("v1", "Event", field_selector="type=Warning,involvedObject.name=one")
    changes = iter(watch)
    assert next(changes) == Listed(())
    about = {"kind": "Pod", "name": "one", "namespace": kube.namespace}
    for name, type_ in (("calm", "Normal"), ("worried", "Warning")):
        kube.create(document("Event", name, involvedObject=about, type=type_, reason="Why"))
    told = next(changes)
    watch.stop()
    assert isinstance(told, Changed)
    assert told.object["metadata"]["name"] == "worried"


def test_a_silent_watch_can_be_stopped_at_once(kube: Kube) -> None:
    watch = kube.watch("v1", "ConfigMap", selector="it=never")
    listed = threading.Event()

    def follow() -> None:
        for _ in watch:
            listed.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert listed.wait(10)
    time.sleep(0.2)
    watch.stop()
    thread.join(2)
    assert not thread.is_alive()


@pytest.mark.last
def test_a_watch_from_a_version_that_is_too_old_lists_again(site: Site) -> None:
    site.kube.create(config_map("one", {"it": "yes"}))
    watch = site.kube.watch("v1", "ConfigMap", selector="it=yes")
    changes = iter(watch)
    next(changes)
    watch._version = "1"
    first = next(changes)
    watch.stop()
    list(changes)  # so that its connection is closed
    if isinstance(site, RealSite) and isinstance(first, Changed):
        pytest.skip("this cluster is so young that it remembers everything; try again when it is ten minutes old")
    assert isinstance(first, Listed)
    assert names(first.items) == ["one"]


# --- kinds and permissions


def test_a_kind_that_is_not_served_is_told_so(kube: Kube) -> None:
    for kind, version in (("PyTorchJob", "nowhere.example/v1"), ("Jub", "batch/v1")):
        with pytest.raises(LaunchError, match=f"no kind {kind} in {version} here: the operator that brings it is not"):
            kube.create({"apiVersion": version, "kind": kind, "metadata": {"name": "one"}})


def test_a_kind_is_served_as_the_server_says(kube: Kube) -> None:
    jobs = kube.resource("batch/v1", "Job")
    assert (jobs.plural, jobs.group, jobs.namespaced) == ("jobs", "batch", True)
    assert {"create", "delete", "deletecollection", "get", "list", "patch", "watch"} <= jobs.verbs


def test_the_server_tells_its_version(kube: Kube) -> None:
    assert kube.server_version().startswith("v1.")


def test_what_is_allowed_is_told_beforehand(site: Site) -> None:
    assert site.kube.allowed("create", "jobs", group="batch")
    assert site.kube.allowed("get", "pods", subresource="log")
    assert not site.stranger.allowed("create", "jobs", group="batch")
    assert not site.stranger.allowed("get", "pods", subresource="log")


def test_a_missing_permission_is_told_with_who_what_where_and_the_way_out(site: Site) -> None:
    told = (
        r'jobs.batch is forbidden: User "system:serviceaccount:\S+:default" cannot create resource "jobs" '
        rf'in API group "batch" in the namespace "{site.kube.namespace}".*; `kubectl apply -k manifests'
    )
    with pytest.raises(LaunchError, match=told) as caught:
        site.stranger.create(job("one"))
    assert not isinstance(caught.value, Refused)


def test_a_watch_and_a_log_without_permission_end_with_that_error(site: Site) -> None:
    with pytest.raises(LaunchError, match='cannot list resource "pods"'):
        next(iter(site.stranger.watch("v1", "Pod")))
    with pytest.raises(LaunchError, match='cannot get resource "pods/log"'):
        list(site.stranger.pod_log("one", "main", follow=True))


def test_wrong_credentials_are_told_as_such(site: Site) -> None:
    with pytest.raises(LaunchError, match="Unauthorized; the server does not take the credentials"):
        site.unknown.list("v1", "ConfigMap")


# --- logs


def test_a_log_holds_what_was_printed(site: Site) -> None:
    site.print_in_pod("talker", "print one\nprint two")
    assert read_log(site.kube, "talker", follow=True) == b"one\ntwo\n"
    assert read_log(site.kube, "talker") == b"one\ntwo\n"
    assert read_log(site.kube, "talker", tail_lines=1) == b"two\n"
    assert read_log(site.kube, "talker", limit_bytes=5) == b"one\nt"


def test_lines_can_come_with_their_time_from_which_one_can_go_on(site: Site) -> None:
    site.print_in_pod("talker", "print one\nprint two")
    printed = read_log(site.kube, "talker", timestamps=True, follow=True)
    times, words = zip(*(line.split(b" ") for line in printed.splitlines()), strict=True)
    assert words == (b"one", b"two")
    assert read_log(site.kube, "talker", since_time=times[0].decode()) == b"one\ntwo\n"
    assert read_log(site.kube, "talker", since_time="2100-01-01T00:00:00Z") == b""


def test_a_followed_log_goes_on_until_it_is_closed_even_while_it_is_silent(site: Site) -> None:
    site.print_in_pod("talker", "print one\nwait")
    log = site.kube.pod_log("talker", "main", follow=True)
    pieces = iter(log)
    assert next(pieces) == b"one\n"
    threading.Timer(0.3, log.close).start()
    began = time.monotonic()
    assert list(pieces) == []
    assert 0.2 < time.monotonic() - began < 2


def test_a_log_that_has_not_begun_can_be_closed(site: Site) -> None:
    """The server answers nothing, not even that it will, before the first line."""
    site.print_in_pod("mute", "wait")
    log = site.kube.pod_log("mute", "main", follow=True)
    threading.Timer(0.3, log.close).start()
    began = time.monotonic()
    assert list(log) == []
    assert 0.2 < time.monotonic() - began < 2


def test_a_log_of_no_pod_is_not_found_and_one_of_no_container_is_refused(site: Site) -> None:
    with pytest.raises(NotFound, match='pods "none" not found'):
        list(site.kube.pod_log("none", "main", follow=False))
    site.print_in_pod("talker", "print one")
    with pytest.raises(LaunchError, match="container other is not valid for pod talker"):
        list(site.kube.pod_log("talker", "other", follow=False))


def test_a_pod_without_a_node_has_an_empty_log_that_ends(kube: Kube) -> None:
    container = {"name": "main", "image": "none"}
    kube.create(document("Pod", "waiting", spec={"nodeSelector": {"no": "node"}, "containers": [container]}))
    assert list(kube.pod_log("waiting", "main", follow=True)) == []


# --- what only a cluster can prove


@pytest.mark.e2e
def test_a_container_that_has_not_started_is_waited_for(real: RealSite) -> None:
    container = {"name": "main", "image": "nowhere.invalid/none:1"}
    real.kube.create(document("Pod", "stuck", spec={"containers": [container]}))
    until(lambda: bool(real.kube.get("v1", "Pod", "stuck")["status"].get("containerStatuses")))
    with pytest.raises(TransientError, match='container "main" in pod "stuck" is waiting to start'):
        list(real.kube.pod_log("stuck", "main", follow=True))


@pytest.mark.e2e
def test_a_pod_against_the_pod_security_level_is_refused(real: RealSite) -> None:
    real.kube.patch("v1", "Namespace", real.kube.namespace, {"metadata": {"labels": RESTRICTED}})
    pod = document("Pod", "root", spec={"containers": [{"name": "main", "image": "none"}]})
    with pytest.raises(Refused, match='violates PodSecurity "restricted:latest"'):
        real.kube.create(pod)


@pytest.mark.e2e
def test_a_namespace_that_is_being_removed_refuses_new_objects(real: RealSite) -> None:
    pod = document("ConfigMap", "held")
    pod["metadata"]["finalizers"] = ["kfp-hpo.example/held"]
    real.kube.create(pod)
    real.kube.delete("v1", "Namespace", real.kube.namespace)
    until(lambda: real.kube.get("v1", "Namespace", real.kube.namespace)["status"]["phase"] == "Terminating")
    with pytest.raises(Refused, match="because it is being terminated"):
        real.kube.create(config_map("late"))
    real.kube.patch("v1", "ConfigMap", "held", {"metadata": {"finalizers": None}})


@pytest.mark.e2e
def test_a_pod_is_known_by_its_service_account(real: RealSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a pod, outside of one; and a token that is replaced is read again when the old one is refused."""
    address = real.kube.server.removeprefix("https://")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address.rpartition(":")[0])
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", address.rpartition(":")[2])
    authority = real.kube.get("v1", "ConfigMap", "kube-root-ca.crt")["data"]["ca.crt"]
    for name, content in {"token": "wrong", "ca.crt": authority, "namespace": real.kube.namespace}.items():
        (tmp_path / name).write_text(content)
    access = in_pod("", tmp_path)
    inside = Kube(Wire(access), access.namespace)
    assert inside.namespace == real.kube.namespace
    (tmp_path / "token").write_text(real.service_account)
    with pytest.raises(LaunchError, match=f'User "system:serviceaccount:{inside.namespace}:default" cannot list'):
        inside.list("v1", "Pod")


@pytest.mark.e2e
def test_a_custom_kind_comes_and_goes_with_its_definition(real: RealSite) -> None:
    """Before it is there it is not served; its objects are listed and watched like any; its end ends the watch."""
    kube, group = real.kube, f"{real.kube.namespace}.example"
    version = f"{group}/v1"
    with pytest.raises(LaunchError, match=f"no kind Thing in {version} here"):
        kube.list(version, "Thing")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    served = {"name": "v1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
    spec = {"group": group, "scope": "Namespaced", "versions": [served], "names": {"plural": "things", "kind": "Thing"}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    kube.create({**definition, "metadata": {"name": f"things.{group}"}, "spec": spec})
    try:
        until(lambda: is_served(kube, version, "Thing"))
        thing = {"apiVersion": version, "kind": "Thing", "metadata": {"name": "one"}, "spec": {"of": "mine"}}
        watch = kube.watch(version, "Thing")
        changes = iter(watch)
        assert next(changes) == Listed(())
        created = kube.create(thing)
        assert next(changes) == Changed("ADDED", created)
        assert kube.list(version, "Thing") == [created]
        assert "status" not in kube.patch(version, "Thing", "one", {"status": {"phase": "Running"}})
    finally:
        kube.delete(definition["apiVersion"], definition["kind"], f"things.{group}")
    with pytest.raises(LaunchError, match=f"no kind Thing in {version} here"):
        list(changes)


def is_served(kube: Kube, api_version: str, kind: str) -> bool:
    try:
        kube.list(api_version, kind)
    except (LaunchError, TransientError):
        return False
    return True
