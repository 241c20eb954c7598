"""The bytes every stored object begins and ends with, and how small objects are sealed. FORMAT.md, "Objects".

    +------------+-------+------------------------+-----+----------+
    | header 80  | nonce | sealed body (padded)   | tag | xxh3-128 |
    |            | 12    | n                      | 16  | 16       |
    +------------+-------+------------------------+-----+----------+

The header is clear and is the additional data of everything sealed in the object. The checksum at the end lets anybody
find bit-rot without a key; it proves nothing against an adversary, the tag does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from workers.compression import ENCODING_RAW, ENCODING_ZSTD, compress_small, decompress_small
from workers.errors import FormatNewer, SealBroken
from workers.sealing import NONCE_BYTES, SUITE_AES256GCM_HKDF_SHA256, TAG_BYTES, Cipher, object_key, random_nonce

MAGIC = b"\x89ENIGMA\n"
FORMAT_VERSION = 1
HEADER = struct.Struct("<8sHBBIII16s16s16sB7s")
HEADER_BYTES = HEADER.size
CHECKSUM_BYTES = 16
BODY = struct.Struct("<BQ")  # encoding, stored length of the body

# What this program understands. A set bit it does not know refuses the whole object, by who wants to do what.
KNOWN_READER_FEATURES = 0
KNOWN_WRITER_FEATURES = 0
KNOWN_GC_FEATURES = 0


class ObjectType(IntEnum):
    CONFIG = 1
    SLOT = 2
    DATA_KEY = 3
    PACK = 4
    INDEX = 5
    SNAPSHOT = 6
    SESSION = 7
    CONDEMN = 8
    RESCUE = 9
    SWEPT = 10
    FENCE = 11
    TOMB = 12
    GATEWAY = 13
    SHARD = 14
    MARKER = 15


class PackSet(IntEnum):
    """Whose packs: the sets share nothing, so one's garbage collection can't touch another's data. 0 elsewhere."""

    NONE = 0
    BACKUP = 1
    CATALOG = 2
    GATEWAY = 3


@dataclass(frozen=True, slots=True)
class Header:
    """The clear first 80 bytes. `object_id` must equal the id in the object's name."""

    object_type: ObjectType
    repository_id: bytes
    object_id: bytes
    key_id: bytes
    pack_set: PackSet = PackSet.NONE
    reader_features: int = 0
    writer_features: int = 0
    gc_features: int = 0

    def encode(self) -> bytes:
        return HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.object_type,
            SUITE_AES256GCM_HKDF_SHA256,
            self.reader_features,
            self.writer_features,
            self.gc_features,
            self.repository_id,
            self.object_id,
            self.key_id,
            self.pack_set,
            bytes(7),
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Header:
        """Raises SealBroken for anything that is no header, FormatNewer for a version or feature unknown here."""
        if len(data) < HEADER_BYTES:
            raise SealBroken("shorter than a header")
        magic, version, kind, suite, reader, writer, gc, repository, name, key, pack_set, _ = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise SealBroken("does not begin like an Enigma object")
        if version != FORMAT_VERSION or suite != SUITE_AES256GCM_HKDF_SHA256 or reader & ~KNOWN_READER_FEATURES:
            raise FormatNewer(f"format {version}, suite {suite}, features {reader:#x} need a newer Enigma")
        try:
            return cls(ObjectType(kind), repository, name, key, PackSet(pack_set), reader, writer, gc)
        except ValueError as exc:
            raise FormatNewer(f"object type {kind} of set {pack_set} needs a newer Enigma") from exc


def padme(length_bytes: int) -> int:
    """The next Padme size: at most 12 % more, and sizes tell only their order of magnitude."""
    if length_bytes < 2:
        return length_bytes
    exponent = length_bytes.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (length_bytes + mask) & ~mask


def checksum(*parts: bytes | memoryview) -> bytes:
    """xxh3-128 of the parts in a row."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


def seal_object(header: Header, data_key: bytes, body: bytes) -> bytes:
    """A whole small object, ready to be put."""
    encoding, stored = compress_small(body)
    plain = BODY.pack(encoding, len(stored)) + stored
    plain += bytes(padme(len(plain)) - len(plain))
    head = header.encode()
    nonce = random_nonce()
    sealed = _cipher(header, data_key).seal(plain, nonce=nonce, aad=head)
    return b"".join((head, nonce, sealed, checksum(head, nonce, sealed)))


def open_object(data: bytes, header: Header, data_key: bytes) -> bytes:
    """The body of a small object whose header was decoded from `data`. Raises SealBroken, FormatNewer."""
    check_whole(data)
    nonce = data[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES]
    sealed = data[HEADER_BYTES + NONCE_BYTES : -CHECKSUM_BYTES]
    plain = _cipher(header, data_key).open(sealed, nonce=nonce, aad=data[:HEADER_BYTES])
    if len(plain) < BODY.size:
        raise SealBroken("has no body")
    encoding, length_bytes = BODY.unpack_from(plain)
    if length_bytes > len(plain) - BODY.size:
        raise SealBroken("has a body longer than itself")
    if encoding not in (ENCODING_RAW, ENCODING_ZSTD):
        raise FormatNewer(f"body encoding {encoding} needs a newer Enigma")
    return decompress_small(encoding, plain[BODY.size : BODY.size + length_bytes])


def check_whole(data: bytes | memoryview) -> None:
    """The keyless check of a small object: its closing checksum. Raises SealBroken."""
    if len(data) < HEADER_BYTES + NONCE_BYTES + TAG_BYTES + CHECKSUM_BYTES:
        raise SealBroken("is truncated")
    view = memoryview(data)
    if checksum(view[:-CHECKSUM_BYTES]) != bytes(view[-CHECKSUM_BYTES:]):
        raise SealBroken("fails its checksum")


def _cipher(header: Header, data_key: bytes) -> Cipher:
    key = object_key(
        data_key,
        object_id=header.object_id,
        repository_id=header.repository_id,
        object_type=header.object_type,
    )
    return Cipher(key)
