"""A repository: made, opened, recovered. The one seam between what is stored and the rooms above.

config      the sealed truth: providers, placement, chunker with its secret seed
keystore    opens everything
providers   hold the objects; each carries a marker that says whose it is
manifest    the local view, rebuilt from the providers whenever it is lost
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from enigma.clock import SYSTEM_CLOCK, Clock
from enigma.config import Config, ProviderConfig
from enigma.errors import (
    ConfigError,
    EnigmaError,
    IntegrityError,
    KeyringError,
    Locked,
    ObjectCorrupt,
    ObjectMissing,
    ProviderError,
    ProviderUnavailable,
    RepositoryExists,
    RepositoryNotFound,
    StateError,
)
from enigma.keys.local import LocalKeystore, best_copy
from enigma.manifest import Manifest, Snapshot
from enigma.model.ids import KeyId, ObjectId, ProviderId, RepositoryId
from enigma.model.records import RepositoryConfig, SessionRecord, TombRecord
from enigma.providers.base import Provider, fetch
from enigma.providers.open import open_provider
from enigma.repository import names
from enigma.repository.heads import heads
from enigma.repository.placing import Placer, check_placement
from enigma.repository.reading import BlobReader
from enigma.repository.sessions import Session
from enigma.repository.settings import first_settings, next_settings
from enigma.repository.store import ObjectStore, marker_bytes, read_marker
from enigma.repository.view import View
from enigma.repository.writing import UNUSED_KEY
from workers.chunking import ChunkerSpec
from workers.objects import Header, ObjectType, PackSet
from workers.owner import PackCheck, RangeRead
from workers.packs import PackSpec
from workers.plan import EnginePlan

CATALOG_PACK_BYTES = 8 << 20
# Larger packs mean fewer requests, and more memory: a repository grows into them.
PACK_TARGETS = ((1 << 40, 32 << 20), (8 << 40, 64 << 20), (1 << 63, 128 << 20))
KEY_OBJECT_LIMIT_BYTES = 1 << 20
CONFIG_COPIES = 2
GENERATION_KEY = "generation"  # in the manifest: the highest configuration this machine has seen


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
        _sync_keys(self.store, self.keystore, give=True)

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
        """A new data key for new packs, safe at every provider before anything is sealed under it."""
        key_id = self.keystore.rotate()
        put_keys(self.store, self.keystore)
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


def open_repository(
    config: Config, unlock: Callable[[], LocalKeystore], *, settle: bool = False, clock: Clock = SYSTEM_CLOCK
) -> Repository:
    """Open what `init` or `recover` made. With `settle`, what the TOML asks for is taken into the sealed config first.

    Raises RepositoryNotFound, WrongPassphrase, ProviderError, and ConfigError where a provider is another's.
    """
    with ExitStack() as undo:
        keystore = undo.enter_context(unlock())
        manifest = undo.enter_context(Manifest.open(config.db_path, create=True))
        unused = settle and manifest.meta_get(UNUSED_KEY) == b"1"
        places = undo.enter_context(_places(config, keystore.repository_id, keystore, create=unused))
        if settle:
            for place in places:
                if place.ours and not place.marked:
                    _mark(place, keystore.repository_id)
            _settle(config, keystore, manifest, places, clock)
        providers = {place.provider_id: place.provider for place in places if place.ours}
        if not providers:
            raise _no_repository(places)
        _sync_keys(ObjectStore(keystore.repository_id, providers, keystore), keystore, give=settle)
        repository = Repository(config, keystore, providers, manifest, clock)
        _check_not_rolled_back(repository)
        undo.pop_all()
        return repository


def create_repository(
    config: Config, passphrase: Callable[[], bytes], *, allow_weak: bool = False, clock: Clock = SYSTEM_CLOCK
) -> RepositoryId:
    """Make a repository at the configured providers, every one of which must answer and be empty.

    The order makes a crash harmless: marker, keys (read back), and last the config, without which nothing opens.
    """
    for path, what in ((config.keyfile_path, "keystore"), (config.db_path, "manifest")):
        if path.exists():
            raise RepositoryExists(f"There is a {what} at {path} already; use another --config-dir, or move it away.")
    if config.key_provider != "local":
        raise ConfigError(
            f'This version keeps keys locally, not in {config.key_provider}; set key_provider to "local".'
        )
    check_placement(config.distribution)
    repository_id = RepositoryId.random()
    with ExitStack() as undo:
        for settings in config.providers:
            with open_provider(settings, create=True) as provider:
                _check_empty(provider)
        places = undo.enter_context(_places(config, repository_id, create=True))
        config.keyfile_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        keystore = undo.enter_context(
            LocalKeystore.create(
                config.keyfile_path,
                repository_id=repository_id,
                passphrase=passphrase(),
                mlkem_key_path=config.mlkem_key_path,
                allow_weak=allow_weak,
            )
        )
        manifest = undo.enter_context(Manifest.open(config.db_path, create=True))
        manifest.meta_put(UNUSED_KEY, b"1")
        _found(config, keystore, places, clock)
    return repository_id


def _found(config: Config, keystore: LocalKeystore, places: list[_Place], clock: Clock) -> None:
    """Put the first objects of a repository at providers that hold nothing yet."""
    for place in places:
        _mark(place, keystore.repository_id)
    store = ObjectStore(keystore.repository_id, {place.provider_id: place.provider for place in places}, keystore)
    put_keys(store, keystore)
    put_config(store, first_settings(config, _configs(places), clock.wall_ns()))


def _settle(config: Config, keystore: LocalKeystore, manifest: Manifest, places: list[_Place], clock: Clock) -> None:
    """Take what the TOML says into the sealed config, as far as that is still to be had."""
    ours = {place.provider_id: place.provider for place in places if place.ours}
    fresh = [place for place in places if not place.ours]
    for place in fresh:
        _check_empty(place.provider)
    if not ours:
        if manifest.meta_get(UNUSED_KEY) != b"1":
            raise _no_repository(places)
        _found(config, keystore, places, clock)
        return
    store = ObjectStore(keystore.repository_id, ours, keystore)
    current = newest_config(store)
    has_snapshots = bool(store.list(names.SNAPSHOTS))
    record = next_settings(
        current, config, _configs(places), clock.wall_ns(), has_snapshots=has_snapshots, heads=heads(manifest)
    )
    if record is None:
        return
    for place in fresh:
        _mark(place, keystore.repository_id)
    store = ObjectStore(keystore.repository_id, {place.provider_id: place.provider for place in places}, keystore)
    put_keys(store, keystore)
    put_config(store, record)
    manifest.audit("config", f"generation {record.generation}", ", ".join(one.name for one in record.providers))


def put_config(store: ObjectStore, record: RepositoryConfig) -> None:
    """Every provider gets it twice, under two ids: without a config nothing opens, and one copy may rot."""
    for _ in range(CONFIG_COPIES):
        store.put_everywhere(names.config_key(record.generation, ObjectId.random()), record)


def newest_config(store: ObjectStore) -> RepositoryConfig:
    """The highest generation that opens; ties go to the smaller id. Raises the reason if none opens.

    One that needs a newer Enigma is not passed over: an older one behind it is no longer the truth.
    """
    failure: EnigmaError = RepositoryNotFound(
        "The providers hold no repository configuration; an `enigma init` may have been interrupted: empty the place "
        "and run it again."
    )
    for key in sorted(store.list(names.CONFIGS), key=lambda key: (-names.generation_of(key), key)):
        try:
            return store.get(key, RepositoryConfig)
        except (IntegrityError, KeyringError) as exc:
            failure = exc
    raise failure


def put_keys(store: ObjectStore, keystore: LocalKeystore) -> None:
    """Copy slots and data keys to every provider and read them back: nothing is sealed under a key that is not safe."""
    for key, data in keystore.objects().items():
        for provider in store.providers.values():
            if not _holds(provider, key, data):
                provider.put(key, memoryview(data))
            if not _holds(provider, key, data):
                raise ProviderUnavailable(f"Provider {provider.name} does not give back the key copy {key}; try again.")


def _check_not_rolled_back(repository: Repository) -> None:
    """This machine never goes back to an older generation: whoever shows one is withholding the newer."""
    seen = int(repository.manifest.meta_get(GENERATION_KEY) or b"0")
    shown = repository.settings.generation
    if shown < seen:
        raise ObjectCorrupt(
            f"The providers show configuration {shown}, but this machine has seen {seen}: one of them was set back or "
            "withholds objects. `enigma recover` accepts what they show."
        )
    if shown > seen:
        repository.manifest.meta_put(GENERATION_KEY, str(shown).encode())


def _sync_keys(store: ObjectStore, keystore: LocalKeystore, *, give: bool) -> None:
    """Take data keys that another machine made; with `give`, put back what a provider lacks of ours."""
    ours = keystore.objects()
    listed = [
        {info.key for info in provider.list(names.KEYS) if names.is_ours(info.key)}
        for provider in store.providers.values()
    ]
    foreign = {key for keys in listed for key in keys if names.type_of(key) is ObjectType.DATA_KEY and key not in ours}
    if foreign:
        found = {key: list(_copies(store, key)) for key in sorted(foreign)}
        keystore.add_objects({key: best_copy(several) for key, several in found.items() if several})
    if give and any(ours.keys() - keys for keys in listed) and not _is_buried(store, ours):
        put_keys(store, keystore)


def _is_buried(store: ObjectStore, keys: Iterable[str]) -> bool:
    """Whether a slot of ours was deleted on purpose: another machine has changed the passphrase, and that stands."""
    tombs = (store.get(key, TombRecord).key for key in store.list(names.TOMBS))
    return not set(keys).isdisjoint(tombs)


def _copies(store: ObjectStore, key: str) -> Iterator[bytes]:
    for _, data in store.copies(key):
        if isinstance(data, bytes):
            yield data


def recover_keystore(config: Config, passphrase: Callable[[], bytes]) -> None:
    """Rebuild the local keystore from the providers' copies. The passphrase (and the separate key file) opens it."""
    copies: dict[str, list[bytes]] = {}
    failure: ProviderError | None = None
    for settings in config.providers:
        try:
            with open_provider(settings) as provider:
                for info in provider.list(names.KEYS):
                    data = fetch(provider, info.key, limit_bytes=KEY_OBJECT_LIMIT_BYTES)
                    copies.setdefault(info.key, []).append(data)
        except ProviderError as exc:
            failure = exc
    if not copies:
        raise failure or RepositoryNotFound(
            "No configured provider holds a repository's keys; check `bucket` in the configuration."
        )
    objects = {key: best_copy(several) for key, several in copies.items()}
    config.keyfile_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    LocalKeystore.recover(
        config.keyfile_path, objects, passphrase=passphrase(), mlkem_key_path=config.mlkem_key_path
    ).close()


@contextmanager
def exclusive(config: Config) -> Iterator[None]:
    """One writer per configuration directory. Raises Locked, which names the other process."""
    path = config.db_path.with_suffix(".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StateError(f"Can't write {path}: {exc.strerror}; Enigma keeps its manifest and its lock there.") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Locked(
                f"Process {holder} works with this configuration directory already; wait for it, or use another one."
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Place:
    """A configured provider: `ours` if its marker says so (or its config, where the marker is damaged), else new."""

    config: ProviderConfig
    provider: Provider
    provider_id: ProviderId
    ours: bool
    marked: bool = True


@contextmanager
def _places(
    config: Config, repository_id: RepositoryId, keystore: LocalKeystore | None = None, *, create: bool = False
) -> Iterator[list[_Place]]:
    """Every configured provider, opened. Raises ConfigError for one that is another repository's."""
    with ExitStack() as undo:
        places = []
        for settings in config.providers:
            provider = undo.enter_context(open_provider(settings, create=create))
            try:
                owner_id, provider_id = read_marker(provider)
            except (ObjectMissing, ObjectCorrupt):
                places.append(_recognised(settings, provider, repository_id, keystore))
                continue
            if owner_id != repository_id:
                raise ConfigError(
                    f"Provider {settings.name} ({settings.bucket}) belongs to another repository; check `bucket`."
                )
            places.append(_Place(settings, provider, provider_id, ours=True))
        yield places


def _recognised(
    settings: ProviderConfig, provider: Provider, repository_id: RepositoryId, keystore: LocalKeystore | None
) -> _Place:
    """A provider without a sound marker is ours all the same if a config that our keys open names its place."""
    fresh = _Place(settings, provider, ProviderId.random(), ours=False, marked=False)
    if keystore is None:
        return fresh
    try:
        current = newest_config(ObjectStore(repository_id, {fresh.provider_id: provider}, keystore))
    except RepositoryNotFound:
        return fresh
    named = [one for one in current.providers if one.name == settings.name]
    placed = [one for one in current.providers if (one.type, one.bucket) == (settings.type, settings.bucket)]
    for one in placed or named or (current.providers if len(current.providers) == 1 else ()):
        return _Place(settings, provider, ProviderId(one.provider_id), ours=True, marked=False)
    return fresh


def _configs(places: list[_Place]) -> dict[ProviderId, ProviderConfig]:
    return {place.provider_id: place.config for place in places}


def _mark(place: _Place, repository_id: RepositoryId) -> None:
    marker = marker_bytes(repository_id, place.provider_id)
    place.provider.put(names.MARKER, memoryview(marker))
    place.ours = place.marked = True


def _no_repository(places: list[_Place]) -> RepositoryNotFound:
    where = ", ".join(f"{place.config.name} ({place.config.bucket})" for place in places)
    return RepositoryNotFound(f"There is no repository at {where}; check `bucket`, or run `enigma init`.")


def _check_empty(provider: Provider) -> None:
    if next(iter(provider.list("")), None) is not None:
        raise RepositoryExists(
            f"Provider {provider.name} is not empty; `enigma init` needs an empty place for a new repository, "
            "and `enigma recover` reopens the one that is there."
        )


def _holds(provider: Provider, key: str, data: bytes) -> bool:
    try:
        return fetch(provider, key, limit_bytes=KEY_OBJECT_LIMIT_BYTES) == data
    except ObjectMissing:
        return False


def this_host(config: Config) -> str:
    return config.host or socket.gethostname()
