"""Where a stream of bytes is cut into chunks. Cuts depend on the bytes and the chunker's parameters alone.

Cutting by pieces: `cuts` gets a window that starts at a cut. A chunk that ends before the window's end is certain; one
that touches the end is a cut only if it has the maximum length or the data ends there. What follows the last certain
cut belongs to the next window. So any division into windows gives the same chunks; tests/property proves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyfastcdc

CHUNKER_FASTCDC = 1
CHUNKER_FIXED = 2


@dataclass(frozen=True, slots=True)
class ChunkerSpec:
    """Recorded, with its secret seed, in the repository's sealed config; it never changes afterwards."""

    kind: int
    min_bytes: int
    target_bytes: int
    max_bytes: int
    seed: int = 0

    def __repr__(self) -> str:
        return f"ChunkerSpec(kind={self.kind}, target_bytes={self.target_bytes}, seed=<secret>)"

    @classmethod
    def fastcdc(cls, target_bytes: int, seed: int) -> ChunkerSpec:
        """Target 64 KiB..4 MiB, min a quarter and max four times of it; a seed of 48 bits, not zero."""
        return cls(CHUNKER_FASTCDC, target_bytes // 4, target_bytes, target_bytes * 4, seed)

    @classmethod
    def fixed(cls, size_bytes: int) -> ChunkerSpec:
        return cls(CHUNKER_FIXED, size_bytes, size_bytes, size_bytes)


class Chunker:
    """Not to be shared between threads."""

    def __init__(self, spec: ChunkerSpec) -> None:
        self._spec = spec
        self._cdc: Any = None

    def cuts(self, window: memoryview, *, final: bool) -> list[int]:
        """Lengths of the certain chunks from the window's start; all of it is cut if `final`."""
        spec = self._spec
        if final and len(window) <= spec.min_bytes:
            return [len(window)] if window else []
        if spec.kind == CHUNKER_FIXED:
            return self._fixed(len(window), final=final)
        lengths = [chunk.length for chunk in self._fastcdc().cut_buf(window)]
        if lengths and not final and lengths[-1] < spec.max_bytes:
            lengths.pop()
        return lengths

    def _fixed(self, length_bytes: int, *, final: bool) -> list[int]:
        whole, rest_bytes = divmod(length_bytes, self._spec.max_bytes)
        lengths = [self._spec.max_bytes] * whole
        if final and rest_bytes:
            lengths.append(rest_bytes)
        return lengths

    def _fastcdc(self) -> Any:
        if self._cdc is None:
            spec = self._spec
            self._cdc = pyfastcdc.FastCDC(
                spec.target_bytes, min_size=spec.min_bytes, max_size=spec.max_bytes, seed=spec.seed
            )
        return self._cdc
