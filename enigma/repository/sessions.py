"""One run that reads or writes a repository, as others see it. FORMAT.md, "Sessions and deletion".

    begin    put the session object FIRST, then read snapshots, indexes and gc facts
    reading  put a heartbeat that names the snapshots read; look again whether they still stand
    beat     every few minutes: refresh the view, rescue what a new condemnation would take, acknowledge it
    commit   put the snapshot, then list the fences; only an unfenced session reports success
    end      remove the session's objects

What a session learns between two beats it may trust; what it may trust is written at `View` and `Manifest.known`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from enigma import __version__
from enigma.clock import Clock
from enigma.errors import AccessDenied, ProviderError, SessionFenced, SnapshotNotFound
from enigma.manifest import Manifest
from enigma.model.ids import ObjectId, SessionId
from enigma.model.records import RescueRecord, SessionRecord
from enigma.repository import names
from enigma.repository.store import ObjectStore
from enigma.repository.view import Refreshed, View
from workers.objects import ObjectType

HEARTBEAT_NS = 300 * 10**9
LONGEST_SILENCE_NS = 3600 * 10**9  # after this a session takes itself for dead; a courtesy, the fence is the safety


class Session:
    """A context manager: entering begins the session, leaving it ends it, however it went."""

    def __init__(
        self,
        kind: str,
        store: ObjectStore,
        manifest: Manifest,
        view: View,
        clock: Clock,
        *,
        only_reads: bool = False,
    ) -> None:
        self.session_id = SessionId.random()
        self.kind = kind
        self.referenced: Callable[[], frozenset[bytes]] = frozenset  # packs this run relies on without having made them
        self._store = store
        self._manifest = manifest
        self._view = view
        self._clock = clock
        self._only_reads = only_reads
        self._sequence = 0
        self._keys: list[str] = []
        self._reads: frozenset[bytes] = frozenset()
        self._acknowledged: frozenset[bytes] = frozenset()
        self._last_boot_ns = 0
        self._last_wall_ns = 0

    def __enter__(self) -> Self:
        self._put()
        try:
            self._manifest.forget_unindexed(self.session_id)
            self.refreshed = self._take_in(self._view.refresh())
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def reading(self, snapshot_ids: Iterable[bytes]) -> None:
        """Declare the snapshots this run reads: they are garbage collection's roots while it lives.

        Raises SnapshotNotFound if one was deleted before the declaration was in place.
        """
        self._reads = frozenset(snapshot_ids)
        self._put()
        self._view.refresh(list_packs=False)
        standing = {row.record.snapshot_id for row in self._manifest.snapshots()}
        if self._reads - standing:
            raise SnapshotNotFound("The snapshot was deleted just now; choose another one.")

    def beat_if_due(self) -> None:
        """Called often; does something every few minutes."""
        if self._clock.boot_ns() - self._last_boot_ns >= HEARTBEAT_NS:
            self.beat()

    def beat(self) -> None:
        """Refresh the view, answer condemnations, say that we live. Raises SessionFenced after too long a silence."""
        self._check_awake()
        self.refreshed = self._take_in(self._view.refresh())
        self._put()

    def check_fences(self) -> None:
        """Raises SessionFenced if somebody took this session for dead. To be called after the commit point."""
        if self._store.list(f"{names.FENCES}{self.session_id.hex()}"):
            raise SessionFenced(
                "This run was silent for so long that a garbage collection gave it up; its snapshot is void until "
                "`enigma verify` adopts it. Run the backup again."
            )

    def end(self) -> None:
        """Remove the session's objects. What a crash or a silent provider leaves is fenced by a later collection."""
        keys, self._keys = self._keys, []
        for key in keys:
            with suppress(ProviderError):
                self._store.delete(key)

    def _take_in(self, refreshed: Refreshed) -> Refreshed:
        """Rescue the packs of new condemnations that this run relies on; only then are they acknowledged."""
        for condemn_id, pack_ids in refreshed.gc.condemned.items():
            needed = pack_ids & self.referenced()
            if needed and condemn_id not in self._acknowledged:
                self._rescue(condemn_id, needed)
        self._acknowledged = frozenset(refreshed.gc.condemned)
        return refreshed

    def _rescue(self, condemn_id: bytes, pack_ids: frozenset[bytes]) -> None:
        record = RescueRecord(condemn_id=condemn_id, session_id=self.session_id, pack_ids=tuple(sorted(pack_ids)))
        self._store.put(names.gc_key(ObjectType.RESCUE, ObjectId.random()), record)

    def _put(self) -> None:
        record = SessionRecord(
            session_id=self.session_id,
            sequence=self._sequence,
            kind=self.kind,
            created_ns=self._clock.wall_ns(),
            host=socket.gethostname(),
            reads_snapshots=tuple(sorted(self._reads)),
            acknowledged=tuple(sorted(self._acknowledged)),
            program=f"enigma {__version__}",
        )
        key = names.session_key(self.session_id, self._sequence, ObjectId.random())
        self._keys.append(key)  # before the put: a signal may come in between
        try:
            self._store.put(key, record)
        except AccessDenied:
            if not self._only_reads:
                raise
        self._sequence += 1
        self._last_boot_ns, self._last_wall_ns = self._clock.boot_ns(), self._clock.wall_ns()

    def _check_awake(self) -> None:
        """Boot time counts suspend, the wall clock counts what the boot clock can't; whichever moved more decides."""
        boot_ns, wall_ns = self._clock.boot_ns() - self._last_boot_ns, self._clock.wall_ns() - self._last_wall_ns
        if max(boot_ns, wall_ns) > LONGEST_SILENCE_NS:
            raise SessionFenced(
                "This run slept for over an hour and can't know what was deleted meanwhile; run it again."
            )
