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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from enigma.errors import SourceError
from enigma.model.entries import Kind, path_key
from enigma.snapshots.excludes import CACHEDIR_TAG, Excludes, Level

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
    path, with the directories on the way. A source inside another is part of it; where the outer one leaves it out,
    it is a source of its own. Patterns never leave out a source itself.

    What can't be read is reported to `on_error` and left out. Raises SourceError if no source can be looked at, or
    if one leads through a link that another one holds.
    """
    walker = _Walker(excludes, one_file_system, on_error)
    if len(sources) > 1:
        return walker.several(sources)
    info = _lstat(sources[0])
    return walker.single(sources[0], info) if stat.S_ISDIR(info.st_mode) else _file(sources[0], info)


def _file(source: bytes, info: os.stat_result) -> Iterator[Found]:
    above = os.path.realpath(os.path.dirname(source))
    yield Found(b"", above, _lstat(above), Kind.DIRECTORY)
    yield Found(os.path.basename(source), source, info, KINDS[stat.S_IFMT(info.st_mode)])


@dataclass(slots=True)
class _Named:
    """One place in the tree of the sources' paths: a source, or on the way to the sources `below` it."""

    is_source: bool = False
    below: dict[bytes, _Named] = field(default_factory=dict)


_NONE_NAMED: Mapping[bytes, _Named] = {}


class _Directory(NamedTuple):
    """A directory to be listed: all of it, or only the names that lead to sources.

    `level` and `device` belong to the source it is part of; `named` leads to the sources below.
    """

    path: bytes
    absolute: bytes
    level: Level
    device: int
    whole: bool = True
    named: Mapping[bytes, _Named] = _NONE_NAMED


class _Walker:
    """Walks without recursion, so that depth costs only memory."""

    def __init__(self, excludes: Excludes, one_file_system: bool, on_error: OnError) -> None:
        self._excludes = excludes
        self._one_file_system = one_file_system
        self._on_error = on_error

    def single(self, source: bytes, info: os.stat_result) -> Iterator[Found]:
        """A directory as the root. Raises SourceError if it can't be listed: that would be an empty snapshot."""
        try:
            os.scandir(source).close()
        except OSError as exc:
            raise SourceError(f"Can't back up {os.fsdecode(source)}: {exc.strerror}.") from exc
        root = Found(b"", source, info, Kind.DIRECTORY)
        return self._tree(root, _Directory(b"", source, self._excludes.top(b""), info.st_dev))

    def several(self, sources: Sequence[bytes]) -> Iterator[Found]:
        """Every source under its path, below a root that stands for "/"."""
        named = self._named(sources)
        info = _lstat(b"/")
        top = _Directory(b"", b"/", self._excludes.top(b""), info.st_dev, named.is_source, named.below)
        return self._tree(Found(b"", b"/", info, Kind.DIRECTORY), top)

    def _named(self, sources: Sequence[bytes]) -> _Named:
        """The tree of the paths of the sources that are there; the others are reported."""
        top = _Named()
        missing: OSError | None = None
        for source in sorted({source.strip(b"/") for source in sources}, key=path_key):
            try:
                os.lstat(b"/" + source)
            except OSError as exc:
                missing = exc
                self._on_error(b"/" + source, exc)
            else:
                _add(top, source)
        if not top.below and not top.is_source:
            raise SourceError(f"None of the paths can be backed up: {missing and missing.strerror}.") from missing
        return top

    def _tree(self, root: Found, top: _Directory) -> Iterator[Found]:
        """The directory and everything below it."""
        yield root
        stack = [(top, self._entries(top))]
        try:
            while stack:
                directory, entries = stack[-1]
                found = next(entries, None)
                if found is None:
                    stack.pop()
                    continue
                yield found
                if found.kind is Kind.DIRECTORY and (below := self._below(directory, found)) is not None:
                    stack.append((below, self._entries(below)))
        finally:
            for _, entries in stack:
                entries.close()

    def _below(self, above: _Directory, found: Found) -> _Directory | None:
        """How a directory that was found is to be listed, or None if it is not."""
        path, absolute, info, _ = found
        crosses = self._one_file_system and info.st_dev != above.device
        named = above.named.get(path.rpartition(b"/")[2]) if above.named else None
        if named is None:
            return None if crosses else _Directory(path, absolute, above.level, above.device)
        if above.whole and not crosses and self._excludes.keeps(above.level, path, info, Kind.DIRECTORY):
            return _Directory(path, absolute, above.level, above.device, True, named.below)
        return _Directory(path, absolute, self._excludes.top(path), info.st_dev, named.is_source, named.below)

    def _entries(self, directory: _Directory) -> Generator[Found, None, None]:
        """What one directory holds and is not left out, sorted by name."""
        path, absolute, level, _, whole, named = directory
        prefix = path + b"/" if path else b""
        above = absolute if absolute.endswith(b"/") else absolute + b"/"
        keeps = None if self._excludes.keeps_all else self._excludes.keeps
        with ExitStack() as files:
            for name in self._names(directory, files) if whole else sorted(named):
                where = above + name
                try:
                    info = os.lstat(where)
                    if name in named and named[name].below and stat.S_ISLNK(info.st_mode):
                        where = os.path.realpath(where)  # the way to a source may lead through a link
                        info = os.lstat(where)
                except OSError as exc:
                    self._on_error(where, exc)
                    continue
                kind = KINDS[stat.S_IFMT(info.st_mode)]
                if keeps is None or name in named or keeps(level, prefix + name, info, kind):
                    yield Found(prefix + name, where, info, kind)

    def _names(self, directory: _Directory, files: ExitStack) -> Iterable[bytes]:
        """What is to be looked at in a directory, sorted; nothing if it can't be listed."""
        try:
            if self._excludes.is_cache(directory.absolute):
                return sorted({CACHEDIR_TAG, *directory.named})
            return _sorted_names(directory.absolute, files)
        except OSError as exc:
            self._on_error(directory.absolute, exc)
            return ()


def _add(top: _Named, source: bytes) -> None:
    """Put a source into the tree of named places. Those that lead to it must have been put before.

    Raises SourceError if its way leads through a link that another source holds: the link can't be both a link and
    a directory in one snapshot.
    """
    place, path, inside = top, b"", False
    for name in filter(None, source.split(b"/")):
        inside = inside or place.is_source
        if inside and path and stat.S_ISLNK(_lstat(path).st_mode):
            raise SourceError(
                f"Can't back up both the link {os.fsdecode(path)} and /{os.fsdecode(source)} behind it; "
                "name what the link points to."
            )
        place = place.below.setdefault(name, _Named())
        path += b"/" + name
    place.is_source = True


def _sorted_names(directory: bytes, files: ExitStack) -> Iterable[bytes]:
    """The names in a directory. Runs on disk are open until `files` are closed. Raises OSError."""
    runs: list[Iterator[bytes]] = []
    names: list[bytes] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) == RUN_ENTRIES:
                runs.append(_spill(files.enter_context(tempfile.TemporaryFile()), names))  # noqa: SIM115  the stack closes it
                names = []
    names.sort()
    return heapq.merge(*runs, names) if runs else names


def _spill(file: BinaryIO, names: list[bytes]) -> Iterator[bytes]:
    """A sorted run on disk. Names are ended by a zero byte, which no name holds."""
    file.writelines(name + b"\0" for name in sorted(names))
    file.seek(0)
    return _read_run(file)


def _read_run(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 16):
        *whole, rest = (rest + block).split(b"\0")
        yield from whole


def _lstat(source: bytes) -> os.stat_result:
    try:
        return os.lstat(source)
    except OSError as exc:
        raise SourceError(f"Can't back up {os.fsdecode(source)}: {exc.strerror}.") from exc
