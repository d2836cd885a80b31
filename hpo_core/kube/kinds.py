"""Which kinds the API server serves, and under which paths: what it says of itself, asked once for each group."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from hpo_core.errors import LaunchError
from hpo_core.kube.faults import NotServed
from hpo_core.kube.wire import Request, Wire


@dataclass(frozen=True)
class Resource:
    """A kind, as it is served.

    Attributes:
        api_version: Its group and version, `batch/v1`; `v1` for the core group.
        kind: Its name in manifests, `Job`.
        plural: Its name in paths and in permissions, `jobs`.
        namespaced: Whether its objects lie in namespaces.
        verbs: What can be done with it.
    """

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str]

    @property
    def group(self) -> str:
        """Its group, as permissions name it; "" for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of an object; without a name, that of all of them."""
        place = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced else ""
        return f"{root_of(self.api_version)}{place}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")

    def about(self, namespace: str, name: str = "") -> str:
        """Return the same for a person."""
        what = f"{self.plural} {name}" if name else self.plural
        return f"{what} in namespace {namespace}" if self.namespaced else what


class Kinds:
    """What the server serves. A kind that is there is remembered; one that is not is looked for again."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[tuple[str, str], Resource] = {}

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return how a kind is served.

        Raises:
            LaunchError: It is not.
            TransientError: The server cannot be asked now.
        """
        key = (api_version, kind)
        if key not in self._known:
            self._known.update({(api_version, found.kind): found for found in self._served(api_version)})
        if key not in self._known:
            raise not_served(api_version, kind)
        return self._known[key]

    def forget(self, resource: Resource) -> None:
        """Look for a kind anew: the server does not know its path any more."""
        self._known.pop((resource.api_version, resource.kind), None)

    def _served(self, api_version: str) -> list[Resource]:
        request = Request("list", root_of(api_version), f"the kinds of {api_version}")
        try:
            served = self._wire.ask(request).get("resources") or []
        except NotServed:
            return []
        return [
            Resource(api_version, entry["kind"], entry["name"], entry["namespaced"], frozenset(entry["verbs"]))
            for entry in served
            if "/" not in entry["name"]
        ]


def root_of(api_version: str) -> str:
    """Return the path below which the kinds of a group and version are."""
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def not_served(api_version: str, kind: str) -> LaunchError:
    """Return the error for a kind that the server does not know."""
    return NotServed(f"no kind {kind} in {api_version} here: the operator that brings it is not installed")
