"""Ids: raw bytes with a type, so that a pack id can't be passed for a chunk id. Printed as lower hex."""

from __future__ import annotations

import os
from typing import Self

OBJECT_ID_BYTES = 16
CHUNK_ID_BYTES = 32


class Id(bytes):
    """An id of fixed length. `str()` is the whole lower hex, `repr` its first 8 digits."""

    length_bytes = OBJECT_ID_BYTES

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != cls.length_bytes:
            raise ValueError(f"{cls.__name__} takes {cls.length_bytes} bytes, got {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def random(cls) -> Self:
        return cls(os.urandom(cls.length_bytes))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Raises ValueError for anything but exactly the right number of hex digits."""
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()[:8]})"


class ObjectId(Id):
    """Any stored object; also the salt of the object's key."""


class RepositoryId(Id):
    """One repository, for ever."""


class PackId(ObjectId):
    """A pack object."""


class SessionId(ObjectId):
    """One run of a program that reads or writes a repository. Random per run, never derived from the machine."""


class SnapshotId(Id):
    """The logical id inside a snapshot: what users type; survives re-sealing under another object id."""


class KeyId(Id):
    """A data key, or the master key that wraps data keys."""


class ProviderId(Id):
    """A provider of a repository, stable across renames in the configuration."""


class ChunkId(Id):
    """SHA-256 of a chunk's plaintext."""

    length_bytes = CHUNK_ID_BYTES
