"""The sealed config beside the user's TOML: who decides what, and when.

The sealed config is the truth about a repository. While it holds no snapshot nothing depends on it, so whatever the
TOML says is simply obeyed. Afterwards an additional provider, or a known one under another name, weight or place, makes
a new generation; anything that would change what is stored already is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from enigma.config import Config, ProviderConfig
from enigma.errors import ConfigError, EnigmaError, IntegrityError, KeyringError, RepositoryNotFound
from enigma.model.ids import ObjectId, ProviderId
from enigma.model.records import ChunkerRecord, Head, Placement, ProviderRecord, RepositoryConfig, encode
from enigma.repository import names
from enigma.repository.store import ObjectStore
from workers.chunking import CHUNKER_FASTCDC, ChunkerSpec

CONFIG_COPIES = 2
UNUSED_KEY = "unused"  # in the manifest: b"1" while the repository has never held a snapshot
GENERATION_KEY = "generation"  # in the manifest: the highest configuration this machine has seen


def first_settings(config: Config, providers: Mapping[ProviderId, ProviderConfig], now_ns: int) -> RepositoryConfig:
    """Generation 1, all from the TOML, with a fresh secret seed for the chunker."""
    return RepositoryConfig(
        generation=1,
        created_ns=now_ns,
        chunker=_new_chunker(config),
        placement=_placement(config),
        providers=tuple(_provider(provider_id, one) for provider_id, one in providers.items()),
    )


def next_settings(
    current: RepositoryConfig,
    config: Config,
    providers: Mapping[ProviderId, ProviderConfig],
    now_ns: int,
    *,
    has_snapshots: bool,
    heads: tuple[Head, ...],
) -> RepositoryConfig | None:
    """The generation that the TOML asks for, None if it is the current one.

    `providers` are those of the TOML that are this repository's, or new. Raises ConfigError for a change that is not
    to be had any more.
    """
    if has_snapshots:
        _check_unchanged(current, config, providers)
    keeps_chunker = _same_chunker(current.chunker, config) or (has_snapshots and not config.chunk_strategy.stated)
    records = tuple(_provider(provider_id, one) for provider_id, one in providers.items())
    chunker = current.chunker if keeps_chunker else _new_chunker(config)
    placement = _placement(config)
    if (records, chunker, placement) == (current.providers, current.chunker, current.placement):
        return None
    return RepositoryConfig(
        generation=current.generation + 1,
        created_ns=now_ns,
        chunker=chunker,
        placement=placement,
        providers=records,
        previous_sha256=hashlib.sha256(encode(current)).digest(),
        heads=heads,
    )


def _check_unchanged(current: RepositoryConfig, config: Config, providers: Mapping[ProviderId, ProviderConfig]) -> None:
    if config.chunk_strategy.stated and not _same_chunker(current.chunker, config):
        kind = "Cdc] target_size" if current.chunker.kind == CHUNKER_FASTCDC else "Fixed] size"
        raise ConfigError(
            "The chunker can't change once there are snapshots, or nothing would be recognised; set "
            f"[enigma.chunk_strategy.{kind} = {current.chunker.target_bytes} again."
        )
    if _placement(config) != current.placement:
        raise ConfigError(
            f'The repository places packs by "{current.placement.kind}"; set `distribution` to that again.'
        )
    missing = [one.name for one in current.providers if ProviderId(one.provider_id) not in providers and not one.lost]
    if missing:
        raise ConfigError(
            f"The repository has data at {', '.join(missing)}, which the configuration does not name any more; "
            "put its [[providers]] entry back."
        )


def _same_chunker(record: ChunkerRecord, config: Config) -> bool:
    strategy = config.chunk_strategy
    return (record.kind == CHUNKER_FASTCDC) == (strategy.kind == "Cdc") and record.target_bytes == strategy.target_bytes


def _new_chunker(config: Config) -> ChunkerRecord:
    """A seed of 48 bits, not zero: the chunker library takes no more."""
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


def _placement(config: Config) -> Placement:
    return Placement(
        kind=config.distribution,
        copies=config.mirror_copies if config.distribution == "Mirror" else 1,
        data=config.erasure_data if config.distribution == "Erasure" else 1,
        parity=config.erasure_parity if config.distribution == "Erasure" else 0,
    )


def _provider(provider_id: ProviderId, one: ProviderConfig) -> ProviderRecord:
    return ProviderRecord(
        provider_id=bytes(provider_id),
        name=one.name,
        type=one.type,
        bucket=one.bucket,
        region=one.region,
        endpoint_url=one.endpoint_url,
        prefix=one.prefix,
        weight=one.weight,
    )


def put_config(store: ObjectStore, record: RepositoryConfig) -> None:
    """Every provider gets it twice, under two ids: without a config nothing opens, and one copy may rot."""
    for _ in range(CONFIG_COPIES):
        store.put_everywhere(names.config_key(record.generation, ObjectId.random()), record)


def config_copies(store: ObjectStore, generation: int) -> list[str]:
    """The keys under which a generation of the config lies."""
    return [key for key in store.list(names.CONFIGS) if names.generation_of(key) == generation]


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
