"""A directory tree that is written to, and nothing outside of it.

Every directory on the way is opened from the one above it, without following links: neither a link that lies in the
target nor one that the snapshot brought can lead out. What replaces something else is made under a hidden name
(`.enigma-` and 8 hex digits) beside it and renamed when it is complete.

Every method raises UnsafeTarget for a path that is not plain and relative, and OSError for what the system refuses.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from workers.attributes import Attributes, apply, apply_at
from workers.direct import BLOCK_BYTES, DirectWrites, write_fully

OPEN_DIRECTORIES = 128
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PART_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TEMPORARY_PREFIX = b".enigma-"


class UnsafeTarget(Exception):
    """A path that would leave the tree, or something in the tree that must not be replaced."""


class TargetTree:
    """A context manager; holds descriptors of the directories used last. Paths are relative bytes."""

    def __init__(self, root: bytes) -> None:
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories: OrderedDict[bytes, int] = OrderedDict()
        self._written: tuple[bytes, int] | None = None
        self._direct = DirectWrites()

    # ---- looking

    def lstat(self, path: bytes) -> os.stat_result | None:
        """What is there, or None; None too if a directory on the way is missing or is none."""
        try:
            directory_fd, name = self._place(path)
            return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                return None
            raise

    # ---- directories and what is not a file

    def make_directory(self, path: bytes, *, replace: bool) -> bool:
        """Make it, or take the one that is there; whether it is new, and so empty.

        Something else in its place is removed if it may be.
        """
        directory_fd, name = self._place(path)
        try:
            os.mkdir(name, 0o700, dir_fd=directory_fd)
        except FileExistsError:
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                return False
            if not replace:
                raise UnsafeTarget("something that is no directory is in the way") from None
            os.unlink(name, dir_fd=directory_fd)
            os.mkdir(name, 0o700, dir_fd=directory_fd)
        return True

    def set_directory(self, path: bytes, attributes: Attributes) -> list[str]:
        return apply(self._directory(path), attributes)

    def make_symlink(self, path: bytes, link: bytes, attributes: Attributes) -> list[str]:
        """A link, in the place of any file that is there."""

        def make(directory_fd: int, name: bytes) -> list[str]:
            os.symlink(link, name, dir_fd=directory_fd)
            return apply_at(directory_fd, name, stat.S_IFLNK, attributes)

        if b"\0" in link:
            raise UnsafeTarget("its link target holds a zero byte")
        return self._put(path, make)

    def make_special(self, path: bytes, kind: int, device: int, attributes: Attributes) -> list[str]:
        """A fifo, socket or device, in the place of any file that is there; `kind` is its S_IF constant."""

        def make(directory_fd: int, name: bytes) -> list[str]:
            try:
                os.mknod(name, kind | 0o600, device, dir_fd=directory_fd)
            except (OverflowError, ValueError) as exc:
                raise UnsafeTarget("its device number is none") from exc
            return apply_at(directory_fd, name, kind, attributes)

        return self._put(path, make)

    def make_hard_link(self, path: bytes, existing: bytes, *, replace: bool) -> None:
        """Another name for a file of this tree."""

        def make(directory_fd: int, name: bytes) -> list[str]:
            os.link(from_name, name, src_dir_fd=from_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
            return []

        from_fd, from_name = self._place(existing)
        from_fd = os.dup(from_fd)  # the way to the other name may close it
        try:
            if replace:
                self._put(path, make)
            else:
                make(*self._place(path))
        finally:
            os.close(from_fd)

    # ---- files

    def write_whole(
        self,
        path: bytes,
        plain: memoryview,
        attributes: Attributes,
        *,
        sparse: bool = False,
        aligned: bool = False,
        replace: bool = False,
    ) -> list[str]:
        """Create, write, give attributes, close. With `replace` whatever is there stays until this is complete.

        `aligned` says that `plain` begins at a page.
        """
        directory_fd, name = self._place(path)
        written = _temporary_name() if replace else name
        fd = os.open(written, _CREATE_FLAGS, 0o600, dir_fd=directory_fd)
        try:
            try:
                if aligned and not sparse:
                    self._direct.write(fd, plain, 0)
                else:
                    _write(fd, 0, plain, sparse=sparse)
                if sparse:
                    os.ftruncate(fd, len(plain))
                warnings = apply(fd, attributes)
            finally:
                os.close(fd)
            if replace:
                self._rename(directory_fd, written, name)
        except BaseException:
            _discard(directory_fd, written)
            raise
        return warnings

    def begin_file(self, path: bytes, *, replace: bool) -> bytes:
        """Create an empty file to be written in parts; return the path to write to."""
        directory_fd, name = self._place(path)
        written = _temporary_name() if replace else name
        os.close(os.open(written, _CREATE_FLAGS, 0o600, dir_fd=directory_fd))
        return path[: len(path) - len(name)] + written

    def write_part(self, path: bytes, offset: int, plain: memoryview, *, sparse: bool = False) -> None:
        """Write into a file that was begun. The descriptor of the last one stays open for the next part."""
        _write(self._part(path), offset, plain, sparse=sparse)

    def write_aligned_part(self, path: bytes, offset: int, plain: memoryview) -> None:
        """As `write_part`, of memory that lies in its pages as the bytes lie in the file's blocks."""
        self._direct.write(self._part(path), plain, offset)

    def finish_file(self, path: bytes, temporary: bytes, length_bytes: int, attributes: Attributes) -> list[str]:
        """Give a begun file its length, attributes and name. If that fails it is removed."""
        self._close_written()
        directory_fd, written = self._place(temporary)
        name = path.rpartition(b"/")[2]
        _check_component(name)
        if temporary != path[: len(path) - len(name)] + written:
            raise UnsafeTarget("it was begun in another directory")
        fd = self._open_part(directory_fd, written)
        try:
            try:
                os.ftruncate(fd, length_bytes)
                warnings = apply(fd, attributes)
            finally:
                os.close(fd)
            if written != name:
                self._rename(directory_fd, written, name)
        except BaseException:
            _discard(directory_fd, written)
            raise
        return warnings

    def remove(self, path: bytes) -> None:
        """Remove a file that was begun and can't be finished."""
        self._close_written()
        directory_fd, name = self._place(path)
        os.unlink(name, dir_fd=directory_fd)

    def close(self) -> None:
        self._close_written()
        while self._directories:
            os.close(self._directories.popitem()[1])
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the way down

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of the directory, last component). The descriptor may be closed by the next call."""
        at = path.rfind(b"/")
        head, name = path[:at] if at > 0 else path[: at + 1], path[at + 1 :]  # the slash of b"/x" stays, to be refused
        _check_component(name)
        return self._directory(head), name

    def _directory(self, path: bytes) -> int:
        """The directory's descriptor, opened from the deepest one above it that is open already.

        The one used last is closed last, so it lives until another directory is asked for.
        """
        if path.startswith(b"/"):
            raise UnsafeTarget("its path is absolute")
        known, rest = path, []
        while known and known not in self._directories:
            known, _, name = known.rpartition(b"/")
            rest.append(name)
        if known:
            self._directories.move_to_end(known)
        fd = self._directories[known] if known else self._root_fd
        for name in reversed(rest):
            _check_component(name)
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
            known = known + b"/" + name if known else name
            self._directories[known] = fd
            if len(self._directories) > OPEN_DIRECTORIES:
                os.close(self._directories.popitem(last=False)[1])
        return fd

    def _put(self, path: bytes, make: Callable[[int, bytes], list[str]]) -> list[str]:
        """Let `make` make something at a path; whatever is there stays until its successor is complete."""
        directory_fd, name = self._place(path)
        try:
            return make(directory_fd, name)
        except FileExistsError:
            written = _temporary_name()
        try:
            warnings = make(directory_fd, written)
            self._rename(directory_fd, written, name)
        finally:  # also after a rename: between two names of one file it does nothing
            _discard(directory_fd, written)
        return warnings

    @staticmethod
    def _rename(directory_fd: int, written: bytes, name: bytes) -> None:
        """Put a complete file in its place. An empty directory gives way, another one raises UnsafeTarget."""
        try:
            os.rename(written, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except IsADirectoryError:
            try:
                os.rmdir(name, dir_fd=directory_fd)
            except OSError as exc:
                if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise UnsafeTarget("a directory that is not empty is in the way") from exc
                raise
            os.rename(written, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)

    def _part(self, path: bytes) -> int:
        """The descriptor of a file that was begun."""
        if self._written is None or self._written[0] != path:
            self._close_written()
            self._written = (path, self._open_part(*self._place(path)))
        return self._written[1]

    @staticmethod
    def _open_part(directory_fd: int, name: bytes) -> int:
        """A file that was begun. Raises UnsafeTarget if it is no longer a file of this tree alone."""
        fd = os.open(name, _PART_FLAGS, dir_fd=directory_fd)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            os.close(fd)
            raise UnsafeTarget("something else has taken its place")
        return fd

    def _close_written(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            os.close(written[1])


def _temporary_name() -> bytes:
    return TEMPORARY_PREFIX + os.urandom(4).hex().encode()


def _discard(directory_fd: int, name: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)


def _check_component(name: bytes) -> None:
    if name in (b"", b".", b"..") or b"\0" in name:
        raise UnsafeTarget("its path is not a plain relative path")


def _write(fd: int, offset: int, plain: memoryview, *, sparse: bool) -> None:
    """All of it, at the offset; with `sparse` whole blocks of zeros are left out, and stay holes."""
    for start, end in _data_runs(offset, plain) if sparse else ((0, len(plain)),):
        write_fully(fd, plain[start:end], offset + start)


def _data_runs(offset: int, plain: memoryview) -> list[tuple[int, int]]:
    """Ranges of `plain` that are not whole zero blocks of the file."""
    runs: list[tuple[int, int]] = []
    at = 0
    while at < len(plain):
        end = min(len(plain), at + BLOCK_BYTES - (offset + at) % BLOCK_BYTES)
        if end - at < BLOCK_BYTES or plain[at] or plain[at:end].tobytes() != _ZERO_BLOCK:  # views compare slowly
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((at, end))
        at = end
    return runs
