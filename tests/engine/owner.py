"""An engine's owner that keeps everything in memory, for tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from workers.chunking import ChunkerSpec
from workers.objects import Header, ObjectType, PackSet
from workers.owner import PackCheck, RangeRead, SealedPack
from workers.packs import PackSpec, iter_records
from workers.plan import EnginePlan
from workers.units import FileItem

REPOSITORY_ID = bytes(range(16))
KEY_ID = b"k" * 16
DATA_KEY = b"d" * 32


def plan_for(
    workers: int = 2, *, target_bytes: int = 64 << 10, pack_bytes: int = 4 << 20, level: int = 3
) -> EnginePlan:
    """Small chunks and packs, so that little data exercises everything."""
    header = Header(ObjectType.PACK, REPOSITORY_ID, bytes(16), KEY_ID, PackSet.BACKUP)
    return EnginePlan(
        workers=workers,
        chunker=ChunkerSpec.fastcdc(target_bytes, seed=0xC0FFEE),
        level=level,
        pack=PackSpec(header, DATA_KEY, pack_bytes),
        data_keys={KEY_ID: DATA_KEY},
    )


@dataclass
class MemoryOwner:
    """Packs by id; `fail_at` makes the n-th place raise."""

    packs: dict[bytes, bytes] = field(default_factory=dict)
    stored_packs: list[SealedPack] = field(default_factory=list)
    chunks: dict[bytes, tuple[SealedPack, object]] = field(default_factory=dict)
    duplicates: int = 0
    ticks: int = 0
    fail_at: int | None = None

    def known(self, chunk_ids: list[bytes]) -> list[bytes]:
        return [chunk_id for chunk_id in chunk_ids if chunk_id in self.chunks]

    def place(self, pack: SealedPack, content: memoryview) -> None:
        if self.fail_at is not None and len(self.packs) >= self.fail_at:
            raise OSError(28, "No space left on device")
        self.packs[pack.pack_id] = bytes(content)

    def stored(self, pack: SealedPack) -> None:
        self.stored_packs.append(pack)
        for record in iter_records(pack.records):
            self.duplicates += record.chunk_id in self.chunks
            self.chunks[record.chunk_id] = (pack, record)

    def fetch(self, request: RangeRead | PackCheck, into: memoryview) -> None:
        into[:] = self.packs[request.pack_id][request.offset : request.offset + request.length_bytes]

    def tick(self) -> None:
        self.ticks += 1


def items_of(paths: Iterable[Path]) -> list[FileItem]:
    return [FileItem(os.fsencode(path), path.stat().st_size, path) for path in paths]


def digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
