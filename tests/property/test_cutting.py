"""Cuts depend on the bytes alone: any division into windows, any order of work, gives the same chunks."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.chunking import Chunker, ChunkerSpec

SPECS = st.sampled_from([ChunkerSpec.fastcdc(64 << 10, 99), ChunkerSpec.fixed(64 << 10)])


@given(SPECS, st.integers(0, 3 << 20), st.integers(0, 2**32), st.integers(256 << 10, 1 << 20))
@settings(max_examples=60)
def test_any_window_size_gives_the_chunks_of_the_whole(spec: ChunkerSpec, length: int, seed: int, window: int) -> None:
    content = memoryview(random.Random(seed).randbytes(length))
    whole = Chunker(spec).cuts(content, final=True)
    pieces: list[int] = []
    at = 0
    while at < length:
        view = content[at : at + window]
        cut = Chunker(spec).cuts(view, final=at + len(view) == length)
        assert cut, "a window of at least the maximum size always has a cut"
        pieces += cut
        at += sum(cut)
    assert pieces == whole
    assert sum(whole) == length
    assert all(size <= spec.max_bytes for size in whole)


@given(st.integers(0, 5000), st.integers(0, 255))
def test_runs_of_one_byte_are_cut_too(length: int, byte: int) -> None:
    content = memoryview(bytes([byte]) * length)
    assert sum(Chunker(ChunkerSpec.fastcdc(64 << 10, 1)).cuts(content, final=True)) == length


def test_another_seed_cuts_elsewhere() -> None:
    content = memoryview(random.Random(3).randbytes(4 << 20))
    first = Chunker(ChunkerSpec.fastcdc(64 << 10, 1)).cuts(content, final=True)
    second = Chunker(ChunkerSpec.fastcdc(64 << 10, 2)).cuts(content, final=True)
    assert first != second
    assert "seed=<secret>" in repr(ChunkerSpec.fastcdc(64 << 10, 987654321))
