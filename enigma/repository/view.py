"""The manifest as a view of what the providers hold, brought up to date by listing. FORMAT.md, "Sessions and deletion".

Order matters, and tests/model shows what each step would lose elsewhere: snapshots, indexes, gc facts, fences, tombstones,
packs. A snapshot seen has all its packs indexed already, so what is listed later can only be more. A rescue looks good
whose session was fenced just before, so fences come after rescues. Tombstones are subtracted from everything: a
provider back from the dead shows objects that were deleted on purpose. An indexed pack that no listing shows is not
believed in.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

from enigma.errors import FormatUnsupported, IntegrityError, KeyringError, ObjectMissing
from enigma.manifest import Manifest
from enigma.model.ids import PackId
from enigma.model.records import (
    CondemnRecord,
    IndexRecord,
    Record,
    RescueRecord,
    SnapshotRecord,
    SweptRecord,
    TombRecord,
)
from enigma.repository import names
from enigma.repository.store import ObjectStore
from workers.objects import ObjectType, PackSet

R = TypeVar("R", bound=Record)
BACKUP_SETS = (PackSet.BACKUP, PackSet.CATALOG)


@dataclass(frozen=True, slots=True)
class GcFacts:
    """What garbage collections have stated and sessions have answered."""

    condemned: dict[bytes, frozenset[bytes]]  # condemnation -> packs that nobody rescued from it


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found. `problems` are objects that could not be read: (key, one sentence)."""

    gc: GcFacts
    fenced: frozenset[bytes]  # session ids
    entombed: frozenset[str]  # keys
    problems: tuple[tuple[str, str], ...]


class View:
    """Keeps one manifest in step with one store."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._tombs: dict[str, TombRecord] = {}
        self._facts: dict[str, CondemnRecord | RescueRecord | SweptRecord] = {}
        self._problems: list[tuple[str, str]] = []

    def refresh(self, *, list_packs: bool = True) -> Refreshed:
        """Bring the manifest up to date. Raises ProviderError if no provider answers."""
        self._problems = []
        snapshots = self._store.list(names.SNAPSHOTS).keys()
        indexes = {pack_set: self._store.list(names.indexes_prefix(pack_set)).keys() for pack_set in BACKUP_SETS}
        self._read_facts()
        fenced = self._fenced()
        entombed = self._read_tombs()
        self._refresh_snapshots(snapshots - entombed, entombed, fenced)
        for pack_set, keys in indexes.items():
            self._refresh_indexes(pack_set, keys - entombed, entombed)
        facts = self.gc_facts(fenced)
        if list_packs:
            for pack_set in BACKUP_SETS:
                self._mark_packs(pack_set, entombed)
        self._keep_condemnations(facts)
        return Refreshed(facts, fenced, entombed, tuple(self._problems))

    def gc_facts(self, fenced: frozenset[bytes]) -> GcFacts:
        """Condemnations less the rescues that name them, and less what a finished sweep has spared.

        The rescue of a fenced session counts for nothing: the session is taken for dead, and so is what it needs.
        """
        condemned: dict[bytes, set[bytes]] = {}
        for record in self._facts.values():
            if isinstance(record, CondemnRecord):
                condemned.setdefault(record.condemn_id, set()).update(record.pack_ids)
        for record in self._facts.values():
            if isinstance(record, SweptRecord) and record.condemn_id in condemned:
                condemned[record.condemn_id] &= set(record.pack_ids)
            if isinstance(record, RescueRecord) and record.session_id not in fenced and record.condemn_id in condemned:
                condemned[record.condemn_id] -= set(record.pack_ids)
        return GcFacts({condemn_id: frozenset(packs) for condemn_id, packs in condemned.items()})

    def tombs(self) -> dict[str, TombRecord]:
        """Tombstones read so far, by the key they bury."""
        return {tomb.key: tomb for tomb in self._tombs.values()}

    def _keep_condemnations(self, facts: GcFacts) -> None:
        for settled_id in self._manifest.condemnations().keys() - facts.condemned.keys():
            self._manifest.clear_condemned(settled_id)
        for condemn_id, pack_ids in facts.condemned.items():
            self._manifest.clear_condemned(condemn_id)
            self._manifest.set_condemned(condemn_id, pack_ids)

    def _fenced(self) -> frozenset[bytes]:
        keys = self._store.list(names.FENCES)
        return frozenset(bytes.fromhex(key[len(names.FENCES) :][:32]) for key in keys)

    def _read_tombs(self) -> frozenset[str]:
        self._tombs = self._tombs or self._manifest.tombstones()
        listed = self._store.list(names.TOMBS).keys()
        for key in listed - self._tombs.keys():
            tomb = self._try_get(key, TombRecord)
            if tomb is not None:
                self._tombs[key] = tomb
                self._manifest.put_tombstone(key, tomb)
        for key in self._tombs.keys() - listed:  # still believed: what it buried must not rise because it is withheld
            self._missed(key)
        return frozenset(tomb.key for tomb in self._tombs.values())

    def _read_facts(self) -> None:
        for key in self._store.list(names.GC).keys() - self._facts.keys():
            record: CondemnRecord | RescueRecord | SweptRecord | None = None
            if names.type_of(key) is ObjectType.CONDEMN:
                record = self._try_get(key, CondemnRecord)
            elif names.type_of(key) is ObjectType.RESCUE:
                record = self._try_get(key, RescueRecord)
            elif names.type_of(key) is ObjectType.SWEPT:
                record = self._try_get(key, SweptRecord)
            if record is not None:
                self._facts[key] = record

    def _refresh_snapshots(self, listed: AbstractSet[str], entombed: frozenset[str], fenced: frozenset[bytes]) -> None:
        held = {names.snapshot_key(row.object_id): row for row in self._manifest.snapshots()}
        for key in held.keys() - listed:
            if key in entombed:
                self._manifest.drop_snapshot(held[key].object_id)
            else:  # kept: its record still restores it
                self._missed(key)
        for key in sorted(listed - held.keys()):
            record = self._try_get(key, SnapshotRecord)
            if record is not None:
                void = record.session_id in fenced
                self._manifest.put_snapshot(names.object_id_of(key), record, void=void)
        for key in held.keys() & listed:
            row = held[key]
            if not row.void and row.record.session_id in fenced:
                self._manifest.put_snapshot(row.object_id, row.record, void=True)

    def _refresh_indexes(self, pack_set: PackSet, listed: AbstractSet[str], entombed: frozenset[str]) -> None:
        held = {names.index_key(pack_set, index_id) for index_id in self._manifest.index_ids(pack_set)}
        for key in held - listed:
            self._manifest.drop_index(names.object_id_of(key))
            if key not in entombed:
                self._missed(key)
        for key in sorted(listed - held):
            record = self._try_get(key, IndexRecord)
            if record is not None:
                self._manifest.add_index(names.object_id_of(key), record)

    def _mark_packs(self, pack_set: PackSet, entombed: frozenset[str]) -> None:
        listed = self._store.list(names.packs_prefix(pack_set))
        present = (
            (PackId(names.object_id_of(key)), info.length_bytes) for key, info in listed.items() if key not in entombed
        )
        self._manifest.mark_listing(pack_set, present)

    def _missed(self, key: str) -> None:
        message = (
            f"Object {key} was here and is at no provider any more, and no tombstone says why; `enigma recover` "
            "rebuilds what can be rebuilt and accepts the rest."
        )
        self._problems.append((key, message))

    def _try_get(self, key: str, kind: type[R]) -> R | None:
        """A record, or None with a problem noted. An object deleted since the listing is no problem."""
        try:
            return self._store.get(key, kind)
        except ObjectMissing:
            return None
        except (IntegrityError, FormatUnsupported, KeyringError) as exc:
            self._problems.append((key, str(exc) if key in str(exc) else f"Object {key}: {exc}"))
            return None
