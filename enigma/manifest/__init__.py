"""The manifest: the local SQLite view of a repository, rebuilt from the providers by `enigma recover`.

It answers three questions fast: is this chunk stored already, where is it, and what may not be trusted. The schema,
with the meaning of every column, is in schema.py. Only this package imports apsw.

One process writes at a time (the caller holds a lock file for that); any number read beside it. One Manifest is used
by one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from enigma.clock import wall_ns
from enigma.manifest.database import Database
from enigma.manifest.journal import JournalPart
from enigma.manifest.packs import PackPart
from enigma.manifest.rows import (
    READ_ORDER,
    AuditLine,
    Counts,
    ListingChange,
    Location,
    Pack,
    PackState,
    SetTotals,
    Snapshot,
)
from enigma.manifest.snapshots import SnapshotPart
from enigma.manifest.states import StatePart

__all__ = [
    "READ_ORDER",
    "AuditLine",
    "Counts",
    "ListingChange",
    "Location",
    "Manifest",
    "Pack",
    "PackState",
    "SetTotals",
    "Snapshot",
]

BUSY_TIMEOUT_S = 5.0


class Manifest(PackPart, StatePart, SnapshotPart, JournalPart):
    """An open manifest. Any method may raise Locked, ManifestCorrupt, or EnigmaError for a full or failing disk."""

    def __init__(self, database: Database, clock_ns: Callable[[], int]) -> None:
        self._db = database
        self._clock_ns = clock_ns

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = False,
        readonly: bool = False,
        clock_ns: Callable[[], int] = wall_ns,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """Open the file, or (`create`) make it if it is not there; mode 0600.

        A file whose last writer did not end in order is checked first (measured 0.1 s per million blobs). Raises
        RepositoryNotFound (no file), ManifestCorrupt (damaged, empty, or no manifest), FormatUnsupported (from a newer
        Enigma), Locked, EnigmaError (can't be read or written).
        """
        database = Database(path, create=create, readonly=readonly, busy_timeout_s=busy_timeout_s)
        return cls(database, clock_ns)

    def transaction(self) -> AbstractContextManager[None]:
        """All changes inside, or none. Changes of many packs belong in one: a commit per pack doubles their cost.

        A transaction inside another joins it; if it fails, the outer one can't succeed any more.
        """
        return self._db.transaction()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
