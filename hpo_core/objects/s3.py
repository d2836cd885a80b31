"""Objects in MinIO or any other S3; the only door to its client.

The client has no conditional writes: it would send their headers as metadata, without a word. So small objects go by a
presigned address, to which any header can be added; files go through the client, which sends them part by part.
HTTP_PROXY, HTTPS_PROXY and NO_PROXY tell the way, as they do for other programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.credentials.providers import IamAwsProvider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects.faults import EXISTING, MISSING, NoBucket, Refused, refusal
from hpo_core.objects.lease import LEASE_S, Lease
from hpo_core.objects.probe import keeps_writers_apart
from hpo_core.objects.protocol import ABSENT, Blob, Lock, check_expectation, open_source, writing
from hpo_core.objects.settings import SINGLE_WRITER, S3Settings

CONNECT_S, ANSWER_S = 3.0, 10.0
"""How long a server may take to accept a connection, and to answer or to take the next piece."""
CONNECTIONS = 32
"""How many are kept open: one for each of the threads that read and write, and a few for the parts of files."""
DENIED_S = (0.05, 0.2, 0.0)
"""Pauses after a write that was denied: MinIO denies one whose folder it removes, being empty, at the same time."""
CLOCK_S = 1.0
"""By how much the difference of two times in whole seconds may exceed the true one."""

_LOOPBACK = re.compile(r"(localhost|127\.[\d.]+|\[::1\])(:\d+)?")
_T = TypeVar("_T")


class S3Store:
    """Objects in a bucket, below a prefix.

    Args:
        bucket: The bucket; it is made by the first lock, where the credentials allow that.
        prefix: What every key begins with there; "" for nothing.
        settings: Server and credentials.
        lease_s: How long a holder of a lock that no longer says that it lives is waited for, in seconds.
    """

    poll_s = 1.0

    def __init__(self, bucket: str, prefix: str, settings: S3Settings, *, lease_s: float = LEASE_S) -> None:
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        proxy = proxy_of(settings)
        by = f" by the proxy {urlsplit(proxy).netloc.rpartition('@')[2]}" if proxy else ""
        self._where = f"{self.uri} at {'https' if settings.secure else 'http'}://{settings.endpoint}{by}"
        self._single_writer = settings.single_writer
        self._lease_s = lease_s
        try:
            self._http = _connections(settings.ca_file, proxy)
            self._client = _client(settings, self._http)
        except urllib3.exceptions.ProxySchemeUnknown as error:
            advice = "give HTTP_PROXY and HTTPS_PROXY as http://HOST:PORT, or name the server in NO_PROXY"
            raise StoreError(f"cannot use {self._where}: {advice}") from error
        except ValueError as error:
            raise StoreError(f"cannot use {self._where}: {error}; check its address, and AWS_REGION") from error
        self._unsure: set[tuple[str, bytes]] = set()
        self._ready = False
        self._preparing = threading.Lock()

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""
        return self._do(f"read {key} in", lambda: self._get(key), key)

    def fetch(self, key: str, path: Path) -> None:
        """See `RecordStore.fetch`."""

        def copy() -> None:
            with contextlib.closing(self._client.get_object(self._bucket, self._prefix + key)) as response:
                for piece in response.stream(1 << 20):
                    file.write(piece)

        with writing(path) as file:
            self._do(f"read {key} in", copy, key)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        if isinstance(data, Path):
            return self._put_file(key, data)
        attempt = (key, hashlib.sha256(data).digest())
        try:
            tag = self._do(f"write {key} in", lambda: self._put(key, data, expect), key)
        except TransientError:
            if expect is not None:
                self._unsure.add(attempt)
            raise
        except Conflict as conflict:
            # The answer to an earlier try may have been lost: then the server has done what we ask for.
            written = self._present_tag(key, data) if attempt in self._unsure else ABSENT
            self._unsure.discard(attempt)
            if written == ABSENT:
                raise conflict
            return written
        self._unsure.discard(attempt)
        return tag

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        """See `ObjectStore.list`; what consoles make to show an empty folder is no object."""

        def read() -> list[str]:
            found = self._client.list_objects(self._bucket, self._prefix + prefix, recursive=deep)
            keys = ((entry.object_name or "").removeprefix(self._prefix) for entry in found)
            return sorted(key for key in keys if not key.endswith("/") or (not deep and key != prefix))

        try:
            return self._do(f"list {prefix or 'everything'} in", read)
        except NoBucket:
            return []

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with contextlib.suppress(NotFound):
            self._do(f"delete {key} in", lambda: self._client.remove_object(self._bucket, self._prefix + key), key)

    def lock(self, key: str, owner: Mapping[str, Any]) -> Lock | None:
        """See `Locks.lock`; the first one makes the bucket, where there is none, and tries conditional writes out."""
        self._prepare()
        return Lease.take(self, key, owner, lease_s=self._lease_s)

    def is_locked(self, key: str) -> bool:
        """See `Locks.is_locked`."""
        try:
            return Lease.is_held(self.get(key))
        except NotFound:
            return False

    def _get(self, key: str) -> Blob:
        response = self._client.get_object(self._bucket, self._prefix + key)
        try:
            return Blob(response.read(), _etag(response.headers), _age_s(response.headers))
        finally:
            response.close()
            response.release_conn()

    def _put(self, key: str, data: bytes, expect: str | None) -> str:
        headers = {}
        if expect is not None and self._single_writer:
            check_expectation(key, expect, self._present_tag(key))
        elif expect is not None:
            headers = {"If-None-Match": "*"} if expect == ABSENT else {"If-Match": f'"{expect}"'}
        url = self._client.get_presigned_url("PUT", self._bucket, self._prefix + key, timedelta(hours=1))
        for pause_s in DENIED_S:
            response = self._http.request("PUT", url, body=data, headers=headers)
            if response.status == 200:
                return _etag(response.headers)
            error = _error_of(response)
            if not isinstance(error, S3Error) or error.code != "AccessDenied":
                break
            time.sleep(pause_s)
        if response.status == 412 or (expect and isinstance(error, S3Error) and error.code in MISSING):
            raise Conflict(f"{self.uri}/{key} was written by somebody else meanwhile")
        raise error

    def _put_file(self, key: str, path: Path) -> str:
        with open_source(path) as file:
            size = os.fstat(file.fileno()).st_size
            written = self._do(
                f"write {key} in", lambda: self._client.put_object(self._bucket, self._prefix + key, file, size), key
            )
        return (written.etag or "").strip('"')

    def _present_tag(self, key: str, data: bytes | None = None) -> str:
        """The tag of what is there; ABSENT for nothing, or for something else than these bytes."""
        try:
            present = self.get(key)
        except NotFound:
            return ABSENT
        return present.etag if data is None or present.data == data else ABSENT

    def _prepare(self) -> None:
        """Make the bucket, and find out whether the server keeps conditional writes apart."""
        with self._preparing:
            if self._ready:
                return
            try:
                self._do("open", lambda: self._get(".probe/none"))
            except NoBucket:
                self._make_bucket()
            except NotFound:
                pass
            if not self._single_writer and not keeps_writers_apart(self):
                raise StoreError(
                    f"{self._where}: the server ignores conditional writes, so nothing would keep a second tuner out; "
                    f"use a newer server (MinIO since 2024-11), or set {SINGLE_WRITER}=yes if you vouch that no two "
                    "tuners ever run the same experiment"
                )
            self._ready = True

    def _make_bucket(self) -> None:
        try:
            self._do("make the bucket of", lambda: self._client.make_bucket(self._bucket))
        except Refused as error:
            if error.code == "AccessDenied":
                advice = "and these credentials may not make it; let somebody make it, or choose another --store"
                raise StoreError(f"{self._where}: there is no bucket {self._bucket!r}, {advice}") from error
            if error.code not in EXISTING:  # somebody else was faster
                raise

    def _do(self, what: str, action: Callable[[], _T], key: str = "") -> _T:
        """Do something, and say in our words what the server and the way to it say."""
        attempt = f"cannot {what} {self._where}"
        try:
            return action()
        except S3Error as error:
            if error.code in MISSING:
                raise NotFound(f"there is no {self.uri}/{key}") from error
            if error.code == "NoSuchBucket":
                raise NoBucket(
                    f"there is no bucket {self._bucket!r} for {self._where}; the first experiment makes it, "
                    "or check bucket and address"
                ) from error
            raise refusal(attempt, error.code or "", error.response.status, error.message or "") from error
        except (InvalidResponseError, ServerError) as error:
            raise refusal(attempt, "", _status_of(error)) from error
        except ParseError as error:
            raise refusal(attempt, "", 200) from error
        except urllib3.exceptions.LocationParseError as error:
            raise StoreError(f"{attempt}: that is no address: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _of_the_way(attempt, error) from error
        except (MinioException, ValueError) as error:
            code = "InvalidBucketName" if "bucket name" in str(error) else ""
            raise refusal(attempt, code, 0) if code else StoreError(f"{attempt}: {error}") from error


def proxy_of(settings: S3Settings) -> str:
    """Address of the proxy on the way to the server, as HTTP_PROXY, HTTPS_PROXY and NO_PROXY tell it; "" for none.

    There is none on the way to a server of this very machine.
    """
    proxy = getproxies().get("https" if settings.secure else "http", "")
    if not proxy or proxy_bypass(settings.endpoint) or _LOOPBACK.fullmatch(settings.endpoint):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _connections(ca_file: str, proxy: str = "") -> urllib3.PoolManager:
    """Connections to the server, or to a proxy before it, which may want to know who we are."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=CONNECT_S, read=ANSWER_S),
        "maxsize": CONNECTIONS,
        "retries": False,
        "cert_reqs": "CERT_REQUIRED",
        "ca_certs": ca_file or certifi.where(),
    }
    if not proxy:
        return urllib3.PoolManager(**options)
    auth = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def _client(settings: S3Settings, http: urllib3.PoolManager) -> Minio:
    return Minio(
        settings.endpoint,
        access_key=settings.access_key or None,
        secret_key=settings.secret_key or None,
        session_token=settings.session_token or None,
        credentials=None if settings.access_key else IamAwsProvider(http_client=_role_connections(settings, http)),
        secure=settings.secure,
        region=settings.region or None,
        http_client=http,
    )


def _role_connections(settings: S3Settings, http: urllib3.PoolManager) -> urllib3.PoolManager:
    """Connections to who tells our role: Amazon's service behind the proxy, or this very machine's, which never is."""
    return http if "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ else _connections(settings.ca_file)


def _error_of(response: urllib3.BaseHTTPResponse) -> S3Error | ServerError:
    """The client's own error for an answer to a request that did not go through it."""
    try:
        return S3Error.fromxml(response)
    except (ParseError, ValueError):
        return ServerError(f"status {response.status}", response.status)


def _status_of(error: InvalidResponseError | ServerError) -> int:
    told = re.search(r"code:? (\d+)", str(error))
    return error.status_code if isinstance(error, ServerError) else int(told[1]) if told else 0


def _etag(headers: Mapping[str, str]) -> str:
    return (headers.get("ETag") or "").removeprefix("W/").strip('"')


def _age_s(headers: Mapping[str, str]) -> float:
    """Seconds since the object was written, at least, both times by the server's clock; 0 where it does not say."""
    try:
        now, written = (parsedate_to_datetime(headers[name]) for name in ("Date", "Last-Modified"))
    except (KeyError, ValueError):
        return 0.0
    return max((now - written).total_seconds() - CLOCK_S, 0.0)


def _of_the_way(attempt: str, error: Exception) -> StoreError | TransientError:
    """The error for a request that got no answer."""
    reason = getattr(error, "reason", None) or error
    if isinstance(error, urllib3.exceptions.SSLError) and not isinstance(error.args[0], ssl.SSLEOFError):
        advice = "it does not speak TLS, or its certificate is not trusted; check http or https, or AWS_CA_BUNDLE"
        return StoreError(f"{attempt}: {advice}: {error}")
    if isinstance(error, urllib3.exceptions.ProxyError) and "Tunnel connection failed: 4" in str(error.original_error):
        told = f"{error.original_error}; mend that, or name the server in NO_PROXY"
        return StoreError(f"{attempt}: the proxy does not let us through: {told}")
    if isinstance(error, urllib3.exceptions.ProxyError):
        met = "the proxy cannot be reached"
    elif isinstance(reason, urllib3.exceptions.NameResolutionError):
        met = "its name is not known here"
    elif isinstance(reason, urllib3.exceptions.NewConnectionError):
        met = "nobody accepts connections there"
    elif isinstance(reason, urllib3.exceptions.TimeoutError):
        met = "it does not answer in time"
    else:
        met = f"the connection broke ({type(reason).__name__})"
    return TransientError(f"{attempt}: {met}; waiting for it")
