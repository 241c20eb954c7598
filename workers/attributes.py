"""Metadata of files: read from open files, and put back in an order that does not undo itself.

    owner first     changing it clears setuid, setgid and capabilities
    user xattrs     before the mode, which may forbid to write them
    mode            without setuid and setgid if the owner is not the one they were meant for
    ACLs            refine the mode; security.* among the last, because changes before clear them
    times last      everything before changes them

Without privileges some of this is refused; that is a warning about one attribute of one file, never an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

HOLES_LIMIT = 4096
_ELEVATED = stat.S_ISUID | stat.S_ISGID
_INHERITED = ("user.", "system.posix_acl_")  # what a file that is to be like another may have of its own
_AFTER_MODE = (b"system.", b"security.")
_NOT_SUPPORTED = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOENT, errno.ENOSYS)
_REFUSED = (OSError, OverflowError, ValueError)  # the last two: a number or a name that the system can't hold
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
            at = min(_next_data(fd, start, size_bytes), size_bytes)  # it may have grown meanwhile
            holes.append((start, at - start))
    except OSError:
        return ()
    return tuple(holes)


def apply(where: int | bytes, attributes: Attributes) -> list[str]:
    """Put attributes on an open file or directory; return a warning for each that was refused.

    `where` is its descriptor, or a path of /proc that leads to one.
    """
    mode, uid, gid, mtime_ns, xattrs = attributes
    warnings: list[str] = []
    if not _set_owner(warnings, os.chown, where, uid, gid) and mode & _ELEVATED:
        mode = _lowered(warnings, where, mode)
    _remove_others(warnings, where, xattrs)
    for name, value in xattrs:
        if not name.startswith(_AFTER_MODE):
            _try(warnings, os.fsdecode(name), os.setxattr, where, name, value)
    _try(warnings, "mode", os.chmod, where, mode)
    for name, value in xattrs:
        if name.startswith(_AFTER_MODE):
            _try(warnings, os.fsdecode(name), os.setxattr, where, name, value)
    _try(warnings, "times", _set_times, where, mtime_ns)
    return warnings


def apply_at(directory_fd: int, name: bytes, kind: int, attributes: Attributes) -> list[str]:
    """The same for a link, fifo, socket or device, which can't be opened. `kind` is an S_IF constant.

    Whatever has taken its place meanwhile, no link is followed.
    """
    if kind == stat.S_IFLNK:
        return _apply_to_link(directory_fd, name, attributes)
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError as exc:
        return [f"attributes could not be set: {exc.strerror}"]
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            return ["attributes could not be set: something else has taken its place"]
        return apply(b"/proc/self/fd/%d" % fd, attributes)
    finally:
        os.close(fd)


def _apply_to_link(directory_fd: int, name: bytes, attributes: Attributes) -> list[str]:
    """A link has no mode of its own."""

    def chown(link: bytes, uid: int, gid: int) -> None:
        os.chown(link, uid, gid, dir_fd=directory_fd, follow_symlinks=False)

    def set_xattr(attribute: bytes, value: bytes) -> None:
        os.setxattr(b"/proc/self/fd/%d/%s" % (directory_fd, name), attribute, value, follow_symlinks=False)

    def set_times(mtime_ns: int) -> None:
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory_fd, follow_symlinks=False)

    warnings: list[str] = []
    _set_owner(warnings, chown, name, attributes.uid, attributes.gid)
    for attribute, value in attributes.xattrs:
        _try(warnings, os.fsdecode(attribute), set_xattr, attribute, value)
    _try(warnings, "times", set_times, attributes.mtime_ns)
    return warnings


def _set_owner(
    warnings: list[str], chown: Callable[[Any, int, int], None], where: int | bytes, uid: int, gid: int
) -> bool:
    """Whether it has this owner and group now. To look costs a quarter of what it costs to set what is so already.

    Only root gives files away; saying so for each of a million files helps nobody. A group may be set if one is in it.
    """
    if isinstance(where, int):
        info = os.fstat(where)
        if (info.st_uid, info.st_gid) == (uid, gid):
            return True
    try:
        chown(where, uid, gid)
    except _REFUSED as exc:
        if not isinstance(exc, PermissionError) or os.geteuid() == 0:
            warnings.append(_refusal("owner", exc))
            return False
    else:
        return True
    try:
        chown(where, -1, gid)
    except _REFUSED:
        return False
    return False


def _lowered(warnings: list[str], where: int | bytes, mode: int) -> int:
    """The mode of a program that would run as somebody else than it was meant to; of a directory, as it is."""
    if stat.S_ISDIR(os.stat(where).st_mode):
        return mode
    warnings.append("setuid and setgid are left out, because its owner could not be set")
    return mode & ~_ELEVATED


def _remove_others(warnings: list[str], where: int | bytes, wanted: Xattrs) -> None:
    """Remove what is not wanted: a new file inherits ACLs from its directory, one that was there had its own."""
    try:
        present = os.listxattr(where)
    except OSError:
        return
    if present:
        names = {os.fsdecode(name) for name, _ in wanted}
        for name in present:
            if name not in names and name.startswith(_INHERITED):
                _try(warnings, name, os.removexattr, where, name)


def _set_times(where: int | bytes, mtime_ns: int) -> None:
    os.utime(where, ns=(mtime_ns, mtime_ns))


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


def _try(warnings: list[str], what: str, action: Callable[..., None], *arguments: Any) -> None:
    try:
        action(*arguments)
    except _REFUSED as exc:
        warnings.append(_refusal(what, exc))


def _refusal(what: str, error: Exception) -> str:
    return f"{what} could not be set: {error.strerror if isinstance(error, OSError) else error}"
