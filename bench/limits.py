"""What a run could take at best: the seconds its bytes need at the stages' speeds, measured on a sample of the tree.

    backup   CPU = read + cut + SHA-256 of all bytes + (compress + prove + seal) of the new bytes + xxh3 of the packs
    restore  CPU = read the packs + (open + decompress + SHA-256) of the new bytes + write all files
    verify   CPU = read the packs + xxh3 of them + (open + decompress + SHA-256) of the new bytes

    limit    = max(CPU / cores, bytes to the sink / sink speed); a backup's packs go there, and a restore's larger files

A sample is made of whole small files and 16 MiB windows of larger ones, every n-th by size, so that the cost of small
calls is in it. `prove` is the decompression and the two checksums by which the program checks every frame it makes.
The sink is this disk, written to by the local provider itself: O_DIRECT from page-aligned memory, fsync, rename;
it works beside the CPUs. It is measured right after the runs, with as many bytes, because disks have bursts of their
own. Files are written as restore does it, the larger ones past the page cache. Nothing is counted for starting
processes, walking, questions to the manifest, catalogs and commits: what the program loses there, the efficiency shows.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bench.measure import MIB, mapped, seconds_of, set_aside
from bench.trees import Tree, regular_files
from enigma.providers.local import LocalProvider
from workers.chunking import Chunker, ChunkerSpec
from workers.compression import Compressor, Decompressor
from workers.direct import BLOCK_BYTES, DirectWrites
from workers.plan import UPLOAD_THREADS, WINDOW_BYTES
from workers.sealing import TAG_BYTES, Cipher

SAMPLE_BYTES = 128 * MIB
NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class Limit:
    """`cpu_parts` are CPU seconds by stage; `sink_s` is 0 where nothing is written past the page cache."""

    cpu_parts: dict[str, float]
    sink_s: float
    cores: int

    @property
    def seconds(self) -> float:
        return max(sum(self.cpu_parts.values()) / self.cores, self.sink_s)

    def text(self) -> str:
        parts = " + ".join(f"{name} {part_s:.3g}" for name, part_s in self.cpu_parts.items())
        cpu_s = sum(self.cpu_parts.values())
        sink = f", sink {self.sink_s:.3g}" if self.sink_s else ""
        return f"{self.seconds:.3g} s: CPU {cpu_s:.3g} / {self.cores} cores{sink}; {parts}"


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a backup did, by its own account and by its repository: all bytes, those that were new, those stored.

    `past_cache_bytes` are in files that a restore writes past the page cache.
    """

    content_bytes: int
    new_bytes: int
    packs_bytes: int
    past_cache_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A small file, or one window of a large one."""

    path: str
    offset: int
    length_bytes: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds per byte of every stage on this tree: of plaintext, except `digest` and `fetch`, which are of packs."""

    read: float
    cut: float
    sha256: float
    compress: float
    prove: float
    seal: float
    digest: float
    fetch: float
    open: float
    decompress: float
    write: float

    def backup(self, amounts: Amounts, sink_bytes_per_s: float, cores: int) -> Limit:
        whole, new, packs = amounts.content_bytes, amounts.new_bytes, amounts.packs_bytes
        parts = {
            "read": self.read * whole,
            "cut": self.cut * whole,
            "SHA-256": self.sha256 * whole,
            "compress": self.compress * new,
            "prove": self.prove * new,
            "seal": self.seal * new,
            "xxh3": self.digest * packs,
        }
        return Limit(parts, packs / sink_bytes_per_s, cores)

    def restore(self, amounts: Amounts, sink_bytes_per_s: float, cores: int) -> Limit:
        parts = self._opening(amounts) | {"write": self.write * amounts.content_bytes}
        return Limit(parts, amounts.past_cache_bytes / sink_bytes_per_s, cores)

    def verify(self, amounts: Amounts, cores: int) -> Limit:
        return Limit(self._opening(amounts) | {"xxh3": self.digest * amounts.packs_bytes}, 0.0, cores)

    def _opening(self, amounts: Amounts) -> dict[str, float]:
        return {
            "read": self.fetch * amounts.packs_bytes,
            "open": self.open * amounts.new_bytes,
            "decompress": self.decompress * amounts.new_bytes,
            "SHA-256": self.sha256 * amounts.new_bytes,
        }


def measure_speeds(tree: Tree, work: Path, *, level: int, target_bytes: int, least_s: float) -> Speeds:
    """Every stage over the sample, one after the other, on one core."""
    return _Bench(sample(tree), work, level, target_bytes, least_s).speeds()


def sample(tree: Tree) -> list[Piece]:
    """Every n-th piece of the tree by size, some SAMPLE_BYTES together."""
    pieces = []
    for path in regular_files(tree.root):
        size_bytes = os.path.getsize(path)
        for offset in range(0, size_bytes, WINDOW_BYTES):
            length_bytes = min(WINDOW_BYTES, size_bytes - offset)
            pieces.append(Piece(path, offset, length_bytes, whole=length_bytes == size_bytes))
    pieces.sort(key=lambda piece: (piece.length_bytes, piece.path, piece.offset))
    step = max(1, round(tree.length_bytes / SAMPLE_BYTES))
    return pieces[step // 2 :: step] or pieces


def sink_speed(work: Path, pack_bytes: int, *, total_bytes: int) -> float:
    """Bytes per second of the local provider on this disk: the median of three rounds, with its upload threads."""
    packs = max(1, total_bytes // pack_bytes)
    return statistics.median(_sink_round(work / "sink", pack_bytes, packs) for _ in range(3))


class _Bench:
    """The stages on one sample. What one stage makes is kept in memory for the next."""

    def __init__(self, pieces: list[Piece], work: Path, level: int, target_bytes: int, least_s: float) -> None:
        self._pieces = pieces
        self._work = work
        self._least_s = least_s
        self._chunker = Chunker(ChunkerSpec.fastcdc(target_bytes, seed=0x5EED))
        self._compressor = Compressor(level)
        self._decompressor = Decompressor()
        self._cipher = Cipher(os.urandom(32))
        self._length_bytes = sum(piece.length_bytes for piece in pieces)
        self._places = _in_pages([piece.length_bytes for piece in pieces])

    def speeds(self) -> Speeds:
        read = self._per_byte(self._read)
        cut = self._per_byte(lambda: [self._chunker.cuts(content, final=True) for content in self._places])
        chunks = [chunk for content in self._places for chunk in self._chunks(content)]
        frames = [self._compressor.compress(chunk) for chunk in chunks]
        stored = [chunk if frame is None else memoryview(frame) for chunk, frame in zip(chunks, frames, strict=True)]
        pack = mapped(sum(len(one) + TAG_BYTES for one in stored))
        places = _slices(pack, [len(one) + TAG_BYTES for one in stored])
        scratch = mapped(max(map(len, places)))
        return Speeds(
            read=read,
            cut=cut,
            sha256=self._per_byte(lambda: [hashlib.sha256(chunk).digest() for chunk in chunks]),
            compress=self._per_byte(lambda: _each(self._compressor.compress, chunks)),
            prove=self._per_byte(lambda: self._prove(chunks, frames)),
            seal=self._per_byte(lambda: self._seal(stored, places)),
            digest=self._per_byte(lambda: xxhash.xxh3_128_digest(pack), of_bytes=len(pack)),
            fetch=self._fetch(pack),
            open=self._per_byte(lambda: self._open(places, scratch)),
            decompress=self._per_byte(lambda: self._decompress(chunks, frames)),
            write=self._write_per_byte(),
        )

    def _per_byte(self, action: Callable[[], object], *, of_bytes: int = 0) -> float:
        """Median seconds of the action over the sample, per byte of it."""
        return seconds_of(action, least_s=self._least_s) / (of_bytes or self._length_bytes)

    def _write_per_byte(self) -> float:
        """CPU seconds for writing, which needs a clean start each time."""
        samples = []
        for _ in range(4):
            self._clear()
            started_s = time.process_time()
            self._write(self._places)
            samples.append(time.process_time() - started_s)
        self._clear()
        return statistics.median(samples[1:]) / self._length_bytes

    def _read(self) -> None:
        for place, piece in zip(self._places, self._pieces, strict=True):
            fd = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
            os.preadv(fd, [place], piece.offset)
            os.close(fd)

    def _chunks(self, content: memoryview) -> list[memoryview]:
        return _slices(content, self._chunker.cuts(content, final=True))

    def _prove(self, chunks: list[memoryview], frames: list[bytes | None]) -> None:
        for chunk, frame in zip(chunks, frames, strict=True):
            if frame is not None:
                again = self._decompressor.decompress(frame, len(chunk))
                assert xxhash.xxh3_128_intdigest(again) == xxhash.xxh3_128_intdigest(chunk)

    def _seal(self, stored: list[memoryview], places: list[memoryview]) -> None:
        for content, place in zip(stored, places, strict=True):
            self._cipher.seal_into(content, place, nonce=NONCE, aad=b"")

    def _open(self, places: list[memoryview], scratch: memoryview) -> None:
        for place in places:
            self._cipher.open_into(place, scratch, nonce=NONCE, aad=b"")

    def _decompress(self, chunks: list[memoryview], frames: list[bytes | None]) -> None:
        for chunk, frame in zip(chunks, frames, strict=True):
            if frame is not None:
                self._decompressor.decompress(frame, len(chunk))

    def _fetch(self, pack: memoryview) -> float:
        """Seconds per byte of reading packs out of the page cache."""
        path = self._work / "packs"
        path.write_bytes(pack)
        try:
            return self._per_byte(lambda: _read_whole(path, pack), of_bytes=len(pack))
        finally:
            path.unlink()

    def _write(self, contents: list[memoryview]) -> None:
        """Small files are made one by one, in folders of 256; windows go into one large file, one behind the other."""
        folder, large_bytes, last = self._work / "written", 0, -1
        direct = DirectWrites()
        folder.mkdir(parents=True)
        large_fd = os.open(folder / "large", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        for number, (piece, content) in enumerate(zip(self._pieces, contents, strict=True)):
            if not piece.whole:
                direct.write(large_fd, content, large_bytes)
                large_bytes += WINDOW_BYTES
                continue
            if number // 256 != last:
                last = number // 256
                (folder / str(last)).mkdir()
            _create(f"{folder}/{last}/{number}", content, direct)
        os.close(large_fd)

    def _clear(self) -> None:
        if (self._work / "written").exists():
            set_aside(self._work / "written", self._work, files=len(self._pieces))
        os.sync()


def _create(path: str, content: memoryview, direct: DirectWrites) -> None:
    """What restore does for a small file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    direct.write(fd, content, 0)
    os.fchmod(fd, 0o644)
    os.utime(fd, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
    os.close(fd)


def _read_whole(path: Path, room: memoryview) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    at = 0
    while at < len(room):
        at += os.preadv(fd, [room[at : at + (8 << 20)]], at)
    os.close(fd)


def _each(stage: Callable[[memoryview], object], chunks: list[memoryview]) -> None:
    for chunk in chunks:
        stage(chunk)


def _in_pages(lengths: list[int]) -> list[memoryview]:
    """Mapped memory, each piece from a page of its own."""
    memory = mapped(sum(-(-length_bytes // BLOCK_BYTES) * BLOCK_BYTES for length_bytes in lengths))
    pieces, at = [], 0
    for length_bytes in lengths:
        pieces.append(memory[at : at + length_bytes])
        at += -(-length_bytes // BLOCK_BYTES) * BLOCK_BYTES
    return pieces


def _slices(memory: memoryview, lengths: list[int]) -> list[memoryview]:
    slices, at = [], 0
    for length_bytes in lengths:
        slices.append(memory[at : at + length_bytes])
        at += length_bytes
    return slices


def _sink_round(root: Path, pack_bytes: int, packs: int) -> float:
    root.mkdir(parents=True, exist_ok=True)
    pack = mapped(pack_bytes)
    pack[:] = os.urandom(pack_bytes)  # a disk may take zeros three times as fast as it takes data
    with LocalProvider("bench", root) as provider:
        provider.put("warm", pack)
        left, lock = iter(range(packs)), threading.Lock()

        def upload() -> None:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                provider.put(f"packs/{number}", pack)

        threads = [threading.Thread(target=upload) for _ in range(UPLOAD_THREADS)]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - started_s
    shutil.rmtree(root)
    return packs * pack_bytes / took_s
