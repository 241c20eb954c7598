"""Which snapshot, and which of its entries."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from enigma.errors import EnigmaError, SnapshotNotFound, UsageError
from enigma.manifest import Manifest, Snapshot
from enigma.model.entries import Entry, Kind
from enigma.repository.catalog import CatalogReader, Root
from enigma.repository.repository import Repository

LATEST = "latest"

STAT_TYPES: Mapping[int, int] = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}


def find_snapshot(manifest: Manifest, name: str, *, void_too: bool = False) -> Snapshot:
    """By `latest` (complete ones only) or the beginning of an id. Raises SnapshotNotFound, also if ambiguous."""
    if name == LATEST:
        complete = [one for one in manifest.snapshots() if one.record.complete and not one.void]
        if not complete:
            raise SnapshotNotFound("There is no complete snapshot yet; `enigma backup PATH` makes one.")
        return complete[-1]
    snapshot = manifest.snapshot_by_prefix(name.lower())
    if snapshot.void and not void_too:
        raise SnapshotNotFound(
            f"Snapshot {name} is void, because a garbage collection gave its writer up; `enigma verify {name}` "
            "adopts it if everything it needs is still there."
        )
    return snapshot


@dataclass(frozen=True, slots=True)
class Selection:
    """What `--path` and `--glob` ask for. Empty: everything.

    `prefix` selects an entry and all below it. Each glob is compared with the whole path if it holds a slash, else
    with the last component; one that matches is enough.
    """

    prefix: bytes = b""
    globs: tuple[re.Pattern[bytes], ...] = ()
    whole_path: tuple[bool, ...] = ()

    @classmethod
    def from_options(cls, *, path: str | None, globs: Sequence[str]) -> Selection:
        """Raises UsageError for a path that can't be in a snapshot."""
        prefix = os.fsencode(path or "").strip(b"/")
        parts = prefix.split(b"/") if prefix else []
        if any(part in (b"", b".", b"..") for part in parts):
            raise UsageError(f"--path takes a path inside the snapshot, such as docs/, not {path}.")
        patterns = tuple(_compiled(os.fsencode(glob.strip("/"))) for glob in globs)
        return cls(prefix, patterns, tuple("/" in glob.strip("/") for glob in globs))

    @property
    def everything(self) -> bool:
        return not self.prefix and not self.globs

    def matches(self, path: bytes) -> bool:
        prefix = self.prefix
        if prefix and path != prefix and not path.startswith(prefix + b"/"):
            return False
        if not self.globs:
            return True
        name = path.rpartition(b"/")[2]
        pairs = zip(self.globs, self.whole_path, strict=True)
        return any(glob.match(path if whole else name) is not None for glob, whole in pairs)

    def is_past(self, path: bytes) -> bool:
        """Whether, in catalog order, nothing after `path` can be below the prefix any more."""
        wanted = self.prefix.split(b"/")
        return bool(self.prefix) and path.split(b"/")[: len(wanted)] > wanted


def selected(repository: Repository, snapshot: Snapshot, selection: Selection) -> Iterator[Entry]:
    """The entries that match, in catalog order; reads only the leaves that may hold them."""
    record = snapshot.record
    reader = CatalogReader(Root(record.root, record.root_bytes, record.depth), repository.blobs.get)
    for entry in reader.entries(selection.prefix):
        if selection.is_past(entry.path):
            return
        if selection.matches(entry.path):
            yield entry


def with_parents(
    repository: Repository, snapshot: Snapshot, selection: Selection, on_damage: Callable[[EnigmaError], None]
) -> Iterator[Entry]:
    """As `selected`, each entry after the directories above it, so that a tree can be rebuilt from what comes.

    A part of the catalog that can't be read is told to `on_damage`, and the rest goes on.
    """
    record = snapshot.record
    root = Root(record.root, record.root_bytes, record.depth)
    reader = CatalogReader(root, repository.blobs.get, on_damage)
    above = _directories_to(reader, selection.prefix)  # on the way to the present path, not yielded yet
    for entry in reader.entries(selection.prefix):
        if selection.is_past(entry.path):
            return
        above = [one for one in above if _is_above(one.path, entry.path)]
        if selection.matches(entry.path):
            yield from above
            above = []
            yield entry
        elif entry.kind == Kind.DIRECTORY and (not above or above[-1].path < entry.path):
            above.append(entry)


def _directories_to(reader: CatalogReader, prefix: bytes) -> list[Entry]:
    """The directories above a prefix, which lie in earlier leaves."""
    parts = prefix.split(b"/") if prefix else []
    found = (reader.find(b"/".join(parts[:count])) for count in range(len(parts)))
    return [entry for entry in found if entry is not None]


def _is_above(directory: bytes, path: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")


def _compiled(glob: bytes) -> re.Pattern[bytes]:
    return re.compile(fnmatch.translate(glob.decode("latin-1")).encode("latin-1"), re.DOTALL)
