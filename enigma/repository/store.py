"""Small sealed objects at all providers: put, get, list, delete. The one place where records become stored bytes.

Small objects (everything but packs) go to every provider. A put counts as done when the object is durable at f+1 of
them, f being the faults the placement promises to survive; who missed it is remembered as degraded and caught up later.
A read takes the first copy that opens: a corrupt or missing copy at one provider is never the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from enigma.errors import (
    EnigmaError,
    FormatUnsupported,
    ObjectCorrupt,
    ObjectMissing,
    ProviderError,
    ProviderUnavailable,
)
from enigma.model.ids import KeyId, ProviderId, RepositoryId
from enigma.model.records import Record, decode, encode
from enigma.providers.base import ObjectInfo, Provider, fetch
from enigma.repository import names
from workers.errors import FormatNewer, SealBroken
from workers.objects import (
    CHECKSUM_BYTES,
    KNOWN_WRITER_FEATURES,
    Header,
    ObjectType,
    PackSet,
    checksum,
    open_object,
    seal_object,
)

R = TypeVar("R", bound=Record)
SMALL_OBJECT_LIMIT_BYTES = 256 << 20
EVERYWHERE = (
    names.CONFIGS,
    names.KEYS,
    names.packs_prefix(PackSet.CATALOG),
    names.INDEXES,
    names.SNAPSHOTS,
    names.GC,
    names.FENCES,
    names.TOMBS,
)


class Keyring(Protocol):
    """What the store needs of an opened keystore."""

    @property
    def current(self) -> KeyId: ...

    def data_key(self, key_id: bytes) -> bytes: ...


class ObjectStore:
    """Objects of one repository. `faults` is f: how many providers may fail without loss."""

    def __init__(
        self, repository_id: RepositoryId, providers: Mapping[ProviderId, Provider], keyring: Keyring, faults: int = 0
    ) -> None:
        self.repository_id = repository_id
        self.providers = dict(providers)
        self.keyring = keyring
        self.degraded: set[str] = set()
        self._needed = min(faults + 1, len(self.providers))
        self._readable_only = False  # the newest config asks its writers for features that this program lacks

    def put(self, key: str, record: Record, pack_set: PackSet = PackSet.NONE) -> list[str]:
        """Seal `record` under the current data key and store it under `key`, which ends in the object's id.

        Returns the names of the providers that missed it. Raises as `put_bytes`.
        """
        kind = names.type_of(key)
        if self._readable_only and kind is not ObjectType.SESSION:
            raise FormatUnsupported("This repository can be read, but writing to it needs a newer Enigma.")
        header = Header(kind, self.repository_id, names.object_id_of(key), self.keyring.current, pack_set)
        return self.put_bytes(key, seal_object(header, self.keyring.data_key(header.key_id), encode(record)))

    def put_bytes(self, key: str, data: bytes) -> list[str]:
        """Store finished bytes at every provider; the names of those that did not take them.

        Raises the first provider's error if fewer than f+1 took them.
        """
        errors: dict[str, ProviderError] = {}
        for provider in self.providers.values():
            try:
                provider.put(key, memoryview(data))
            except ProviderError as exc:
                errors[provider.name] = exc
        self.degraded |= errors.keys()
        if len(self.providers) - len(errors) < self._needed:
            raise next(iter(errors.values()))
        return list(errors)

    def put_everywhere(self, key: str, record: Record) -> None:
        """As `put`, but every single provider must take it: for tombstones, which must never be missed."""
        if missed := self.put(key, record):
            raise ProviderUnavailable(f"Provider {', '.join(sorted(missed))} did not answer; nothing was deleted.")

    def get(self, key: str, kind: type[R]) -> R:
        """The record under `key`, from the first provider whose copy opens.

        Raises ObjectMissing if nobody has it, ObjectCorrupt or FormatUnsupported if nobody's copy opens.
        """
        failure: EnigmaError | None = None
        for provider in self.providers.values():
            try:
                return self.open(key, fetch(provider, key, limit_bytes=SMALL_OBJECT_LIMIT_BYTES), kind)
            except ObjectMissing as exc:
                failure = failure or exc
            except (ProviderError, ObjectCorrupt, FormatUnsupported) as exc:
                failure = exc
        raise failure or ProviderUnavailable("No provider is configured; add one to the configuration.")

    def open(self, key: str, data: bytes, kind: type[R]) -> R:
        """Check and decode one copy. Raises ObjectCorrupt, FormatUnsupported, KeyMissing."""
        try:
            header = Header.decode(data)
            self._check_header(key, header)
            if header.object_type is ObjectType.CONFIG and header.writer_features & ~KNOWN_WRITER_FEATURES:
                self._readable_only = True
            body = open_object(data, header, self.keyring.data_key(header.key_id))
        except SealBroken as exc:
            raise ObjectCorrupt(f"Object {key} {exc}.") from exc
        except FormatNewer as exc:
            if checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:  # damage that only looks like news
                raise ObjectCorrupt(f"Object {key} fails its checksum.") from exc
            raise FormatUnsupported(f"Object {key}: {exc}.") from exc
        return decode(kind, body, key)

    def list(self, prefix: str) -> dict[str, ObjectInfo]:
        """Union of all providers' listings. Raises if fewer than one provider answered; names foreign to us stay out."""
        found: dict[str, ObjectInfo] = {}
        failure: ProviderError | None = None
        answered = 0
        for provider in self.providers.values():
            try:
                for info in provider.list(prefix):
                    if names.is_ours(info.key):
                        found.setdefault(info.key, info)
                answered += 1
            except ProviderError as exc:
                failure = exc
                self.degraded.add(provider.name)
        if failure is not None and answered == 0:
            raise failure
        return found

    def copies(self, key: str) -> Iterator[tuple[str, bytes | EnigmaError]]:
        """(provider name, bytes or why not) of every provider's copy."""
        for provider in self.providers.values():
            try:
                yield provider.name, fetch(provider, key, limit_bytes=SMALL_OBJECT_LIMIT_BYTES)
            except EnigmaError as exc:
                yield provider.name, exc

    def catch_up(self, provider_id: ProviderId) -> None:
        """Give a provider every object that belongs at all of them and that it lacks: all but data packs and sessions."""
        target = self.providers[provider_id]
        for prefix in EVERYWHERE:
            held = {info.key for info in target.list(prefix)}
            for key in sorted(self.list(prefix).keys() - held):
                for _, data in self.copies(key):
                    if isinstance(data, bytes):
                        target.put(key, memoryview(data))
                        break

    def delete(self, key: str) -> None:
        """Remove the object everywhere. Only for session objects, or after a tombstone stands at all providers."""
        for provider in self.providers.values():
            provider.delete(key)

    def _check_header(self, key: str, header: Header) -> None:
        if header.repository_id != self.repository_id:
            raise SealBroken(f"belongs to another repository ({header.repository_id.hex()})")
        if header.object_id != names.object_id_of(key) or header.object_type is not names.type_of(key):
            raise SealBroken("is not the object its name says; two objects may have been swapped")


def marker_bytes(repository_id: RepositoryId, provider_id: ProviderId) -> bytes:
    """The clear object that says whose this provider's prefix is."""
    head = Header(ObjectType.MARKER, repository_id, provider_id, bytes(16)).encode()
    return head + checksum(head)


def read_marker(provider: Provider) -> tuple[RepositoryId, ProviderId]:
    """Whose prefix this is. Raises ObjectMissing if nobody's yet, ObjectCorrupt if the marker is damaged."""
    data = fetch(provider, names.MARKER, limit_bytes=4096)
    if data[-CHECKSUM_BYTES:] != checksum(data[:-CHECKSUM_BYTES]):
        raise ObjectCorrupt(f"The marker of provider {provider.name} fails its checksum.")
    try:
        header = Header.decode(data)
        if header.object_type is not ObjectType.MARKER:
            raise SealBroken("is another object")
    except SealBroken as exc:
        raise ObjectCorrupt(f"The marker of provider {provider.name} {exc}.") from exc
    except FormatNewer as exc:
        raise FormatUnsupported(f"Provider {provider.name} holds a newer repository: {exc}.") from exc
    return RepositoryId(header.repository_id), ProviderId(header.object_id)
