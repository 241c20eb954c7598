"""How a repository is made, opened, and got back: from the user's configuration to a Repository."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from enigma.clock import SYSTEM_CLOCK, Clock
from enigma.config import Config, ProviderConfig
from enigma.errors import (
    ConfigError,
    Locked,
    ObjectCorrupt,
    ObjectMissing,
    ProviderError,
    RepositoryExists,
    RepositoryNotFound,
    StateError,
)
from enigma.keys.local import LocalKeystore, best_copy
from enigma.manifest import Manifest
from enigma.model.ids import ProviderId, RepositoryId
from enigma.providers.base import Provider, fetch
from enigma.providers.open import open_provider
from enigma.repository import names
from enigma.repository.heads import heads
from enigma.repository.keycopies import KEY_OBJECT_LIMIT_BYTES, put_keys, sync_keys
from enigma.repository.placing import check_placement
from enigma.repository.repository import Repository
from enigma.repository.settings import (
    GENERATION_KEY,
    UNUSED_KEY,
    first_settings,
    newest_config,
    next_settings,
    put_config,
)
from enigma.repository.store import ObjectStore, marker_bytes, read_marker


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
        sync_keys(ObjectStore(keystore.repository_id, providers, keystore), keystore, manifest, give=settle)
        repository = Repository(config, keystore, providers, manifest, clock)
        _check_not_rolled_back(repository)
        if settle:
            repository.bury_replaced_slots()
            repository.complete_config()
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


def this_host(config: Config) -> str:
    return config.host or socket.gethostname()


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
    for place in fresh:
        store.catch_up(place.provider_id)
    put_config(store, record)
    manifest.audit("config", f"generation {record.generation}", ", ".join(one.name for one in record.providers))


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
