"""What the fake stores: objects with versions, every change of them, and the garbage collector."""

from __future__ import annotations

import copy
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fake_kubernetes.kinds import (
    NAMESPACE,
    POD,
    Document,
    Kind,
    Refusal,
    about,
    check,
    expired,
    not_found,
)

NO_QUERY: Mapping[str, str] = {}
COLLECT_S = 0.02
"""How long the garbage collector takes to notice."""


@dataclass(frozen=True)
class Change:
    """One change of one object."""

    version: int
    kind: Kind
    type: str
    before: Document | None
    after: Document


class Objects:
    """All objects. Every method may be called by many threads; a change wakes all that wait for `changed`.

    Attributes:
        ahead_s: By how many seconds the server's clock is ahead of ours.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.pod_grace_s = self.ahead_s = 0.0
        self.version = 100
        self._oldest = self.version
        self._is_collecting = False
        self._history: list[Change] = []
        self._found: dict[tuple[Kind, str, str], Document] = {}

    def create(self, kind: Kind, namespace: str, manifest: Mapping[str, Any]) -> Document:
        """Store an object as a real server completes it."""
        document = copy.deepcopy(dict(manifest))
        metadata = document.setdefault("metadata", {})
        metadata.setdefault("name", f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}")
        check(kind, document)
        with self.changed:
            if kind.namespaced and (NAMESPACE, "", namespace) not in self._found:
                raise not_found(NAMESPACE, namespace)
            key = (kind, namespace, metadata["name"])
            if key in self._found:
                told = f'{kind.qualified} "{metadata["name"]}" already exists'
                raise Refusal(409, "AlreadyExists", told, **about(kind, metadata["name"]))
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": self.timestamp()}
            if kind.namespaced:
                metadata["namespace"] = namespace
            if kind.has_status:
                document["status"] = {"phase": "Pending"} if kind is POD else {}
            return self._store(key, "ADDED", document)

    def timestamp(self, ago_s: float = 0.0) -> str:
        """The server's time so many seconds ago, RFC 3339."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.ahead_s - ago_s))

    def get(self, kind: Kind, namespace: str, name: str) -> Document:
        with self.changed:
            if (kind, namespace, name) not in self._found:
                raise not_found(kind, name)
            return copy.deepcopy(self._found[kind, namespace, name])

    def list(self, kind: Kind, namespace: str, query: Mapping[str, str] = NO_QUERY) -> list[Document]:
        """All objects of a kind, in the order of their names; "" for all namespaces."""
        with self.changed:
            found = [
                (key[1:], document)
                for key, document in self._found.items()
                if key[0] is kind and namespace in ("", key[1]) and selects(query, document)
            ]
        return [copy.deepcopy(document) for _, document in sorted(found, key=lambda entry: entry[0])]

    def patch(
        self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any], *, status: bool = False
    ) -> Document:
        """Merge a patch into an object; its status is changed by `status` alone."""
        with self.changed:
            present = self.get(kind, namespace, name)
            wanted = (patch.get("metadata") or {}).get("resourceVersion")
            if wanted not in (None, present["metadata"]["resourceVersion"]):
                told = (
                    f'Operation cannot be fulfilled on {kind.qualified} "{name}": the object has been modified; '
                    "please apply your changes to the latest version and try again"
                )
                raise Refusal(409, "Conflict", told, **about(kind, name))
            merged = merge(present, patch)
            if kind.has_status and not status:
                merged["status"] = present["status"]
            if merged == present:
                return present
            check(kind, merged)
            return self._store((kind, namespace, name), "MODIFIED", merged)

    def delete(self, kind: Kind, namespace: str, name: str, policy: str = "Background") -> None:
        """Remove an object, or begin to."""
        with self.changed:
            document = self.get(kind, namespace, name)
            running = kind is POD and document["status"].get("phase") == "Running" and self.pod_grace_s
            if policy != "Foreground" and not running:
                self._remove((kind, namespace, name))
                return
            if "deletionTimestamp" in document["metadata"]:
                return
            document["metadata"]["deletionTimestamp"] = self.timestamp()
            if policy == "Foreground":
                document["metadata"]["finalizers"] = ["foregroundDeletion"]
            self._store((kind, namespace, name), "MODIFIED", document)
        if running:
            self._later(self.pod_grace_s, lambda: self._remove((kind, namespace, name)))

    def since(self, version: int) -> Iterator[Change]:
        """Every change after that version, until now."""
        with self.changed:
            if version < self._oldest:
                raise expired(f"too old resource version: {version} ({self._oldest})")
            changes = [change for change in self._history if change.version > version]
        yield from changes

    def compact(self) -> None:
        """Forget every change until now: who was there has to list again."""
        with self.changed:
            self.version += 1
            self._oldest = self.version
            self._history.clear()

    def is_expired(self, version: int) -> bool:
        return version < self._oldest

    def _store(self, key: tuple[Kind, str, str], type_: str, document: Document) -> Document:
        kind = key[0]
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        document |= {"apiVersion": kind.api_version, "kind": kind.name}
        before = self._found.get(key)
        self._found[key] = document
        self._tell(Change(self.version, kind, type_, before, document))
        return copy.deepcopy(document)

    def _remove(self, key: tuple[Kind, str, str]) -> None:
        with self.changed:
            before = self._found.pop(key, None)
            if before is None:
                return
            self.version += 1
            after = merge(before, {"metadata": {"resourceVersion": str(self.version)}})
            self._tell(Change(self.version, key[0], "DELETED", before, after))
            if key[0] is NAMESPACE:
                for inner in [inner for inner in self._found if inner[1] == key[2]]:
                    self._remove(inner)

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        self.changed.notify_all()
        if not self._is_collecting:
            self._is_collecting = True
            self._later(COLLECT_S, self._collect)

    def _collect(self) -> None:
        """Remove what nobody owns any more, and what was waiting for that."""
        with self.changed:
            self._is_collecting = False
            alive = {
                document["metadata"]["uid"]
                for document in self._found.values()
                if "foregroundDeletion" not in document["metadata"].get("finalizers", ())
            }
            for key, document in list(self._found.items()):
                owners = [owner["uid"] for owner in document["metadata"].get("ownerReferences", ())]
                if owners and not alive.intersection(owners):
                    self._remove(key)
            owned = {
                owner["uid"]
                for document in self._found.values()
                for owner in document["metadata"].get("ownerReferences", ())
            }
            for key, document in list(self._found.items()):
                waits = "foregroundDeletion" in document["metadata"].get("finalizers", ())
                if waits and document["metadata"]["uid"] not in owned:
                    self._remove(key)

    def _later(self, seconds: float, act: Any) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()


def merge(document: Mapping[str, Any], patch: Mapping[str, Any]) -> Document:
    """RFC 7386: None removes, objects are merged, all else replaces."""
    merged = copy.deepcopy(dict(document))
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            inner = merged.get(name)
            merged[name] = merge(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def selects(query: Mapping[str, str], document: Mapping[str, Any] | None) -> bool:
    """Whether a request selects an object, by labels: a=b, a!=b, a, !a, a in (b,c), a notin (b,c); or fields: a.b=c."""
    if document is None:
        return False
    if not all(_has_field(term, document) for term in query.get("fieldSelector", "").split(",") if term):
        return False
    selector = query.get("labelSelector", "")
    labels = document["metadata"].get("labels") or {}
    return all(_holds(term.strip(), labels) for term in re.split(r",(?![^(]*\))", selector) if term.strip())


def _has_field(term: str, document: Mapping[str, Any]) -> bool:
    path, unequal, wished = re.fullmatch(r"([^!=]+)(!?)==?(.*)", term).groups()  # type: ignore[union-attr]
    value: Any = document
    for word in path.split("."):
        value = value.get(word, "") if isinstance(value, Mapping) else ""
    return bool(value == wished) != bool(unequal)


def _holds(term: str, labels: Mapping[str, str]) -> bool:
    if among := re.fullmatch(r"(\S+)\s+(in|notin)\s+\((.*)\)", term):
        values = {value.strip() for value in among[3].split(",")}
        return (labels.get(among[1]) in values) == (among[2] == "in")
    if unequal := re.fullmatch(r"([^!=]+)!=(.*)", term):
        return labels.get(unequal[1].strip()) != unequal[2].strip()
    if equal := re.fullmatch(r"([^=]+)==?(.*)", term):
        return labels.get(equal[1].strip()) == equal[2].strip()
    return term[1:] not in labels if term.startswith("!") else term in labels
