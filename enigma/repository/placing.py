"""Which provider gets a pack, and from which one it is read. Small objects go everywhere; packs go here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from enigma.errors import ConfigError, ObjectCorrupt, ObjectMissing, ProviderError
from enigma.model.ids import ProviderId
from enigma.model.records import Placement, ProviderRecord
from enigma.providers.base import Provider
from enigma.repository import names
from workers.objects import PackSet

SUPPORTED = ("RoundRobin", "Weighted")


def check_placement(kind: str) -> None:
    """Raises ConfigError for one that this version can't do."""
    if kind not in SUPPORTED:
        raise ConfigError(f"This version places packs by {' or '.join(SUPPORTED)}, not {kind}; change `distribution`.")


class Placer:
    """Places packs by the repository's placement, and reads ranges of them back."""

    def __init__(
        self, placement: Placement, records: Sequence[ProviderRecord], providers: Mapping[ProviderId, Provider]
    ) -> None:
        check_placement(placement.kind)
        self._providers = dict(providers)
        weighted = placement.kind == "Weighted"
        self._turns = [
            ProviderId(record.provider_id)
            for record in records
            if not record.lost
            for _ in range(record.weight if weighted else 1)
        ]

    def targets(self, pack_id: bytes, pack_set: int) -> tuple[ProviderId, ...]:
        """Catalog packs go to every provider; a data pack to one, chosen by its random id (by weight, if asked for)."""
        if pack_set == PackSet.CATALOG:
            return tuple(self._providers)
        return (self._turns[int.from_bytes(pack_id[:8], "little") % len(self._turns)],)

    def put(self, pack_id: bytes, pack_set: int, content: memoryview) -> tuple[ProviderId, ...]:
        """Store a pack at all its targets; where it is now. Raises the provider's error if one refused it."""
        targets = self.targets(pack_id, pack_set)
        for provider_id in targets:
            self._providers[provider_id].put(names.pack_key(pack_set, pack_id), content)
        return targets

    def read(self, pack_id: bytes, pack_set: int, provider_ids: Sequence[bytes], offset: int, into: memoryview) -> None:
        """Fill `into` from the pack's first provider that can. Raises the last one's error, ObjectCorrupt if short."""
        key = names.pack_key(pack_set, pack_id)
        failure: ProviderError | ObjectCorrupt = ObjectMissing(f"Pack {key} is at no provider of this configuration.")
        for provider_id in provider_ids or tuple(self._providers):
            provider = self._providers.get(ProviderId(provider_id))
            if provider is None:
                continue
            try:
                if provider.get(key, into, offset=offset) == len(into):
                    return
                failure = ObjectCorrupt(f"Pack {key} at {provider.name} is truncated.")
            except ProviderError as exc:
                failure = exc
        raise failure
