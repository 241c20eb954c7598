"""What changed between two snapshots. Leaves that both have are skipped unread: equal ids, equal entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from enigma.manifest import Snapshot
from enigma.model.entries import Entry, path_key
from enigma.repository.catalog import CatalogReader, Root
from enigma.repository.repository import Repository

ADDED, REMOVED, CONTENT, ATTRIBUTES = "+", "-", "M", "m"


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. `grown_bytes` is by how much its content grew."""

    mark: str
    path: bytes
    grown_bytes: int


def compare(repository: Repository, old: Snapshot, new: Snapshot) -> Iterator[Change]:
    """Changes in the order of paths."""
    readers = [_reader(repository, old), _reader(repository, new)]
    shared = {leaf.chunk_id for leaf in readers[0].leaves()} & {leaf.chunk_id for leaf in readers[1].leaves()}
    before, after = (_entries(reader, shared) for reader in readers)
    left, right = next(before, None), next(after, None)
    while left is not None or right is not None:
        if right is None or (left is not None and path_key(left.path) < path_key(right.path)):
            assert left is not None
            yield Change(REMOVED, left.path, -left.size)
            left = next(before, None)
        elif left is None or path_key(right.path) < path_key(left.path):
            yield Change(ADDED, right.path, right.size)
            right = next(after, None)
        else:
            mark = _difference(left, right)
            if mark:
                yield Change(mark, right.path, right.size - left.size)
            left, right = next(before, None), next(after, None)


def _difference(left: Entry, right: Entry) -> str:
    if (left.kind, left.content, left.depth, left.link, left.rdev, left.size) != (
        right.kind,
        right.content,
        right.depth,
        right.link,
        right.rdev,
        right.size,
    ):
        return CONTENT
    same = (left.mode, left.uid, left.gid, left.mtime_ns, left.xattrs) == (
        right.mode,
        right.uid,
        right.gid,
        right.mtime_ns,
        right.xattrs,
    )
    return "" if same else ATTRIBUTES


def _reader(repository: Repository, snapshot: Snapshot) -> CatalogReader:
    record = snapshot.record
    return CatalogReader(Root(record.root, record.root_bytes, record.depth), repository.blobs.get)


def _entries(reader: CatalogReader, shared: set[bytes]) -> Iterator[Entry]:
    for leaf in reader.leaves():
        if leaf.chunk_id not in shared:
            yield from reader.leaf(leaf)
