"""Backing up a tree: a sorted walk merged with the parent's catalog, changed files through the engine, one commit.

    walk ----+                     +--> unchanged: the parent's entry, nothing read
             +--> same path? ------+--> changed or new file --> engine --> entry
    parent --+                     +--> directory, link, device --> entry
                                                                    |
                                                         catalog, index, snapshot

An entry is inherited only if every chunk it names exists now, by the rules of the manifest: an inherited list is as
much a claim as a new one. What can't be read is warned about and left out; the rest is kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from enigma import __version__
from enigma.errors import ProviderError
from enigma.manifest import Snapshot
from enigma.model.entries import CHUNK_REF_BYTES, Entry, Kind, chunk_refs
from enigma.model.ids import SnapshotId
from enigma.model.records import ALONE, SnapshotRecord
from enigma.repository.catalog import LIST_REFS, CatalogReader, CatalogWriter, ChunkListWriter, Origin, Root
from enigma.repository.engine import running_engine
from enigma.repository.heads import heads
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.repository.writing import Writer
from enigma.snapshots.entries import EntryMaker
from enigma.snapshots.excludes import Excludes
from enigma.snapshots.parents import ParentEntry, Parents, choose_parents
from enigma.snapshots.walk import Found, walk
from workers.engine import Engine
from workers.messages import FileFacts
from workers.units import FileItem, Item, ReadyItem, StreamItem, Written

CHECKPOINT_S = 300.0
EVENTS_PER_LOOK = 8  # how often the clock is read


class Observer(Protocol):
    """Who watches a backup. Called from its one thread."""

    def expect(self, content_bytes: int) -> None:
        """About how much there will be, judging by the parent."""

    def read(self, length_bytes: int, new_bytes: int) -> None:
        """So many bytes of a file were read; `new_bytes` of this run were not stored before."""

    def entry(self, inherited_bytes: int) -> None:
        """One more entry is in the catalog; what it inherits was not read."""

    def warn(self, path: bytes, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class BackupSpec:
    """What to back up and how. `sources` are absolute paths; `stream` replaces them (with `stream_name`)."""

    sources: tuple[bytes, ...]
    excludes: Excludes
    host: str
    user: str
    one_file_system: bool = False
    force: bool = False
    tags: tuple[str, ...] = ()
    description: str = ""
    exclude_texts: tuple[str, ...] = ()
    stream: Callable[[memoryview], int] | None = None
    stream_name: bytes = b""
    checkpoint_s: float = CHECKPOINT_S


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What a backup did. `read_files` were opened; `inherited_files` were as in the parent; others are further links."""

    record: SnapshotRecord
    read_files: int
    inherited_files: int
    data_packs: int
    warnings: int


class _Tag(NamedTuple):
    """What an item of the engine means for the catalog."""

    entry: Entry | None = None  # finished already
    origin: Origin | None = None
    found: Found | None = None  # to be read, or a further link of
    link_of: tuple[int, int] | None = None


@dataclass(slots=True)
class _Counts:
    entries: int = 0
    files: int = 0
    read_files: int = 0
    inherited_files: int = 0
    content_bytes: int = 0
    new_bytes: int = 0
    unreadable: int = 0
    changed: int = 0


@dataclass(slots=True)
class _Linked:
    """The first member of a hard-link group met in this run; its content serves the others."""

    entry: Entry | None = None


def back_up(repository: Repository, session: Session, spec: BackupSpec, observer: Observer) -> BackupResult:
    """Make one snapshot. Raises SourceError if nothing can be read at all, and whatever keeps it from being stored."""
    parents = () if spec.stream else choose_parents(repository.manifest.snapshots(), spec.host, spec.sources)
    session.reading(parent.record.snapshot_id for parent in parents)
    writer = Writer(repository, session)
    try:
        with running_engine(repository.plan(), writer) as engine:
            return _Backup(repository, spec, observer, writer, engine, parents).run()
    except BaseException:
        writer.salvage()
        raise


class _Backup:
    """One run of `back_up`."""

    def __init__(
        self,
        repository: Repository,
        spec: BackupSpec,
        observer: Observer,
        writer: Writer,
        engine: Engine,
        parents: tuple[Snapshot, ...],
    ) -> None:
        self._repository = repository
        self._spec = spec
        self._observer = observer
        self._writer = writer
        self._engine = engine
        self._parents = parents
        self._catalog = CatalogWriter(writer.catalog.put, writer.catalog.has)
        self._maker = EntryMaker()
        self._counts = _Counts()
        self._links: dict[tuple[int, int], _Linked] = {}
        self._lists: dict[int, ChunkListWriter] = {}
        self._snapshot_id = SnapshotId.random()
        self._started_ns = self._repository.clock.wall_ns()
        self._checkpoint_at_s = self._now_s() + spec.checkpoint_s
        self._checkpoint_at_files = 0
        self._checkpoints: list[Snapshot] = []

    def run(self) -> BackupResult:
        if self._parents:
            self._observer.expect(self._parents[0].record.content_bytes)
        items = self._stream_items() if self._spec.stream else self._tree_items()
        for number, written in enumerate(self._engine.write(items)):
            self._take(written)
            if number % EVENTS_PER_LOOK == 0:
                self._checkpoint_if_due()
        self._engine.flush()
        record = self._record(self._catalog.finish(), complete=True)
        self._writer.commit(record)
        self._drop_checkpoints()
        self._repository.manifest.audit("backup", record.snapshot_id.hex(), _summary(record))
        counts = self._counts
        return BackupResult(
            record,
            counts.read_files,
            counts.inherited_files,
            self._writer.data_pack_count,
            counts.unreadable + counts.changed,
        )

    # ---- items in

    def _tree_items(self) -> Iterator[Item]:
        spec = self._spec
        readers = [self._reader(parent) for parent in self._parents]
        parents = Parents(
            readers, self._writer.known, self._repository.blobs, lambda text: self._observer.warn(b"", text)
        )
        for found in walk(spec.sources, spec.excludes, one_file_system=spec.one_file_system, on_error=self._unreadable):
            parent = parents.at(found.path)
            if found.kind is Kind.FILE:
                yield self._file_item(found, parent)
            else:
                yield self._other_item(found, parent)

    def _file_item(self, found: Found, parent: ParentEntry | None) -> Item:
        if parent is not None and not self._spec.force and parent.serves(found.stat):
            return ReadyItem(_Tag(entry=parent.entry, origin=parent.origin))
        if found.stat.st_nlink > 1:
            key = (found.stat.st_dev, found.stat.st_ino)
            if key in self._links:
                return ReadyItem(_Tag(found=found, link_of=key))
            self._links[key] = _Linked()
        return FileItem(found.absolute, found.stat.st_size, _Tag(found=found))

    def _other_item(self, found: Found, parent: ParentEntry | None) -> ReadyItem:
        if parent is not None and parent.same_metadata(found.stat, found.kind):
            return ReadyItem(_Tag(entry=parent.entry, origin=parent.origin))
        try:
            return ReadyItem(_Tag(entry=self._maker.from_stat(found)))
        except OSError as exc:
            self._unreadable(found.absolute, exc)
            return ReadyItem(_Tag())

    def _stream_items(self) -> Iterator[Item]:
        stream = self._spec.stream
        assert stream is not None
        yield ReadyItem(_Tag(entry=self._maker.directory_of_stream(self._started_ns)))
        yield StreamItem(stream, _Tag())

    # ---- results out

    def _take(self, written: Written) -> None:
        tag: _Tag = written.tag
        if written.error is not None:
            raise written.error
        if written.facts is not None or not written.last:
            self._take_content(tag, written)
        elif tag.link_of is not None and tag.found is not None:
            self._take_link(tag.found, self._links[tag.link_of])
        elif tag.entry is not None:
            self._add(tag.entry, tag.origin)

    def _take_content(self, tag: _Tag, written: Written) -> None:
        """A piece of a file that was read, or its end. Most files come in one piece."""
        facts = written.facts
        if facts is None or id(tag) in self._lists or len(written.content) > LIST_REFS * CHUNK_REF_BYTES:
            self._observer.read(_length_bytes(written.content), self._writer.new_bytes)
            refs = self._lists.setdefault(id(tag), ChunkListWriter(self._writer.catalog.put))
            refs.add(written.content)
            if facts is None:
                return
            content, depth = self._lists.pop(id(tag)).finish()
        else:
            self._observer.read(facts.size, self._writer.new_bytes)
            content, depth = written.content, 0
        if tag.found is None:
            self._counts.read_files += 1
            self._add(
                self._maker.from_stream(
                    self._spec.stream_name, facts.size, content, depth, self._repository.clock.wall_ns()
                )
            )
        else:
            self._take_file(tag.found, facts, content, depth)

    def _take_file(self, found: Found, facts: FileFacts, content: bytes, depth: int) -> None:
        self._counts.read_files += 1
        group = self._links.get((found.stat.st_dev, found.stat.st_ino)) if found.stat.st_nlink > 1 else None
        if facts.error:
            self._unreadable(found.absolute, OSError(facts.error, os.strerror(facts.error)))
            return
        entry = self._maker.from_facts(found, facts, content, depth, linked=group is not None)
        if facts.changed:
            self._counts.changed += 1
            self._observer.warn(found.absolute, "changed while it was read; what was read is stored")
        if group is not None:
            group.entry = entry
        self._add(entry)

    def _take_link(self, found: Found, group: _Linked) -> None:
        """A further name of a file that was read under its first one: the order of events says it is there by now."""
        if group.entry is None:
            self._unreadable(found.absolute, OSError(errno.EIO, "its first hard link could not be read"))
            return
        self._add(self._maker.further_link(found, group.entry))

    def _add(self, entry: Entry, origin: Origin | None = None) -> None:
        self._catalog.add(entry, origin)
        counts = self._counts
        counts.entries += 1
        if entry.kind == Kind.FILE:
            counts.files += 1
            counts.content_bytes += entry.size
            counts.inherited_files += origin is not None
        self._observer.entry(entry.size if origin is not None else 0)

    def _unreadable(self, path: bytes, error: OSError) -> None:
        self._counts.unreadable += 1
        if error.errno == errno.ENOENT:
            self._observer.warn(path, "vanished before it could be read")
        elif error.errno in (errno.ESTALE, errno.ELOOP):
            self._observer.warn(path, "was replaced while it was read")
        else:
            self._observer.warn(path, f"can't be read: {error.strerror}")

    # ---- snapshots

    def _checkpoint_if_due(self) -> None:
        """What is stored so far becomes an incomplete snapshot: a usable parent, should this run be interrupted."""
        if self._now_s() < self._checkpoint_at_s:
            return
        self._checkpoint_at_s = self._now_s() + self._spec.checkpoint_s
        if self._counts.read_files == self._checkpoint_at_files:
            return
        self._engine.flush()
        checkpoint = self._writer.commit(self._record(self._catalog.checkpoint(), complete=False))
        self._checkpoint_at_files = self._counts.read_files
        self._drop_checkpoints()
        self._checkpoints.append(checkpoint)

    def _drop_checkpoints(self) -> None:
        """This run's own earlier checkpoints: a newer one, or the snapshot itself, holds all they hold."""
        for checkpoint in self._checkpoints:
            try:
                self._repository.delete_snapshot(checkpoint, self._writer.session_id, "superseded checkpoint")
            except ProviderError as exc:  # it does no harm, and the snapshot that matters is stored
                self._observer.warn(b"", f"a superseded checkpoint could not be removed: {exc}")
        self._checkpoints = []

    def _record(self, root: Root, *, complete: bool) -> SnapshotRecord:
        spec, counts = self._spec, self._counts
        parent = self._parents[0].record.snapshot_id if self._parents else b""
        return SnapshotRecord(
            snapshot_id=self._snapshot_id if complete else SnapshotId.random(),
            session_id=self._writer.session_id,
            parent_id=parent,
            created_ns=self._started_ns,
            host=spec.host,
            user=spec.user,
            sources=spec.sources or (spec.stream_name,),
            root=root.chunk_id,
            root_bytes=root.length_bytes,
            depth=root.depth,
            complete=complete,
            entry_count=counts.entries,
            file_count=counts.files,
            content_bytes=counts.content_bytes,
            new_bytes=self._writer.new_bytes,
            stored_bytes=self._writer.stored_bytes,
            unreadable_count=counts.unreadable + counts.changed,
            program=f"enigma {__version__}",
            duration_ns=self._repository.clock.wall_ns() - self._started_ns,
            tags=spec.tags,
            description=spec.description,
            excludes=spec.exclude_texts,
            heads=heads(self._repository.manifest),
            extra={ALONE: True} if self._is_alone() else {},
        )

    def _is_alone(self) -> bool:
        """Whether the only source is no directory: it is restored in place into the directory above it."""
        sources = self._spec.sources
        return len(sources) == 1 and (os.path.islink(sources[0]) or not os.path.isdir(sources[0]))

    def _now_s(self) -> float:
        return self._repository.clock.boot_ns() / 1e9

    def _reader(self, parent: Snapshot) -> CatalogReader:
        record = parent.record
        return CatalogReader(Root(record.root, record.root_bytes, record.depth), self._repository.blobs.get)


def _length_bytes(content: bytes) -> int:
    return sum(length_bytes for _, length_bytes in chunk_refs(content))


def _summary(record: SnapshotRecord) -> str:
    return f"{record.file_count} files, {record.content_bytes} bytes, {record.stored_bytes} bytes stored"
