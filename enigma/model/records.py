"""The records inside sealed objects, and their one codec (MessagePack). FORMAT.md, "Records".

Every record ends in two fields that let later versions add to it: `extra` holds what may be ignored by who does not
know it, `required` names what may not. Decoding anything that is not such a record raises ObjectCorrupt; a required
name that is unknown here raises FormatUnsupported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from enigma.errors import FormatUnsupported, ObjectCorrupt

KNOWN_REQUIRED: frozenset[str] = frozenset()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    extra: dict[str, Any] = {}
    required: tuple[str, ...] = ()


class Head(Record, frozen=True):
    """The newest object of a kind that a writer had seen: a chain that shows what a provider withholds."""

    logical_id: bytes
    sha256: bytes


class ProviderRecord(Record, frozen=True):
    """One provider as the repository knows it; credentials stay in the local configuration."""

    provider_id: bytes
    name: str
    type: str
    bucket: str
    region: str = ""
    endpoint_url: str = ""
    prefix: str = ""
    weight: int = 1
    lost: bool = False


class Placement(Record, frozen=True):
    """How a pack becomes stored objects: `data` shards and `parity` shards, or `copies` whole ones."""

    kind: str = "RoundRobin"
    copies: int = 1
    data: int = 1
    parity: int = 0


class ChunkerRecord(Record, frozen=True):
    kind: int
    min_bytes: int
    target_bytes: int
    max_bytes: int
    seed: int

    def __repr__(self) -> str:
        return f"ChunkerRecord(kind={self.kind}, target_bytes={self.target_bytes}, seed=<secret>)"


class RepositoryConfig(Record, frozen=True):
    """The sealed truth about a repository. The highest generation that opens wins; ties go to the smaller id."""

    generation: int
    created_ns: int
    chunker: ChunkerRecord
    placement: Placement
    providers: tuple[ProviderRecord, ...]
    previous_sha256: bytes = b""
    heads: tuple[Head, ...] = ()


class IndexedPack(Record, frozen=True):
    """One pack in an index object. `records` is the pack's table of contents: 64 bytes per blob."""

    pack_id: bytes
    pack_set: int
    length_bytes: int
    key_id: bytes
    session_id: bytes
    provider_ids: tuple[bytes, ...]
    records: bytes
    data_shards: int = 1
    parity_shards: int = 0
    retain_until_ns: int = 0
    storage_class: str = ""


class IndexRecord(Record, frozen=True):
    packs: tuple[IndexedPack, ...]
    writer_id: bytes = b""
    signature: bytes = b""


ALONE = "alone"  # in the extra facts of a snapshot whose only source is no directory


class SnapshotRecord(Record, frozen=True):
    """The commit point. `root` is the chunk id of the catalog's root node, `depth` the levels of nodes above leaves."""

    snapshot_id: bytes
    session_id: bytes
    parent_id: bytes
    created_ns: int
    host: str
    user: str
    sources: tuple[bytes, ...]
    root: bytes
    root_bytes: int
    depth: int
    complete: bool
    entry_count: int
    file_count: int
    content_bytes: int
    new_bytes: int
    stored_bytes: int
    unreadable_count: int
    program: str
    duration_ns: int = 0
    tags: tuple[str, ...] = ()
    description: str = ""
    excludes: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    writer_id: bytes = b""
    signature: bytes = b""


class SessionRecord(Record, frozen=True):
    """A heartbeat: who is at work, what it reads, and which condemnations it has taken in."""

    session_id: bytes
    sequence: int
    kind: str  # backup, gc, restore, verify, ...
    created_ns: int
    host: str
    reads_snapshots: tuple[bytes, ...] = ()
    acknowledged: tuple[bytes, ...] = ()
    program: str = ""


class CondemnRecord(Record, frozen=True):
    """A gc's statement that these packs are to be swept unless somebody rescues them."""

    condemn_id: bytes
    session_id: bytes
    created_ns: int
    pack_ids: tuple[bytes, ...]
    heads: tuple[Head, ...] = ()
    writer_id: bytes = b""
    signature: bytes = b""


class RescueRecord(Record, frozen=True):
    """A session's statement that it needs these packs of one condemnation; it cancels exactly that."""

    condemn_id: bytes
    session_id: bytes
    pack_ids: tuple[bytes, ...]
    heads: tuple[Head, ...] = ()
    writer_id: bytes = b""
    signature: bytes = b""


class SweptRecord(Record, frozen=True):
    """A sweep is over: these packs of the condemnation are gone, its others were spared."""

    condemn_id: bytes
    session_id: bytes
    pack_ids: tuple[bytes, ...]
    heads: tuple[Head, ...] = ()
    writer_id: bytes = b""
    signature: bytes = b""


class FenceRecord(Record, frozen=True):
    """The session named in the object's key is taken for dead; its snapshot is void until adopted."""

    session_id: bytes
    by_session_id: bytes
    created_ns: int
    writer_id: bytes = b""
    signature: bytes = b""


class TombRecord(Record, frozen=True):
    """The object of this key was deleted on purpose; a provider that still shows it missed that."""

    key: str
    session_id: bytes
    created_ns: int
    logical_id: bytes = b""
    reason: str = ""
    heads: tuple[Head, ...] = ()


R = TypeVar("R", bound=Record)
_encoder = msgspec.msgpack.Encoder(enc_hook=bytes)  # ids are bytes of a type of their own


def _required(value: object) -> Iterator[str]:
    """What a record and the records within it require."""
    if isinstance(value, Record):
        yield from value.required
        for name in value.__struct_fields__:
            yield from _required(getattr(value, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], Record):
        for one in value:
            yield from _required(one)


def head_of(logical_id: bytes, record: Record) -> Head:
    """The head entry for a record: its logical id, and the hash of its encoding with an empty session id.

    So neither re-sealing nor adoption by another session changes it.
    """
    plain = msgspec.structs.replace(record, session_id=b"") if hasattr(record, "session_id") else record
    return Head(logical_id=logical_id, sha256=hashlib.sha256(encode(plain)).digest())


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decode(kind: type[R], body: bytes, name: str) -> R:
    """The record in `body`; `name` is the object's key, for the message."""
    try:
        record = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, MemoryError, UnicodeDecodeError) as exc:
        raise ObjectCorrupt(f"Object {name} holds no valid {kind.__name__}.") from exc
    unknown = set(_required(record)) - KNOWN_REQUIRED
    if unknown:
        raise FormatUnsupported(f"Object {name} needs a newer Enigma (it uses {', '.join(sorted(unknown))}).")
    return record
