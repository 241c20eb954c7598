"""The engine at work: memory, crew, threads, and the one loop that serves them. Lives from the first job to the close.

The loop never blocks in a send and never computes for long: it answers questions, moves slots, hands out jobs.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from workers.errors import EngineError
from workers.messages import (
    Ask,
    Check,
    CheckDone,
    Cut,
    Done,
    FinishDone,
    Flush,
    Flushed,
    Grant,
    PackFull,
    Read,
    ReadDone,
    Verdict,
    Want,
)
from workers.owner import Checked, Opened, Owner, PackCheck, RangeRead, SealedPack
from workers.packs import RECORD_BYTES
from workers.plan import DOWNLOAD_THREADS, JOBS_PER_WORKER, UPLOAD_THREADS, EnginePlan
from workers.pool import Crew, InlineCrew, WorkerPool
from workers.ring import FreeSlots, Ring
from workers.threads import Immediate, Threads
from workers.units import StreamUnit


class Reads:
    """The requests of one `read` or `check` call: how many are under way, and what came of the others."""

    def __init__(self) -> None:
        self.active = 0
        self.done: deque[Opened | Checked] = deque()


class ReadUnit:
    """One request that was fetched, or is being fetched, into a slot."""

    def __init__(self, reads: Reads, request: RangeRead | PackCheck, slots: FreeSlots, slot: int) -> None:
        self.reads = reads
        self.request = request
        self.slots = slots
        self.slot = slot

    def over(self, result: Opened | Checked) -> None:
        self.reads.done.append(result)
        self.reads.active -= 1
        self.slots.give_back(self.slot)


class FinishUnit:
    """The finish jobs of one call."""

    def __init__(self) -> None:
        self.active = 0
        self.warnings: list[str] = []


class Floor:
    """Either a pool of processes with the parent's threads, or the parent alone (`inline`)."""

    def __init__(self, plan: EnginePlan, owner: Owner, *, inline: bool) -> None:
        self.inline = inline
        self.placing = 0
        self._flushing = 0
        self._plan = plan
        self._owner = owner
        self._pending: set[bytes] = set()
        self._queue: deque[tuple[Any, Any]] = deque()
        self._units: dict[int, tuple[int, Any]] = {}
        self._job = 0
        self._hungry: deque[StreamUnit] = deque()
        self._ring = Ring(plan)
        self._writes = FreeSlots(self._ring.write_slots)
        self._reads = FreeSlots(self._ring.read_slots)
        self._inputs = FreeSlots(self._ring.input_slots)
        self._crew: Crew = InlineCrew(plan, self, self.verdict, self._ring) if inline else WorkerPool(plan, self._ring)
        self._busy = [0] * self._crew.size
        self._uploads = self._threads("upload", UPLOAD_THREADS)
        self._fetches = self._threads("fetch", DOWNLOAD_THREADS)
        self._streams = self._threads("stream", 1)

    @property
    def hungry(self) -> bool:
        """Whether workers would be idle without more jobs."""
        return len(self._queue) < self._crew.size

    @property
    def idle(self) -> bool:
        """Nothing is queued and nobody works."""
        return not self._queue and not self._units and not self._hungry

    @property
    def pids(self) -> list[int]:
        return self._crew.pids() if isinstance(self._crew, WorkerPool) else []

    def _threads(self, name: str, count: int) -> Threads | Immediate:
        return Immediate() if self.inline else Threads(name, count, self._crew.wake)

    # ---- work comes in

    def begin(self, unit: Any) -> None:
        """A batch or a chain is queued; a stream's first window is filled."""
        if isinstance(unit, StreamUnit):
            self._fill(unit)
        else:
            self.enqueue(unit.job(), unit)

    def enqueue(self, job: Any, unit: Any, *, urgent: bool = False) -> None:
        """Urgent: the next segment of a chain goes before new work, or the chain starves."""
        self._job += 1
        job = job._replace(job=self._job)
        if hasattr(unit, "issued"):
            unit.issued(job)
        (self._queue.appendleft if urgent else self._queue.append)((job, unit))

    def flush(self) -> None:
        """Close every open pack and return when all are placed."""
        self._flushing = self._crew.size
        for worker in range(self._crew.size):
            self._crew.send(worker, Flush())
        while self._flushing or self.placing:
            self.turn(1.0)
        if self._pending:
            raise EngineError("chunks were promised and never stored")

    # ---- the loop

    def turn(self, timeout_s: float) -> None:
        """Take in what has happened, give out what can be done; wait at most `timeout_s` if there is nothing."""
        self._collect()
        self._dispatch()
        for worker, message in self._crew.receive(timeout_s):
            self._handle(worker, message)
        self._collect()
        self._dispatch()
        self._owner.tick()

    def _handle(self, worker: int, message: Any) -> None:
        match message:
            case Ask(chunk_ids):
                self._crew.send(worker, Verdict(self.verdict(chunk_ids)))
            case Want():
                self._writes.wait(worker)
            case PackFull(slot, pack_id, length_bytes, records_bytes):
                self.full(slot, pack_id, length_bytes, records_bytes)
            case Cut():
                self._cut(message)
            case Done():
                self._done(message)
            case Flushed():
                self._flushing -= 1
            case ReadDone(job, errors, unwritten, warnings):
                unit = self._over(job)
                unit.over(Opened(unit.request, errors, unwritten, warnings, None))
            case CheckDone(job, errors, records_sha256):
                unit = self._over(job)
                unit.over(Checked(unit.request, errors, records_sha256, None))
            case FinishDone(job, warnings):
                unit = self._over(job)
                unit.active -= 1
                unit.warnings += warnings

    def _cut(self, cut: Cut) -> None:
        unit = self._units[cut.job][1]
        if isinstance(unit, StreamUnit):
            if unit.cut(cut):
                self._fill(unit)
        elif (job := unit.cut(cut)) is not None:
            self.enqueue(job, unit, urgent=True)

    def _done(self, done: Done) -> None:
        unit = self._over(done.job) if done.last else self._units[done.job][1]
        unit.take(done)
        if isinstance(unit, StreamUnit):
            self._inputs.give_back(unit.release(done.job))

    def _over(self, job: int) -> Any:
        worker, unit = self._units.pop(job)
        self._busy[worker] -= 1
        return unit

    def _dispatch(self) -> None:
        for worker, slot in self._writes.match():
            self._crew.send(worker, Grant(slot))
        while self._queue:
            worker = min(range(self._crew.size), key=self._busy.__getitem__)
            if self._busy[worker] >= JOBS_PER_WORKER:
                break
            job, unit = self._queue.popleft()
            self._busy[worker] += 1
            self._units[job.job] = (worker, unit)
            self._crew.send(worker, job)
        while self._hungry and self._inputs.any_free:
            self._fill(self._hungry.popleft())

    def _collect(self) -> None:
        """What the parent's threads have done. A pack that could not be placed fails the engine."""
        if failure := self._take_placed():
            raise failure
        for unit, _, error in self._fetches.collect():
            self._fetched(unit, error)
        for (unit, slot), count, error in self._streams.collect():
            self._filled(unit, slot, count, error)

    # ---- the dedup question

    def verdict(self, chunk_ids: bytes) -> bytes:
        """One bit per id (32 bytes each): 1 for a chunk that nobody has and nobody was told to store."""
        ids = [chunk_ids[at : at + 32] for at in range(0, len(chunk_ids), 32)]
        known = self._owner.known([chunk_id for chunk_id in ids if chunk_id not in self._pending])
        bits = bytearray((len(ids) + 7) // 8)
        for number, chunk_id in enumerate(ids):
            if chunk_id not in known and chunk_id not in self._pending:
                self._pending.add(chunk_id)
                bits[number >> 3] |= 1 << (number & 7)
        return bytes(bits)

    # ---- packs on their way out (`lend` and `full` are also the depot of a job done inline)

    def lend(self) -> tuple[int, memoryview]:
        """A free write slot for a job in this process: packs are placed at once there, so one is always free."""
        self._collect()
        slot = self._writes.take()
        if slot is None:
            raise EngineError("no slot is free")
        return slot, self._ring.slot(slot)

    def full(self, slot: int, pack_id: bytes, length_bytes: int, records_bytes: int) -> None:
        """Give the pack to an uploader thread; the slot is busy until it was placed."""
        memory = self._ring.slot(slot)
        records = bytes(memory[length_bytes : length_bytes + records_bytes])
        header = self._plan.pack.header
        pack = SealedPack(pack_id, header.pack_set, header.key_id, length_bytes, records)
        content = memory[:length_bytes]
        self.placing += 1
        self._uploads.submit((pack, slot), lambda: self._owner.place(pack, content))

    def _take_placed(self) -> BaseException | None:
        """Confirm every pack that was placed; return what kept another one from it."""
        failure = None
        for pack_and_slot, _, error in self._uploads.collect():
            if error is None:
                self._placed(*pack_and_slot)
            failure = failure or error
        return failure

    def _placed(self, pack: SealedPack, slot: int) -> None:
        self.placing -= 1
        self._writes.give_back(slot)
        self._owner.stored(pack)
        records = pack.records
        self._pending.difference_update([records[at : at + 32] for at in range(0, len(records), RECORD_BYTES)])

    # ---- ranges on their way in

    def fetch(self, reads: Reads, request: RangeRead | PackCheck) -> bool:
        """Begin to read a range or a whole pack; False if no slot is free now."""
        slots = self._reads if isinstance(request, RangeRead) else self._writes
        slot = slots.take()
        if slot is None:
            return False
        view = self._ring.slot(slot)[: request.length_bytes]
        reads.active += 1
        unit = ReadUnit(reads, request, slots, slot)
        self._fetches.submit(unit, lambda: self._owner.fetch(request, view))
        return True

    def _fetched(self, unit: ReadUnit, error: BaseException | None) -> None:
        request, slot = unit.request, unit.slot
        whose = (request.pack_id, request.pack_set, request.key_id)
        if isinstance(request, RangeRead):
            if error is not None:
                unit.over(Opened(request, (), (), (), error))
            else:
                self.enqueue(Read(0, slot, request.offset, *whose, request.blobs), unit)
        elif error is not None:
            unit.over(Checked(request, (), b"", error))
        else:
            self.enqueue(Check(0, slot, request.length_bytes, *whose), unit)

    # ---- streams

    def _fill(self, unit: StreamUnit) -> None:
        """Fill the stream's next window on the reader thread, as soon as an input slot is free."""
        slot = self._inputs.take()
        if slot is None:
            self._hungry.append(unit)
            return
        memory = self._ring.slot(slot)
        self._streams.submit((unit, slot), lambda: unit.fill(memory))

    def _filled(self, unit: StreamUnit, slot: int, count: int, error: BaseException | None) -> None:
        if error is not None:
            self._inputs.give_back(slot)
            unit.fail(error)
            return
        self.enqueue(unit.filled(slot, self._ring.slot(slot), count), unit, urgent=True)

    def close(self, *, wait_s: float | None) -> None:
        """Workers first, then the threads, then the memory they used. Packs that were placed meanwhile count."""
        try:
            self._crew.close()
            for threads in (self._uploads, self._fetches, self._streams):
                threads.close(wait_s=wait_s)
            self._take_placed()
        finally:
            self._ring.close()
