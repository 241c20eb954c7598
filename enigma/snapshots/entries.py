"""Catalog entries made from what the system says of a file."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from functools import cache, lru_cache

import xxhash

from enigma.model.entries import FLAG_CHANGED, FLAG_RACY, Entry, Kind
from enigma.snapshots.walk import Found
from workers.attributes import read_xattrs_at
from workers.messages import FileFacts

UNKNOWN_GRANULARITY_NS = 2_000_000_000
# File systems with nanosecond timestamps take them from the kernel's clock, which ticks every 1 to 10 ms.
TICK_NS = 20_000_000
FINE_FILE_SYSTEMS = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "bcachefs", "overlay"})


class EntryMaker:
    """Keeps what would be looked up again and again: names of users and groups."""

    def __init__(self) -> None:
        self._first_device: int | None = None

    def from_facts(self, found: Found, facts: FileFacts, content: bytes, depth: int, *, linked: bool) -> Entry:
        """A regular file that was read. Its metadata is that of the open file, not of the walk."""
        xattrs = facts.xattrs if facts.xattrs is not None else read_xattrs_at(found.absolute)
        flags = FLAG_CHANGED * facts.changed
        if facts.changed or is_racy(facts.mtime_ns, facts.ctime_ns, facts.started_ns, granularity_ns(facts.device)):
            flags |= FLAG_RACY
        return Entry(
            path=found.path,
            kind=Kind.FILE,
            mode=stat.S_IMODE(facts.mode),
            uid=facts.uid,
            gid=facts.gid,
            user=user_name(facts.uid),
            group=group_name(facts.gid),
            mtime_ns=facts.mtime_ns,
            ctime_ns=facts.ctime_ns,
            inode=facts.inode,
            size=facts.size,
            flags=flags,
            content=content,
            depth=depth,
            hard_link=self._group(facts.device, facts.inode) if linked else 0,
            xattrs=xattrs,
            holes=facts.holes,
        )

    def from_stat(self, found: Found) -> Entry:
        """Anything but a regular file. Raises OSError if its target or attributes can't be read."""
        info, kind = found.stat, found.kind
        link = os.readlink(found.absolute) if kind is Kind.SYMLINK else b""
        device = info.st_rdev if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) else 0
        linked = kind is not Kind.DIRECTORY and info.st_nlink > 1
        return Entry(
            path=found.path,
            kind=kind,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            user=user_name(info.st_uid),
            group=group_name(info.st_gid),
            mtime_ns=info.st_mtime_ns,
            ctime_ns=info.st_ctime_ns,
            inode=info.st_ino,
            size=len(link),
            link=link,
            rdev=device,
            hard_link=self._group(info.st_dev, info.st_ino) if linked else 0,
            xattrs=read_xattrs_at(found.absolute),
        )

    def further_link(self, found: Found, first: Entry) -> Entry:
        """Another name of a file whose content is known."""
        values = {name: getattr(first, name) for name in Entry.__struct_fields__}
        return Entry(**(values | {"path": found.path}))

    def directory_of_stream(self, now_ns: int) -> Entry:
        """The root of a snapshot that holds one stream."""
        return _made_up(b"", Kind.DIRECTORY, 0o755, now_ns)

    def from_stream(self, name: bytes, size: int, content: bytes, depth: int, now_ns: int) -> Entry:
        base = _made_up(name, Kind.FILE, 0o600, now_ns)
        values = {field: getattr(base, field) for field in Entry.__struct_fields__}
        return Entry(**(values | {"size": size, "content": content, "depth": depth}))

    def _group(self, device: int, inode: int) -> int:
        """A number for a hard-link group that stays the same from run to run, so that unchanged leaves do too."""
        self._first_device = device if self._first_device is None else self._first_device
        if device == self._first_device:
            return inode
        return xxhash.xxh3_64_intdigest(f"{device}/{inode}".encode()) >> 1


def is_racy(mtime_ns: int, ctime_ns: int, started_ns: int, granularity: int) -> bool:
    """Whether a change right after the reading could leave the times as they are, or they lie in the future."""
    return max(mtime_ns, ctime_ns) >= started_ns - granularity


@cache
def granularity_ns(device: int) -> int:
    """How coarse a file system's timestamps may be."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split()
            if fields[2] == wanted:
                kind = fields[fields.index("-") + 1]
                return TICK_NS if kind in FINE_FILE_SYSTEMS else UNKNOWN_GRANULARITY_NS
    return UNKNOWN_GRANULARITY_NS


@lru_cache(maxsize=4096)
def user_name(uid: int) -> str:
    """Empty if the system knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@lru_cache(maxsize=4096)
def group_name(gid: int) -> str:
    """Empty if the system knows none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _made_up(path: bytes, kind: Kind, mode: int, now_ns: int) -> Entry:
    uid, gid = os.getuid(), os.getgid()
    return Entry(path, kind, mode, uid, gid, user_name(uid), group_name(gid), now_ns, now_ns, 0, 0)
