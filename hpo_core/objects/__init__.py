"""Objects by key, with conditional writes and locks: in memory, in a directory, or in MinIO and any other S3.

This is the only door to where records live. It knows keys and bytes; what they mean is `store`'s.
"""

from hpo_core.objects.address import LOCAL_STORE, folder_of, open_objects
from hpo_core.objects.directory import DirectoryStore
from hpo_core.objects.memory import MemoryStore
from hpo_core.objects.protocol import ABSENT, Blob, Lock, Locks, ObjectStore, RecordStore

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
    "folder_of",
    "open_objects",
]
