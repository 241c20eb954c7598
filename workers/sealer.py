"""The write stages on chunks: compress, prove, seal into the open pack.

One Sealer is one open pack. Where its memory comes from and where a full pack goes is the Depot's business: a worker
process sends messages, the parent process places the pack itself.
"""

from __future__ import annotations

import os
from typing import Protocol

import xxhash

from workers.compression import ENCODING_RAW, ENCODING_ZSTD, Compressor, Decompressor
from workers.errors import EngineError
from workers.packs import PackSpec, PackWriter


class Depot(Protocol):
    """Lends memory for packs and takes them back full."""

    def lend(self) -> tuple[int, memoryview]:
        """(slot number, its memory); waits until one is free."""

    def full(self, slot: int, pack_id: bytes, length_bytes: int, records_bytes: int) -> None:
        """The pack at the slot's start is finished; the slot no longer belongs to the Sealer."""


class Sealer:
    """Seals chunks into packs of one set. Not to be shared between threads."""

    def __init__(self, spec: PackSpec, level: int, depot: Depot) -> None:
        self._spec = spec
        self._depot = depot
        self._compressor = Compressor(level)
        self._decompressor = Decompressor()
        self._pack: PackWriter | None = None
        self._slot = -1

    def store(self, chunk_id: bytes, plain: memoryview) -> None:
        """Seal one chunk into the open pack; a full pack is handed on first."""
        packed = self._compressor.compress(plain)
        if packed is not None:
            self._prove(packed, plain)
        content, encoding = (plain, ENCODING_RAW) if packed is None else (packed, ENCODING_ZSTD)
        self._room_for(len(content)).add(chunk_id, content, encoding=encoding, plain_bytes=len(plain))

    def flush(self) -> None:
        """Hand on the open pack, however small."""
        pack, self._pack = self._pack, None
        if pack is not None:
            length_bytes, records_bytes = pack.close()
            self._depot.full(self._slot, pack.pack_id, length_bytes, records_bytes)

    def _room_for(self, length_bytes: int) -> PackWriter:
        if self._pack is not None and not self._pack.has_room(length_bytes):
            self.flush()
        if self._pack is None:
            self._slot, memory = self._depot.lend()
            self._pack = PackWriter(self._spec, os.urandom(16), memory)
        return self._pack

    def _prove(self, packed: bytes, plain: memoryview) -> None:
        """Compressors have had bugs that wrote wrong data: each frame is decompressed once before it is believed."""
        again = self._decompressor.decompress(packed, len(plain))
        if xxhash.xxh3_128_intdigest(again) != xxhash.xxh3_128_intdigest(plain):
            raise EngineError("zstd produced a frame that does not decompress to its input; the memory may be faulty")
