"""Metadata of files: read from open files, and put back in an order that does not undo itself.

    owner first     changing it clears setuid, setgid and capabilities
    mode            then the POSIX ACLs, which refine it
    xattrs          among them the ACLs and security.capability
    times last      everything before changes them

Without privileges some of this is refused; that is a warning about one attribute of one file, never an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

HOLES_LIMIT = 4096
_NOT_SUPPORTED = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOENT, errno.ENOSYS)
Xattrs = tuple[tuple[bytes, bytes], ...]


class Attributes(NamedTuple):
    """What is put back on a file. `mode` holds permission bits with setuid, setgid and sticky."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs = ()


def read_xattrs(fd: int) -> Xattrs:
    """(name, value) sorted by name; what may not be read is left out. One cheap call for the many files with none."""
    return _xattrs(fd, follow=True)


def read_xattrs_at(path: bytes) -> Xattrs:
    """As `read_xattrs`, of the thing itself and not of what a link points to."""
    return _xattrs(path, follow=False)


def read_holes(fd: int, size_bytes: int, blocks: int) -> tuple[tuple[int, int], ...]:
    """(offset, length) of each hole, the first few thousand; empty where the file system doesn't say."""
    if blocks * 512 >= size_bytes:
        return ()
    holes: list[tuple[int, int]] = []
    at = 0
    try:
        while at < size_bytes and len(holes) < HOLES_LIMIT:
            start = os.lseek(fd, at, os.SEEK_HOLE)
            if start >= size_bytes:
                break
            at = _next_data(fd, start, size_bytes)
            holes.append((start, at - start))
    except OSError:
        return ()
    return tuple(holes)


def apply(fd: int, attributes: Attributes) -> list[str]:
    """Put attributes on an open file or directory; return a warning for each that was refused."""
    warnings: list[str] = []
    _try(warnings, "owner", lambda: os.fchown(fd, attributes.uid, attributes.gid))
    _try(warnings, "mode", lambda: os.fchmod(fd, attributes.mode))
    _apply_xattrs(warnings, fd, attributes.xattrs)
    _try(warnings, "times", lambda: os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns)))
    return warnings


def apply_at(directory_fd: int, name: bytes, kind: int, attributes: Attributes) -> list[str]:
    """The same for a link, fifo, socket or device, which can't be opened. `kind` is an S_IF constant."""
    warnings: list[str] = []
    where = b"/proc/self/fd/%d/%s" % (directory_fd, name)

    def owner() -> None:
        os.chown(name, attributes.uid, attributes.gid, dir_fd=directory_fd, follow_symlinks=False)

    def times() -> None:
        os.utime(name, ns=(attributes.mtime_ns, attributes.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)

    _try(warnings, "owner", owner)
    if kind != stat.S_IFLNK:
        _try(warnings, "mode", lambda: os.chmod(name, attributes.mode, dir_fd=directory_fd))
    for attribute, value in attributes.xattrs:
        setting = partial(os.setxattr, where, attribute, value, follow_symlinks=False)
        _try(warnings, os.fsdecode(attribute), setting)
    _try(warnings, "times", times)
    return warnings


def _apply_xattrs(warnings: list[str], fd: int, wanted: Xattrs) -> None:
    """Set what is wanted and remove what is not: a directory inherits default ACLs, a replaced one had its own."""
    try:
        present = os.listxattr(fd)
    except OSError:
        present = []
    names = {os.fsdecode(name) for name, _ in wanted}
    for name in present:
        if name not in names and name.startswith(("user.", "system.posix_acl_")):
            _try(warnings, name, partial(os.removexattr, fd, name))
    for attribute, value in wanted:
        _try(warnings, os.fsdecode(attribute), partial(os.setxattr, fd, attribute, value))


def _xattrs(where: int | bytes, *, follow: bool) -> Xattrs:
    try:
        names = os.listxattr(where, follow_symlinks=follow) if isinstance(where, bytes) else os.listxattr(where)
    except OSError as exc:
        if exc.errno in _NOT_SUPPORTED:
            return ()
        raise
    pairs = []
    for name in sorted(map(os.fsencode, names)):
        try:
            value = (
                os.getxattr(where, name, follow_symlinks=follow)
                if isinstance(where, bytes)
                else os.getxattr(where, name)
            )
            pairs.append((name, value))
        except OSError as exc:
            if exc.errno not in _NOT_SUPPORTED:
                raise
    return tuple(pairs)


def _next_data(fd: int, start: int, size_bytes: int) -> int:
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return size_bytes  # a hole to the end
        raise


def _try(warnings: list[str], what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as exc:
        if what == "owner" and os.geteuid() != 0:
            return  # only root gives files away; saying so for each of a million files helps nobody
        warnings.append(f"{what} could not be set: {exc.strerror}")
