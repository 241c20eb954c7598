"""What is done with a job, in a worker process or in the parent: the one place where file bytes meet the stages.

    write   read file or window -> cut -> SHA-256 -> ask which chunks are new -> compress, seal into the open pack
    read    decrypt -> decompress -> check SHA-256 -> write into the target files

Everything happens in memory mapped once: a window for what is read, the lent slots for packs, a scratch for what is
decrypted. `Port` is the way to the parent: messages in a worker, plain calls in the parent itself.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable
from typing import Any, Protocol

from workers.attributes import read_holes, read_xattrs
from workers.chunking import Chunker
from workers.errors import EngineError
from workers.messages import (
    Batch,
    Check,
    CheckDone,
    Cut,
    Done,
    FileFacts,
    Finish,
    FinishDone,
    Flush,
    Flushed,
    Read,
    Segment,
    Window,
    split_facts,
)
from workers.opening import Opener
from workers.plan import EnginePlan
from workers.sealer import Depot, Sealer

HOLES_LIMIT = 512
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
MADV_HUGEPAGE = 14  # missing from the mmap module of 3.11; fresh memory costs a seventh with it


class Port(Depot, Protocol):
    """The parent, seen from a job."""

    def send(self, message: Any) -> None: ...

    def ask(self, chunk_ids: bytes) -> bytes:
        """The verdict's bits for the ids (32 bytes each)."""

    def slot(self, number: int) -> memoryview: ...


class Labour:
    """Handles jobs, one after the other."""

    def __init__(self, plan: EnginePlan, port: Port) -> None:
        self._plan = plan
        self._port = port
        self._chunker = Chunker(plan.chunker)
        self._sealer = Sealer(plan.pack, plan.level, port)
        self._window = _private_memory(plan.window_bytes)
        self._opener = Opener(plan, self._window)
        self._verbs: dict[type, Callable[[Any], None]] = {
            Batch: self._batch,
            Segment: self._segment,
            Window: self._stream_window,
            Flush: self._flush,
            Read: self._read,
            Check: self._check,
            Finish: self._finish,
        }

    def handle(self, job: Any) -> None:
        self._verbs[type(job)](job)

    def close(self) -> None:
        self._opener.close()

    def _batch(self, job: Batch) -> None:
        facts: list[FileFacts] = []
        chunks: list[tuple[bytes, memoryview]] = []
        at = 0
        for path, expected_bytes in job.files:
            fact, count = self._read_file(path, self._window[at : at + expected_bytes])
            if count:
                mine = self._chunks(self._window[at : at + count])
                fact = fact._replace(content=_references(mine))
                chunks += mine
            facts.append(fact)
            at += count
        self._store_new(chunks)
        for message in split_facts(job.job, facts):
            self._port.send(message)

    def _segment(self, job: Segment) -> None:
        try:
            fd = _open(job.path)
        except OSError as exc:
            self._fail_segment(job, exc.errno or errno.EIO)
            return
        try:
            before = os.fstat(fd)
            identity = (before.st_dev, before.st_ino)
            if job.identity not in (None, identity) or not stat.S_ISREG(before.st_mode):
                self._fail_segment(job, errno.ESTALE)
                return
            self._segment_of(job, fd, before)
        except OSError as exc:
            self._fail_segment(job, exc.errno or errno.EIO)
        finally:
            os.close(fd)

    def _segment_of(self, job: Segment, fd: int, before: os.stat_result) -> None:
        started_ns = time.time_ns()
        window = self._window[: min(len(self._window), job.limit_bytes - job.offset)]
        count = _fill(fd, window, job.offset)
        final = count < len(window) or job.offset + count >= job.limit_bytes
        lengths = self._chunker.cuts(window[:count], final=final)
        end = job.offset + sum(lengths)
        self._port.send(Cut(job.job, end, final, (before.st_dev, before.st_ino)))
        chunks = self._hash(window, lengths)
        self._store_new(chunks)
        fact = _facts(fd, before, started_ns, end)._replace(content=_references(chunks))
        self._port.send(Done(job.job, (fact,), True))

    def _fail_segment(self, job: Segment, error: int) -> None:
        self._port.send(Cut(job.job, job.offset, True, (0, 0)))
        self._port.send(Done(job.job, (FileFacts(error=error),), True))

    def _stream_window(self, job: Window) -> None:
        window = self._port.slot(job.slot)[: job.length_bytes]
        lengths = self._chunker.cuts(window, final=job.final)
        self._port.send(Cut(job.job, sum(lengths), job.final, (0, 0)))
        chunks = self._hash(window, lengths)
        self._store_new(chunks)
        fact = FileFacts(content=_references(chunks), size=sum(lengths))
        self._port.send(Done(job.job, (fact,), True))

    def _flush(self, _job: Flush) -> None:
        self._sealer.flush()
        self._port.send(Flushed())

    def _read(self, job: Read) -> None:
        self._port.send(self._opener.open_blobs(job, self._port.slot(job.slot)))

    def _check(self, job: Check) -> None:
        errors, records_sha256 = self._opener.check_pack(job, self._port.slot(job.slot))
        self._port.send(CheckDone(job.job, errors, records_sha256))

    def _finish(self, job: Finish) -> None:
        self._port.send(FinishDone(job.job, self._opener.finish(job)))

    def _read_file(self, path: bytes, room: memoryview) -> tuple[FileFacts, int]:
        """Read one small file whole; an error of this file is a fact about it, not a failure of the batch."""
        try:
            fd = _open(path)
        except OSError as exc:
            return FileFacts(error=exc.errno or errno.EIO), 0
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return FileFacts(error=errno.ESTALE), 0
            started_ns = time.time_ns()
            count = _fill(fd, room[: before.st_size], 0)
            return _facts(fd, before, started_ns, count), count
        except OSError as exc:
            return FileFacts(error=exc.errno or errno.EIO), 0
        finally:
            os.close(fd)

    def _chunks(self, content: memoryview) -> list[tuple[bytes, memoryview]]:
        return self._hash(content, self._chunker.cuts(content, final=True))

    @staticmethod
    def _hash(window: memoryview, lengths: list[int]) -> list[tuple[bytes, memoryview]]:
        chunks, at = [], 0
        for length_bytes in lengths:
            chunk = window[at : at + length_bytes]
            chunks.append((hashlib.sha256(chunk).digest(), chunk))
            at += length_bytes
        return chunks

    def _store_new(self, chunks: list[tuple[bytes, memoryview]]) -> None:
        if not chunks:
            return
        bits = self._port.ask(b"".join([chunk_id for chunk_id, _ in chunks]))
        for number, (chunk_id, plain) in enumerate(chunks):
            if bits[number >> 3] >> (number & 7) & 1:
                self._sealer.store(chunk_id, plain)


def _references(chunks: list[tuple[bytes, memoryview]]) -> bytes:
    return b"".join([chunk_id + len(plain).to_bytes(4, "little") for chunk_id, plain in chunks])


def _open(path: bytes) -> int:
    """Without touching the access time where we may, never following a link, never waiting for a fifo's writer."""
    try:
        return os.open(path, OPEN_FLAGS | os.O_NOATIME)
    except PermissionError:
        return os.open(path, OPEN_FLAGS)


def _fill(fd: int, room: memoryview, offset: int) -> int:
    """Read from `offset` until `room` is full or the file ends; return the bytes read."""
    count = 0
    while count < len(room):
        got = os.preadv(fd, [room[count:]], offset + count)
        if not got:
            break
        count += got
    return count


def _facts(fd: int, before: os.stat_result, started_ns: int, size_bytes: int) -> FileFacts:
    """`size_bytes` is what was read so far; the file has changed if it is another than `before` says."""
    after = os.fstat(fd)
    same = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    sparse = before.st_blocks * 512 < before.st_size
    return FileFacts(
        size=size_bytes,
        mode=before.st_mode,
        uid=before.st_uid,
        gid=before.st_gid,
        mtime_ns=before.st_mtime_ns,
        ctime_ns=before.st_ctime_ns,
        inode=before.st_ino,
        device=before.st_dev,
        link_count=before.st_nlink,
        changed=not same,
        started_ns=started_ns,
        xattrs=read_xattrs(fd),
        holes=read_holes(fd, before.st_size, before.st_blocks)[:HOLES_LIMIT] if sparse else (),
    )


def _private_memory(length_bytes: int) -> memoryview:
    if length_bytes <= 0:
        raise EngineError("a window needs memory")
    memory = mmap.mmap(-1, length_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(MADV_HUGEPAGE)
    return memoryview(memory)
