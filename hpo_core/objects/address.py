"""From a store's address, as a user gives it, to the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hpo_core.errors import StoreError
from hpo_core.objects.directory import DirectoryStore
from hpo_core.objects.protocol import RecordStore

LOCAL_STORE = "./.hpo"
"""Where records are kept when nobody says anything else."""


def open_objects(uri: str, environment: Mapping[str, str] = os.environ) -> RecordStore:
    """Open the store of that address; nothing is asked of a server yet.

    Args:
        uri: A directory, `file://` and a directory, or `s3://BUCKET` with or without `/PREFIX`.
        environment: Where address and credentials of an S3 server are told, see `objects.settings`.

    Raises:
        StoreError: The address is of a kind that is not known, or the server's address or credentials are missing.
    """
    folder = folder_of(uri)
    if folder is not None:
        return DirectoryStore(folder)
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme in ("s3", "minio") and bucket:
        # Imported here: its client is dear, and a directory needs none.
        from hpo_core.objects.s3 import S3Store
        from hpo_core.objects.settings import S3Settings

        return S3Store(bucket, prefix.strip("/"), S3Settings.of(environment))
    raise StoreError(f"cannot open the store {uri!r}: give a directory, as in --store ./.hpo, or s3://BUCKET/PREFIX")


def folder_of(uri: str) -> Path | None:
    """Return the directory that an address names, absolute; None for a store that is elsewhere."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).absolute()
    return Path(rest).absolute() if scheme == "file" else None
