"""The read stages on blobs: decrypt, decompress, check the hash, write into the targets.

Nothing is written anywhere before its SHA-256 is the one that was asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict

from workers.compression import ENCODING_RAW, ENCODING_ZSTD, Decompressor
from workers.direct import BLOCK_BYTES, DIRECT_FROM_BYTES
from workers.errors import NEEDS_NEWER, FormatNewer, SealBroken
from workers.messages import Check, Finish, Read, ReadDone, Target
from workers.objects import Header, ObjectType, PackSet
from workers.packs import HASH_SHA256, TRAILER_BYTES, BlobRecord, PackReader, Trailer, check_pack_ends, iter_records
from workers.plan import EnginePlan
from workers.sealing import TAG_BYTES
from workers.targets import TargetTree, UnsafeTarget

OPEN_PACKS = 32
CATALOG_BLOB_LIMIT_BYTES = 16 << 20  # a leaf or node is far smaller; memory is touched only as far as it is used
ERRORS_LIMIT = 20  # a pack that is garbage need not say so ten thousand times


class BlobOpener:
    """Opens single blobs of packs under their keys. Keeps the ciphers of the packs used last."""

    def __init__(self, repository_id: bytes, data_keys: dict[bytes, bytes], max_chunk_bytes: int) -> None:
        self._repository_id = repository_id
        self._data_keys = data_keys
        self._scratch = memoryview(bytearray(max(max_chunk_bytes, CATALOG_BLOB_LIMIT_BYTES) + TAG_BYTES))
        self._decompressor = Decompressor()
        self._readers: OrderedDict[bytes, PackReader] = OrderedDict()

    def open(
        self,
        pack_id: bytes,
        pack_set: int,
        key_id: bytes,
        record: BlobRecord,
        sealed: memoryview,
        out: memoryview | None = None,
    ) -> memoryview:
        """The checked plaintext: in `out`, which is as long, or in memory that the next call takes back.

        Raises SealBroken, FormatNewer.
        """
        content_bytes = record.stored_bytes - TAG_BYTES
        if len(sealed) != record.stored_bytes or content_bytes > len(self._scratch):
            raise SealBroken("is truncated")
        if record.hash_algorithm != HASH_SHA256:
            raise FormatNewer(f"uses hash algorithm {record.hash_algorithm}, which {NEEDS_NEWER}")
        if record.dictionary:
            raise FormatNewer(f"uses dictionary {record.dictionary}, which {NEEDS_NEWER}")
        raw = record.encoding == ENCODING_RAW and content_bytes == record.plain_bytes
        room = out if out is not None and raw else self._scratch
        self.reader(pack_id, pack_set, key_id).open_blob(sealed, record, room)
        plain = self._decoded(record, room[:content_bytes])
        if len(plain) != record.plain_bytes or hashlib.sha256(plain).digest() != record.chunk_id:
            raise SealBroken("does not have the hash it is stored under")
        if out is None or raw:
            return plain
        out[:] = plain
        return out

    def _decoded(self, record: BlobRecord, content: memoryview) -> memoryview:
        if record.encoding == ENCODING_RAW:
            return content
        if record.encoding == ENCODING_ZSTD:
            return memoryview(self._decompressor.decompress(content, record.plain_bytes))
        raise FormatNewer(f"uses encoding {record.encoding}, which {NEEDS_NEWER}")

    def reader(self, pack_id: bytes, pack_set: int, key_id: bytes) -> PackReader:
        """Raises SealBroken if the pack's data key is not at hand."""
        reader = self._readers.get(pack_id)
        if reader is None:
            data_key = self._data_keys.get(key_id)
            if data_key is None:
                raise SealBroken(f"is sealed under data key {key_id.hex()}, which is not at hand")
            reader = self._readers[pack_id] = PackReader(self.header(pack_id, pack_set, key_id), data_key)
            if len(self._readers) > OPEN_PACKS:
                self._readers.popitem(last=False)
        return reader

    def header(self, pack_id: bytes, pack_set: int, key_id: bytes) -> Header:
        """The header a pack must have."""
        return Header(ObjectType.PACK, self._repository_id, pack_id, key_id, PackSet(pack_set))


class PartRun:
    """Neighbouring chunks of one file, joined in memory whose pages match the file's blocks, to be written at once."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._start = self._end = 0
        self.path = b""
        self.offset = 0
        self.blobs: list[int] = []  # their indexes in the job

    @property
    def content(self) -> memoryview:
        return self._memory[self._start : self._end]

    def room(self, target: Target, length_bytes: int) -> memoryview | None:
        """Memory for the chunk that is next in the file; None if the target is no neighbour, or there is no room."""
        if self.blobs and (target.path, target.offset) != (self.path, self.offset + self._end - self._start):
            return None
        if not self.blobs:
            self.path, self.offset = target.path, target.offset
            self._start = self._end = target.offset % BLOCK_BYTES
        return (
            self._memory[self._end : self._end + length_bytes]
            if self._end + length_bytes <= len(self._memory)
            else None
        )

    def take(self, index: int, length_bytes: int) -> None:
        """The room holds a checked chunk now."""
        self.blobs.append(index)
        self._end += length_bytes

    def clear(self) -> None:
        self.blobs = []


class Opener:
    """Serves Read, Check and Finish jobs. `memory` is page-aligned, and takes the longest chunk."""

    def __init__(self, plan: EnginePlan, memory: memoryview) -> None:
        self._plan = plan
        self._run = PartRun(memory)
        self._blobs: BlobOpener | None = None
        self._tree: TargetTree | None = None

    def open_blobs(self, job: Read, memory: memoryview) -> ReadDone:
        """Open each blob and write it to each of its targets; what fails stops nothing else."""
        errors: list[tuple[int, str]] = []
        unwritten: list[tuple[int, int, str]] = []
        warnings: list[str] = []
        for index, (record, targets) in enumerate(job.blobs):
            room = self._room(record, targets, unwritten)
            at = record.offset - job.base
            try:
                sealed = memory[at : at + record.stored_bytes]
                plain = self._opener().open(job.pack_id, job.pack_set, job.key_id, record, sealed, room)
            except (SealBroken, FormatNewer) as exc:
                errors.append((index, str(exc)))
                continue
            if room is not None and not targets[0].whole:
                self._run.take(index, len(plain))
                continue
            for number, target in enumerate(targets):
                try:
                    warnings += self._write(target, plain, aligned=room is not None)
                except (UnsafeTarget, OSError) as exc:
                    unwritten.append((index, number, _reason(exc)))
        self._write_run(unwritten)
        return ReadDone(job.job, tuple(errors), tuple(unwritten), tuple(warnings))

    def check_pack(self, job: Check, memory: memoryview) -> tuple[tuple[str, ...], bytes]:
        """(what is wrong, SHA-256 of the table's records). Reads every byte: no flipped bit anywhere stays unseen."""
        pack = memory[: job.length_bytes]
        errors: list[str] = []
        try:
            check_pack_ends(pack, self._opener().header(job.pack_id, job.pack_set, job.key_id))
        except (SealBroken, FormatNewer) as exc:
            errors.append(f"the pack {exc}")
        try:
            records = self._table(job, pack)
        except (SealBroken, FormatNewer) as exc:
            return (*errors, f"its table of contents {exc}"), b""
        for record in iter_records(records):
            try:
                sealed = pack[record.offset : record.offset + record.stored_bytes]
                self._opener().open(job.pack_id, job.pack_set, job.key_id, record, sealed)
            except (SealBroken, FormatNewer) as exc:
                errors.append(f"the blob of chunk {record.chunk_id.hex()[:16]} {exc}")
        return tuple(errors[:ERRORS_LIMIT]), hashlib.sha256(records).digest()

    def _table(self, job: Check, pack: memoryview) -> bytes:
        trailer = Trailer.decode(pack[-TRAILER_BYTES:], len(pack))
        sealed = pack[trailer.table_offset : trailer.table_offset + trailer.table_bytes]
        return self._opener().reader(job.pack_id, job.pack_set, job.key_id).open_table(sealed)

    def finish(self, job: Finish) -> tuple[str, ...]:
        """Warnings, one per attribute or file that could not be finished."""
        warnings: list[str] = []
        for file in job.files:
            try:
                warnings += self._targets().finish_file(file.path, file.temporary, file.length_bytes, file.attributes)
            except (OSError, UnsafeTarget) as exc:
                warnings.append(f"{os.fsdecode(file.path)}: {exc}")
        return tuple(warnings)

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()

    def _room(
        self, record: BlobRecord, targets: tuple[Target, ...], unwritten: list[tuple[int, int, str]]
    ) -> memoryview | None:
        """Where a chunk goes that may be written past the page cache: a part of one file, or a file of some size."""
        if len(targets) != 1 or targets[0].sparse or (targets[0].whole and record.plain_bytes < DIRECT_FROM_BYTES):
            return None
        room = self._run.room(targets[0], record.plain_bytes)
        if room is None:
            self._write_run(unwritten)
            room = self._run.room(targets[0], record.plain_bytes)
        return room

    def _write_run(self, unwritten: list[tuple[int, int, str]]) -> None:
        run = self._run
        if run.blobs:
            try:
                self._targets().write_aligned_part(run.path, run.offset, run.content)
            except (UnsafeTarget, OSError) as exc:
                unwritten += [(index, 0, _reason(exc)) for index in run.blobs]
            run.clear()

    def _write(self, target: Target, plain: memoryview, *, aligned: bool) -> list[str]:
        tree, whole = self._targets(), target.whole
        if whole is not None:
            return tree.write_whole(
                target.path, plain, whole, sparse=target.sparse, aligned=aligned, replace=target.replace
            )
        tree.write_part(target.path, target.offset, plain, sparse=target.sparse)
        return []

    def _opener(self) -> BlobOpener:
        if self._blobs is None:
            plan = self._plan
            repository_id = plan.pack.header.repository_id
            self._blobs = BlobOpener(repository_id, dict(plan.data_keys), plan.chunker.max_bytes)
        return self._blobs

    def _targets(self) -> TargetTree:
        if self._tree is None:
            self._tree = TargetTree(self._plan.target_root)
        return self._tree


def _reason(error: UnsafeTarget | OSError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
