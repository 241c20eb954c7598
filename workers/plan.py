"""Sizes and numbers of the engine in one place; memory is a formula of them.

    shared memory = write_slots * slot_bytes + read_slots * read_slot_bytes + input_slots * window_bytes
    private       = workers * (window_bytes + one zstd context + the interpreter)

Only memory that is used is ever touched: a backup touches no read slot, a restore no write slot. Nothing here grows
with the number or the size of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.chunking import ChunkerSpec
from workers.packs import PackSpec
from workers.sealing import TAG_BYTES

BATCH_FILES = 512  # 16 MiB or 512 files: smaller batches cost round trips, larger ones gain nothing (bench: small tree)
BATCH_PATHS_BYTES = 40_000  # so that a batch fits one message
WINDOW_BYTES = 16 << 20
READ_RANGE_BYTES = 8 << 20
READ_BLOBS = 256
INLINE_FILES = 800  # below both, starting processes costs more than it brings
INLINE_BYTES = 32 << 20
UPLOAD_THREADS = 2
DOWNLOAD_THREADS = 4
JOBS_PER_WORKER = 2
PARENT_BYTES = 75 << 20  # measured: the parent with its manifest's page cache and the catalog's pack
WORKER_BYTES = 22 << 20  # measured: an interpreter, its compressor, its scratch


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What the engine is told once. `data_keys` opens packs by key id; `pack` says how new ones are made."""

    workers: int
    chunker: ChunkerSpec
    level: int
    pack: PackSpec
    data_keys: Mapping[bytes, bytes] = field(repr=False)
    target_root: bytes = b""

    def peak_bytes(self, read_bytes: int, stored_bytes: int) -> int:
        """What a backup takes at its peak, as the sum of proportional set sizes, within a quarter.

        `read_bytes` and `stored_bytes` matter only while they are smaller than the windows and the ring.
        """
        windows_bytes = min(read_bytes, self.workers * self.window_bytes)
        ring_bytes = min(stored_bytes, self.write_slots * self.pack.target_bytes)
        return PARENT_BYTES + self.workers * WORKER_BYTES + windows_bytes + ring_bytes

    @property
    def window_bytes(self) -> int:
        """What a worker reads at once: any chunk ends within half of it."""
        return max(WINDOW_BYTES, 2 * self.chunker.max_bytes)

    @property
    def slot_bytes(self) -> int:
        return self.pack.slot_bytes(self.chunker.max_bytes)

    @property
    def write_slots(self) -> int:
        """One open pack per worker, and as many as can be on their way to a provider."""
        return self.workers + UPLOAD_THREADS

    @property
    def read_slot_bytes(self) -> int:
        """A range of blobs: a full one, or one blob of the largest chunk."""
        return (max(READ_RANGE_BYTES, self.chunker.max_bytes) + TAG_BYTES + 4095) & ~4095

    @property
    def read_slots(self) -> int:
        return self.workers * JOBS_PER_WORKER + DOWNLOAD_THREADS

    @property
    def input_slots(self) -> int:
        return self.workers + 1
