"""A catalog entry: everything kept of one file, directory, link or device. FORMAT.md, "Catalog"."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec

CHUNK_REF_BYTES = 36  # SHA-256, then the plaintext length as u32 little-endian


class Kind(IntEnum):
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


FLAG_RACY = 1  # changed within its timestamp's granularity of the reading: read again next time
FLAG_CHANGED = 2  # changed while it was read; the content is what was read
FLAG_UNREADABLE = 4  # could not be read; the entry has metadata only


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of the catalog. The order of the fields is the stored order; new ones are appended with a default.

    path       bytes relative to the snapshot's root, components joined by '/'; the root itself is b""
    mode       permission bits with setuid, setgid, sticky (no type bits)
    size       length of the content in bytes; the link target's length for a symlink, else 0
    content    `depth` 0: one chunk reference of 36 bytes per chunk; above: references of blobs that hold such lists
    hard_link  0, or a group number local to the snapshot; each member carries the whole content
    xattrs     (name, value) sorted by name, POSIX ACLs among them as system.posix_acl_*
    holes      (offset, length) of what the file system did not store, as far as it says
    """

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    mtime_ns: int
    ctime_ns: int
    inode: int
    size: int
    flags: int = 0
    content: bytes = b""
    depth: int = 0
    link: bytes = b""
    rdev: int = 0
    hard_link: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    holes: tuple[tuple[int, int], ...] = ()
    file_hash: bytes = b""
    extra: dict[str, Any] | None = None
    required: tuple[str, ...] = ()


def path_key(path: bytes) -> bytes:
    """Sort key of a path: component-wise bytes, the order of a sorted walk ('/' sorts before everything else)."""
    return path.replace(b"/", b"\0")


def chunk_refs(content: bytes) -> Iterator[tuple[bytes, int]]:
    """(chunk id, plaintext length) of each reference in a list of whole references."""
    for at in range(0, len(content), CHUNK_REF_BYTES):
        yield content[at : at + 32], int.from_bytes(content[at + 32 : at + CHUNK_REF_BYTES], "little")
