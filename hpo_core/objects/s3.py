"""Objects in MinIO or any other S3; the only door to its client.

The client has no conditional writes: it would send their headers as metadata, without a word. So small objects go by a
presigned address, to which any header can be added; files go through the client, which sends them part by part.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import certifi
import urllib3
from minio import Minio
from minio.credentials.providers import IamAwsProvider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from hpo_core.errors import Conflict, NotFound, StoreError, TransientError
from hpo_core.objects.lease import LEASE_S, Lease
from hpo_core.objects.protocol import ABSENT, Blob, Lock
from hpo_core.objects.settings import SINGLE_WRITER, S3Settings

CONNECT_S, ANSWER_S = 3.0, 10.0
"""How long a server may take to accept a connection, and to answer or to take the next piece."""
CONNECTIONS = 16
PROBERS = 8

_REFUSED = {
    "AccessDenied": "its credentials do not allow this; ask for read, write, list and delete rights below the prefix",
    "InvalidAccessKeyId": "it does not know the access key; check AWS_ACCESS_KEY_ID or MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or MINIO_SECRET_KEY",
    "InvalidTokenId": "the session token is wrong; check AWS_SESSION_TOKEN",
    "ExpiredToken": "the session token has expired; get new credentials",
    "RequestTimeTooSkewed": "the clock of this machine differs from the server's by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": "it is in another region; set AWS_REGION",
    "NoSuchBucket": "there is no such bucket, and these credentials may not make it; let somebody make it",
    "InvalidBucketName": "that is no name for a bucket: 3 to 63 small letters, digits, '-' and '.'",
}
_FULL = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded")
_MISSING = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")

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
        self._where = f"{self.uri} at {'https' if settings.secure else 'http'}://{settings.endpoint}"
        self._single_writer = settings.single_writer
        self._lease_s = lease_s
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_S, read=ANSWER_S),
            maxsize=CONNECTIONS,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        self._client = Minio(
            settings.endpoint,
            access_key=settings.access_key or None,
            secret_key=settings.secret_key or None,
            session_token=settings.session_token or None,
            credentials=None if settings.access_key else IamAwsProvider(),
            secure=settings.secure,
            region=settings.region or None,
            http_client=self._http,
        )
        self._unsure: set[str] = set()
        self._ready = False
        self._preparing = threading.Lock()

    def get(self, key: str) -> Blob:
        """See `ObjectStore.get`."""

        def read() -> Blob:
            response = self._client.get_object(self._bucket, self._prefix + key)
            try:
                return Blob(response.read(), _etag(response.headers), _age_s(response.headers))
            finally:
                response.close()
                response.release_conn()

        return self._do(f"read {key}", read, key)

    def put(self, key: str, data: bytes | Path, *, expect: str | None = None) -> str:
        """See `ObjectStore.put`."""
        if isinstance(data, Path):
            path = str(data)
            written = self._do(
                f"write {key}", lambda: self._client.fput_object(self._bucket, self._prefix + key, path), key
            )
            return written.etag or ""
        condition = None if self._single_writer else expect
        try:
            tag = self._do(f"write {key}", lambda: self._put(key, data, condition), key)
        except Conflict:
            # The answer to an earlier try was lost: the server may have done what we ask for.
            if key not in self._unsure:
                raise
            self._unsure.discard(key)
            tag = self._written_before(key, data)
        except TransientError:
            if condition is not None:
                self._unsure.add(key)
            raise
        self._unsure.discard(key)
        return tag

    def list(self, prefix: str, *, deep: bool = True) -> list[str]:
        """See `ObjectStore.list`."""

        def read() -> list[str]:
            found = self._client.list_objects(self._bucket, self._prefix + prefix, recursive=deep)
            return sorted((entry.object_name or "").removeprefix(self._prefix) for entry in found)

        try:
            return self._do(f"list {prefix or 'everything'}", read, "")
        except _NoBucket:
            return []

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._do(f"delete {key}", lambda: self._client.remove_object(self._bucket, self._prefix + key), key)

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

    def _put(self, key: str, data: bytes, expect: str | None) -> str:
        url = self._client.get_presigned_url("PUT", self._bucket, self._prefix + key, timedelta(hours=1))
        headers = {} if expect is None else {"If-None-Match": "*"} if expect == ABSENT else {"If-Match": f'"{expect}"'}
        response = self._http.request("PUT", url, body=data, headers=headers)
        if response.status == 412 or (response.status == 404 and expect):
            raise Conflict(f"{self.uri}/{key} was written by somebody else meanwhile")
        if response.status != 200:
            raise _error_of(response)
        return _etag(response.headers)

    def _written_before(self, key: str, data: bytes) -> str:
        present = self.get(key)
        if present.data != data:
            raise Conflict(f"{self.uri}/{key} was written by somebody else meanwhile")
        return present.etag

    def _prepare(self) -> None:
        """Make the bucket, and find out whether the server keeps conditional writes apart."""
        with self._preparing:
            if self._ready:
                return
            try:
                self.get(".probe/none")
            except _NoBucket:
                self._make_bucket()
            except NotFound:
                pass
            if not self._single_writer and not self._keeps_writers_apart():
                raise StoreError(
                    f"{self._where}: the server ignores conditional writes, so nothing would keep a second tuner out; "
                    f"use a newer server (MinIO since 2024-11), or set {SINGLE_WRITER}=yes if you vouch that no two "
                    "tuners ever run the same experiment"
                )
            self._ready = True

    def _make_bucket(self) -> None:
        try:
            self._do("make the bucket", lambda: self._client.make_bucket(self._bucket), "")
        except StoreError as error:
            if "BucketAlready" not in str(error):  # somebody else was faster
                raise StoreError(f"{self._where}: {_REFUSED['NoSuchBucket']} ({error})") from error

    def _keeps_writers_apart(self) -> bool:
        """Let several create one object at the same time: exactly one may succeed; nor may a wrong tag be replaced."""
        key = f".probe/{secrets.token_hex(8)}"

        def create(number: int) -> bool:
            try:
                self._do("try conditional writes", lambda: self._put(key, b"%d" % number, ABSENT), key)
            except Conflict:
                return False
            return True

        try:
            with ThreadPoolExecutor(PROBERS) as pool:
                won = list(pool.map(create, range(PROBERS))).count(True)
            try:
                self._do("try conditional writes", lambda: self._put(key, b"x", "0" * 32), key)
            except Conflict:
                return won == 1
            return False
        finally:
            with contextlib.suppress(StoreError, TransientError):
                self.delete(key)

    def _do(self, what: str, action: Callable[[], _T], key: str) -> _T:
        with self._translated(what, key):
            return action()

    @contextlib.contextmanager
    def _translated(self, what: str, key: str) -> Iterator[None]:
        """Say in our words what the server and the way to it say."""
        where = f"cannot {what} in {self._where}"
        try:
            yield
        except S3Error as error:
            raise self._refusal(where, error, key) from error
        except (InvalidResponseError, ServerError) as error:
            status = error.status_code if isinstance(error, ServerError) else int(error.args[0].split("code: ")[1][:3])
            if status >= 500 or status == 429:
                raise TransientError(f"{where}: the server answers {status}; waiting for it") from error
            raise StoreError(f"{where}: the answer is not S3's ({status}); check the server's address") from error
        except urllib3.exceptions.SSLError as error:
            message = "it does not speak TLS, or its certificate is not trusted; check http or https, or AWS_CA_BUNDLE"
            raise StoreError(f"{where}: {message}: {error}") from error
        except urllib3.exceptions.LocationParseError as error:
            raise StoreError(f"{where}: that is no address: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"{where}: {_plain(error)}; waiting for it") from error
        except (MinioException, ValueError) as error:
            raise StoreError(f"{where}: {error}") from error

    def _refusal(self, where: str, error: S3Error, key: str) -> StoreError | TransientError:
        code, status = error.code or "", error.response.status if error.response is not None else 0
        if code in _MISSING:
            return NotFound(f"there is no {self.uri}/{key}")
        if code == "NoSuchBucket":
            return _NoBucket(f"there is no bucket {self._bucket!r} at the object store of {self._where}")
        if code in _FULL or status == 507:
            return TransientError(f"{where}: the server's disk or quota is full; make room there", 2.0)
        if code in _REFUSED:
            return StoreError(f"{where}: {_REFUSED[code]}")
        if status >= 500 or status in (408, 409, 429) or code in ("SlowDown", "RequestTimeout"):
            return TransientError(f"{where}: the server answers {code or status}; waiting for it")
        return StoreError(f"{where}: {code}: {error.message}")


class _NoBucket(NotFound):
    """The bucket is not there (yet), and so is nothing in it."""


def _error_of(response: urllib3.BaseHTTPResponse) -> Exception:
    """The client's own error for an answer to a request that did not go through it."""
    with contextlib.suppress(Exception):
        return S3Error.fromxml(response)
    return ServerError(f"status {response.status}", response.status)


def _etag(headers: Mapping[str, str]) -> str:
    return (headers.get("ETag") or "").strip('"')


def _age_s(headers: Mapping[str, str]) -> float:
    """Seconds since the object was written, both times by the server's clock; 0 where it does not say."""
    try:
        now, written = (parsedate_to_datetime(headers[name]) for name in ("Date", "Last-Modified"))
    except (KeyError, ValueError):
        return 0.0
    return max((now - written).total_seconds(), 0.0)


def _plain(error: Exception) -> str:
    """What kept a request from the server, in a few words."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return "its name is not known here"
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        return "nobody accepts connections there"
    if isinstance(reason, urllib3.exceptions.TimeoutError):
        return "it does not answer in time"
    return f"the connection broke ({type(reason).__name__})"
