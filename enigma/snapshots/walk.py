"""The walk: everything below the sources, in the order of the catalog (component-wise bytes), once.

A directory's entries are sorted by name; what is below a directory comes right after it. That is the order of
`model.entries.path_key`, because '/' sorts before every byte that a name can hold once it is taken for a zero byte.
Directories of more than a hundred thousand entries are sorted in runs on disk, so memory stays bounded.
"""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from enigma.errors import SourceError
from enigma.model.entries import Kind, path_key
from enigma.snapshots.excludes import Excludes, Level

RUN_ENTRIES = 100_000
OnError = Callable[[bytes, OSError], None]

KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}


class Found(NamedTuple):
    """One entry as the walk met it. `path` is relative to the snapshot's root, `absolute` is where to open it."""

    path: bytes
    absolute: bytes
    stat: os.stat_result
    kind: Kind


def walk(
    sources: Sequence[bytes], excludes: Excludes, *, one_file_system: bool = False, on_error: OnError
) -> Iterator[Found]:
    """The entries of a snapshot of `sources` (absolute paths), the root first.

    One directory: its content is the root's. One file: a root that holds just it. Several: each under its absolute
    path, with the directories on the way; a source inside another is part of it. What can't be read is reported to
    `on_error` and left out. Raises SourceError if a source can't even be looked at.
    """
    walker = _Walker(excludes, one_file_system, on_error)
    if len(sources) == 1:
        info = _lstat(sources[0])
        if stat.S_ISDIR(info.st_mode):
            yield from walker.tree(b"", sources[0], info, excludes.top(b""))
            return
        yield Found(b"", os.path.dirname(sources[0]), _lstat(os.path.dirname(sources[0])), Kind.DIRECTORY)
        yield Found(os.path.basename(sources[0]), sources[0], info, KINDS[stat.S_IFMT(info.st_mode)])
        return
    yield from _several(walker, sources, excludes)


def _several(walker: _Walker, sources: Sequence[bytes], excludes: Excludes) -> Iterator[Found]:
    """Sources in the order of their paths, each after the directories above it that were not there yet."""
    yield Found(b"", b"/", _lstat(b"/"), Kind.DIRECTORY)
    seen = {b""}
    last: bytes | None = None
    for source in sorted(set(sources), key=path_key):
        info = _lstat(source)
        if last is not None and (source == last or source.startswith(last.rstrip(b"/") + b"/")):
            continue
        last = source
        path = source.strip(b"/")
        for above in _above(path):
            if above not in seen:
                seen.add(above)
                yield Found(above, b"/" + above, _lstat(b"/" + above), Kind.DIRECTORY)
        if stat.S_ISDIR(info.st_mode):
            yield from (found for found in walker.tree(path, source, info, excludes.top(path)) if found.path)
        else:
            yield Found(path, source, info, KINDS[stat.S_IFMT(info.st_mode)])


class _Walker:
    """Walks single trees, without recursion, so that depth costs only memory."""

    def __init__(self, excludes: Excludes, one_file_system: bool, on_error: OnError) -> None:
        self._excludes = excludes
        self._one_file_system = one_file_system
        self._on_error = on_error

    def tree(self, path: bytes, absolute: bytes, info: os.stat_result, level: Level) -> Iterator[Found]:
        """The directory and everything below it."""
        yield Found(path, absolute, info, Kind.DIRECTORY)
        device = info.st_dev
        stack = [self._entries(path, absolute, level)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                continue
            yield found
            crosses = self._one_file_system and found.stat.st_dev != device
            if found.kind is Kind.DIRECTORY and not crosses:
                stack.append(self._entries(found.path, found.absolute, level))

    def _entries(self, path: bytes, absolute: bytes, level: Level) -> Iterator[Found]:
        """What one directory holds and is not excluded, sorted by name."""
        try:
            if self._excludes.is_cache(absolute):
                names: Iterable[bytes] = [b"CACHEDIR.TAG"]
            else:
                names = _sorted_names(absolute)
        except OSError as exc:
            self._on_error(absolute, exc)
            return
        prefix = path + b"/" if path else b""
        above = absolute if absolute.endswith(b"/") else absolute + b"/"
        keeps = None if self._excludes.keeps_all else self._excludes.keeps
        for name in names:
            where = above + name
            try:
                info = os.lstat(where)
            except OSError as exc:
                self._on_error(where, exc)
                continue
            kind = KINDS.get(stat.S_IFMT(info.st_mode))
            if kind is not None and (keeps is None or keeps(level, prefix + name, info, kind)):
                yield Found(prefix + name, where, info, kind)


def _sorted_names(directory: bytes) -> Iterable[bytes]:
    """The names in a directory. Raises OSError if it can't be read."""
    with os.scandir(directory) as entries:
        names: list[bytes] = []
        runs = ExitStack()
        files = []
        for entry in entries:
            names.append(entry.name)
            if len(names) == RUN_ENTRIES:
                files.append(_spill(runs, names))
                names = []
    names.sort()
    return names if not files else _merged(runs, files, names)


def _spill(runs: ExitStack, names: list[bytes]) -> Iterator[bytes]:
    """A sorted run on disk. Names are ended by a zero byte, which no name holds."""
    file = runs.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
    file.writelines(name + b"\0" for name in sorted(names))
    file.seek(0)

    def read() -> Iterator[bytes]:
        rest = b""
        while block := file.read(1 << 16):
            *whole, rest = (rest + block).split(b"\0")
            yield from whole

    return read()


def _merged(runs: ExitStack, files: list[Iterator[bytes]], names: list[bytes]) -> Iterator[bytes]:
    with runs:
        yield from heapq.merge(*files, names)


def _above(path: bytes) -> Iterator[bytes]:
    at = path.find(b"/")
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)


def _lstat(source: bytes) -> os.stat_result:
    try:
        return os.lstat(source)
    except OSError as exc:
        raise SourceError(f"Can't back up {os.fsdecode(source)}: {exc.strerror}.") from exc
