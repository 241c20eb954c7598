"""The engine's border: what it asks of its owner, and the records that cross. The owner knows keys, clouds and SQL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from workers.messages import Target
from workers.packs import BlobRecord


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A finished pack: what an index needs to know of it. `records` is 64 bytes per blob, as in its table."""

    pack_id: bytes
    pack_set: int
    key_id: bytes
    length_bytes: int
    records: bytes


@dataclass(frozen=True, slots=True)
class RangeRead:
    """Blobs of one pack within [offset, offset + length_bytes), and where each chunk goes (nowhere: it is checked)."""

    pack_id: bytes
    pack_set: int
    key_id: bytes
    offset: int
    length_bytes: int
    blobs: tuple[tuple[BlobRecord, tuple[Target, ...]], ...]
    tag: Any = None


class Opened(NamedTuple):
    """A range was read. `failure` is set if it never arrived.

    errors     (index of a blob, what is wrong with it)
    unwritten  (index of a blob, number of its target, why it could not be written)
    """

    request: RangeRead
    errors: tuple[tuple[int, str], ...]
    unwritten: tuple[tuple[int, int, str], ...]
    warnings: tuple[str, ...]
    failure: BaseException | None


@dataclass(frozen=True, slots=True)
class PackCheck:
    """A whole pack to be fetched and checked byte by byte."""

    pack_id: bytes
    pack_set: int
    key_id: bytes
    length_bytes: int
    tag: Any = None

    @property
    def offset(self) -> int:
        return 0


class Checked(NamedTuple):
    """A pack was checked; `failure` if it never arrived. `records_sha256` is to be compared with the index."""

    request: PackCheck
    errors: tuple[str, ...]
    records_sha256: bytes
    failure: BaseException | None


class Owner(Protocol):
    """All but `place` and `fetch` are called on the thread that drives the engine."""

    def known(self, chunk_ids: list[bytes]) -> Collection[bytes]:
        """Those of the ids that certainly exist already."""

    def place(self, pack: SealedPack, content: memoryview) -> None:
        """Store a pack for good; on an uploader thread. Keeps no reference to `content`. Raises if it can't."""

    def stored(self, pack: SealedPack) -> None:
        """The pack was placed."""

    def fetch(self, request: RangeRead | PackCheck, into: memoryview) -> None:
        """Fill `into` from a pack; on a downloader thread. Raises if it can't be filled."""

    def tick(self) -> None:
        """Called at least about once a second while the engine works."""
