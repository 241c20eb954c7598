"""The engine: two verbs, write and read, over a crew of workers.

    items --> places in order --> units --> jobs --> workers --> events in order
                                             ^  |
                        verdict, slot grant  |  | ask, want slot, pack full
                                          the parent: one thread, never blocked in a send
                                                |
                                                +--> uploader threads: place(pack) --> stored(pack)

`write` takes items lazily and yields one event or more per item, in the items' order, whoever did the work. Small
files travel in batches; a large file is a chain of segments, each beginning at the last cut of the one before, so that
only the cheap cutting is sequential. Up to 800 files and 32 MiB are done in this process; beyond that the workers are
started while the walk goes on.

The dedup question has one answer in the whole run: a chunk is new if the owner does not know it and no worker of this
engine was told to store it. Told-but-not-stored chunks are pending until their pack was placed; `flush` returns only
when nothing is pending, and nothing may be committed before. Any failure of a worker or of `place` fails the engine as
a whole, so no waiter is left with a promise that nobody keeps.

Read on in units.py (order), floor.py (the loop), labour.py (the stages), ring.py (the memory), pool.py (processes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from workers.errors import EngineClosed
from workers.floor import FinishUnit, Floor, Reads
from workers.messages import Finish, FinishFile
from workers.owner import Checked, Opened, Owner, PackCheck, RangeRead
from workers.plan import EnginePlan
from workers.units import Item, Order, Source, Written

TURN_S = 1.0
EVENTS_PER_TURN = 64
ITEMS_PER_FEED = 1024
FINISH_FILES = 100
FINISH_COST_BYTES = 40_000


class Engine:
    """See the module's docstring. A context manager; leaving it by an exception drops what is under way."""

    def __init__(self, plan: EnginePlan, owner: Owner, *, inline: bool | None = None) -> None:
        """`inline` None decides by the amount of work; True never starts a process, False always does."""
        self._plan = plan
        self._owner = owner
        self._inline = inline
        self._floor: Floor | None = None
        self._closed = False

    @property
    def worker_pids(self) -> list[int]:
        """Empty while the work is done in this process."""
        return self._floor.pids if self._floor else []

    def write(self, items: Iterable[Item]) -> Iterator[Written]:
        """Store what the items bring; see Written. `items` is pulled only as fast as the work is done."""
        source, order = Source(items), Order(self._plan)
        yield from source.leading_ready()
        while not (source.ended and order.empty):
            floor = self._floor_for(source)
            self._feed(floor, source, order)
            can_go_on = order.has_finished or (not source.ended and floor.hungry and not order.full)
            floor.turn(0 if can_go_on else TURN_S)
            for number, event in enumerate(order.finished()):
                yield event
                if number % EVENTS_PER_TURN == EVENTS_PER_TURN - 1:
                    floor.turn(0)

    def flush(self) -> None:
        """Close every open pack and return when all packs are placed. Nothing is pending afterwards."""
        self._check_open()
        if self._floor is not None:
            self._floor.flush()

    def read(self, requests: Iterable[RangeRead]) -> Iterator[Opened]:
        """Open blobs and write them to their targets; outcomes come in no promised order."""
        return self._requests(requests)

    def check(self, packs: Iterable[PackCheck]) -> Iterator[Checked]:
        """Fetch whole packs and check every byte; outcomes come in no promised order. No pack may exceed a slot."""
        return self._requests(packs)

    def finish(self, files: Iterable[FinishFile]) -> list[str]:
        """Give files their length, attributes and final names, on the workers; return the warnings."""
        floor, unit = self._any_floor(), FinishUnit()
        for batch in _finish_batches(files):
            unit.active += 1
            floor.enqueue(Finish(0, batch), unit)
        while unit.active:
            floor.turn(TURN_S)
        return unit.warnings

    def close(self, *, wait_s: float | None = None) -> None:
        """Closing twice is harmless. Uploads that run are waited for at most `wait_s` (None: until they end)."""
        self._closed = True
        floor, self._floor = self._floor, None
        if floor is not None:
            floor.close(wait_s=wait_s)

    def _requests(self, requests: Iterable[Any]) -> Iterator[Any]:
        floor, reads, source = self._any_floor(), Reads(), iter(requests)
        request = next(source, None)
        while request is not None or reads.active or reads.done:
            while request is not None and floor.fetch(reads, request):
                request = next(source, None)
            while reads.done:
                yield reads.done.popleft()
            if reads.active:
                floor.turn(TURN_S)

    def _feed(self, floor: Floor, source: Source, order: Order) -> None:
        """Turn items into units until the workers have enough to do."""
        for _ in range(ITEMS_PER_FEED):
            if source.ended or order.full or not floor.hungry:
                break
            for unit in order.add(source.take()):
                floor.begin(unit)
        if source.ended or order.full:
            for unit in order.close_batch():
                floor.begin(unit)

    def _floor_for(self, source: Source) -> Floor:
        """The floor that fits the work seen so far; one process gives way to a pool when it turns out to be much."""
        self._check_open()
        if self._floor is None:
            source.look_ahead()
            self._floor = self._start(inline=source.small_so_far if self._inline is None else self._inline)
        elif self._floor.inline and self._inline is None and not source.small_so_far and self._floor.idle:
            self._floor.flush()
            self._floor.close(wait_s=None)
            self._floor = self._start(inline=False)
        return self._floor

    def _any_floor(self) -> Floor:
        self._check_open()
        if self._floor is None:
            self._floor = self._start(inline=bool(self._inline))
        return self._floor

    def _start(self, *, inline: bool) -> Floor:
        return Floor(self._plan, self._owner, inline=inline)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait_s=None if error is None else 5.0)


def _finish_batches(files: Iterable[FinishFile]) -> Iterator[tuple[FinishFile, ...]]:
    batch: list[FinishFile] = []
    cost_bytes = 0
    for file in files:
        xattr_bytes = sum(len(name) + len(value) for name, value in file.attributes.xattrs)
        cost_bytes += 100 + len(file.path) + len(file.temporary) + xattr_bytes
        if batch and (cost_bytes > FINISH_COST_BYTES or len(batch) == FINISH_FILES):
            yield tuple(batch)
            batch, cost_bytes = [], 0
        batch.append(file)
    if batch:
        yield tuple(batch)
