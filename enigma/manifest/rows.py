"""What the manifest hands out: frozen records, ids with their types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from enigma.model.ids import KeyId, ObjectId, PackId, ProviderId, SessionId
from enigma.model.records import SnapshotRecord


class PackState(IntEnum):
    """Only a USABLE pack makes a chunk known. Reading tries any, in the order of READ_ORDER."""

    USABLE = 0
    MISSING = 1  # not in the newest listing of its set, or there with another length
    CONDEMNED = 2  # a garbage collection means to sweep it
    SUSPECT = 3  # bytes read from it were not what was stored
    TOMBSTONED = 4  # deleted on purpose


READ_ORDER = (
    PackState.USABLE,
    PackState.CONDEMNED,
    PackState.SUSPECT,
    PackState.TOMBSTONED,
    PackState.MISSING,
)


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack as the view has it. `index_id` None: confirmed by its session, in no durable index yet."""

    pack_no: int
    pack_id: PackId
    pack_set: int
    length_bytes: int
    key_id: KeyId
    session_id: SessionId
    index_id: ObjectId | None
    provider_ids: tuple[ProviderId, ...]
    data_shards: int
    parity_shards: int
    retain_until_ns: int
    storage_class: str
    blob_count: int
    stored_bytes: int
    plain_bytes: int
    state: PackState


class Location(NamedTuple):
    """One copy of a chunk: bytes [offset, offset + stored_bytes) of a pack, and how to open them.

    `nonce`, `encoding`, `hash_algorithm` and `dictionary` as in the pack's table of contents (FORMAT.md, "Packs").
    """

    pack_no: int
    pack_id: PackId
    pack_set: int
    key_id: KeyId
    state: PackState
    offset: int
    stored_bytes: int
    plain_bytes: int
    encoding: int
    nonce: bytes
    hash_algorithm: int
    dictionary: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`record` is what the object holds; `void` says that its session was fenced and nobody has adopted it."""

    object_id: ObjectId
    void: bool
    record: SnapshotRecord


@dataclass(frozen=True, slots=True)
class AuditLine:
    time_ns: int
    action: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class ListingChange:
    """What one listing of a set taught: how many objects it has, and what became of the indexed packs."""

    listed_count: int
    missing_count: int
    newly_missing_count: int
    returned_count: int


@dataclass(frozen=True, slots=True)
class SetTotals:
    """Sums over one set's packs. `stored_bytes` counts blobs, `length_bytes` whole packs (one copy each)."""

    pack_set: int
    pack_count: int
    unusable_count: int
    blob_count: int
    length_bytes: int
    stored_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the view; `blob_count` counts a chunk once per pack that holds it."""

    pack_count: int
    blob_count: int
    unusable_count: int
    index_count: int
    snapshot_count: int
    suspect_count: int
