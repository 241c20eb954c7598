"""Units of work and the order of their results. Everything here runs in the parent, between two turns of its loop.

Every item has a place in one queue. A unit is what is given to workers: a batch of small files, a chain of segments of
a large one, a stream's windows. Results go to their item's place; the queue is read from its head.

    places   [small][ready][small][large .......][ready][small] ...
    units     \\____ batch __/      \\_ chain _/          \\_ batch
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from workers.messages import Batch, Cut, Done, FileFacts, Segment, Window
from workers.plan import BATCH_FILES, BATCH_PATHS_BYTES, INLINE_BYTES, INLINE_FILES, EnginePlan

PLACES_LIMIT = 8192


class FileItem(NamedTuple):
    """A regular file to read. `tag` comes back with its events. (A tuple: one is made for each of a million files.)"""

    path: bytes
    size_bytes: int
    tag: Any = None


class StreamItem(NamedTuple):
    """Bytes from `readinto`, which returns 0 at their end and may raise."""

    readinto: Callable[[memoryview], int]
    tag: Any = None


class ReadyItem(NamedTuple):
    """Nothing to do; keeps its place in the order."""

    tag: Any = None


Item = FileItem | StreamItem | ReadyItem


class Written(NamedTuple):
    """Something happened to an item. Content comes in pieces for large files; `last` carries the facts."""

    tag: Any
    content: bytes
    facts: FileFacts | None
    last: bool
    error: BaseException | None = None


class Place:
    """One item's place in the queue: its events that were not yet taken."""

    __slots__ = ("events", "tag")

    def __init__(self, tag: Any) -> None:
        self.tag = tag
        self.events: list[Written] = []  # seldom more than one

    def piece(self, content: bytes) -> None:
        self.events.append(Written(self.tag, content, None, False))

    def finish(self, content: bytes, facts: FileFacts | None, error: BaseException | None = None) -> None:
        self.events.append(Written(self.tag, content, facts, True, error))


class Source:
    """The caller's items, with a bounded look ahead."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._ahead: deque[Item] = deque()
        self._files = 0
        self._bytes = 0
        self._exhausted = False

    @property
    def ended(self) -> bool:
        return not self._ahead and not self._pull()

    @property
    def small_so_far(self) -> bool:
        """Whether all files seen until now are few enough for one process."""
        return self._files <= INLINE_FILES and self._bytes <= INLINE_BYTES

    def leading_ready(self) -> Iterator[Written]:
        """Ready items before the first that needs work."""
        while not self.ended and isinstance(self._ahead[0], ReadyItem):
            yield Written(self._ahead.popleft().tag, b"", None, True)

    def look_ahead(self) -> None:
        """Until there is too much work for one process, or all of it is known, or enough was looked at."""
        while self.small_so_far and len(self._ahead) < PLACES_LIMIT and self._pull():
            pass

    def take(self) -> Item:
        """The next item; there must be one."""
        return self._ahead.popleft()

    def _pull(self) -> bool:
        if self._exhausted:
            return False
        item = next(self._items, None)
        if item is None:
            self._exhausted = True
            return False
        self._ahead.append(item)
        if isinstance(item, FileItem):
            self._files += 1
            self._bytes += item.size_bytes
        return True


class Order:
    """The queue of places, and the batch that is being filled."""

    def __init__(self, plan: EnginePlan) -> None:
        self._window_bytes = plan.window_bytes
        self._places: deque[Place] = deque()
        self._batch = BatchUnit()

    @property
    def empty(self) -> bool:
        return not self._places

    @property
    def full(self) -> bool:
        return len(self._places) >= PLACES_LIMIT

    @property
    def has_finished(self) -> bool:
        return bool(self._places) and bool(self._places[0].events)

    def finished(self) -> Iterator[Written]:
        """Events from the head of the queue, in order."""
        while self._places and self._places[0].events:
            event = self._places[0].events.pop(0)
            if event.last:
                self._places.popleft()
            yield event

    def add(self, item: Item) -> list[Unit]:
        """Give the item its place; return the units that are complete now."""
        place = Place(item.tag)
        self._places.append(place)
        match item:
            case ReadyItem():
                place.finish(b"", None)
                return []
            case StreamItem():
                return [StreamUnit(item, place)]
            case FileItem() if item.size_bytes > self._window_bytes:
                return [ChainUnit(item, place)]
            case FileItem():
                return self._add_small(item, place)

    def close_batch(self) -> list[Unit]:
        """The batch that is being filled, if it has anything."""
        batch, self._batch = self._batch, BatchUnit()
        return [batch] if batch.files else []

    def _add_small(self, item: FileItem, place: Place) -> list[Unit]:
        closed = [] if self._batch.has_room(item, self._window_bytes) else self.close_batch()
        self._batch.add(item, place)
        return closed


class BatchUnit:
    """Small files that travel together."""

    def __init__(self) -> None:
        self.files: list[tuple[bytes, int]] = []
        self._places: deque[Place] = deque()
        self._bytes = 0
        self._path_bytes = 0

    def has_room(self, item: FileItem, window_bytes: int) -> bool:
        return (
            len(self.files) < BATCH_FILES
            and self._bytes + item.size_bytes <= window_bytes
            and self._path_bytes + len(item.path) <= BATCH_PATHS_BYTES
        )

    def add(self, item: FileItem, place: Place) -> None:
        self.files.append((item.path, item.size_bytes))
        self._places.append(place)
        self._bytes += item.size_bytes
        self._path_bytes += len(item.path)

    def job(self) -> Batch:
        return Batch(0, tuple(self.files))

    def take(self, done: Done) -> None:
        for facts in done.facts:
            self._places.popleft().finish(facts.content, facts)


class ChainUnit:
    """A large file: segments that many workers hash at once, cut one after the other."""

    def __init__(self, item: FileItem, place: Place) -> None:
        self._item = item
        self._place = place
        self._results: dict[int, FileFacts | None] = {}  # by job number, which grows along the file
        self._first: FileFacts | None = None
        self._changed = False
        self._final = False
        self._over = False

    def job(self) -> Segment:
        return Segment(0, self._item.path, 0, self._item.size_bytes, None)

    def issued(self, job: Segment) -> None:
        self._results[job.job] = None

    def cut(self, cut: Cut) -> Segment | None:
        """The next segment, if there is one."""
        self._final = cut.final
        if cut.final:
            return None
        return Segment(0, self._item.path, cut.offset, self._item.size_bytes, cut.identity)

    def take(self, done: Done) -> None:
        self._results[done.job] = done.facts[0]
        while self._results:
            job, facts = next(iter(self._results.items()))
            if facts is None:
                return
            del self._results[job]
            self._emit(facts, last=self._final and not self._results)

    def _emit(self, facts: FileFacts, *, last: bool) -> None:
        if self._over:
            return
        first = self._first = self._first or facts
        self._changed |= facts.changed or (facts.mtime_ns, facts.ctime_ns) != (first.mtime_ns, first.ctime_ns)
        if facts.error or last:
            self._over = True
            whole = facts._replace(changed=self._changed, started_ns=first.started_ns, content=b"")
            self._place.finish(facts.content, whole)
        else:
            self._place.piece(facts.content)


class StreamUnit:
    """A stream: windows filled one after the other, the tail behind each last cut carried into the next."""

    def __init__(self, item: StreamItem, place: Place) -> None:
        self._item = item
        self._place = place
        self._carry = b""
        self._window: tuple[memoryview, int] | None = None
        self._slots: dict[int, int] = {}
        self._results: dict[int, FileFacts | None] = {}
        self._final = False
        self._size_bytes = 0

    def fill(self, memory: memoryview) -> int:
        """On the reader thread: carried tail first, then the stream until the window is full or it ends."""
        count = len(self._carry)
        memory[:count] = self._carry
        while count < len(memory):
            got = self._item.readinto(memory[count:])
            if not got:
                break
            count += got
        return count

    def filled(self, slot: int, memory: memoryview, count: int) -> Window:
        self._window = (memory, count)
        return Window(0, slot, count, count < len(memory))

    def issued(self, job: Window) -> None:
        self._slots[job.job] = job.slot
        self._results[job.job] = None

    def cut(self, cut: Cut) -> bool:
        """Keep the tail; whether there is a next window to fill."""
        assert self._window is not None
        memory, count = self._window
        self._carry = bytes(memory[cut.offset : count])
        self._window = None
        self._final = cut.final
        return not cut.final

    def take(self, done: Done) -> None:
        self._results[done.job] = done.facts[0]
        while self._results:
            job, facts = next(iter(self._results.items()))
            if facts is None:
                return
            del self._results[job]
            self._size_bytes += facts.size
            if self._final and not self._results:
                self._place.finish(facts.content, FileFacts(size=self._size_bytes))
            else:
                self._place.piece(facts.content)

    def release(self, job: int) -> int:
        """The input slot of a finished job."""
        return self._slots.pop(job)

    def fail(self, error: BaseException) -> None:
        self._place.finish(b"", None, error)


Unit = BatchUnit | ChainUnit | StreamUnit
