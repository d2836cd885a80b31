"""The fake's HTTP side: paths, verbs, pages, watches, and refusals as Status objects."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fake_kubernetes.kinds import POD, REVIEW, Document, Kind, Refusal, expired, not_found
from tests.fake_kubernetes.logs import Logs
from tests.fake_kubernetes.objects import Objects, selects

VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0-fake"}


class Cluster(Protocol):
    """What the server serves."""

    objects: Objects
    logs: Logs
    kinds: tuple[Kind, ...]
    cut_after_s: float | None
    bookmark_s: float

    def wait(self) -> None:
        """Return when it is not paused."""
        ...

    def enter(self, call: Call) -> None:
        """Note a request, or refuse it."""
        ...

    def may(self, call: Call, verb: str, plural: str) -> bool:
        """Whether who calls is allowed to."""
        ...


class Call:
    """One request, taken apart."""

    def __init__(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], kinds: tuple[Kind, ...]
    ) -> None:
        parts = urlsplit(target)
        self.method, self.path = method, parts.path
        self.query = dict(parse_qsl(parts.query))
        self.body: Document = json.loads(body) if body else {}
        self.token = headers.get("Authorization", "").removeprefix("Bearer ")
        self.namespace = self.name = self.subresource = ""
        words = [unquote(word) for word in parts.path.split("/") if word]
        depth = 3 if words[:1] == ["apis"] else 2
        self.api_version, words = "/".join(words[1:depth]), words[depth:]
        if words[:1] == ["namespaces"] and len(words) > 2:
            self.namespace, words = words[1], words[2:]
        plural, self.name, self.subresource = [*words, "", "", ""][:3]
        served = (kind for kind in kinds if (kind.api_version, kind.plural) == (self.api_version, plural))
        self.kind = next(served, None)
        self.is_discovery = not plural

    @property
    def verb(self) -> str:
        """What is asked, in Kubernetes's word."""
        if self.method == "GET":
            return "get" if self.name else "watch" if self.query.get("watch") == "1" else "list"
        if self.method == "DELETE":
            return "delete" if self.name else "deletecollection"
        return {"POST": "create", "PATCH": "patch"}[self.method]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: ClassVar[Cluster]

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.cluster.objects.ahead_s if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(self.command, self.path, body, dict(self.headers), self.cluster.kinds)
        self.cluster.wait()
        try:
            self.cluster.enter(call)
            if call.subresource == "log":
                self._log(call)
            elif call.kind and call.verb == "watch":
                self._watch(call, call.kind)
            else:
                self._send(201 if call.method == "POST" else 200, self._answer(call))
        except Refusal as refusal:
            self._send(refusal.code, refusal.status(), refusal.details.get("retryAfterSeconds"))

    def _answer(self, call: Call) -> Document:
        if call.path == "/version":
            return VERSION
        if call.is_discovery:
            return self._discovery(call)
        if call.kind is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if call.kind is REVIEW:
            wish = call.body["spec"]["resourceAttributes"]
            plural = "/".join(filter(None, (wish["resource"], wish.get("subresource"))))
            return {**call.body, "status": {"allowed": self.cluster.may(call, wish["verb"], plural)}}
        return self._object(call, call.kind)

    def _object(self, call: Call, kind: Kind) -> Document:
        objects = self.cluster.objects
        policy = call.body.get("propagationPolicy", "Background")
        if call.verb == "create":
            return objects.create(kind, call.namespace, call.body)
        if call.verb == "patch":
            status = call.subresource == "status"
            return objects.patch(kind, call.namespace, call.name, call.body, status=status)
        if call.verb == "get":
            return objects.get(kind, call.namespace, call.name)
        if call.verb == "list":
            return self._page(call, kind)
        names = [call.name] if call.name else [item["metadata"]["name"] for item in self._items(call, kind)]
        for name in names:
            objects.delete(kind, call.namespace, name, policy)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _discovery(self, call: Call) -> Document:
        served = [kind for kind in self.cluster.kinds if kind.api_version == call.api_version]
        if not served:
            raise Refusal(404, "", "404 page not found")
        extra = [{**POD.discovery(), "name": "pods/log"}] if POD in served else []
        return {"kind": "APIResourceList", "resources": [*[kind.discovery() for kind in served], *extra]}

    def _items(self, call: Call, kind: Kind) -> list[Document]:
        return self.cluster.objects.list(kind, call.namespace, call.query)

    def _page(self, call: Call, kind: Kind) -> Document:
        """A list, or the part of it that was asked for; built-in items do not say their kind."""
        objects = self.cluster.objects
        with objects.changed:
            version, begin = objects.version, ("", "")
            if token := call.query.get("continue"):
                version, *begin_list = json.loads(base64.b64decode(token))
                begin = (begin_list[0], begin_list[1])
                if objects.is_expired(version):
                    raise expired("The provided continue parameter is too old to display a consistent list result.")
            items = self._items(call, kind)
        rest = [item for item in items if _place(item) > begin]
        page = rest[: int(call.query.get("limit") or len(rest) or 1)]
        metadata: Document = {"resourceVersion": str(version)}
        if len(page) < len(rest):
            metadata["continue"] = base64.b64encode(json.dumps([version, *_place(page[-1])]).encode()).decode()
        if "." not in kind.group:
            page = [{key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in page]
        return {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata, "items": page}

    def _watch(self, call: Call, kind: Kind) -> None:
        until = time.monotonic() + float(call.query.get("timeoutSeconds") or 3600)
        cut = time.monotonic() + (self.cluster.cut_after_s if self.cluster.cut_after_s is not None else 1e9)
        with self._chunks() as send:
            try:
                for event in self._events(call, kind, until):
                    if time.monotonic() > cut:
                        raise ConnectionAbortedError
                    send(json.dumps(event).encode() + b"\n" if event else b"")
            except Refusal as refusal:
                send(json.dumps({"type": "ERROR", "object": refusal.status()}).encode() + b"\n")

    def _events(self, call: Call, kind: Kind, until: float) -> Iterator[Document]:
        """Yield what a watch brings; an empty one every now and then."""
        objects = self.cluster.objects
        version = int(call.query.get("resourceVersion") or 0)
        bookmark_at = time.monotonic() + self.cluster.bookmark_s
        while (now := time.monotonic()) < until:
            for change in objects.since(version):
                version = change.version
                if event := _seen(change, kind, call):
                    yield event
            if now > bookmark_at and call.query.get("allowWatchBookmarks") == "true":
                bookmark_at = now + self.cluster.bookmark_s
                identity = {"kind": kind.name, "apiVersion": kind.api_version}
                yield {"type": "BOOKMARK", "object": {**identity, "metadata": {"resourceVersion": str(version)}}}
            yield {}
            with objects.changed:
                if objects.version <= version:
                    objects.changed.wait(0.02)

    def _log(self, call: Call) -> None:
        """Send a log; as with a kubelet, the answer begins with what is printed first."""
        try:
            pod = self.cluster.objects.get(POD, call.namespace, call.name)
        except Refusal:
            raise not_found(POD, call.name) from None
        pieces = self.cluster.logs.read(pod, call.query)
        with self._chunks(late=True) as send:
            for piece in pieces:
                send(piece)

    @contextlib.contextmanager
    def _chunks(self, *, late: bool = False) -> Iterator[Any]:
        """Send an answer piece by piece; break the connection when it is aborted, or the client has."""
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

        def send(piece: bytes) -> None:
            self.cluster.wait()
            if piece:
                begin()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            elif _is_gone(self.connection):
                raise ConnectionAbortedError

        try:
            if not late:
                begin()
            yield send
            begin()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, document: Document, retry_after: object = None) -> None:
        data = json.dumps(document).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if retry_after is not None:
                self.send_header("Retry-After", str(retry_after))
            self.end_headers()
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A listening server that can drop everybody it serves."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, cluster: Cluster, port: int = 0) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"cluster": cluster})
        super().__init__(("127.0.0.1", port), handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""

    def end(self) -> None:
        """Listen no more, and break every connection."""
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _seen(change: Any, kind: Kind, call: Call) -> Document | None:
    """A change as a watch with a selector sees it: what no longer matches is as good as deleted."""
    namespace = change.after["metadata"].get("namespace", "")
    if change.kind is not kind or call.namespace not in ("", namespace):
        return None
    before = change.before is not None and selects(call.query, change.before)
    after = change.type != "DELETED" and selects(call.query, change.after)
    if not before and not after:
        return None
    type_ = "DELETED" if not after else "MODIFIED" if before else "ADDED"
    return {"type": type_, "object": change.after}


def _place(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _is_gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
