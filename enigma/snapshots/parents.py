"""The parent: which earlier snapshots an incremental backup continues, and their entries beside the walk."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from enigma.errors import FormatUnsupported, IntegrityError, KeyringError, ProviderError
from enigma.manifest import Snapshot
from enigma.model.entries import FLAG_RACY, Entry, Kind, chunk_refs, path_key
from enigma.repository.catalog import CatalogReader, Origin, content_refs, list_blobs
from enigma.repository.reading import BlobReader

Known = Callable[[list[bytes]], Collection[bytes]]


@dataclass(frozen=True, slots=True)
class ParentEntry:
    """An entry of a parent. `stands`: every chunk it needs certainly exists now."""

    entry: Entry
    origin: Origin
    stands: bool

    def serves(self, info: os.stat_result) -> bool:
        """Whether a regular file is unchanged since, so that it need not be read."""
        entry = self.entry
        return (
            self.stands
            and entry.kind == Kind.FILE
            and entry.size == info.st_size
            and entry.mtime_ns == info.st_mtime_ns
            and entry.ctime_ns == info.st_ctime_ns
            and entry.inode == info.st_ino
            and not entry.flags & FLAG_RACY
            and (entry.hard_link != 0) == (info.st_nlink > 1)
        )

    def same_metadata(self, info: os.stat_result, kind: Kind) -> bool:
        """Whether anything but a regular file is unchanged since: its change time covers all of its metadata."""
        entry = self.entry
        return (
            entry.kind == kind
            and entry.mtime_ns == info.st_mtime_ns
            and entry.ctime_ns == info.st_ctime_ns
            and entry.inode == info.st_ino
        )


def choose_parents(snapshots: Sequence[Snapshot], host: str, sources: tuple[bytes, ...]) -> tuple[Snapshot, ...]:
    """The newest complete snapshot of the same sources on this host, and any newer checkpoint before it; newest first.

    Void ones are never parents: a garbage collection may have taken what they refer to.
    """
    mine = [one for one in snapshots if one.record.host == host and one.record.sources == sources and not one.void]
    mine.sort(key=lambda one: one.record.created_ns, reverse=True)
    chosen: list[Snapshot] = []
    for one in mine:
        if one.record.complete:
            return (*chosen[:1], one)
        chosen.append(one)
    return tuple(chosen[:1])


class Parents:
    """The entries of the parents in the order of the walk; of several parents the first that has a path counts."""

    def __init__(
        self, readers: Sequence[CatalogReader], known: Known, blobs: BlobReader, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._known = known
        self._blobs = blobs
        self._streams = [self._entries(reader) for reader in readers]
        self._heads = [next(stream, None) for stream in self._streams]

    def at(self, path: bytes) -> ParentEntry | None:
        """The entry of exactly this path. Paths must be asked for in the order of the walk."""
        wanted = path_key(path)
        found = None
        for number, stream in enumerate(self._streams):
            head = self._heads[number]
            while head is not None and path_key(head.entry.path) < wanted:
                head = next(stream, None)
            self._heads[number] = head
            if found is None and head is not None and head.entry.path == path:
                found = head
        return found

    def _entries(self, reader: CatalogReader) -> Iterator[ParentEntry]:
        """Leaf by leaf, so that one question settles the chunks of hundreds of files."""
        leaf: list[tuple[Entry, Origin]] = []
        try:
            for entry, origin in reader.inherited():
                leaf.append((entry, origin))
                if len(leaf) == origin.leaf.entry_count:
                    yield from self._judged(leaf)
                    leaf = []
        except (IntegrityError, FormatUnsupported, KeyringError, ProviderError) as exc:
            self._warn(f"the parent snapshot is damaged, so the files that follow are read again: {exc}")

    def _judged(self, leaf: list[tuple[Entry, Origin]]) -> Iterator[ParentEntry]:
        needs = [self._needs(entry) for entry, _ in leaf]
        known = self._known([chunk_id for need in needs for chunk_id in need])
        for (entry, origin), need in zip(leaf, needs, strict=True):
            yield ParentEntry(entry, origin, all(chunk_id in known for chunk_id in need))

    def _needs(self, entry: Entry) -> list[bytes]:
        if not entry.depth:
            return [chunk_id for chunk_id, _ in chunk_refs(entry.content)]
        lists = [chunk_id for chunk_id, _ in list_blobs(entry, self._blobs.get)]
        return lists + [chunk_id for chunk_id, _ in content_refs(entry, self._blobs.get)]
