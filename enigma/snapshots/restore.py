"""Restoring a snapshot, or part of it: directories first, contents by pack, attributes of directories last.

    small file   one job creates it, writes it and gives it its attributes
    large file   begun here; many workers write its parts; finished when the last part is in place
    hard link    made when its first name is finished

Nothing is written that does not have the hash it is stored under. An existing file is replaced only when its successor
is complete; nothing outside the target is ever touched, whatever links lie in the target or in the snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from enigma.errors import EnigmaError, FormatUnsupported, ObjectCorrupt, TargetError
from enigma.manifest import Snapshot
from enigma.model.entries import Entry, Kind
from enigma.repository.catalog import content_refs
from enigma.repository.engine import running_engine
from enigma.repository.reading import ReadingOwner, Wanted, plan_reads
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.snapshots.selection import STAT_TYPES, Selection, with_parents
from workers.attributes import Attributes
from workers.engine import Engine
from workers.messages import FinishFile, Target
from workers.owner import Opened
from workers.targets import TargetTree, UnsafeTarget

INLINE_BYTES = 32 << 20
INLINE_FILES = 800
FINISH_AT_ONCE = 100
INLINE_XATTR_BYTES = 16 << 10  # larger ones don't fit a message; such a file is finished here


class Overwrite(StrEnum):
    """What to do with a file that is there already."""

    ALWAYS = "always"
    IF_NEWER = "if-newer"  # than the existing one
    IF_CHANGED = "if-changed"  # size or modification time differ
    NEVER = "never"


class Observer(Protocol):
    """Who watches a restore."""

    def restored(self, length_bytes: int) -> None:
        """One more file is in place."""

    def warn(self, path: bytes, message: str) -> None: ...


@dataclass(slots=True)
class Restored:
    """What a restore did. `failed` paths are not there, or not as they were."""

    entries: int = 0
    files: int = 0
    skipped: int = 0
    content_bytes: int = 0
    warnings: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A file that is written in parts."""

    entry: Entry
    temporary: bytes
    missing_parts: int


def restore(
    repository: Repository,
    session: Session,
    snapshot: Snapshot,
    target: bytes,
    selection: Selection,
    overwrite: Overwrite,
    observer: Observer,
) -> Restored:
    """Restore below `target`, which is made if need be. Raises TargetError if it can't be written at all."""
    session.reading([snapshot.record.snapshot_id])
    try:
        os.makedirs(target, exist_ok=True)
        tree = TargetTree(target)
    except OSError as exc:
        raise TargetError(f"Can't restore into {os.fsdecode(target)}: {exc.strerror}.") from exc
    record = snapshot.record
    inline = selection.everything and record.content_bytes <= INLINE_BYTES and record.file_count <= INLINE_FILES
    with tree:
        owner = ReadingOwner(repository.fetch, session.beat_if_due)
        with running_engine(repository.plan(target_root=target), owner, inline=inline) as engine:
            run = _Restore(repository, tree, engine, overwrite, observer)
            done = run.run(with_parents(repository, snapshot, selection, run.damaged))
    repository.manifest.audit("restore", record.snapshot_id.hex(), f"{done.files} files, {len(done.failed)} failed")
    return done


class _Restore:
    """One run of `restore`."""

    def __init__(
        self, repository: Repository, tree: TargetTree, engine: Engine, overwrite: Overwrite, observer: Observer
    ) -> None:
        self._repository = repository
        self._tree = tree
        self._engine = engine
        self._overwrite = overwrite
        self._observer = observer
        self._done = Restored()
        self._directories: list[Entry] = []
        self._fresh: set[bytes] = set()  # directories made by this run: nothing of somebody else's is in them
        self._open: dict[bytes, _Open] = {}  # by the name that is written to
        self._finish: list[FinishFile] = []
        self._first_names: dict[int, bytes] = {}
        self._links: list[tuple[Entry, bytes]] = []
        self._retry: list[tuple[bytes, int, Target]] = []

    def run(self, entries: Iterator[Entry]) -> Restored:
        for opened in self._engine.read(plan_reads(self._wanted(entries), self._repository.manifest, self._lost)):
            self._take(opened)
            self._finish_files(FINISH_AT_ONCE)
        self._read_again()
        self._finish_files(0)
        self._make_links()
        self._set_directories()
        return self._done

    def damaged(self, error: EnigmaError) -> None:
        """A part of the catalog can't be read: its files are not even known by name."""
        self._fail(b"", ObjectCorrupt(f"a part of the catalog can't be read: {error}"))

    # ---- what is wanted

    def _wanted(self, entries: Iterator[Entry]) -> Iterator[Wanted]:
        """Makes everything that needs no content, and names the chunks that the rest needs."""
        for entry in entries:
            self._done.entries += 1
            try:
                if entry.kind == Kind.DIRECTORY:
                    self._make_directory(entry)
                elif entry.kind == Kind.FILE:
                    yield from self._file(entry)
                else:
                    self._make_other(entry)
            except (OSError, UnsafeTarget, EnigmaError) as exc:
                self._fail(entry.path, exc)

    def _make_directory(self, entry: Entry) -> None:
        if entry.path and self._tree.make_directory(entry.path, replace=self._overwrite is not Overwrite.NEVER):
            self._fresh.add(entry.path)
        self._directories.append(entry)

    def _make_other(self, entry: Entry) -> None:
        if not self._may_write(entry, self._there(entry)) or self._is_further_link(entry):
            return
        attributes = self._attributes(entry)
        if entry.kind not in STAT_TYPES:
            raise FormatUnsupported(f"it is of kind {entry.kind}, which needs a newer Enigma")
        if entry.kind == Kind.SYMLINK:
            warnings = self._tree.make_symlink(entry.path, entry.link, attributes)
        else:
            warnings = self._tree.make_special(entry.path, STAT_TYPES[entry.kind], entry.rdev, attributes)
        self._warn(entry.path, warnings)

    def _file(self, entry: Entry) -> Iterator[Wanted]:
        there = self._there(entry)
        if not self._may_write(entry, there) or self._is_further_link(entry):
            return
        replaces = there is not None
        attributes = self._attributes(entry)
        fits = sum(len(value) for _, value in attributes.xattrs) <= INLINE_XATTR_BYTES
        refs = content_refs(entry, self._repository.blobs.get)
        if not entry.content:
            self._warn(entry.path, self._tree.write_whole(entry.path, memoryview(b""), attributes, replace=replaces))
            self._restored(entry)
        elif len(entry.content) == 36 and not entry.depth and fits:
            ((chunk_id, length_bytes),) = refs
            target = Target(entry.path, 0, bool(entry.holes), attributes, replaces)
            self._open[entry.path] = _Open(entry, b"", 1)
            yield chunk_id, length_bytes, target
        else:
            yield from self._parts(entry, replaces, refs)

    def _parts(self, entry: Entry, replaces: bool, refs: Iterator[tuple[bytes, int]]) -> Iterator[Wanted]:
        temporary = self._tree.begin_file(entry.path, replace=replaces)
        opened = self._open[temporary] = _Open(entry, temporary, 1)  # one more than there are, until all are named
        offset, sparse = 0, bool(entry.holes)
        for chunk_id, length_bytes in refs:
            opened.missing_parts += 1
            yield chunk_id, length_bytes, Target(temporary, offset, sparse)
            offset += length_bytes
        self._part_done(temporary)

    def _there(self, entry: Entry) -> os.stat_result | None:
        """What is at the entry's place already; not even looked for in a directory that this run has made."""
        return None if entry.path.rpartition(b"/")[0] in self._fresh else self._tree.lstat(entry.path)

    def _may_write(self, entry: Entry, there: os.stat_result | None) -> bool:
        """The overwrite rule against what is there. A directory in the way is an error of its own."""
        if there is None:
            return True
        rule = self._overwrite
        skip = (
            rule is Overwrite.NEVER
            or (rule is Overwrite.IF_NEWER and entry.mtime_ns <= there.st_mtime_ns)
            or (
                rule is Overwrite.IF_CHANGED
                and entry.mtime_ns == there.st_mtime_ns
                and entry.kind == Kind.FILE
                and entry.size == there.st_size
            )
        )
        self._done.skipped += skip
        return not skip

    def _is_further_link(self, entry: Entry) -> bool:
        """Whether this run restores the file under another name already; then it is only linked, at the end.

        Ask only for what may be written: a name that is left as it was has somebody else's content.
        """
        if not entry.hard_link:
            return False
        first = self._first_names.setdefault(entry.hard_link, entry.path)
        if first == entry.path:
            return False
        self._links.append((entry, first))
        return True

    # ---- what has come

    def _take(self, opened: Opened) -> None:
        if opened.failure is not None and not isinstance(opened.failure, EnigmaError):
            raise opened.failure
        bad = dict(opened.errors)
        unwritten = {(index, number): why for index, number, why in opened.unwritten}
        self._done.warnings += len(opened.warnings)
        for warning in opened.warnings:
            self._observer.warn(b"", warning)
        for index, (record, targets) in enumerate(opened.request.blobs):
            for number, target in enumerate(targets):
                if opened.failure is not None or index in bad:
                    self._retry.append((record.chunk_id, record.plain_bytes, target))
                elif (index, number) in unwritten:
                    self._fail_part(target.path, f"can't be written: {unwritten[index, number]}")
                else:
                    self._part_done(target.path)

    def _lost(self, chunk_id: bytes, target: Target | None) -> None:
        if target is not None:
            self._retry.append((chunk_id, 0, target))

    def _read_again(self) -> None:
        """What could not be read may have moved, or have another copy: look once more before complaining."""
        retry, self._retry = self._retry, []
        if retry:
            self._repository.view.refresh()
        for chunk_id, length_bytes, target in retry:
            try:
                plain = memoryview(self._repository.blobs.get(chunk_id, length_bytes))
                if target.whole is not None:
                    whole, opened = target.whole, self._open[target.path]
                    self._warn(
                        opened.entry.path,
                        self._tree.write_whole(target.path, plain, whole, sparse=target.sparse, replace=target.replace),
                    )
                else:
                    self._tree.write_part(target.path, target.offset, plain, sparse=target.sparse)
                self._part_done(target.path)
            except (EnigmaError, OSError, UnsafeTarget) as exc:
                self._fail_part(target.path, str(exc))

    def _part_done(self, written_path: bytes) -> None:
        opened = self._open.get(written_path)
        if opened is None:
            return
        opened.missing_parts -= 1
        if opened.missing_parts:
            return
        del self._open[written_path]
        entry = opened.entry
        if opened.temporary:
            self._finish.append(FinishFile(entry.path, opened.temporary, entry.size, self._attributes(entry)))
        self._restored(entry)

    def _fail_part(self, written_path: bytes, message: str) -> None:
        """A file that lacks a part is not left behind half written."""
        opened = self._open.pop(written_path, None)
        if opened is None:
            return
        if opened.temporary:
            self._tree.remove(opened.temporary)
        self._fail(opened.entry.path, ObjectCorrupt(message))

    def _finish_files(self, at_least: int) -> None:
        if not self._finish or len(self._finish) < at_least:
            return
        files, self._finish = self._finish, []
        large = [file for file in files if _xattr_bytes(file.attributes) > INLINE_XATTR_BYTES]
        small = [file for file in files if _xattr_bytes(file.attributes) <= INLINE_XATTR_BYTES]
        self._warn(b"", self._engine.finish(small))
        for file in large:
            warnings = self._tree.finish_file(file.path, file.temporary, file.length_bytes, file.attributes)
            self._warn(file.path, warnings)

    # ---- the end

    def _make_links(self) -> None:
        for entry, first in self._links:
            try:
                if first in self._done.failed:
                    raise ObjectCorrupt("its first name could not be restored")
                self._tree.make_hard_link(entry.path, first, replace=True)
                self._restored(entry)
            except (OSError, UnsafeTarget, EnigmaError) as exc:
                self._fail(entry.path, exc)

    def _set_directories(self) -> None:
        """Deepest first: writing into a directory changes its times, and its mode may forbid to enter it."""
        for entry in reversed(self._directories):
            try:
                self._warn(entry.path, self._tree.set_directory(entry.path, self._attributes(entry)))
            except (OSError, UnsafeTarget) as exc:
                self._fail(entry.path, exc)

    def _attributes(self, entry: Entry) -> Attributes:
        return Attributes(
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            xattrs=entry.xattrs,
        )

    def _restored(self, entry: Entry) -> None:
        if entry.kind == Kind.FILE:
            self._done.files += 1
            self._done.content_bytes += entry.size
            self._observer.restored(entry.size)

    def _warn(self, path: bytes, warnings: list[str]) -> None:
        self._done.warnings += len(warnings)
        for warning in warnings:
            self._observer.warn(path, warning)

    def _fail(self, path: bytes, error: BaseException) -> None:
        message = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        self._done.failed[path or f"catalog {len(self._done.failed)}".encode()] = message
        self._observer.warn(path, f"not restored: {message}")


def _xattr_bytes(attributes: Attributes) -> int:
    return sum(len(name) + len(value) for name, value in attributes.xattrs)
