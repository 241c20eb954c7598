"""The catalog gives back what it was given, and shares what did not change."""

from __future__ import annotations

import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.model.entries import CHUNK_REF_BYTES, Entry, Kind, path_key
from enigma.repository import catalog
from enigma.repository.catalog import CatalogReader, CatalogWriter, ChunkListWriter, content_refs, list_blobs


class Blobs:
    """A store of blobs by hash that counts what was put and what was read."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.puts = 0
        self.gets = 0

    def put(self, plain: bytes) -> bytes:
        chunk_id = hashlib.sha256(plain).digest()
        self.puts += chunk_id not in self.held
        self.held[chunk_id] = plain
        return chunk_id

    def has(self, chunk_id: bytes) -> bool:
        return chunk_id in self.held

    def get(self, chunk_id: bytes, length_bytes: int) -> bytes:
        self.gets += 1
        plain = self.held[chunk_id]
        assert len(plain) == length_bytes
        return plain


def entry(path: bytes, content: bytes = b"", depth: int = 0) -> Entry:
    return Entry(path, Kind.FILE, 0o644, 0, 0, "root", "root", 1, 1, 1, 0, content=content, depth=depth)


NAMES = st.lists(st.binary(min_size=1, max_size=6).filter(lambda n: b"/" not in n and b"\0" not in n), min_size=1)
PATHS = st.sets(NAMES.map(b"/".join), max_size=80)


def written(blobs: Blobs, paths: list[bytes]) -> catalog.Root:
    writer = CatalogWriter(blobs.put, blobs.has)
    for path in paths:
        writer.add(entry(path))
    return writer.finish()


@given(PATHS)
def test_entries_come_back_in_order_and_each_is_found(paths: set[bytes]) -> None:
    ordered = sorted(paths, key=path_key)
    blobs = Blobs()
    reader = CatalogReader(written(blobs, ordered), blobs.get)
    assert [one.path for one in reader.entries()] == ordered
    for path in ordered:
        found = reader.find(path)
        assert found is not None
        assert found.path == path
    assert reader.find(b"\xff/not there") is None


def many(count: int, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return sorted({b"%03d/%08x" % (source.randrange(300), source.getrandbits(32)) for _ in range(count)}, key=path_key)


def test_one_new_path_in_fifty_thousand_stores_only_the_way_to_it() -> None:
    paths = many(50_000)
    blobs = Blobs()
    written(blobs, paths)
    before = blobs.puts
    assert before > 50
    written(blobs, sorted([*paths, b"150/new file"], key=path_key))
    assert blobs.puts - before <= 5


def test_an_inherited_leaf_is_not_even_encoded() -> None:
    paths = many(20_000)
    blobs = Blobs()
    root = written(blobs, paths)
    reader = CatalogReader(root, blobs.get)
    puts = []
    writer = CatalogWriter(lambda plain: puts.append(plain) or blobs.put(plain), blobs.has)
    for one, origin in reader.inherited():
        writer.add(one, origin)
    assert writer.finish() == root
    nodes = [blob for blob, depth in reader.blobs() if depth]
    assert len(puts) == len(nodes)


def test_an_inherited_leaf_that_is_gone_is_stored_again() -> None:
    blobs, other = Blobs(), Blobs()
    root = written(blobs, many(3000))
    writer = CatalogWriter(other.put, other.has)
    for one, origin in CatalogReader(root, blobs.get).inherited():
        writer.add(one, origin)
    assert writer.finish() == root
    assert other.held == blobs.held


def test_finding_a_path_reads_one_leaf() -> None:
    paths = many(50_000)
    blobs = Blobs()
    root = written(blobs, paths)
    blobs.gets = 0
    assert CatalogReader(root, blobs.get).find(paths[31_415])
    assert blobs.gets <= root.depth + 1


def test_a_checkpoint_is_a_whole_catalog_and_changes_nothing() -> None:
    paths = many(5000)
    blobs = Blobs()
    writer = CatalogWriter(blobs.put, blobs.has)
    for number, path in enumerate(paths):
        if number in (0, 1, 700, 4321):
            part = CatalogReader(writer.checkpoint(), blobs.get)
            assert [one.path for one in part.entries()] == paths[:number]
        writer.add(entry(path))
    assert writer.finish() == written(Blobs(), paths)


@settings(max_examples=20)
@given(st.integers(0, 30_000), st.integers(1, 5000), st.integers(0, 99))
def test_chunk_lists_of_any_length_and_in_any_pieces_come_back(count: int, piece: int, seed: int) -> None:
    source = random.Random(seed)
    refs = b"".join(source.randbytes(32) + (1000).to_bytes(4, "little") for _ in range(count))
    blobs = Blobs()
    writer = ChunkListWriter(blobs.put)
    for at in range(0, len(refs), piece * CHUNK_REF_BYTES):
        writer.add(refs[at : at + piece * CHUNK_REF_BYTES])
    content, depth = writer.finish()
    assert len(content) <= catalog.LIST_REFS * CHUNK_REF_BYTES
    back = b"".join(i + n.to_bytes(4, "little") for i, n in content_refs(entry(b"x", content, depth), blobs.get))
    assert back == refs
    assert {chunk_id for chunk_id, _ in list_blobs(entry(b"x", content, depth), blobs.get)} == set(blobs.held)


def test_appending_to_a_long_list_stores_only_its_end() -> None:
    source = random.Random(5)
    refs = b"".join(source.randbytes(32) + (1000).to_bytes(4, "little") for _ in range(100_000))
    blobs = Blobs()
    for extra in (b"", b"\1" * 32 + (5).to_bytes(4, "little")):
        writer = ChunkListWriter(blobs.put)
        writer.add(refs + extra)
        before = blobs.puts
        writer.finish()
        if extra:
            assert blobs.puts - before <= 1
