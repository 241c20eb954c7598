"""Writing past the page cache (O_DIRECT), where the file system takes it and where it pays."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable

BLOCK_BYTES = 4096
DIRECT_FROM_BYTES = 128 << 10
DIRECT_TRIAL_BYTES = 16 << 20
DIRECT_LEAST_BYTES_S = 200e6  # a disk that is slower than this alone gains by the page cache, which sorts its writes


class DirectWrites:
    """Writes past the page cache where that pays.

    It takes a twentieth of the CPU time (on virtual machines, whose fresh pages are dear, it is also several times as
    fast: 0.7 ms for 1 MiB, not 2.5), and what the user has cached stays cached. Once a file system refuses it, or a
    disk is too slow to be waited for, everything goes through the page cache.
    """

    def __init__(self) -> None:
        self._pays = True
        self._bytes = 0
        self._seconds = 0.0

    def write(self, fd: int, plain: memoryview, offset: int) -> None:
        """Memory that lies in its pages as the bytes lie in the file's blocks. Its ends, where others may be writing
        into the same block, go through the page cache.
        """
        start = -offset % BLOCK_BYTES
        end = start + (len(plain) - start) // BLOCK_BYTES * BLOCK_BYTES
        if (
            not self._pays
            or end - start < DIRECT_FROM_BYTES
            or not self._write_blocks(fd, plain[start:end], offset + start)
        ):
            write_fully(fd, plain, offset)
            return
        write_fully(fd, plain[:start], offset)
        write_fully(fd, plain[end:], offset + end)

    def _write_blocks(self, fd: int, blocks: memoryview, offset: int) -> bool:
        started_s = time.monotonic()
        if not past_cache(fd, lambda: write_fully(fd, blocks, offset)):
            self._pays = False
            return False
        self._note(len(blocks), time.monotonic() - started_s)
        return True

    def _note(self, length_bytes: int, duration_s: float) -> None:
        self._bytes += length_bytes
        self._seconds += duration_s
        if self._bytes >= DIRECT_TRIAL_BYTES:
            self._pays = self._bytes >= DIRECT_LEAST_BYTES_S * self._seconds
            self._bytes, self._seconds = 0, 0.0


def past_cache(fd: int, write: Callable[[], None]) -> bool:
    """Let `write` write to the file past the page cache; False, with nothing lost, if this file system refuses.

    The flag is set after the open: an open that refuses it may leave an empty file behind.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        write()
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return False
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return True


def write_fully(fd: int, data: memoryview, offset: int) -> None:
    done_bytes = 0
    while done_bytes < len(data):
        with data[done_bytes:] as rest:
            done_bytes += os.pwrite(fd, rest, offset + done_bytes)
