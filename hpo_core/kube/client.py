"""What can be asked of a Kubernetes API server: objects of any kind, logs, watches and permissions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hpo_core.errors import NotFound
from hpo_core.kube.access import find_access
from hpo_core.kube.faults import Gone, NotServed
from hpo_core.kube.interrupt import Interruption
from hpo_core.kube.kinds import Kinds, Resource, not_served
from hpo_core.kube.watching import Document, Documents, Listing, Reach, Watch
from hpo_core.kube.wire import Request, Stream, Wire

PAGE = 500
"""So many objects are listed at once."""
LOG_SILENCE_S = 600.0
"""How long a followed log may be silent; a peer that died is noticed earlier, by its connection."""


class Kube:
    """A Kubernetes API server; may be used by many threads at once.

    Every method but `watch` and `pod_log` asks once and raises TransientError for what is likely to pass, LaunchError
    for what is not: no permission, no valid credentials, a kind that is not served. A namespace of "" is its own one;
    it is of no account to kinds that lie in none.

    Args:
        wire: The way to the server.
        namespace: Where objects are that do not say it.

    Attributes:
        namespace: The same.
        server: The server's address.
    """

    def __init__(self, wire: Wire, namespace: str) -> None:
        self.namespace = namespace
        self._wire = wire
        self._kinds = Kinds(wire)
        self._reach = Reach(wire)

    @classmethod
    def connect(cls, *, context: str = "", namespace: str = "") -> Kube:
        """Find the cluster: in a pod by its service account, else by the kubeconfig. Asks the server nothing yet.

        Args:
            context: The kubeconfig's context; "" for its current one. Where it or $KUBECONFIG is given, that is taken
                even in a pod.
            namespace: Where objects are that do not say it; "" for the pod's own, else the context's, else `default`.

        Raises:
            LaunchError: No cluster is known here, or the configuration is broken.
        """
        access = find_access(context=context, namespace=namespace)
        return cls(Wire(access), access.namespace)

    @property
    def server(self) -> str:
        """The server's address."""
        return self._wire.server

    def now_s(self) -> float:
        """Return the time by the server's clock, in seconds since 1970; by ours before it has answered anything.

        What the server dates is told old by this time, whatever our own clock shows. It comes from the last answer, in
        whole seconds, and is never too late.
        """
        return self._wire.now_s()

    def server_version(self) -> str:
        """Return the server's version, such as `v1.34.0`."""
        return str(self._wire.ask(Request("get", "/version", "the server's version"))["gitVersion"])

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return how a kind is served.

        Raises:
            LaunchError: It is not: `no kind PyTorchJob in kubeflow.org/v1 here`.
        """
        return self._kinds.resource(api_version, kind)

    def create(self, manifest: Mapping[str, Any]) -> Document:
        """Create an object, in the namespace that it names, else in this one's, and return it as it is stored.

        Raises:
            Conflict: There is one of that name.
            Refused: The server will not have it: it is invalid, above a quota or against a policy.
        """
        resource = self.resource(manifest["apiVersion"], manifest["kind"])
        metadata = manifest.get("metadata") or {}
        name = metadata.get("name") or metadata.get("generateName") or ""
        request = self._request("create", resource, metadata.get("namespace") or "", about=name)
        return self._ask(resource, request, body=manifest)

    def get(self, api_version: str, kind: str, name: str, *, namespace: str = "") -> Document:
        """Return an object.

        Raises:
            NotFound: There is none of that name.
        """
        resource = self.resource(api_version, kind)
        return self._ask(resource, self._request("get", resource, namespace, name=name))

    def list(
        self, api_version: str, kind: str, *, namespace: str = "", selector: str = "", field_selector: str = ""
    ) -> Documents:
        """Return all objects of a kind; empty when there are none.

        Args:
            api_version: Its group and version.
            kind: Its name.
            namespace: Where.
            selector: What their labels must be, as `kubectl -l` takes it; "" for whatever they are.
            field_selector: What their fields must be, of the few that the server can choose by, as `metadata.name=x`.
        """
        resource = self.resource(api_version, kind)
        request = self._request("list", resource, namespace, selector=selector, field_selector=field_selector)
        return self._list(resource, request).items

    def patch(
        self, api_version: str, kind: str, name: str, merge_patch: Mapping[str, Any], *, namespace: str = ""
    ) -> Document:
        """Merge a document into an object and return it as it is stored then; a field that is None is removed.

        Raises:
            NotFound: There is none of that name.
            Conflict: The patch names a version or an identity that the object no longer has.
            Refused: The server will not have it so.
        """
        resource = self.resource(api_version, kind)
        request = self._request("patch", resource, namespace, name=name)
        return self._ask(resource, request, body=merge_patch, content_type="application/merge-patch+json")

    def delete(
        self,
        api_version: str,
        kind: str,
        name: str,
        *,
        namespace: str = "",
        foreground: bool = False,
        grace_s: int | None = None,
    ) -> None:
        """Let an object be removed, and what it owns after it. Idempotent; does not wait until it is gone.

        Args:
            api_version: Its group and version.
            kind: Its kind.
            name: Its name; one that does not exist is no error.
            namespace: Where it is.
            foreground: Keep it until all that it owns is gone.
            grace_s: Seconds until a pod is ended by force; None for its own. It can be shortened later.
        """
        resource = self.resource(api_version, kind)
        request = self._request("delete", resource, namespace, name=name)
        options = _propagation("Foreground" if foreground else "Background")
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        with contextlib.suppress(NotFound):
            self._ask(resource, request, body=options)

    def delete_all(self, api_version: str, kind: str, *, selector: str, namespace: str = "") -> None:
        """Let all objects with such labels be removed, and what they own. Idempotent; does not wait for it.

        Raises:
            ValueError: The selector is empty, which would mean everything.
        """
        if not selector:
            raise ValueError("what is to be deleted must be selected by its labels")
        resource = self.resource(api_version, kind)
        request = self._request("deletecollection", resource, namespace, selector=selector)
        self._ask(resource, request, body=_propagation("Background"))

    def watch(
        self, api_version: str, kind: str, *, selector: str = "", field_selector: str = "", namespace: str = ""
    ) -> Watch:
        """Return what yields all objects and then every change of them; the server is asked when it is iterated.

        Args:
            api_version: Their group and version.
            kind: Their kind.
            selector: What their labels must be; "" for whatever they are.
            field_selector: What their fields must be, of the few that the server can choose by, as `type=Warning`.
            namespace: Where.
        """

        def list_all(interruption: Interruption) -> Listing:
            resource = self.resource(api_version, kind)
            request = self._request("list", resource, namespace, selector=selector, field_selector=field_selector)
            return self._list(resource, request, interruption)

        return Watch(self._wire, list_all, self._reach)

    def pod_log(
        self,
        pod: str,
        container: str,
        *,
        follow: bool,
        since_time: str = "",
        tail_lines: int | None = None,
        limit_bytes: int | None = None,
        timestamps: bool = False,
        namespace: str = "",
    ) -> Stream:
        """Return what a container prints, as a stream that asks the server when it is iterated.

        Iterating raises NotFound when there is no such pod, and TransientError while the container has not started,
        when the connection broke, and after ten silent minutes. It ends when the container has, or without `follow`
        when all has been given that was there; that of a pod which has no node yet is empty and ends at once. Where a
        container prints faster than it is read, what the kubelet has rotated away is left out without a word.

        Args:
            pod: The pod's name.
            container: The container's.
            follow: Go on with what will be printed.
            since_time: Leave out what was printed before that time, RFC 3339; the server looks at whole seconds.
            tail_lines: Begin so many lines before the end; None for the beginning.
            limit_bytes: End after so many bytes; None for all.
            timestamps: Begin each line with the time at which it was printed, and a space.
            namespace: Where the pod is.
        """
        place = namespace or self.namespace
        options = {
            "container": container,
            "follow": "true" if follow else "",
            "sinceTime": since_time,
            "tailLines": _digits(tail_lines),
            "limitBytes": _digits(limit_bytes),
            "timestamps": "true" if timestamps else "",
        }
        pods = Resource("v1", "Pod", "pods", namespaced=True, verbs=frozenset())
        request = Request(
            "get",
            f"{pods.path(place, pod)}/log",
            f"the log of {container} in {pods.about(place, pod)}",
            {name: value for name, value in options.items() if value},
        )
        return Stream(self._wire, request, begin_s=LOG_SILENCE_S, silence_s=LOG_SILENCE_S)

    def allowed(self, verb: str, resource: str, *, group: str = "", subresource: str = "", namespace: str = "") -> bool:
        """Tell whether we may do that, as far as the server can tell beforehand.

        Args:
            verb: Kubernetes's word: get, list, watch, create, patch, delete, deletecollection.
            resource: The plural, `pods`.
            group: Its group; "" for the core group.
            subresource: `log`, say; "" for the object itself.
            namespace: Where.
        """
        wish = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**wish, "namespace": namespace or self.namespace}},
        }
        return bool((self.create(review).get("status") or {}).get("allowed"))

    def _request(
        self, verb: str, resource: Resource, namespace: str, *, name: str = "", about: str = "", **selectors: str
    ) -> Request:
        place = namespace or self.namespace
        given = {"labelSelector": selectors.get("selector"), "fieldSelector": selectors.get("field_selector")}
        query = {key: value for key, value in given.items() if value}
        return Request(verb, resource.path(place, name), resource.about(place, name or about), query)

    def _ask(
        self, resource: Resource, request: Request, interruption: Interruption | None = None, **changes: Any
    ) -> Document:
        """Send a request about objects of a kind, changed so."""
        try:
            return self._wire.ask(replace(request, **changes), interruption)
        except NotServed as error:
            self._kinds.forget(resource)
            raise not_served(resource.api_version, resource.kind) from error

    def _list(self, resource: Resource, request: Request, interruption: Interruption | None = None) -> Listing:
        while True:
            with contextlib.suppress(Gone):  # the list took longer than its version is kept: once more, from the start
                return self._pages(resource, request, interruption)

    def _pages(self, resource: Resource, request: Request, interruption: Interruption | None) -> Listing:
        found: Documents = []
        more = {"limit": str(PAGE)}
        while True:
            page = self._ask(resource, request, interruption, query={**request.query, **more})
            # Lists of built-in kinds do not say in each item what it is.
            identity = {"apiVersion": resource.api_version, "kind": resource.kind}
            found += [{**identity, **item} for item in page.get("items") or []]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(found, str(metadata.get("resourceVersion") or ""), request)
            more = {"limit": str(PAGE), "continue": metadata["continue"]}


def _propagation(policy: str) -> Document:
    return {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}


def _digits(number: int | None) -> str:
    return "" if number is None else str(number)
