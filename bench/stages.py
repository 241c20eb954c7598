"""Table `stages`: each stage alone on one core, with the project's own stage functions, in memory that is mapped."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from functools import partial

import xxhash

from bench.measure import MIB, mapped, seconds_of
from bench.tables import Table, figure
from bench.trees import text_of
from workers.chunking import Chunker, ChunkerSpec
from workers.compression import Compressor, Decompressor
from workers.sealing import TAG_BYTES, Cipher

SIZES_MIB = (1, 4, 16)
CHUNKER = ChunkerSpec.fastcdc(MIB, seed=0x5EED)
NONCE = bytes(12)

Stage = tuple[str, Callable[[], object]]


def run(*, sizes_mib: tuple[int, ...] = SIZES_MIB, least_s: float = 0.2) -> Table:
    table = Table("stages", "MB/s of plaintext on one core, by size of the piece")
    columns = {size_mib: _speeds(size_mib * MIB, least_s) for size_mib in sizes_mib}
    for name in next(iter(columns.values())):
        speeds = {f"{size_mib} MiB": figure(columns[size_mib][name]) for size_mib in sizes_mib}
        table.rows.append({"stage": name, **speeds})
    table.notes.append("Random data is only probed by `compress`: it is recognised as incompressible and stored raw.")
    return table


def _speeds(length_bytes: int, least_s: float) -> dict[str, float]:
    """MB/s of every stage on pieces of this size."""
    return {
        name: length_bytes / seconds_of(action, least_s=least_s) / 1e6
        for name, action in _stages(
            _filled(random.Random(4).randbytes(length_bytes)), _filled(text_of(length_bytes, 5))
        )
    }


def _filled(content: bytes) -> memoryview:
    memory = mapped(len(content))
    memory[:] = content
    return memory


def _stages(noise: memoryview, text: memoryview) -> Iterator[Stage]:
    cipher, sealed, opened = Cipher(os.urandom(32)), mapped(len(noise) + TAG_BYTES), mapped(len(noise) + TAG_BYTES)
    chunker = Chunker(CHUNKER)
    yield "SHA-256", lambda: hashlib.sha256(noise).digest()
    yield "AES-256-GCM seal", lambda: cipher.seal_into(noise, sealed, nonce=NONCE, aad=b"")
    cipher.seal_into(noise, sealed, nonce=NONCE, aad=b"")
    yield "AES-256-GCM open", lambda: cipher.open_into(sealed, opened, nonce=NONCE, aad=b"")
    for level in (1, 3):
        compressor = Compressor(level)
        yield f"zstd {level}, random", partial(compressor.compress, noise)
        yield f"zstd {level}, text", partial(compressor.compress, text)
    packed, decompressor = Compressor(3).compress(text), Decompressor()
    assert packed is not None
    yield "zstd decompress, text", lambda: decompressor.decompress(packed, len(text))
    yield "FastCDC, 1 MiB target", lambda: chunker.cuts(noise, final=True)
    yield "xxh3-128", lambda: xxhash.xxh3_128_digest(noise)
