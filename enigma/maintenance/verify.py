"""Verify: is everything there, is it what was stored, does it fit together? Names every object that is not.

    structure    every object at every provider opens; every snapshot's catalog is readable; every chunk it names lies in
                 a pack that the listing shows with its recorded length; nothing that somebody saw is withheld
    read data    every byte of the chosen packs: checksum, header, table against the index, each blob against its hash

A damaged pack becomes suspect in the manifest, so that no later backup believes that its chunks exist: they are stored
again from the source. A pack that verifies is cleared.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from enigma.errors import EnigmaError, FormatUnsupported, IntegrityError, KeyringError, ObjectMissing, ProviderError
from enigma.manifest import Pack, PackState, Snapshot
from enigma.model.entries import Kind
from enigma.model.ids import ObjectId
from enigma.model.records import (
    CondemnRecord,
    FenceRecord,
    IndexRecord,
    Record,
    RepositoryConfig,
    RescueRecord,
    SessionRecord,
    SnapshotRecord,
    SweptRecord,
    TombRecord,
    head_of,
)
from enigma.repository import names
from enigma.repository.catalog import CatalogReader, Root, content_refs, list_blobs
from enigma.repository.engine import running_engine
from enigma.repository.reading import ReadingOwner
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.repository.settings import CONFIG_COPIES, config_copies
from enigma.repository.store import read_marker
from workers.errors import NEEDS_NEWER
from workers.objects import ObjectType
from workers.owner import Checked, PackCheck

RECORD_TYPES: dict[ObjectType, type[Record]] = {
    ObjectType.CONFIG: RepositoryConfig,
    ObjectType.INDEX: IndexRecord,
    ObjectType.SNAPSHOT: SnapshotRecord,
    ObjectType.SESSION: SessionRecord,
    ObjectType.CONDEMN: CondemnRecord,
    ObjectType.RESCUE: RescueRecord,
    ObjectType.SWEPT: SweptRecord,
    ObjectType.FENCE: FenceRecord,
    ObjectType.TOMB: TombRecord,
}
CHUNKS_PER_QUESTION = 4096


@dataclass(frozen=True, slots=True)
class Subset:
    """Which packs to read: part n of t (the t parts cover everything), a share, or an amount. None of them: all."""

    part: tuple[int, int] | None = None
    share: float | None = None
    amount_bytes: int | None = None

    def choose(self, packs: list[Pack], seed: int) -> list[Pack]:
        """The packs to read; the random choices are the same for the same seed."""
        if self.part is not None:
            number, parts = self.part
            return [pack for pack in packs if int.from_bytes(pack.pack_id[:4], "big") % parts == number - 1]
        if self.share is None and self.amount_bytes is None:
            return packs
        shuffled = packs[:]
        random.Random(seed).shuffle(shuffled)  # noqa: S311  a sample, not a secret
        if self.share is not None:
            return shuffled[: max(1, round(len(packs) * self.share))] if packs else []
        return list(_up_to(shuffled, self.amount_bytes or 0))


class Observer(Protocol):
    """Who watches a verify."""

    def problem(self, subject: str, message: str) -> None: ...

    def checked(self, length_bytes: int, total_bytes: int) -> None: ...


@dataclass(slots=True)
class Findings:
    """What a verify found."""

    snapshots: int = 0
    entries: int = 0
    chunks: int = 0
    objects: int = 0
    packs_read: int = 0
    bytes_read: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    damaged_snapshots: set[str] = field(default_factory=set)


def verify(
    repository: Repository,
    session: Session,
    snapshots: Iterable[Snapshot],
    observer: Observer,
    *,
    read_data: Subset | None = None,
    seed: int = 0,
) -> Findings:
    """Check everything around the given snapshots, and with `read_data` the content of packs."""
    chosen = list(snapshots)
    session.reading(snapshot.record.snapshot_id for snapshot in chosen)
    return _Verify(repository, session, observer).run(chosen, read_data, seed)


class _Verify:
    """One run of `verify`."""

    def __init__(self, repository: Repository, session: Session, observer: Observer) -> None:
        self._repository = repository
        self._session = session
        self._manifest = repository.manifest
        self._observer = observer
        self._found = Findings()

    def run(self, snapshots: list[Snapshot], read_data: Subset | None, seed: int) -> Findings:
        for key, message in self._session.refreshed.problems:
            self._problem(key, message)
        self._check_markers()
        self._check_objects()
        self._check_packs_listed()
        self._check_heads()
        for snapshot in snapshots:
            self._check_snapshot(snapshot)
        if read_data is not None:
            self._read_packs(read_data, seed)
        self._manifest.audit("verify", f"{len(snapshots)} snapshots", f"{len(self._found.problems)} problems")
        return self._found

    # ---- small objects, at every provider

    def _check_markers(self) -> None:
        for provider_id, provider in self._repository.store.providers.items():
            try:
                owner_id, marked_id = read_marker(provider)
                if owner_id != self._repository.repository_id or marked_id != provider_id:
                    self._problem(names.MARKER, f"provider {provider.name} carries another repository's marker")
            except EnigmaError as exc:
                self._problem(names.MARKER, str(exc))

    def _check_objects(self) -> None:
        """Every copy of every small object opens; one that a provider lacks is named too."""
        store = self._repository.store
        for prefix in (names.CONFIGS, names.INDEXES, names.SNAPSHOTS, names.GC, names.FENCES, names.TOMBS):
            for key in sorted(store.list(prefix)):
                self._check_object(key)
        self._check_config_copies()
        for key, expected in self._repository.keystore.objects().items():
            self._check_copies(key, partial(hmac.compare_digest, expected))

    def _check_config_copies(self) -> None:
        """They come in pairs, so an odd one has lost its fellow; the next command that writes puts another."""
        held = len(config_copies(self._repository.store, self._repository.settings.generation))
        whole = max(CONFIG_COPIES, held + held % CONFIG_COPIES)
        if held < whole:
            generation = self._repository.settings.generation
            self._problem(f"{names.CONFIGS}{generation:08d}", f"only {held} of {whole} copies are left")

    def _check_object(self, key: str) -> None:
        kind = RECORD_TYPES.get(names.type_of(key))
        if kind is not None:
            self._check_copies(key, lambda data: bool(self._repository.store.open(key, data, kind)))

    def _check_copies(self, key: str, opens: Callable[[bytes], bool]) -> None:
        self._found.objects += 1
        for provider_name, data in self._repository.store.copies(key):
            try:
                if isinstance(data, EnigmaError):
                    raise data
                if not opens(data):
                    self._problem(key, f"the copy at {provider_name} differs from the keystore")
            except ObjectMissing:
                self._problem(key, f"provider {provider_name} has no copy")
            except EnigmaError as exc:
                self._problem(key, f"at {provider_name}: {exc}")

    # ---- packs and what was seen before

    def _check_packs_listed(self) -> None:
        for pack in self._manifest.packs():
            if pack.state is PackState.MISSING:
                key = names.pack_key(pack.pack_set, pack.pack_id)
                self._problem(key, f"is missing or does not have its {pack.length_bytes} bytes")

    def _check_heads(self) -> None:
        """A snapshot that another one names, that nobody holds and no tombstone explains, was withheld or lost."""
        held = {
            one.record.snapshot_id: head_of(one.record.snapshot_id, one.record) for one in self._manifest.snapshots()
        }
        buried = {tomb.logical_id for tomb in self._repository.view.tombs().values()}
        for one in self._manifest.snapshots():
            for head in one.record.heads:
                if head.logical_id in buried:
                    continue
                if head.logical_id not in held:
                    self._problem(head.logical_id.hex(), "was seen by a later snapshot, and no provider shows it")
                elif held[head.logical_id].sha256 != head.sha256:
                    self._problem(head.logical_id.hex(), "is not the snapshot that a later one saw")

    # ---- snapshots

    def _check_snapshot(self, snapshot: Snapshot) -> None:
        """Every blob of the catalog opens and every chunk has a place. One problem per snapshot and kind is enough."""
        record = snapshot.record
        self._found.snapshots += 1
        blobs = self._repository.blobs
        reader = CatalogReader(Root(record.root, record.root_bytes, record.depth), blobs.get)
        questions: list[tuple[bytes, bytes]] = []
        try:
            for entry in reader.entries():
                self._found.entries += 1
                if entry.kind == Kind.FILE:
                    questions += ((chunk_id, entry.path) for chunk_id, _ in list_blobs(entry, blobs.get))
                    questions += ((chunk_id, entry.path) for chunk_id, _ in content_refs(entry, blobs.get))
                if len(questions) >= CHUNKS_PER_QUESTION:
                    self._check_chunks(snapshot, questions)
                    questions = []
        except (IntegrityError, FormatUnsupported, KeyringError, ProviderError) as exc:
            self._damaged(snapshot, f"its catalog can't be read whole: {exc}")
        self._check_chunks(snapshot, questions)

    def _check_chunks(self, snapshot: Snapshot, questions: list[tuple[bytes, bytes]]) -> None:
        located = self._manifest.locate(list({chunk_id for chunk_id, _ in questions}))
        self._found.chunks += len(questions)
        lost: dict[bytes, int] = {}
        for chunk_id, path in questions:
            place = located.get(chunk_id)
            if place is None or place.state in (PackState.MISSING, PackState.SUSPECT):
                lost[path] = lost.get(path, 0) + 1
        for path, count in lost.items():
            self._damaged(snapshot, f"{count} chunks of {path.decode('utf-8', 'backslashreplace')} are lost or damaged")

    def _damaged(self, snapshot: Snapshot, message: str) -> None:
        self._found.damaged_snapshots.add(snapshot.record.snapshot_id.hex())
        self._problem(f"snapshot {snapshot.record.snapshot_id.hex()[:8]}", message)

    # ---- packs, byte by byte

    def _read_packs(self, subset: Subset, seed: int) -> None:
        packs = subset.choose([pack for pack in self._manifest.packs() if pack.state is not PackState.MISSING], seed)
        largest = max((pack.length_bytes for pack in packs), default=0)
        total_bytes = sum(pack.length_bytes for pack in packs)
        plan = self._repository.plan(largest_pack_bytes=largest)
        inline = total_bytes < plan.window_bytes
        owner = ReadingOwner(self._repository.fetch, self._session.beat_if_due)
        with running_engine(plan, owner, inline=inline) as engine:
            for checked in engine.check(_checks(packs)):
                self._take(checked, total_bytes)

    def _take(self, checked: Checked, total_bytes: int) -> None:
        request = checked.request
        key = names.pack_key(request.pack_set, request.pack_id)
        self._found.packs_read += 1
        self._found.bytes_read += request.length_bytes
        self._observer.checked(request.length_bytes, total_bytes)
        errors = list(checked.errors)
        if isinstance(checked.failure, EnigmaError):
            errors.append(str(checked.failure))
        elif checked.failure is not None:
            raise checked.failure
        indexed = self._manifest.indexed_pack(request.pack_id)
        if not errors and (indexed is None or hashlib.sha256(indexed.records).digest() != checked.records_sha256):
            errors.append("its table of contents differs from the index")
        for error in errors:
            self._problem(key, error)
        damage = [error for error in errors if NEEDS_NEWER not in error]
        if damage:
            self._manifest.mark_suspect(request.pack_id, damage[0])
        elif not errors:
            self._manifest.clear_suspect(request.pack_id)

    def _problem(self, subject: str, message: str) -> None:
        self._found.problems.append((subject, message))
        self._observer.problem(subject, message)


def _checks(packs: list[Pack]) -> Iterator[PackCheck]:
    for pack in packs:
        yield PackCheck(pack.pack_id, pack.pack_set, pack.key_id, pack.length_bytes, pack.provider_ids)


def _up_to(packs: list[Pack], amount_bytes: int) -> Iterator[Pack]:
    taken_bytes = 0
    for pack in packs:
        if taken_bytes >= amount_bytes:
            return
        taken_bytes += pack.length_bytes
        yield pack


def adopt(repository: Repository, session: Session, snapshot: Snapshot) -> ObjectId:
    """Take over a void snapshot whose every chunk was just found standing: the same record under this session."""
    repository.ensure_keys()
    record = snapshot.record
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    adopted = SnapshotRecord(**(values | {"session_id": session.session_id}))
    object_id = ObjectId.random()
    repository.store.put(names.snapshot_key(object_id), adopted)
    session.check_fences()
    repository.manifest.put_snapshot(object_id, adopted)
    return object_id
