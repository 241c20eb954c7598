"""A pack: many blobs in one object, with its own sealed table of contents. FORMAT.md, "Packs".

    +-----------+------+------+-----+---------+-------+---------------------+-----+------------+
    | header 80 | blob | blob | ... | zeros   | nonce | sealed table        | tag | trailer 64 |
    |           |      |      |     | (Padme) | 12    | 16 + 64 per blob    | 16  |            |
    +-----------+------+------+-----+---------+-------+---------------------+-----+------------+

PackWriter builds one in memory that it is given; it allocates nothing as large as a blob. PackReader reads the table
back from the end alone, so that an index can be rebuilt from packs, and one chunk can be had by one range read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from workers.errors import FormatNewer, SealBroken
from workers.objects import CHECKSUM_BYTES, FORMAT_VERSION, HEADER_BYTES, Header, ObjectType, padme
from workers.sealing import NONCE_BYTES, TAG_BYTES, Cipher, object_key, random_nonce

HASH_SHA256 = 1
TABLE_AAD = b"table"
RECORD = struct.Struct("<32s12sIIIBBHI")  # hash, nonce, offset, stored, plain, hash algorithm, encoding, dictionary, 0
RECORD_BYTES = RECORD.size
TABLE_HEAD = struct.Struct("<IQI")  # records, zeros before the table, length of the extra map after the records
TRAILER = struct.Struct("<QQQIHBx16s16s")  # table offset, table length, length, blobs, version, set, key id, xxh3
TRAILER_BYTES = TRAILER.size
MAX_BLOBS = 16_384
_ZEROS = bytes(1 << 20)


class BlobRecord(NamedTuple):
    """One line of a pack's table: where a chunk's blob is and how to open it."""

    chunk_id: bytes
    nonce: bytes
    offset: int
    stored_bytes: int
    plain_bytes: int
    hash_algorithm: int
    encoding: int
    dictionary: int
    reserved: int


@dataclass(frozen=True, slots=True)
class PackSpec:
    """What a worker needs to make packs of one set: the header's constant part, the data key, and the size wanted."""

    header: Header
    data_key: bytes
    target_bytes: int

    def __repr__(self) -> str:
        return f"PackSpec(set={self.header.pack_set.name}, target_bytes={self.target_bytes}, data_key=<secret>)"

    def slot_bytes(self, max_chunk_bytes: int) -> int:
        """Memory that any pack of this spec, and behind it the plain copy of its records, fits in; whole pages."""
        blobs_bytes = max(self.target_bytes, HEADER_BYTES + max_chunk_bytes + TAG_BYTES)
        pack_bytes = padme(blobs_bytes + closing_bytes(MAX_BLOBS))
        return (pack_bytes + MAX_BLOBS * RECORD_BYTES + 4095) & ~4095


def closing_bytes(blob_count: int) -> int:
    """Bytes after the blobs (and zeros) of a pack: its sealed table and its trailer."""
    return NONCE_BYTES + TABLE_HEAD.size + blob_count * RECORD_BYTES + TAG_BYTES + TRAILER_BYTES


class PackWriter:
    """Builds one pack at the start of `memory`; the caller owns the memory and hands it on when `close` returns."""

    def __init__(self, spec: PackSpec, pack_id: bytes, memory: memoryview) -> None:
        header = Header(ObjectType.PACK, spec.header.repository_id, pack_id, spec.header.key_id, spec.header.pack_set)
        self.pack_id = pack_id
        self.blob_count = 0
        self._head = header.encode()
        self._header = header
        self._cipher = _pack_cipher(header, spec.data_key)
        self._memory = memory
        self._end_bytes = HEADER_BYTES
        self._target_bytes = spec.target_bytes
        self._records: list[bytes] = []
        memory[:HEADER_BYTES] = self._head

    def has_room(self, plain_bytes: int) -> bool:
        """Whether a blob of a chunk of this length still fits; the first one always does."""
        if not self._records:
            return True
        return self.blob_count < MAX_BLOBS and self._end_bytes + plain_bytes + TAG_BYTES <= self._target_bytes

    def add(self, chunk_id: bytes, content: bytes | memoryview, *, encoding: int, plain_bytes: int) -> int:
        """Seal `content` (the plaintext, or its zstd frame) as the next blob; return its stored length."""
        nonce = random_nonce()
        at = self._end_bytes
        out = self._memory[at : at + len(content) + TAG_BYTES]
        stored_bytes = self._cipher.seal_into(content, out, nonce=nonce, aad=blob_aad(self._head, chunk_id, encoding))
        self._records.append(RECORD.pack(chunk_id, nonce, at, stored_bytes, plain_bytes, HASH_SHA256, encoding, 0, 0))
        self._end_bytes = at + stored_bytes
        self.blob_count += 1
        return stored_bytes

    def close(self, extra: bytes = b"") -> tuple[int, int]:
        """Write zeros, table and trailer, and behind the pack a plain copy of the records for the parent process.

        Returns (length of the pack, length of the records). `extra` is an encoded map, kept in the sealed table.
        """
        memory, records = self._memory, b"".join(self._records)
        bare_bytes = self._end_bytes + closing_bytes(self.blob_count) + len(extra)
        length_bytes = padme(bare_bytes)
        pad_bytes = length_bytes - bare_bytes
        table_at = self._end_bytes + pad_bytes
        _zero(memory[self._end_bytes : table_at])
        table = TABLE_HEAD.pack(self.blob_count, pad_bytes, len(extra)) + records + extra
        nonce = random_nonce()
        memory[table_at : table_at + NONCE_BYTES] = nonce
        sealed_at = table_at + NONCE_BYTES
        table_bytes = NONCE_BYTES + self._cipher.seal_into(
            table, memory[sealed_at:], nonce=nonce, aad=self._head + TABLE_AAD
        )
        self._write_trailer(table_at, table_bytes, length_bytes)
        memory[length_bytes : length_bytes + len(records)] = records
        return length_bytes, len(records)

    def _write_trailer(self, table_at: int, table_bytes: int, length_bytes: int) -> None:
        header, memory = self._header, self._memory
        fields = (table_at, table_bytes, length_bytes, self.blob_count, FORMAT_VERSION, header.pack_set, header.key_id)
        trailer = TRAILER.pack(*fields, bytes(CHECKSUM_BYTES))
        at = length_bytes - TRAILER_BYTES
        memory[at:length_bytes] = trailer
        digest = xxhash.xxh3_128_digest(memory[: length_bytes - CHECKSUM_BYTES])
        memory[length_bytes - CHECKSUM_BYTES : length_bytes] = digest


@dataclass(frozen=True, slots=True)
class Trailer:
    """The clear last 64 bytes of a pack: where its table is. Not authenticated by itself; the table's tag is."""

    table_offset: int
    table_bytes: int
    length_bytes: int
    blob_count: int
    key_id: bytes

    @classmethod
    def decode(cls, data: bytes | memoryview, pack_bytes: int) -> Trailer:
        """From the last 64 bytes of an object of `pack_bytes`. Raises SealBroken, FormatNewer."""
        if len(data) != TRAILER_BYTES:
            raise SealBroken("is shorter than a trailer")
        offset, length, total, count, version, _set, key_id, _digest = TRAILER.unpack(data)
        if version > FORMAT_VERSION and total == pack_bytes:
            raise FormatNewer(f"pack format {version} needs a newer Enigma")
        if total != pack_bytes or offset + length + TRAILER_BYTES != total or offset < HEADER_BYTES:
            raise SealBroken("has a trailer that does not fit its length")
        return cls(offset, length, total, count, key_id)


class PackReader:
    """Opens the table and the blobs of one pack. Needs the pack's header, which is bound into everything."""

    def __init__(self, header: Header, data_key: bytes) -> None:
        if header.object_type is not ObjectType.PACK:
            raise SealBroken("is no pack")
        self._head = header.encode()
        self._cipher = _pack_cipher(header, data_key)

    def open_table(self, sealed: bytes | memoryview) -> bytes:
        """The records, 64 bytes each, from the bytes [table_offset, table_offset + table_bytes) of the pack."""
        table = self._cipher.open(sealed[NONCE_BYTES:], nonce=bytes(sealed[:NONCE_BYTES]), aad=self._head + TABLE_AAD)
        if len(table) < TABLE_HEAD.size:
            raise SealBroken("has an empty table")
        count, _pad, extra_bytes = TABLE_HEAD.unpack_from(table)
        records_end = TABLE_HEAD.size + count * RECORD_BYTES
        if records_end + extra_bytes != len(table):
            raise SealBroken("has a table of the wrong length")
        return table[TABLE_HEAD.size : records_end]

    def open_blob(self, sealed: memoryview, record: BlobRecord, out: memoryview) -> int:
        """Decrypt one blob into `out`; return the length of its content (plaintext or zstd frame)."""
        aad = blob_aad(self._head, record.chunk_id, record.encoding)
        return self._cipher.open_into(sealed, out, nonce=record.nonce, aad=aad)


def check_pack_ends(pack: memoryview, header: Header) -> None:
    """Whole-object checksum, header and trailer of a pack in memory. Raises SealBroken, FormatNewer."""
    if len(pack) < HEADER_BYTES + TRAILER_BYTES:
        raise SealBroken("is truncated")
    if Header.decode(pack[:HEADER_BYTES]) != header:
        raise SealBroken("is not the object its name says; two objects may have been swapped")
    Trailer.decode(pack[-TRAILER_BYTES:], len(pack))
    if xxhash.xxh3_128_digest(pack[:-CHECKSUM_BYTES]) != bytes(pack[-CHECKSUM_BYTES:]):
        raise SealBroken("fails its checksum")


def blob_aad(head: bytes, chunk_id: bytes, encoding: int) -> bytes:
    return head + chunk_id + bytes((encoding,))


def iter_records(records: bytes | memoryview) -> Iterator[BlobRecord]:
    """Raises SealBroken if the bytes are no whole number of records."""
    if len(records) % RECORD_BYTES:
        raise SealBroken("has a table of the wrong length")
    return map(BlobRecord._make, RECORD.iter_unpack(records))


def _pack_cipher(header: Header, data_key: bytes) -> Cipher:
    key = object_key(
        data_key, object_id=header.object_id, repository_id=header.repository_id, object_type=ObjectType.PACK
    )
    return Cipher(key)


def _zero(view: memoryview) -> None:
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
