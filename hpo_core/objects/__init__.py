"""Objects by key, with conditional writes and locks: in memory, in a directory, or in MinIO and any other S3.

This is the only door to where records live. It knows keys and bytes; what they mean is `store`'s.
"""

from hpo_core.objects.address import LOCAL_STORE, default_store, folder_of, open_objects, settings_of
from hpo_core.objects.directory import DirectoryStore
from hpo_core.objects.memory import MemoryStore
from hpo_core.objects.protocol import ABSENT, Blob, Lock, Locks, ObjectStore, RecordStore, SourceError

__all__ = [
    "ABSENT",
    "LOCAL_STORE",
    "Blob",
    "DirectoryStore",
    "Lock",
    "Locks",
    "MemoryStore",
    "ObjectStore",
    "RecordStore",
    "SourceError",
    "default_store",
    "folder_of",
    "open_objects",
    "settings_of",
]
