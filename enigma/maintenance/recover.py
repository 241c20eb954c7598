"""Recover: everything back from the providers and the passphrase. What is local is only ever a view.

keystore   from the key copies at the providers
manifest   from snapshots and index objects, as in any refresh
index      packs that no index lists are read at their end (trailer, table) and listed in a new index object
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from enigma.errors import EnigmaError, FormatUnsupported, IntegrityError, ObjectCorrupt
from enigma.model.ids import ObjectId
from enigma.model.records import IndexedPack, IndexRecord
from enigma.repository import names
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.repository.view import BACKUP_SETS
from workers.errors import FormatNewer, SealBroken
from workers.objects import HEADER_BYTES, Header, PackSet
from workers.packs import TRAILER_BYTES, PackReader, Trailer, iter_records

PACKS_PER_INDEX = 256


class Observer(Protocol):
    """Who watches a recover."""

    def problem(self, subject: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """What came back."""

    snapshots: int
    packs: int
    blobs: int
    packs_reindexed: int
    problems: int


def recover(repository: Repository, session: Session, observer: Observer) -> Recovered:
    """Complete the manifest of a repository whose keystore is in place; the session has refreshed the view."""
    problems = [message for _, message in session.refreshed.problems]
    for key, message in session.refreshed.problems:
        observer.problem(key, message)
    reindexed = 0
    for pack_set in BACKUP_SETS:
        for packs in _batches(_unindexed(repository, pack_set, session.refreshed.entombed, observer, problems)):
            index_id = ObjectId.random()
            repository.store.put(names.index_key(pack_set, index_id), IndexRecord(packs=tuple(packs)), pack_set)
            repository.manifest.add_index(index_id, IndexRecord(packs=tuple(packs)))
            reindexed += len(packs)
    repository.view.refresh()
    counts = repository.manifest.counts()
    repository.manifest.audit("recover", repository.repository_id.hex(), f"{counts.snapshot_count} snapshots")
    return Recovered(counts.snapshot_count, counts.pack_count, counts.blob_count, reindexed, len(problems))


def _unindexed(
    repository: Repository, pack_set: PackSet, entombed: frozenset[str], observer: Observer, problems: list[str]
) -> Iterator[IndexedPack]:
    indexed = {names.pack_key(pack_set, pack.pack_id) for pack in repository.manifest.packs(pack_set)}
    listed = repository.store.list(names.packs_prefix(pack_set))
    for key in sorted(listed.keys() - indexed - entombed):
        try:
            yield read_pack_table(repository, key, listed[key].length_bytes)
        except (IntegrityError, FormatUnsupported) as exc:
            problems.append(str(exc))
            observer.problem(key, str(exc))


def read_pack_table(repository: Repository, key: str, length_bytes: int) -> IndexedPack:
    """What an index says of a pack, read from the pack itself. Raises ObjectCorrupt, FormatUnsupported."""
    failure: EnigmaError = ObjectCorrupt(f"Pack {key} is too short to be one.")
    if length_bytes < HEADER_BYTES + TRAILER_BYTES:
        raise failure
    for provider_id, provider in repository.store.providers.items():
        try:
            head, tail = bytearray(HEADER_BYTES), bytearray(TRAILER_BYTES)
            provider.get(key, memoryview(head))
            provider.get(key, memoryview(tail), offset=length_bytes - TRAILER_BYTES)
            header, trailer = Header.decode(bytes(head)), Trailer.decode(bytes(tail), length_bytes)
            if header.object_id != names.object_id_of(key) or header.repository_id != repository.repository_id:
                raise SealBroken("is not the object its name says; two objects may have been swapped")
            table = bytearray(trailer.table_bytes)
            provider.get(key, memoryview(table), offset=trailer.table_offset)
            records = PackReader(header, repository.keystore.data_key(header.key_id)).open_table(bytes(table))
            all(iter_records(records))
            holders = _holders(repository, header.pack_set, provider_id)
            return IndexedPack(
                pack_id=header.object_id,
                pack_set=header.pack_set,
                length_bytes=length_bytes,
                key_id=header.key_id,
                session_id=bytes(16),
                provider_ids=holders,
                records=records,
            )
        except SealBroken as exc:
            failure = ObjectCorrupt(f"Pack {key} {exc}.")
        except FormatNewer as exc:
            failure = FormatUnsupported(f"Pack {key}: {exc}.")
        except EnigmaError as exc:
            failure = exc if isinstance(exc, IntegrityError) else ObjectCorrupt(f"Pack {key}: {exc}")
    raise failure


def _holders(repository: Repository, pack_set: int, found_at: bytes) -> tuple[bytes, ...]:
    """Catalog packs are at every provider; a data pack where it was found."""
    return tuple(repository.store.providers) if pack_set == PackSet.CATALOG else (found_at,)


def _batches(packs: Iterator[IndexedPack]) -> Iterator[list[IndexedPack]]:
    batch: list[IndexedPack] = []
    for pack in packs:
        batch.append(pack)
        if len(batch) == PACKS_PER_INDEX:
            yield batch
            batch = []
    if batch:
        yield batch
