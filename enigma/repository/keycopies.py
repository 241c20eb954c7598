"""The copies of slots and data keys at the providers: given, read back, taken in. Nothing is sealed under a key that
is not safe there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from enigma.errors import FormatUnsupported, KeyMissing, ObjectCorrupt, ObjectMissing, ProviderUnavailable
from enigma.keys.local import LocalKeystore, best_copy
from enigma.manifest import Manifest
from enigma.model.records import TombRecord
from enigma.providers.base import Provider, fetch
from enigma.repository import names
from enigma.repository.store import ObjectStore
from workers.objects import ObjectType

KEY_OBJECT_LIMIT_BYTES = 1 << 20


def put_keys(store: ObjectStore, keystore: LocalKeystore) -> None:
    """Copy slots and data keys to every provider and read them back: nothing is sealed under a key that is not safe."""
    for key, data in keystore.objects().items():
        for provider in store.providers.values():
            if not _holds(provider, key, data):
                provider.put(key, memoryview(data))
            if not _holds(provider, key, data):
                raise ProviderUnavailable(f"Provider {provider.name} does not give back the key copy {key}; try again.")


def sync_keys(store: ObjectStore, keystore: LocalKeystore, manifest: Manifest, *, give: bool) -> None:
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
    if give and any(ours.keys() - keys for keys in listed) and not may_be_buried(store, manifest, ours):
        put_keys(store, keystore)


def may_be_buried(store: ObjectStore, manifest: Manifest, keys: Iterable[str]) -> bool:
    """Whether a slot of ours was deleted on purpose: another machine has changed the passphrase, and that stands.

    A tombstone that cannot be read may be the one: then nothing is put back, and nothing is taken away.
    """
    tombs = manifest.tombstones()
    buried = {tomb.key for tomb in tombs.values()}
    for key in store.list(names.TOMBS).keys() - tombs.keys():
        try:
            buried.add(store.get(key, TombRecord).key)
        except (ObjectMissing, ObjectCorrupt, FormatUnsupported, KeyMissing):
            return True
    return not buried.isdisjoint(keys)


def _copies(store: ObjectStore, key: str) -> Iterator[bytes]:
    for _, data in store.copies(key):
        if isinstance(data, bytes):
            yield data


def _holds(provider: Provider, key: str, data: bytes) -> bool:
    try:
        return fetch(provider, key, limit_bytes=KEY_OBJECT_LIMIT_BYTES) == data
    except ObjectMissing:
        return False
