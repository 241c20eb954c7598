"""Writing: what the engine's packs become, the index that lists them, and the snapshot that commits. FORMAT.md,
"Write order".

    packs (placed)  ->  index objects (durable)  ->  snapshot object (durable)  ->  fences listed  ->  success

A crash anywhere leaves orphans, never a reference to something that is not stored. "Exists" is answered from the
manifest alone, and the manifest knows a chunk only by a pack that an index lists or that this session has placed, that
the newest listing shows, and that nobody condemned.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from enigma.errors import ConfigError, EnigmaError
from enigma.manifest import Snapshot
from enigma.model.ids import ObjectId, PackId
from enigma.model.records import IndexedPack, IndexRecord, SnapshotRecord
from enigma.repository import names
from enigma.repository.sessions import Session
from enigma.repository.settings import UNUSED_KEY
from workers.objects import PackSet
from workers.owner import PackCheck, RangeRead, SealedPack
from workers.packs import RECORD, BlobRecord, PackSpec
from workers.sealer import Sealer

if TYPE_CHECKING:
    from enigma.repository.repository import Repository

INDEX_RECORDS_BYTES = 8 << 20  # an index object is written when the tables it repeats reach this
CATALOG_LEVEL = 3
PLAIN_BYTES_FIELD = BlobRecord._fields.index("plain_bytes")


class Writer:
    """What one session writes. It is the engine's owner; the engine's thread is the only one that calls it, but for
    `place` and `fetch`, which touch nothing but the providers.
    """

    def __init__(self, repository: Repository, session: Session) -> None:
        self._repository = repository
        self._session = session
        self._manifest = repository.manifest
        self._placed: dict[bytes, tuple[bytes, ...]] = {}
        self._unindexed: dict[int, list[IndexedPack]] = {PackSet.BACKUP: [], PackSet.CATALOG: []}
        self._unindexed_bytes = 0
        self._referenced_nos: set[int] = set()
        self._own: set[bytes] = set()
        self.session_id = session.session_id
        self.new_bytes = 0
        self.stored_bytes = 0
        self.pack_count = 0
        self.data_pack_count = 0
        self.catalog = CatalogBlobs(self, repository.pack_spec(PackSet.CATALOG))
        session.referenced = self._referenced

    # ---- the engine's owner

    def known(self, chunk_ids: list[bytes]) -> Collection[bytes]:
        found = self._manifest.known(chunk_ids, session_id=self._session.session_id)
        self._referenced_nos.update(found.values())
        return found

    def place(self, pack: SealedPack, content: memoryview) -> None:
        self._placed[pack.pack_id] = self._repository.placer.put(pack.pack_id, pack.pack_set, content)

    def stored(self, pack: SealedPack) -> None:
        """Confirmed: its chunks exist for this session from now on, and for everybody once the index is durable."""
        indexed = IndexedPack(
            pack_id=pack.pack_id,
            pack_set=pack.pack_set,
            length_bytes=pack.length_bytes,
            key_id=pack.key_id,
            session_id=self._session.session_id,
            provider_ids=self._placed.pop(pack.pack_id),
            records=pack.records,
        )
        self._manifest.add_pack(indexed, index_id=None)
        self._own.add(pack.pack_id)
        self._unindexed[pack.pack_set].append(indexed)
        self._unindexed_bytes += len(pack.records)
        self.stored_bytes += pack.length_bytes
        self.pack_count += 1
        self.new_bytes += sum(fields[PLAIN_BYTES_FIELD] for fields in RECORD.iter_unpack(pack.records))
        self.data_pack_count += pack.pack_set == PackSet.BACKUP
        if self._unindexed_bytes >= INDEX_RECORDS_BYTES:
            self.write_indexes()

    def fetch(self, request: RangeRead | PackCheck, into: memoryview) -> None:
        self._repository.fetch(request, into)

    def tick(self) -> None:
        self._session.beat_if_due()

    # ---- the write order

    def write_indexes(self) -> None:
        """Make the confirmed packs known to everybody."""
        for pack_set, packs in self._unindexed.items():
            if packs:
                self._write_index(PackSet(pack_set), packs)
                self._unindexed[pack_set] = []
        self._unindexed_bytes = 0

    def salvage(self) -> None:
        """After a failure or an interrupt: what is confirmed is indexed, so that the next run need not store it again."""
        with suppress(EnigmaError):
            self.write_indexes()

    def commit(self, record: SnapshotRecord) -> Snapshot:
        """Everything the snapshot refers to was confirmed before (the engine is flushed); make it visible.

        Raises SessionFenced if a garbage collection gave this session up, and then the snapshot is void.
        """
        self.catalog.flush()
        self.write_indexes()
        self._check_generation()
        object_id = ObjectId.random()
        self._repository.store.put(names.snapshot_key(object_id), record)
        self._session.check_fences()
        self._manifest.put_snapshot(object_id, record, void=False)
        self._manifest.meta_put(UNUSED_KEY, b"0")
        return Snapshot(object_id, void=False, record=record)

    def _write_index(self, pack_set: PackSet, packs: list[IndexedPack]) -> None:
        index_id = ObjectId.random()
        self._repository.store.put(names.index_key(pack_set, index_id), IndexRecord(packs=tuple(packs)), pack_set)
        self._manifest.set_index([PackId(pack.pack_id) for pack in packs], index_id)

    def _check_generation(self) -> None:
        """A newer config may have taken a provider away from under the packs just placed."""
        newest = self._repository.newest_config()
        if newest.generation != self._repository.settings.generation:
            raise ConfigError(
                "The repository's set of providers was changed while this ran; run the command again "
                "(what was stored is kept and will not be stored again)."
            )

    def _referenced(self) -> frozenset[bytes]:
        packs = self._manifest.packs() if self._referenced_nos else ()
        relied_on = {bytes(pack.pack_id) for pack in packs if pack.pack_no in self._referenced_nos}
        return frozenset(relied_on | self._own)


class CatalogBlobs:
    """Leaves, nodes and list blobs: made and sealed in this process, into packs of the catalog's own set."""

    def __init__(self, writer: Writer, spec: PackSpec) -> None:
        self._writer = writer
        self._spec = spec
        self._memory: memoryview | None = None
        self._sealer = Sealer(spec, CATALOG_LEVEL, self)
        self._pending: set[bytes] = set()

    def put(self, plain: bytes) -> bytes:
        """Store one blob unless it exists; return its chunk id."""
        chunk_id = hashlib.sha256(plain).digest()
        if not self.has(chunk_id):
            self._sealer.store(chunk_id, memoryview(plain))
            self._pending.add(chunk_id)
        return chunk_id

    def has(self, chunk_id: bytes) -> bool:
        """Whether the blob certainly exists, or lies in the pack that is being filled."""
        return chunk_id in self._pending or bool(self._writer.known([chunk_id]))

    def flush(self) -> None:
        self._sealer.flush()

    def lend(self) -> tuple[int, memoryview]:
        if self._memory is None:
            self._memory = memoryview(mmap.mmap(-1, self._spec.slot_bytes(self._spec.target_bytes)))
        return 0, self._memory

    def full(self, slot: int, pack_id: bytes, length_bytes: int, records_bytes: int) -> None:
        """Placed at once; a catalog is small beside its data."""
        memory = self.lend()[1]
        records = bytes(memory[length_bytes : length_bytes + records_bytes])
        header = self._spec.header
        pack = SealedPack(pack_id, header.pack_set, header.key_id, length_bytes, records)
        self._writer.place(pack, memory[:length_bytes])
        self._writer.stored(pack)
        self._pending.clear()
