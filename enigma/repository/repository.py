"""An open repository: the one seam between what is stored and the rooms above. (opening.py makes and opens it.)

config      the sealed truth: providers, placement, chunker with its secret seed
keystore    opens everything
providers   hold the objects; each carries a marker that says whose it is
manifest    the local view, rebuilt from the providers whenever it is lost
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from enigma.clock import Clock
from enigma.config import Config
from enigma.errors import ObjectMissing
from enigma.keys.local import LocalKeystore
from enigma.manifest import Manifest, Snapshot
from enigma.model.ids import KeyId, ObjectId, ProviderId
from enigma.model.records import RepositoryConfig, SessionRecord, TombRecord
from enigma.providers.base import Provider
from enigma.repository import names
from enigma.repository.heads import heads
from enigma.repository.keycopies import may_be_buried, put_keys, sync_keys
from enigma.repository.placing import Placer
from enigma.repository.reading import BlobReader
from enigma.repository.sessions import Session
from enigma.repository.settings import CONFIG_COPIES, config_copies, newest_config, put_config
from enigma.repository.store import ObjectStore
from enigma.repository.view import View
from workers.chunking import ChunkerSpec
from workers.objects import Header, ObjectType, PackSet
from workers.owner import PackCheck, RangeRead
from workers.packs import PackSpec
from workers.plan import EnginePlan

CATALOG_PACK_BYTES = 8 << 20
# Larger packs mean fewer requests, and more memory: a repository grows into them.
PACK_TARGETS = ((1 << 40, 32 << 20), (8 << 40, 64 << 20), (1 << 63, 128 << 20))


class Repository:
    """An open repository. A context manager; holds the providers' connections, the keys and the manifest."""

    def __init__(
        self,
        config: Config,
        keystore: LocalKeystore,
        providers: Mapping[ProviderId, Provider],
        manifest: Manifest,
        clock: Clock,
    ) -> None:
        self.config = config
        self.clock = clock
        self.keystore = keystore
        self.manifest = manifest
        self.repository_id = keystore.repository_id
        self.store = ObjectStore(self.repository_id, providers, keystore)
        self.settings = self.newest_config()
        self.placer = Placer(self.settings.placement, self.settings.providers, providers)
        self.view = View(self.store, manifest)
        chunker = self.settings.chunker
        self.blobs = BlobReader(
            self.repository_id, keystore, manifest, self.placer, chunker.max_bytes, self.view.refresh
        )

    def session(self, kind: str, *, only_reads: bool = False) -> Session:
        """A run of this program, made known to all others. Enter it before reading anything that may be deleted.

        One that only reads goes on without being known where the providers are read-only: nothing is deleted there.
        """
        return Session(kind, self.store, self.manifest, self.view, self.clock, only_reads=only_reads)

    def ensure_keys(self) -> None:
        """Every provider holds our keys before anything lasting is sealed under them."""
        sync_keys(self.store, self.keystore, self.manifest, give=True)

    def newest_config(self) -> RepositoryConfig:
        return newest_config(self.store)

    def pack_spec(self, pack_set: PackSet) -> PackSpec:
        """How new packs of a set are made: under the current data key, of a size that grows with the repository."""
        key_id = self.keystore.current
        header = Header(ObjectType.PACK, self.repository_id, bytes(16), key_id, pack_set)
        return PackSpec(header, self.keystore.data_key(key_id), self._pack_target_bytes(pack_set))

    def plan(self, *, target_root: bytes = b"", largest_pack_bytes: int = 0) -> EnginePlan:
        """The engine's sizes for this repository; `largest_pack_bytes` makes slots that hold any pack to be checked."""
        spec = self.pack_spec(PackSet.BACKUP)
        target_bytes = max(spec.target_bytes, largest_pack_bytes)
        return EnginePlan(
            workers=self.config.workers,
            chunker=self.chunker,
            level=self.config.compression.level if self.config.compression.enabled else 0,
            pack=PackSpec(spec.header, spec.data_key, target_bytes),
            data_keys={bytes(key_id): self.keystore.data_key(key_id) for key_id in self.keystore.key_ids()},
            target_root=target_root,
        )

    @property
    def chunker(self) -> ChunkerSpec:
        record = self.settings.chunker
        return ChunkerSpec(record.kind, record.min_bytes, record.target_bytes, record.max_bytes, record.seed)

    def fetch(self, request: RangeRead | PackCheck, into: memoryview) -> None:
        """Fill `into` from a pack. May be called from any thread; `request.tag` names the providers to ask first."""
        self.placer.read(request.pack_id, request.pack_set, request.tag or (), request.offset, into)

    def delete_snapshot(self, snapshot: Snapshot, session_id: bytes, reason: str) -> None:
        """Make a snapshot disappear for good. One that somebody reads is buried now, and deleted by a collection later."""
        key, logical_id = names.snapshot_key(snapshot.object_id), snapshot.record.snapshot_id
        self._entomb(key, session_id, reason, logical_id=logical_id)
        if not self._is_read(logical_id, session_id):
            self.store.delete(key)
        self.manifest.drop_snapshot(snapshot.object_id)

    def rotate_key(self) -> KeyId:
        """A new data key for new packs, safe at every provider before anything is sealed under it.

        The configuration is stored once more, under the new key: a lost key must not take along what another one seals.
        """
        key_id = self.keystore.rotate()
        put_keys(self.store, self.keystore)
        put_config(self.store, self.newest_config())
        self.manifest.audit("key-rotate", str(key_id))
        return key_id

    def change_passphrase(self, new: bytes, *, old: bytes, session_id: bytes, allow_weak: bool) -> None:
        """The new slot stands everywhere before the old one is buried: at any moment one of the two opens."""
        obsolete = self.keystore.change_passphrase(new, old=old, allow_weak=allow_weak)
        put_keys(self.store, self.keystore)
        for key in obsolete:
            self._entomb(key, session_id, "passphrase changed")
            self.store.delete(key)
        self.manifest.audit("key-passphrase", str(self.repository_id))

    def bury_replaced_slots(self) -> None:
        """Finish a passphrase change that was cut short: the old passphrase must not open what lies at the providers.

        Never the last way in: nothing is touched if our own slot was buried (another machine changed the passphrase,
        and its clock may be behind), and ours is read back from every provider before an older one goes.
        """
        ours = self.keystore.objects()
        slots = [key for key in self.store.list(names.KEYS) if names.type_of(key) is ObjectType.SLOT]
        others = [key for key in slots if key not in ours]
        if not others or may_be_buried(self.store, self.manifest, ours):
            return
        buried = {tomb.key for tomb in self.manifest.tombstones().values()}
        for key in others:
            copies = [data for _, data in self.store.copies(key) if isinstance(data, bytes)]
            if any(self.keystore.replaces(data) for data in copies):
                put_keys(self.store, self.keystore)
                if key not in buried:
                    self._entomb(key, bytes(16), "passphrase changed")
                self.store.delete(key)

    def complete_config(self) -> None:
        """Put the fellow of a copy that has none: it was lost, or what put the pair was cut short."""
        generation = self.settings.generation
        if len(config_copies(self.store, generation)) % CONFIG_COPIES:
            self.store.put_everywhere(names.config_key(generation, ObjectId.random()), self.settings)

    def _is_read(self, snapshot_id: bytes, by_other_than: bytes) -> bool:
        """Whether a session that lives, or may live, has declared to read this snapshot."""
        for key in self.store.list(names.SESSIONS):
            try:
                session = self.store.get(key, SessionRecord)
            except ObjectMissing:
                continue  # it has just ended
            if session.session_id != by_other_than and snapshot_id in session.reads_snapshots:
                return True
        return False

    def _entomb(self, key: str, session_id: bytes, reason: str, *, logical_id: bytes = b"") -> None:
        """A tombstone at every provider, before the object goes: a crash between leaves it buried, not resurrected."""
        tomb = TombRecord(
            key=key,
            session_id=session_id,
            created_ns=self.clock.wall_ns(),
            logical_id=logical_id,
            reason=reason,
            heads=heads(self.manifest),
        )
        tomb_key = names.tomb_key(ObjectId.random())
        self.store.put_everywhere(tomb_key, tomb)
        self.manifest.put_tombstone(tomb_key, tomb)

    def _pack_target_bytes(self, pack_set: PackSet) -> int:
        if pack_set is PackSet.CATALOG:
            return CATALOG_PACK_BYTES
        held_bytes = sum(totals.length_bytes for totals in self.manifest.totals())
        return next(size for limit, size in PACK_TARGETS if held_bytes < limit)

    def close(self) -> None:
        for provider in self.store.providers.values():
            provider.close()
        self.manifest.close()
        self.keystore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
