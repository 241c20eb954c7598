"""The shared memory of the engine: one anonymous file, cut into slots, mapped once by every process.

    +---------+---------+-- --+--------+--------+-- --+---------+---------+-- --+
    | write 0 | write 1 | ... | read 0 | read 1 | ... | input 0 | input 1 | ... |
    +---------+---------+-- --+--------+--------+-- --+---------+---------+-- --+

A slot has exactly one owner at a time. Ownership moves by message, never by a flag in the memory, so there is no store
order to reason about: the send is the barrier. Only the parent process keeps the states.

    write slot   FREE (parent) --Grant--> OPEN (one worker builds a pack in it)
                 OPEN --PackFull--> PLACING (one uploader thread of the parent) --placed--> FREE
    read slot    FREE (parent) --> FILLING (one downloader thread) --Read--> OPENING (one worker) --ReadDone--> FREE
    input slot   FREE (parent) --> FILLING (one reader thread) --Window--> CUTTING (one worker)
                 CUTTING --Cut--> the tail behind the cut is copied to the next window; --Done--> FREE

The file has no name (memfd), so nothing is left behind however the processes die.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from types import TracebackType
from typing import Self

from workers.plan import EnginePlan


class Ring:
    """The mapping, and the offset table of its slots. The creator passes `fileno` to its children."""

    def __init__(self, plan: EnginePlan, fileno: int | None = None) -> None:
        shapes = (
            (plan.write_slots, plan.slot_bytes),
            (plan.read_slots, plan.read_slot_bytes),
            (plan.input_slots, plan.window_bytes),
        )
        self._places: list[tuple[int, int]] = []
        at = 0
        for count, size_bytes in shapes:
            for _ in range(count):
                self._places.append((at, size_bytes))
                at += size_bytes
        self.fileno = self._create(at) if fileno is None else fileno
        self._map = mmap.mmap(self.fileno, at, mmap.MAP_SHARED)
        self._view = memoryview(self._map)
        writes, reads = plan.write_slots, plan.read_slots
        self.write_slots = range(writes)
        self.read_slots = range(writes, writes + reads)
        self.input_slots = range(writes + reads, len(self._places))

    @staticmethod
    def _create(length_bytes: int) -> int:
        fileno = os.memfd_create("enigma-ring", os.MFD_CLOEXEC)
        os.ftruncate(fileno, length_bytes)
        return fileno

    def slot(self, number: int) -> memoryview:
        """The memory of one slot; page-aligned."""
        at, size_bytes = self._places[number]
        return self._view[at : at + size_bytes]

    def close(self) -> None:
        """Unmap. A thread that is still writing from a slot keeps the mapping until it returns."""
        os.close(self.fileno)
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            return  # a slot is lent out; the mapping goes with its last view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FreeSlots:
    """Slots the parent may hand out, and who waits for one, in order.

    The one given back last goes first: its pages are mapped, and those of slots that are never needed stay untouched.
    """

    def __init__(self, numbers: range) -> None:
        self._free = list(numbers)
        self._waiting: deque[int] = deque()
        self.count = len(numbers)

    def take(self) -> int | None:
        return self._free.pop() if self._free else None

    def give_back(self, number: int) -> None:
        self._free.append(number)

    def wait(self, worker: int) -> None:
        self._waiting.append(worker)

    def match(self) -> list[tuple[int, int]]:
        """(worker, slot) for as many of the waiting as there are free slots."""
        pairs = []
        while self._free and self._waiting:
            pairs.append((self._waiting.popleft(), self._free.pop()))
        return pairs

    @property
    def any_free(self) -> bool:
        return bool(self._free)
