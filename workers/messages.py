"""What the parent process and its workers say to each other: frozen records over a packet socket.

No message exceeds 64 KiB, contents travel in slots, and the parent never blocks in a send: two full pipes facing each
other would deadlock. Pickle is safe here and only here: both ends of the socket pair are the same program, and nothing
in it ever came from a file or a network.

    parent -> worker                             worker -> parent
    Batch, Segment, Window,                jobs  Done, Cut,
    Read, Check, Finish                          ReadDone, CheckDone, FinishDone, Failed
    Verdict     answers Ask                      Ask       which of these chunks are to be stored?
    Grant       answers Want                     Want      a free slot, please
    Flush                                        PackFull  the slot is the parent's now
                                                 Flushed
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from workers.attributes import Attributes
from workers.packs import BlobRecord

MESSAGE_LIMIT_BYTES = 64 * 1024


class FileFacts(NamedTuple):
    """What a worker found out about one file while reading it. `error` is an errno, 0 for none.

    content     36 bytes per chunk: SHA-256, then the length as u32
    changed     its size or times were others after reading than before
    started_ns  wall clock just before the reading began
    xattrs      None where they are too large to be sent: the parent reads them itself
    """

    error: int = 0
    content: bytes = b""
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    device: int = 0
    link_count: int = 1
    changed: bool = False
    started_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] | None = ()
    holes: tuple[tuple[int, int], ...] = ()


class Batch(NamedTuple):
    """Read whole small files: (absolute path, expected length)."""

    job: int
    files: tuple[tuple[bytes, int], ...]


class Segment(NamedTuple):
    """Read one window of a large file from `offset`, which is a cut. `identity` is (device, inode) once known."""

    job: int
    path: bytes
    offset: int
    limit_bytes: int
    identity: tuple[int, int] | None


class Window(NamedTuple):
    """Cut and seal `length_bytes` of a stream, in an input slot."""

    job: int
    slot: int
    length_bytes: int
    final: bool


class Target(NamedTuple):
    """Where a chunk is to be written. With `whole`, the file is created, given its attributes and closed at once."""

    path: bytes
    offset: int
    sparse: bool = False
    whole: Attributes | None = None
    replace: bool = False


class Read(NamedTuple):
    """Open blobs of one pack; `base` is the pack offset of the slot's first byte."""

    job: int
    slot: int
    base: int
    pack_id: bytes
    pack_set: int
    key_id: bytes
    blobs: tuple[tuple[BlobRecord, tuple[Target, ...]], ...]


class FinishFile(NamedTuple):
    path: bytes
    temporary: bytes
    length_bytes: int
    attributes: Attributes


class Finish(NamedTuple):
    """Give files their length, attributes and final names."""

    job: int
    files: tuple[FinishFile, ...]


class Check(NamedTuple):
    """Check a whole pack in a write slot: checksum, header, table, trailer, and every blob."""

    job: int
    slot: int
    length_bytes: int
    pack_id: bytes
    pack_set: int
    key_id: bytes


class Verdict(NamedTuple):
    """One bit per chunk asked about, lowest bit first: 1 means store it."""

    bits: bytes


class Grant(NamedTuple):
    slot: int


class Flush(NamedTuple):
    """Close the open pack, if any."""


class Ask(NamedTuple):
    """Chunk ids, 32 bytes each."""

    chunk_ids: bytes


class Want(NamedTuple):
    pass


class Cut(NamedTuple):
    """The next window of this file or stream begins at `offset`; with `final` there is none."""

    job: int
    offset: int
    final: bool
    identity: tuple[int, int]


class Done(NamedTuple):
    """Results of a job, possibly in several messages; `last` closes it."""

    job: int
    facts: tuple[FileFacts, ...]
    last: bool


class PackFull(NamedTuple):
    """A finished pack of `length_bytes` at the slot's start, its plain records behind it."""

    slot: int
    pack_id: bytes
    length_bytes: int
    records_bytes: int


class Flushed(NamedTuple):
    pass


class ReadDone(NamedTuple):
    """What is wrong with a blob, by its index; what could not be written, by blob and target; warnings."""

    job: int
    errors: tuple[tuple[int, str], ...]
    unwritten: tuple[tuple[int, int, str], ...]
    warnings: tuple[str, ...]


class CheckDone(NamedTuple):
    """What is wrong with the pack, and SHA-256 of its table's records (empty if the table does not open)."""

    job: int
    errors: tuple[str, ...]
    records_sha256: bytes


class FinishDone(NamedTuple):
    job: int
    warnings: tuple[str, ...]


class Failed(NamedTuple):
    """A stage raised; this worker does nothing more."""

    message: str
    traceback: str


def encode(message: Any) -> bytes:
    """Raises ValueError for a message over the limit: that is a defect of the sender."""
    packet = pickle.dumps(message, 5)
    if len(packet) > MESSAGE_LIMIT_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(packet)} bytes exceeds a message")
    return packet


def decode(packet: bytes) -> Any:
    return pickle.loads(packet)  # noqa: S301  from our own other half, see above


def split_facts(job: int, facts: list[FileFacts]) -> list[Done]:
    """As few Done messages as the limit allows; attributes too large for any are left to the parent."""
    groups: list[list[FileFacts]] = [[]]
    room_bytes = MESSAGE_LIMIT_BYTES // 2
    for fact in map(_without_large_xattrs, facts):
        cost_bytes = 160 + len(fact.content) + _xattr_bytes(fact) + 24 * len(fact.holes)
        if cost_bytes > room_bytes and groups[-1]:
            groups.append([])
            room_bytes = MESSAGE_LIMIT_BYTES // 2
        groups[-1].append(fact)
        room_bytes -= cost_bytes
    return [Done(job, tuple(group), group is groups[-1]) for group in groups]


def _without_large_xattrs(fact: FileFacts) -> FileFacts:
    return fact._replace(xattrs=None) if _xattr_bytes(fact) > MESSAGE_LIMIT_BYTES // 8 else fact


def _xattr_bytes(fact: FileFacts) -> int:
    return sum(len(name) + len(value) + 12 for name, value in fact.xattrs or ())
