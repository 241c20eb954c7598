"""The catalog: a snapshot's entries in sorted order, in content-defined leaves below a tree of nodes. FORMAT.md, "Catalog".

    depth 2          [ node ]                      a node lists (first path, blob, length, entries) of what is below
    depth 1     [ node ] [ node ]
    leaves     [leaf][leaf][leaf][leaf]            a leaf lists entries

A leaf ends where the hash of a path says so, so an insertion changes one leaf and the nodes above it; everything else
has the same bytes, the same chunk id, and is stored once. Long chunk lists are cut into list blobs by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import msgspec
import xxhash

from enigma.errors import EnigmaError, FormatUnsupported, IntegrityError, KeyringError, ObjectCorrupt, ProviderError
from enigma.model.entries import CHUNK_REF_BYTES, Entry, path_key

LEAF_MASK = 0x1FF  # one path in 512 ends a leaf
LEAF_ENTRIES_LIMIT = 4096
LEAF_BYTES_LIMIT = 768 << 10
NODE_MASK = 0x7F
NODE_CHILDREN_LIMIT = 2048
LIST_REFS = 4096  # a chunk list longer than this becomes a tree of list blobs
LIST_MASK = 0x7FF
DEPTH_LIMIT = 12

T = TypeVar("T")
Put = Callable[[bytes], bytes]  # plaintext -> chunk id; stores it unless it exists
Has = Callable[[bytes], bool]  # whether a chunk id certainly exists
Get = Callable[[bytes, int], bytes]  # chunk id, plaintext length -> plaintext


class Child(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A line of a node: what is below, and the first path in it."""

    first_path: bytes
    chunk_id: bytes
    length_bytes: int
    entry_count: int


@dataclass(frozen=True, slots=True)
class Root:
    """Where a catalog begins. `depth` 0: the root blob is a leaf."""

    chunk_id: bytes
    length_bytes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an inherited entry stood in its parent's catalog: the leaf, and its position in it."""

    leaf: Child
    position: int


_encoder = msgspec.msgpack.Encoder(enc_hook=bytes)  # ids are bytes of a type of their own
_leaf_decoder = msgspec.msgpack.Decoder(list[Entry])
_node_decoder = msgspec.msgpack.Decoder(list[Child])


class CatalogWriter:
    """Takes entries in order; `finish` gives the root. A leaf whose entries are all inherited in place is not encoded."""

    def __init__(self, put: Put, has: Has) -> None:
        self._put = put
        self._has = has
        self._entries: list[Entry] = []
        self._bytes = 0
        self._inherited: Child | None = None
        self._levels: list[list[Child]] = [[]]
        self.entry_count = 0

    def add(self, entry: Entry, origin: Origin | None = None) -> None:
        """Entries must come in the order of `path_key`."""
        self._follow(origin)
        self._entries.append(entry)
        self.entry_count += 1
        self._bytes += _length_bytes(entry)
        if (
            xxhash.xxh3_64_intdigest(entry.path) & LEAF_MASK == 0
            or len(self._entries) >= LEAF_ENTRIES_LIMIT
            or self._bytes >= LEAF_BYTES_LIMIT
        ):
            self._end_leaf()

    def finish(self) -> Root:
        """Close leaf and nodes. The writer is used up."""
        if self._entries:
            self._end_leaf()
        return self._close(self._levels)

    def checkpoint(self) -> Root:
        """The root of what was added so far; the writer goes on as if nothing had happened."""
        levels = [list(level) for level in self._levels]
        if self._entries:
            levels[0].append(self._store_leaf(self._entries))
        return self._close(levels)

    def _follow(self, origin: Origin | None) -> None:
        """Keep track whether the open leaf is, so far, the beginning of one leaf of the parent."""
        if origin is None or origin.position != len(self._entries):
            self._inherited = None
        elif origin.position == 0:
            self._inherited = origin.leaf
        elif self._inherited is not None and self._inherited.chunk_id != origin.leaf.chunk_id:
            self._inherited = None

    def _end_leaf(self) -> None:
        entries, leaf = self._entries, self._inherited
        if leaf is None or leaf.entry_count != len(entries) or not self._has(leaf.chunk_id):
            leaf = self._store_leaf(entries)
        self._entries, self._bytes, self._inherited = [], 0, None
        self._append(self._levels, 0, leaf)

    def _store_leaf(self, entries: list[Entry]) -> Child:
        plain = _encoder.encode(entries)
        return Child(entries[0].path, self._put(plain), len(plain), len(entries))

    def _append(self, levels: list[list[Child]], level: int, child: Child) -> None:
        if level == len(levels):
            levels.append([])
        children = levels[level]
        children.append(child)
        ends = int.from_bytes(child.chunk_id[:4], "little") & NODE_MASK == 0
        if (ends and len(children) > 1) or len(children) >= NODE_CHILDREN_LIMIT:
            levels[level] = []
            self._append(levels, level + 1, self._store_node(children))

    def _store_node(self, children: list[Child]) -> Child:
        plain = _encoder.encode(children)
        count = sum(child.entry_count for child in children)
        return Child(children[0].first_path, self._put(plain), len(plain), count)

    def _close(self, levels: list[list[Child]]) -> Root:
        """Fold every level into the one above until a single child is left."""
        level = 0
        while True:
            children = levels[level]
            is_top = level == len(levels) - 1
            if is_top and len(children) == 1:
                return Root(children[0].chunk_id, children[0].length_bytes, level)
            if is_top and not children:
                plain = _encoder.encode([])
                return Root(self._put(plain), len(plain), 0)
            if is_top:
                levels.append([])
            if children:
                levels[level + 1].append(self._store_node(children))
            level += 1


def _length_bytes(entry: Entry) -> int:
    """At least what the entry takes in a leaf: every variable part, and room for the numbers."""
    texts = len(entry.path) + len(entry.user) + len(entry.group) + len(entry.content) + len(entry.link)
    xattrs = sum(len(name) + len(value) + 12 for name, value in entry.xattrs) if entry.xattrs else 0
    return 192 + texts + xattrs + 20 * len(entry.holes)


class CatalogReader:
    """Reads one catalog; a leaf at a time is in memory.

    With `on_damage`, a leaf or node that can't be read is told to it and passed over; without, it raises.
    """

    def __init__(self, root: Root, get: Get, on_damage: Callable[[EnigmaError], None] | None = None) -> None:
        if not 0 <= root.depth <= DEPTH_LIMIT:
            raise ObjectCorrupt(f"A catalog of depth {root.depth} is impossible; the snapshot is damaged.")
        self._root = root
        self._get = get
        self._on_damage = on_damage

    def leaves(self, start: bytes = b"") -> Iterator[Child]:
        """The leaves in order, from the one that may hold `start`."""
        top = Child(b"", self._root.chunk_id, self._root.length_bytes, -1)
        yield from self._leaves(top, self._root.depth, path_key(start))

    def blobs(self) -> Iterator[tuple[Child, int]]:
        """Every node and leaf with its depth, nodes before what is below them."""
        top = Child(b"", self._root.chunk_id, self._root.length_bytes, -1)
        yield from self._blobs(top, self._root.depth)

    def entries(self, start: bytes = b"") -> Iterator[Entry]:
        """The entries in order, from the leaf that may hold `start`."""
        for leaf in self.leaves(start):
            yield from self._tolerant(self.leaf, leaf)

    def inherited(self) -> Iterator[tuple[Entry, Origin]]:
        """The entries with where they stand, for a writer that continues this catalog."""
        for leaf in self.leaves():
            entries = self.leaf(leaf)
            place = Child(leaf.first_path, leaf.chunk_id, leaf.length_bytes, len(entries))
            for position, entry in enumerate(entries):
                yield entry, Origin(place, position)

    def leaf(self, leaf: Child) -> list[Entry]:
        """The entries of one leaf. Raises ObjectCorrupt, ChunkMissing."""
        try:
            entries = _leaf_decoder.decode(self._get(leaf.chunk_id, leaf.length_bytes))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as exc:
            raise ObjectCorrupt(f"Catalog leaf {leaf.chunk_id.hex()} holds no entries.") from exc
        for entry in entries:
            if entry.required:
                raise FormatUnsupported(f"An entry needs a newer Enigma (it uses {', '.join(entry.required)}).")
        return entries

    def find(self, path: bytes) -> Entry | None:
        """One entry, by reading the nodes above it and one leaf."""
        wanted = path_key(path)
        for leaf in self.leaves(path):
            for entry in self.leaf(leaf):
                key = path_key(entry.path)
                if key >= wanted:
                    return entry if key == wanted else None
        return None

    def _leaves(self, child: Child, depth: int, start: bytes) -> Iterator[Child]:
        if depth == 0:
            yield child
            return
        children = self._tolerant(self._node, child)
        for number, below in enumerate(children):
            following = children[number + 1] if number + 1 < len(children) else None
            if following is None or path_key(following.first_path) > start:
                yield from self._leaves(below, depth - 1, start)

    def _blobs(self, child: Child, depth: int) -> Iterator[tuple[Child, int]]:
        yield child, depth
        if depth:
            for below in self._node(child):
                yield from self._blobs(below, depth - 1)

    def _tolerant(self, read: Callable[[Child], list[T]], child: Child) -> list[T]:
        try:
            return read(child)
        except (IntegrityError, FormatUnsupported, KeyringError, ProviderError) as exc:
            if self._on_damage is None:
                raise
            self._on_damage(exc)
            return []

    def _node(self, child: Child) -> list[Child]:
        try:
            children = _node_decoder.decode(self._get(child.chunk_id, child.length_bytes))
        except (msgspec.MsgspecError, RecursionError, MemoryError) as exc:
            raise ObjectCorrupt(f"Catalog node {child.chunk_id.hex()} holds no list.") from exc
        _check_order([one.first_path for one in children], child)
        return children


def _check_order(paths: list[bytes], child: Child) -> None:
    """Ascending and never twice: what repeats itself could be read without end."""
    keys = [path_key(path) for path in paths]
    if any(left >= right for left, right in pairwise(keys)):
        raise ObjectCorrupt(f"Catalog blob {child.chunk_id.hex()} is not in order.")


class ChunkListWriter:
    """A file's chunk references; a long list becomes list blobs, cut where a chunk id says so, so appends are cheap."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._levels: list[bytearray] = [bytearray()]

    def add(self, references: bytes) -> None:
        """Whole references of 36 bytes."""
        if not self._is_long and len(self._levels[0]) + len(references) <= LIST_REFS * CHUNK_REF_BYTES:
            self._levels[0] += references
            return
        pending, self._levels[0] = bytes(self._levels[0]) + references, bytearray()
        for at in range(0, len(pending), CHUNK_REF_BYTES):
            self._append(0, pending[at : at + CHUNK_REF_BYTES])

    def finish(self) -> tuple[bytes, int]:
        """(content, depth) for the entry."""
        if not self._is_long and len(self._levels[0]) <= LIST_REFS * CHUNK_REF_BYTES:
            return bytes(self._levels[0]), 0
        level = 0
        while level < len(self._levels) - 1:
            if self._levels[level]:
                self._flush(level)
            level += 1
        return bytes(self._levels[-1]), len(self._levels) - 1

    @property
    def _is_long(self) -> bool:
        return len(self._levels) > 1

    def _append(self, level: int, reference: bytes) -> None:
        if level + 1 >= len(self._levels):
            self._levels.append(bytearray())
        self._levels[level] += reference
        count = len(self._levels[level]) // CHUNK_REF_BYTES
        ends = int.from_bytes(reference[:4], "little") & LIST_MASK == 0
        if level < DEPTH_LIMIT - 1 and ((ends and count > 1) or count >= LIST_REFS):
            self._flush(level)

    def _flush(self, level: int) -> None:
        plain, self._levels[level] = bytes(self._levels[level]), bytearray()
        reference = self._put(plain) + len(plain).to_bytes(4, "little")
        if level + 1 == len(self._levels) - 1 and len(self._levels[level + 1]) < LIST_REFS * CHUNK_REF_BYTES:
            self._levels[level + 1] += reference
        else:
            self._append(level + 1, reference)


def content_refs(entry: Entry, get: Get) -> Iterator[tuple[bytes, int]]:
    """(chunk id, length) of a file's chunks, reading list blobs as needed. Raises ObjectCorrupt for a broken list."""
    yield from _refs(entry.content, entry.depth, get)


def list_blobs(entry: Entry, get: Get) -> Iterator[tuple[bytes, int]]:
    """(chunk id, length) of the list blobs themselves."""
    yield from _lists(entry.content, entry.depth, get)


def _refs(content: bytes, depth: int, get: Get) -> Iterator[tuple[bytes, int]]:
    for chunk_id, length_bytes in _split(content, depth):
        if depth:
            yield from _refs(get(chunk_id, length_bytes), depth - 1, get)
        else:
            yield chunk_id, length_bytes


def _lists(content: bytes, depth: int, get: Get) -> Iterator[tuple[bytes, int]]:
    if depth:
        for chunk_id, length_bytes in _split(content, depth):
            yield chunk_id, length_bytes
            if depth > 1:
                yield from _lists(get(chunk_id, length_bytes), depth - 1, get)


def _split(content: bytes, depth: int) -> Iterator[tuple[bytes, int]]:
    if len(content) % CHUNK_REF_BYTES or not 0 <= depth <= DEPTH_LIMIT:
        raise ObjectCorrupt("A chunk list has an impossible length; the catalog is damaged.")
    for at in range(0, len(content), CHUNK_REF_BYTES):
        yield content[at : at + 32], int.from_bytes(content[at + 32 : at + CHUNK_REF_BYTES], "little")
