"""From a store's address, as a user gives it, to the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_core.errors import StoreError
from hpo_core.objects.directory import DirectoryStore
from hpo_core.objects.protocol import RecordStore

if TYPE_CHECKING:
    from hpo_core.objects.settings import S3Settings

LOCAL_STORE = "./.hpo"
"""Where records are kept when nobody says anything else."""


def default_store(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address of the store that is meant when nobody gives one.

    It is HPO_STORE; else in a pod of Kubeflow Pipelines a folder of the pipeline root's bucket, the same for all
    pipelines of its namespace; else a folder here.

    Raises:
        StoreError: Kubeflow Pipelines is there, and does not tell its bucket.
        TransientError: The cluster cannot be asked now; a folder here may not be what is meant.
    """
    if told := environment.get("HPO_STORE", "").strip():
        return told
    if "KUBERNETES_SERVICE_HOST" not in environment:
        return LOCAL_STORE
    # Imported here: elsewhere nobody needs it.
    from hpo_core.objects.pipelines import find_root

    return find_root() or LOCAL_STORE


def open_objects(uri: str, environment: Mapping[str, str] = os.environ) -> RecordStore:
    """Open the store of that address; nothing is asked of a server yet.

    Args:
        uri: A directory, `file://` and a directory, or `s3://BUCKET` with or without `/PREFIX`.
        environment: Where address and credentials of an S3 server are told, see `objects.settings`.

    Raises:
        StoreError: The address is of a kind that is not known, or the server's address or credentials are missing.
        TransientError: The cluster cannot be asked for them now.
    """
    folder = folder_of(uri)
    if folder is not None:
        return DirectoryStore(folder)
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme in ("s3", "minio") and bucket:
        # Imported here: its client is dear, and a directory needs none.
        from hpo_core.objects.s3 import S3Store

        return S3Store(bucket, prefix.strip("/"), settings_of(uri, environment))
    raise StoreError(f"cannot open the store {uri!r}: give a directory, as in --store ./.hpo, or s3://BUCKET/PREFIX")


def settings_of(uri: str, environment: Mapping[str, str] = os.environ) -> S3Settings:
    """Return how the server of an `s3://` address is reached; see `S3Settings.of`."""
    from hpo_core.objects.settings import S3Settings

    return S3Settings.of(environment, uri)


def folder_of(uri: str) -> Path | None:
    """Return the directory that an address names, absolute; None for a store that is elsewhere."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).absolute()
    return Path(rest).absolute() if scheme == "file" else None
