"""Trees with everything that is hard to keep, and a comparison of trees that shares no code with the program."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

DEEP_LEVELS = 200
FAR_FUTURE_S = 4_000_000_000  # the year 2096; beyond what 32 bits hold
ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"


def is_root() -> bool:
    return os.geteuid() == 0


def takes_xattrs(directory: str | bytes | os.PathLike[Any]) -> bool:
    """Whether user attributes can be set on files of this directory's file system."""
    return _can_set(directory, "user.enigma", b"1")


def takes_acls(directory: str | bytes | os.PathLike[Any]) -> bool:
    """Whether its file system has POSIX ACLs."""
    return _can_set(directory, ACL_ACCESS, acl(named_user=(1234, 5)))


def acl(*, named_user: tuple[int, int], user: int = 6, group: int = 4, mask: int = 7, other: int = 0) -> bytes:
    """A POSIX ACL as the kernel stores it: `named_user` is (uid, permissions), the others are permissions."""
    undefined = 0xFFFFFFFF
    rows = [(1, user, undefined), (2, named_user[1], named_user[0]), (4, group, undefined)]
    rows += [(0x10, mask, undefined), (0x20, other, undefined)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def build_nasty_tree(root: str | bytes | os.PathLike[Any]) -> None:
    """Fill the empty directory `root`. What needs root, user attributes or ACLs is left out where they are not."""
    top = os.fsencode(root)
    _files(top)
    _names(top)
    _links(top)
    _specials(top)
    _deep(top)
    _modes(top)
    if takes_xattrs(top):
        _xattrs(top)
    if takes_acls(top):
        _acls(top)
    _times(top)


def assert_same_tree(one: str | bytes | os.PathLike[Any], other: str | bytes | os.PathLike[Any]) -> None:
    """Names, kinds, modes, owners, times to the nanosecond, content, links, devices, xattrs, ACLs, hard-link groups.

    The comparing process must be able to read both trees. Change times, inodes and holes may differ.
    """
    left, right = tree_facts(one), tree_facts(other)
    differences = [
        f"{path!r}: {_told(left.get(path), right.get(path))}"
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
    ]
    assert not differences, f"{len(differences)} entries differ\n" + "\n".join(differences[:30])


def tree_facts(root: str | bytes | os.PathLike[Any]) -> dict[bytes, dict[str, Any]]:
    """What must come back of each entry, by its path relative to the root."""
    facts: dict[bytes, dict[str, Any]] = {}
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, name, directory_fd in _entries(os.fsencode(root)):
        info = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        facts[path] = _facts(name, directory_fd, info)
        if not stat.S_ISDIR(info.st_mode):
            groups[info.st_dev, info.st_ino].append(path)
    for group in groups.values():
        for path in group:
            facts[path]["names of the same file"] = sorted(group)
    return facts


def _entries(root: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(path, name, descriptor of the directory above) of each entry; descriptors reach deeper than any path."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield b"", b".", top
        stack = [(b"", top)]
        while stack:
            above, fd = stack.pop()
            for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
                path = above + b"/" + name if above else name
                yield path, name, fd
                if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    stack.append((path, os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)))
            if fd != top:
                os.close(fd)
    finally:
        os.close(top)


def _facts(name: bytes, directory_fd: int, info: os.stat_result) -> dict[str, Any]:
    where = b"/proc/self/fd/%d/%s" % (directory_fd, name)
    kind = stat.S_IFMT(info.st_mode)
    facts: dict[str, Any] = {
        "kind": kind,
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "owner": (info.st_uid, info.st_gid),
        "mtime": info.st_mtime_ns,
        "xattrs": _xattrs_of(where),
    }
    if kind == stat.S_IFREG:
        with open(where, "rb") as file:
            facts["content"] = (info.st_size, hashlib.file_digest(file, "sha256").hexdigest())
    elif kind == stat.S_IFLNK:
        facts["target"] = os.readlink(name, dir_fd=directory_fd)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        facts["device"] = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return facts


def _xattrs_of(where: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(where, follow_symlinks=False)
    except OSError:  # not on this file system, or not of this kind of file
        return {}
    return {name: os.getxattr(where, name, follow_symlinks=False) for name in sorted(names)}


def _told(left: dict[str, Any] | None, right: dict[str, Any] | None) -> str:
    if left is None or right is None:
        return "only in the second" if left is None else "only in the first"
    return ", ".join(
        f"{what} {left.get(what)!r} != {right.get(what)!r}"
        for what in left | right
        if left.get(what) != right.get(what)
    )


def _can_set(directory: str | bytes | os.PathLike[Any], attribute: str, value: bytes) -> bool:
    probe = os.path.join(os.fsencode(directory), b"probe")
    _write(probe, b"")
    try:
        os.setxattr(probe, attribute, value)
    except OSError:
        return False
    finally:
        os.unlink(probe)
    return True


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _files(top: bytes) -> None:
    """Contents: none, one block, more than one chunk, only holes, holes between data."""
    os.makedirs(top + b"/files/empty directory/and another")
    for name, content in {
        b"empty": b"",
        b"one byte": b"\0",
        b"block": b"b" * 4096,
        b"random": b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000)),
    }.items():
        _write(top + b"/files/" + name, content)
    for name, length_bytes, parts in (
        (b"only a hole", 1 << 20, {}),
        (b"sparse", (3 << 20) + 17, {0: b"start", 1 << 20: b"x" * 5000, (2 << 20) + 4095: b"y" * 2}),
        (b"hole at its end", 1 << 20, {0: b"z" * 4097}),
    ):
        with open(top + b"/files/" + name, "wb") as file:
            for offset, content in parts.items():
                file.seek(offset)
                file.write(content)
            file.truncate(length_bytes)


def _names(top: bytes) -> None:
    """Names that are no text, that sort oddly beside a directory of the same stem, that are as long as can be."""
    os.mkdir(top + b"/names")
    long = b"l" * 255
    for name in (b"\xff\xfe\x80", b"line\nfeed", b"\n", b" ", b"-rf", b"*", b"\\", b'"', b"\x01", b"a.b", b"a-b", b"a"):
        directory = name == b"a"
        os.mkdir(top + b"/names/a") if directory else _write(top + b"/names/" + name, name)
    for name in (b"b", b"\xc3\xa9", b"e\xcc\x81"):
        _write(top + b"/names/a/" + name, name)
    _write(top + b"/names/" + long, b"long")
    os.mkdir(top + b"/names/" + long[:-1] + b"d")
    _write(top + b"/names/" + long[:-1] + b"d/" + long, b"long in long")


def _links(top: bytes) -> None:
    """Hard links within and across directories, to a link and to a fifo; symbolic links that lead nowhere good."""
    os.makedirs(top + b"/links/below")
    _write(top + b"/links/one", b"linked")
    os.link(top + b"/links/one", top + b"/links/two")
    os.link(top + b"/links/one", top + b"/links/below/three")
    _write(top + b"/links/pair", b"linked")
    os.link(top + b"/links/pair", top + b"/links/below/pair")
    for name, target in {
        b"dangling": b"not there",
        b"to a directory": b"below",
        b"absolute": b"/etc/passwd",
        b"outwards": b"../../../../../../etc",
        b"to itself": b"to itself",
        b"no text": b"\xff\xfe/\n",
        b"long": b"x/" * 2000,
    }.items():
        os.symlink(target, top + b"/links/" + name)
    os.link(top + b"/links/dangling", top + b"/links/dangling too", follow_symlinks=False)


def _specials(top: bytes) -> None:
    os.mkdir(top + b"/special")
    os.mkfifo(top + b"/special/fifo", 0o640)
    os.link(top + b"/special/fifo", top + b"/special/fifo too")
    directory_fd = os.open(top + b"/special", os.O_RDONLY | os.O_DIRECTORY)
    try:  # a socket's address is short; the path may not be
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(b"/proc/self/fd/%d/socket" % directory_fd)
    finally:
        os.close(directory_fd)
    if is_root():
        try:
            os.mknod(top + b"/special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.mknod(top + b"/special/block", stat.S_IFBLK | 0o660, os.makedev(7, 300))
        except PermissionError:  # root of a container may lack the right
            return


def _deep(top: bytes) -> None:
    path = top + b"/deep"
    os.mkdir(path)
    for level in range(DEEP_LEVELS):
        path += b"/%d" % (level % 10)
        os.mkdir(path)
    _write(path + b"/bottom", b"far down")


def _modes(top: bytes) -> None:
    """Owners come before modes: a change of owner clears setuid and setgid."""
    os.mkdir(top + b"/modes")
    modes = (0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0o444, 0o600, 0o200 if is_root() else 0o640)
    for number, mode in enumerate((*modes, 0) if is_root() else modes):
        file, directory = top + b"/modes/file %04o" % mode, top + b"/modes/directory %04o" % mode
        _write(file, b"%o" % mode)
        os.mkdir(directory)
        for path in (file, directory):
            if is_root() and number % 2:
                os.chown(path, 1234 + number, 4321 + number)
        _write(directory + b"/inside", b"inside")
        os.chmod(file, mode)
        os.chmod(directory, mode if is_root() else mode | 0o700)
    if is_root():
        os.lchown(top + b"/links/dangling", 1111, 2222)
        os.chown(top + b"/special/fifo", 1111, 2222)


def _xattrs(top: bytes) -> None:
    os.mkdir(top + b"/xattrs")
    for name, content in ((b"file", b"x"), (b"read-only", b"y")):
        _write(top + b"/xattrs/" + name, content)
        os.setxattr(top + b"/xattrs/" + name, "user.comment", b"\0\xff binary")
        os.setxattr(top + b"/xattrs/" + name, "user.empty", b"")
        os.setxattr(top + b"/xattrs/" + name, b"user.\xff", b"no text")
    os.setxattr(top + b"/xattrs/file", "user.large", b"l" * 2000)
    os.chmod(top + b"/xattrs/read-only", 0o444)
    os.setxattr(top + b"/xattrs", "user.directory", b"d")
    if is_root():
        for path, follow in ((b"/xattrs/file", True), (b"/links/to a directory", False), (b"/special/fifo", True)):
            os.setxattr(top + path, "trusted.enigma", b"t", follow_symlinks=follow)


def _acls(top: bytes) -> None:
    os.mkdir(top + b"/acls")
    _write(top + b"/acls/plain before the default", b"p")
    _write(top + b"/acls/named user", b"n")
    os.setxattr(top + b"/acls/named user", ACL_ACCESS, acl(named_user=(1234, 5), mask=5))
    os.setxattr(top + b"/acls", ACL_DEFAULT, acl(named_user=(1234, 7)))
    _write(top + b"/acls/inherits", b"i")
    os.mkdir(top + b"/acls/inherits too")


def _times(top: bytes) -> None:
    """Times of every entry, directories last; none is what the clock says now."""
    special = {
        b"files/empty": -1,
        b"files/one byte": -86_400 * 365 * 10**9 + 1,
        b"files/block": FAR_FUTURE_S * 10**9 + 999_999_999,
        b"files/random": 0,
    }
    paths = [path for path, _, _ in _entries(top)]
    for number, path in enumerate(sorted(paths, key=lambda path: -path.count(b"/"))):
        mtime_ns = special.get(path, 1_600_000_000_123_456_789 + number * 1_000_000_007)
        _touch(top, path, mtime_ns)
    _touch(top, b"", 1_500_000_000_000_000_001)


def _touch(top: bytes, path: bytes, mtime_ns: int) -> None:
    os.utime(os.path.join(top, path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)
