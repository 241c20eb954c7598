"""A repository: made, opened, recovered. The one seam between what is stored and the rooms above.

    config      the sealed truth: providers, placement, chunker with its secret seed
    keystore    opens everything
    providers   hold the objects; each carries a marker that says whose it is
    manifest    the local view, rebuilt from the providers whenever it is lost
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from enigma.clock import SYSTEM_CLOCK, Clock
from enigma.config import Config
from enigma.errors import (
    ConfigError,
    EnigmaError,
    FormatUnsupported,
    IntegrityError,
    KeyringError,
    Locked,
    ObjectMissing,
    ProviderUnavailable,
    RepositoryExists,
    RepositoryNotFound,
)
from enigma.keys.local import LocalKeystore
from enigma.manifest import Manifest
from enigma.model.ids import ObjectId, ProviderId, RepositoryId
from enigma.model.records import ChunkerRecord, Placement, ProviderRecord, RepositoryConfig, TombRecord
from enigma.providers.base import Provider, fetch
from enigma.providers.open import open_provider
from enigma.repository import names
from enigma.repository.placing import Placer
from enigma.repository.reading import BlobReader
from enigma.repository.sessions import Session
from enigma.repository.store import ObjectStore, marker_bytes, read_marker
from enigma.repository.view import View
from workers.chunking import ChunkerSpec
from workers.objects import Header, ObjectType, PackSet
from workers.owner import PackCheck, RangeRead
from workers.packs import PackSpec
from workers.plan import EnginePlan

CATALOG_PACK_BYTES = 8 << 20
# Larger packs mean fewer requests, and more memory: a repository grows into them.
PACK_TARGETS = ((1 << 40, 32 << 20), (8 << 40, 64 << 20), (1 << 63, 128 << 20))
KEY_OBJECT_LIMIT_BYTES = 1 << 20


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
            self.repository_id, keystore, manifest, self.placer, chunker.max_bytes, lambda: self.view.refresh()
        )

    def session(self, kind: str) -> Session:
        """A run of this program, made known to all others. Enter it before reading anything that may be deleted."""
        return Session(kind, self.store, self.manifest, self.view, self.clock)

    def newest_config(self) -> RepositoryConfig:
        """The highest generation that opens; ties go to the smaller id. Raises the reason if none opens."""
        failure: EnigmaError = RepositoryNotFound("The providers hold no repository configuration.")
        keys = sorted(self.store.list(names.CONFIGS), key=lambda key: (-int(key[7:15]), key))
        for key in keys:
            try:
                return self.store.get(key, RepositoryConfig)
            except (IntegrityError, FormatUnsupported, KeyringError) as exc:
                failure = exc
        raise failure

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

    def delete_snapshot(self, object_id: bytes, session_id: bytes, reason: str) -> None:
        """Tombstone first, at every provider; then the object. A crash between leaves it buried, not resurrected."""
        key = names.snapshot_key(object_id)
        tomb = TombRecord(key=key, session_id=session_id, created_ns=self.clock.wall_ns(), reason=reason)
        self.store.put_everywhere(names.tomb_key(ObjectId.random()), tomb)
        self.store.delete(key)
        self.manifest.drop_snapshot(object_id)

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_repository(config: Config, passphrase: Callable[[], str], *, clock: Clock = SYSTEM_CLOCK) -> Repository:
    """Open what `init` or `recover` made.

    Raises RepositoryNotFound, WrongPassphrase, ProviderError, and ConfigError where a provider is another's.
    """
    if not config.keyfile_path.exists():
        raise RepositoryNotFound(
            f"There is no keystore at {config.keyfile_path}; run `enigma init` for a new repository, "
            "or `enigma recover` to get an existing one back from its providers."
        )
    with ExitStack() as undo:
        keystore = undo.enter_context(
            LocalKeystore.open(
                config.keyfile_path, passphrase=passphrase(), mlkem_key_path=config.mlkem_key_path
            )
        )
        providers = undo.enter_context(_opened(config, keystore.repository_id))
        manifest = undo.enter_context(Manifest.open(config.db_path, create=True))
        repository = Repository(config, keystore, providers, manifest, clock)
        undo.pop_all()
        return repository


def create_repository(
    config: Config, passphrase: Callable[[], str], *, allow_weak: bool = False, clock: Clock = SYSTEM_CLOCK
) -> RepositoryId:
    """Make a repository at the configured providers, every one of which must answer and be empty.

    The order makes a crash harmless: marker, keys (read back), and last the config, without which nothing opens.
    """
    if config.keyfile_path.exists():
        raise RepositoryExists(
            f"There is a keystore at {config.keyfile_path} already; use another --config-dir, or move it away."
        )
    if config.db_path.exists():
        raise RepositoryExists(f"There is a manifest at {config.db_path} already; move it away first.")
    with ExitStack() as undo:
        raw = [undo.enter_context(open_provider(settings, create=True)) for settings in config.providers]
        for provider in raw:
            _check_empty(provider)
        repository_id = RepositoryId.random()
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
        providers = {ProviderId.random(): provider for provider in raw}
        for provider_id, provider in providers.items():
            provider.put(names.MARKER, memoryview(marker_bytes(repository_id, provider_id)), if_absent=True)
        store = ObjectStore(repository_id, providers, keystore)
        put_keys(store, keystore)
        record = _first_config(config, list(providers), clock.wall_ns())
        store.put(names.config_key(record.generation, ObjectId.random()), record)
        undo.enter_context(Manifest.open(config.db_path, create=True))
        return repository_id


def put_keys(store: ObjectStore, keystore: LocalKeystore) -> None:
    """Copy slots and data keys to every provider and read them back: nothing is sealed under a key that is not safe."""
    for key, data in keystore.objects().items():
        for provider in store.providers.values():
            if not _holds(provider, key, data):
                provider.put(key, memoryview(data))
            if not _holds(provider, key, data):
                raise ProviderUnavailable(f"Provider {provider.name} does not give back the key copy {key}; try again.")


def recover_keystore(config: Config, passphrase: Callable[[], str]) -> None:
    """Rebuild the local keystore from the providers' copies. The passphrase (and the separate key file) opens it."""
    with ExitStack() as undo:
        objects: dict[str, bytes] = {}
        for settings in config.providers:
            provider = undo.enter_context(open_provider(settings))
            for info in provider.list(names.KEYS):
                objects.setdefault(info.key, fetch(provider, info.key, limit_bytes=KEY_OBJECT_LIMIT_BYTES))
        if not objects:
            raise RepositoryNotFound(
                "No configured provider holds a repository's keys; check `bucket` in the configuration."
            )
        config.keyfile_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        LocalKeystore.recover(
            config.keyfile_path, objects, passphrase=passphrase(), mlkem_key_path=config.mlkem_key_path
        ).close()


@contextmanager
def exclusive(config: Config) -> Iterator[None]:
    """One writer per configuration directory. Raises Locked, which names the other process."""
    path = config.db_path.with_suffix(".lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


@contextmanager
def _opened(config: Config, repository_id: RepositoryId) -> Iterator[dict[ProviderId, Provider]]:
    """Every configured provider by its stable id, checked to be this repository's."""
    with ExitStack() as undo:
        providers: dict[ProviderId, Provider] = {}
        for settings in config.providers:
            provider = undo.enter_context(open_provider(settings))
            try:
                owner_id, provider_id = read_marker(provider)
            except ObjectMissing as exc:
                raise RepositoryNotFound(
                    f"Provider {settings.name} ({settings.bucket}) holds no repository; check `bucket`, "
                    "or run `enigma init`."
                ) from exc
            if owner_id != repository_id:
                raise ConfigError(
                    f"Provider {settings.name} ({settings.bucket}) belongs to another repository; check `bucket`."
                )
            providers[provider_id] = provider
        yield providers


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


def _first_config(config: Config, provider_ids: list[ProviderId], now_ns: int) -> RepositoryConfig:
    providers = tuple(
        ProviderRecord(
            provider_id=provider_id,
            name=settings.name,
            type=settings.type,
            bucket=settings.bucket,
            region=settings.region,
            endpoint_url=settings.endpoint_url,
            weight=settings.weight,
        )
        for provider_id, settings in zip(provider_ids, config.providers, strict=True)
    )
    return RepositoryConfig(
        generation=1,
        created_ns=now_ns,
        chunker=_new_chunker(config),
        placement=Placement(kind=config.distribution),
        providers=providers,
    )


def _new_chunker(config: Config) -> ChunkerRecord:
    """The configured chunker with a fresh secret seed: 48 bits, not zero (the library takes no more)."""
    strategy = config.chunk_strategy
    if strategy.kind == "Cdc":
        spec = ChunkerSpec.fastcdc(strategy.target_bytes, 1 + secrets.randbelow((1 << 48) - 1))
    else:
        spec = ChunkerSpec.fixed(strategy.target_bytes)
    return ChunkerRecord(
        kind=spec.kind,
        min_bytes=spec.min_bytes,
        target_bytes=spec.target_bytes,
        max_bytes=spec.max_bytes,
        seed=spec.seed,
    )


def this_host(config: Config) -> str:
    return config.host or socket.gethostname()
