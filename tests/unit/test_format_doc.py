"""FORMAT.md and the code say the same: its tables are parsed and held against constants, structs and records."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
import xxhash
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import enigma
from enigma.keys import kdf, local, slots
from enigma.model import entries, records
from enigma.repository import catalog, names, repository, sessions, writing
from enigma.repository import settings as sealed
from enigma.repository import store as objects_store
from enigma.snapshots import entries as made
from tests.golden.make import PASSPHRASE
from workers import chunking, compression, labour, objects, packs, sealing

ROOT = Path(enigma.__file__).parent.parent
TEXT = (ROOT / "enigma" / "FORMAT.md").read_text()
GOLDEN = ROOT / "tests" / "golden" / "v1"


def section(title: str) -> str:
    return re.split(r"\n## ", TEXT.split(f"\n## {title}\n")[1])[0]


def rows_after(text: str, head: str) -> list[list[str]]:
    """The rows of the first table whose header line is `head`."""
    after = text.split(f"\n{head}\n")[1]
    lines = after.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def layout(title: str, head: str) -> dict[str, tuple[int, int]]:
    """Byte table: first words of the field -> (offset, size). Fails if there is a gap."""
    fields: dict[str, tuple[int, int]] = {}
    at = 0
    for offset, size, name in rows_after(section(title), f"| offset | size | {head} |"):
        assert int(offset) == at, f"{title}: {name}"
        at += int(size)
        fields[re.split(r"[,:;]", name)[0]] = (int(offset), int(size))
    return fields


def size_of(fields: dict[str, tuple[int, int]]) -> int:
    return sum(size for _, size in fields.values())


def magic(text: str) -> bytes:
    found = re.search(r"magic `((?:[0-9a-f]{2} )*[0-9a-f]{2})`", text)
    assert found
    return bytes.fromhex(found[1])


def shown_bytes(text: str) -> list[bytes]:
    """Indented hex dumps, in order; a dump's lines may begin with an eight-digit offset."""
    line = r"    (?:[0-9a-f]{8}  )?[0-9a-f]{2}(?: [0-9a-f]{2})+\n"
    blocks = re.findall(rf"((?:^{line})+)", text, re.MULTILINE)
    return [bytes.fromhex(re.sub(r"^    ([0-9a-f]{8}  )?", "", block, flags=re.MULTILINE)) for block in blocks]


HEADER = objects.Header(
    objects.ObjectType.PACK,
    bytes.fromhex("00112233445566778899aabbccddeeff"),
    bytes(range(16)),
    bytes(range(0xF0, 0x100)),
    objects.PackSet.BACKUP,
)


# ---- byte tables


@pytest.mark.parametrize(
    ("title", "head", "size"),
    [
        ("Objects", "field", objects.HEADER_BYTES),
        ("Keys", "envelope field", local.ENVELOPE.size),
        ("Keys", "ML-KEM file field", len(local.MLKEM_MAGIC) + 16 + 2400 + objects.CHECKSUM_BYTES),
        ("Packs", "record field", packs.RECORD_BYTES),
        ("Packs", "trailer field", packs.TRAILER_BYTES),
    ],
)
def test_byte_tables_have_no_gap_and_the_codes_size(title: str, head: str, size: int) -> None:
    assert size_of(layout(title, head)) == size


def test_header_fields_lie_where_the_table_says() -> None:
    raw = objects.Header(
        objects.ObjectType.PACK, b"R" * 16, b"O" * 16, b"K" * 16, objects.PackSet.CATALOG, 0, 7, 9
    ).encode()
    cut = {name: raw[at : at + size] for name, (at, size) in layout("Objects", "field").items()}
    assert cut["magic `89 45 4e 49 47 4d 41 0a`"] == objects.MAGIC == magic(section("Objects"))
    assert cut["format version"] == objects.FORMAT_VERSION.to_bytes(2, "little")
    assert (cut["object type"], cut["suite"]) == (b"\4", bytes([sealing.SUITE_AES256GCM_HKDF_SHA256]))
    assert cut["feature bits a reader must know"] == bytes(4)
    assert cut["feature bits a writer must know"] == b"\7\0\0\0"
    assert cut["feature bits a garbage collection must know"] == b"\x09\0\0\0"
    assert (cut["repository id"], cut["object id"], cut["key id"]) == (b"R" * 16, b"O" * 16, b"K" * 16)
    assert (cut["pack set"], cut["zero"]) == (b"\2", bytes(7))


def test_record_fields_lie_where_the_table_says() -> None:
    raw = packs.RECORD.pack(b"H" * 32, b"N" * 12, 1, 2, 3, 4, 5, 6, 7)
    cut = [raw[at : at + size] for at, size in layout("Packs", "record field").values()]
    assert cut[:2] == [b"H" * 32, b"N" * 12]
    assert [int.from_bytes(one, "little") for one in cut[2:]] == [1, 2, 3, 4, 5, 6, 7]
    said = [name.split()[0] for name in layout("Packs", "record field")]
    assert said == ["chunk", "nonce", "offset", "stored", "length", "hash", "encoding", "dictionary", "zero"]


def test_trailer_fields_lie_where_the_table_says() -> None:
    raw = packs.TRAILER.pack(1, 2, 3, 4, 5, 6, b"K" * 16, b"D" * 16)
    cut = {name: raw[at : at + size] for name, (at, size) in layout("Packs", "trailer field").items()}
    numbers = [
        "offset of the table's nonce",
        "length of nonce",
        "length of the pack",
        "number of blobs",
        "format version",
        "pack set",
    ]
    assert [int.from_bytes(cut[name], "little") for name in numbers] == [1, 2, 3, 4, 5, 6]
    assert (cut["key id"], cut["xxh3-128 of everything before"]) == (b"K" * 16, b"D" * 16)


def test_table_head_and_body_head_have_the_listed_sizes() -> None:
    table = rows_after(section("Packs"), "| offset | size | table field |")
    assert [row[:2] for row in table[:4]] == [["0", "4"], ["4", "8"], ["12", "4"], ["16", "64 * n"]]
    assert packs.TABLE_HEAD.size == 16
    assert packs.TABLE_HEAD.pack(1, 2, 3) == b"\1\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0"
    body = rows_after(section("Objects"), "| offset | size | body field |")
    assert [row[:2] for row in body] == [["0", "1"], ["1", "8"], ["9", "n"]]
    assert objects.BODY.pack(1, 2) == b"\1\2\0\0\0\0\0\0\0"


def test_the_envelope_lies_where_its_table_says() -> None:
    raw = local.ENVELOPE.pack(local.MAGIC, local.VERSION, 1, 2, 3, b"S" * 32)
    cut = {name: raw[at : at + size] for name, (at, size) in layout("Keys", "envelope field").items()}
    assert cut["magic `89 45 4e 49 4b 45 59 0a`"] == local.MAGIC == magic(section("Keys"))
    assert cut["version"] == local.VERSION.to_bytes(2, "little")
    assert cut["Argon2id memory in KiB"] == b"\1\0\0\0"
    assert (cut["passes"], cut["lanes"], cut["salt"]) == (b"\2\0", b"\3\0", b"S" * 32)


# ---- names and numbers


def test_types_and_sets_have_their_numbers() -> None:
    listed = {
        int(number) for row in rows_after(section("Names"), "| key | object | type |") for number in row[2].split(",")
    }
    assert listed | {14} == {int(kind) for kind in objects.ObjectType}
    assert objects.ObjectType(14).name == "SHARD"
    said = re.search(r"pack set: ((?:\d \w+(?:, )?)+)", section("Objects"))
    assert said
    sets = dict(one.split()[::-1] for one in said[1].split(", "))
    assert {name: int(number) for name, number in sets.items()} == {
        one.name.lower(): int(one) for one in objects.PackSet
    }


def test_every_listed_name_is_ours_and_has_its_type() -> None:
    an_id = "0123456789abcdef" * 2
    seen = set()
    for pattern, _, types in rows_after(section("Names"), "| key | object | type |"):
        for one, number in zip(re.findall(r"`([^`]+)`", pattern), types.split(","), strict=True):
            key = one.replace("<generation, 8 digits>", "00000001").replace("<number, 6 digits>", "000001")
            key = key.replace("<first 2 digits of id>", "01").replace("<set>", "backup")
            key = re.sub(r"<(id|session)>", an_id, key)
            if key.startswith("gateway/"):
                continue
            assert names.is_ours(key), key
            assert names.type_of(key) == int(number)
            seen.add(int(number))
    assert seen == {int(kind) for kind in names.TYPES.values()}


def test_names_that_the_code_makes_have_the_listed_form() -> None:
    one, two = bytes(range(16)), bytes(range(16, 32))
    forms = [row[0] for row in rows_after(section("Names"), "| key | object | type |")]
    for key in (
        names.config_key(7, one),
        names.pack_key(1, one),
        names.index_key(2, one),
        names.snapshot_key(one),
        names.session_key(one, 3, two),
        names.gc_key(objects.ObjectType.RESCUE, one),
        names.fence_key(one, two),
        names.tomb_key(one),
    ):
        form = key.replace(two.hex(), "<id>") if two.hex() in key else key.replace(one.hex(), "<id>")
        form = form.replace(one.hex(), "<session>").replace("00000007", "<generation, 8 digits>")
        form = form.replace("000003", "<number, 6 digits>").replace("/00/", "/<first 2 digits of id>/")
        form = re.sub(r"/(backup|catalog)/", "/<set>/", form)
        assert any(f"`{form}`" in cell for cell in forms), form


# ---- records


TYPES = {bytes: "bin", str: "str", int: "int", bool: "bool"}


def type_name(hint: Any) -> str:
    """The document's word for a field's type."""
    if hint in TYPES:
        return TYPES[hint]
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if get_origin(inner) is tuple:
            return "array of [" + ", ".join(map(type_name, get_args(inner))) + "]"
        return f"array of {type_name(inner)}"
    if type(None) in get_args(hint):
        return "map or nil"
    return "map" if get_origin(hint) is dict else str(hint.__name__)


def fields_of(struct: type[msgspec.Struct]) -> list[tuple[str, str]]:
    hints = get_type_hints(struct)
    return [(name, type_name(hints[name])) for name in struct.__struct_fields__]


def listed_fields(text: str, head: str = "| field | type | meaning |") -> list[tuple[str, str]]:
    return [(row[0].strip("`"), row[1]) for row in rows_after(text, head)]


def test_every_record_has_the_listed_fields_types_and_order() -> None:
    common, *described = section("Records").split("\n### ")
    always = listed_fields(common)
    assert always == fields_of(records.Record)
    listed = {one.split("\n")[0]: listed_fields(one) + always for one in described}
    assert listed == {one.__name__: fields_of(one) for one in records.Record.__subclasses__()}


def test_a_record_is_encoded_as_a_map_of_all_its_fields_by_name() -> None:
    encoded = records.encode(records.Head(logical_id=b"x", sha256=b"y"))
    assert msgspec.msgpack.decode(encoded) == {"logical_id": b"x", "sha256": b"y", "extra": {}, "required": []}


def test_an_entry_has_the_listed_fields_types_and_order() -> None:
    assert listed_fields(section("Catalog")) == fields_of(entries.Entry)


def test_kinds_and_flags_have_their_numbers() -> None:
    meanings = {row[0]: row[2] for row in rows_after(section("Catalog"), "| field | type | meaning |")}
    kinds = dict(re.findall(r"(\d) ([a-z ]+?)(?:,|$)", meanings["`kind`"]))
    assert {int(number): word for number, word in kinds.items()} == {
        int(kind): kind.name.lower().replace("_", " ") for kind in entries.Kind
    }
    flags = {word: int(number) for number, word in re.findall(r"(\d) (racy|changed|unreadable)", meanings["`flags`"])}
    assert flags == {
        "racy": entries.FLAG_RACY,
        "changed": entries.FLAG_CHANGED,
        "unreadable": entries.FLAG_UNREADABLE,
    }


def test_key_objects_have_the_listed_fields_types_and_order() -> None:
    assert listed_fields(section("Keys"), "| slot field | type | meaning |") == fields_of(slots.SlotBody)
    assert listed_fields(section("Keys"), "| data key field | type | meaning |") == fields_of(slots.DataKeyBody)


def test_key_derivations_have_the_listed_infos() -> None:
    infos = {row[0]: row[2].strip('"').encode() for row in rows_after(section("Keys"), "| key of | input | info |")}
    assert infos == {
        "the ML-KEM secret key": slots.SECRET_INFO,
        "the master key": slots.HYBRID_INFO,
        "the keystore file": slots.FILE_INFO,
    }
    assert local.MLKEM_MAGIC.hex(" ") in section("Keys")
    assert f"`{slots.KIND_HYBRID}`" in section("Keys")


# ---- constants

CONSTANTS: list[tuple[str, str, bool]] = [
    ("Catalog", "low 9 bits of xxh3-64", catalog.LEAF_MASK == (1 << 9) - 1),
    ("Catalog", "its 4,096th, or", catalog.LEAF_ENTRIES_LIMIT == 4096),
    ("Catalog", "786,432 bytes or more", catalog.LEAF_BYTES_LIMIT == 786_432),
    ("Catalog", "low 7 bits of the first four bytes", catalog.NODE_MASK == (1 << 7) - 1),
    ("Catalog", "its 2,048th", catalog.NODE_CHILDREN_LIMIT == 2048),
    ("Catalog", "depth of at most 12", catalog.DEPTH_LIMIT == 12),
    ("Catalog", "more than 4,096 chunks", catalog.LIST_REFS == 4096),
    ("Catalog", "low 11 bits of the first four bytes", catalog.LIST_MASK == (1 << 11) - 1),
    ("Catalog", "36 bytes per chunk", entries.CHUNK_REF_BYTES == 36),
    ("Catalog", "20 ms", made.TICK_NS == 20_000_000),
    ("Catalog", "else 2 s", made.UNKNOWN_GRANULARITY_NS == 2_000_000_000),
    ("Catalog", "512 at most", labour.HOLES_LIMIT == 512),
    ("Index", "reach 8 MiB", writing.INDEX_RECORDS_BYTES == 8 << 20),
    ("Packs", "at most 16,384 blobs", packs.MAX_BLOBS == 16_384),
    ("Packs", "catalog: 8 MiB", repository.CATALOG_PACK_BYTES == 8 << 20),
    (
        "Packs",
        "filled to 32 MiB (catalog: 8 MiB), to 64 and 128 MiB in repositories above 1 and 8 TiB",
        repository.PACK_TARGETS == ((1 << 40, 32 << 20), (8 << 40, 64 << 20), (1 << 63, 128 << 20)),
    ),
    ("Packs", "encoding: 0 raw, 1 zstd", (compression.ENCODING_RAW, compression.ENCODING_ZSTD) == (0, 1)),
    ("Packs", "hash algorithm: 1 = SHA-256", packs.HASH_SHA256 == 1),
    ("Packs", "header | `table`", packs.TABLE_AAD == b"table"),
    ("Objects", "encoding: 0 raw, 1 zstd", (compression.ENCODING_RAW, compression.ENCODING_ZSTD) == (0, 1)),
    ("Objects", "suite: 1 = AES-256-GCM with HKDF-SHA256", sealing.SUITE_AES256GCM_HKDF_SHA256 == 1),
    ("Objects", "at most 2^28", compression.SMALL_BODY_LIMIT_BYTES == 1 << 28),
    ("Objects", "above 256 MiB", objects_store.SMALL_OBJECT_LIMIT_BYTES == 256 << 20),
    (
        "Objects",
        "No feature bit is defined in version 1",
        not objects.KNOWN_READER_FEATURES | objects.KNOWN_WRITER_FEATURES | objects.KNOWN_GC_FEATURES,
    ),
    ("Records", "No name is defined in version 1", not records.KNOWN_REQUIRED),
    ("Records", "put twice at every provider", sealed.CONFIG_COPIES == 2),
    ("Chunking", "Kind 1", chunking.CHUNKER_FASTCDC == 1),
    ("Chunking", "Kind 2", chunking.CHUNKER_FIXED == 2),
    ("Sessions and deletion", "every 5 minutes", sessions.HEARTBEAT_NS == 300 * 10**9),
    ("Sessions and deletion", "after an hour", sessions.LONGEST_SILENCE_NS == 3600 * 10**9),
    ("Keys", "8 MiB..1 GiB", (kdf.MEMORY_KIB[0], kdf.MEMORY_KIB[-1]) == (8 << 10, 1 << 20)),
    ("Keys", "outside 1..16", kdf.PASSES == kdf.LANES == range(1, 17)),
    ("Keys", "64 MiB, 3 passes, 4 lanes", kdf.KdfParams(64 << 10, 3, 4) == kdf.DEFAULT_KDF),
    ("Keys", "at most 65,536", slots.BODY_LIMIT_BYTES == 65_536),
    ("Keys", "1,088 bytes", slots.MLKEM_CIPHERTEXT_BYTES == 1088),
    ("Names", "16 random bytes", records.__name__ == "enigma.model.records" and len(HEADER.object_id) == 16),
]


@pytest.mark.parametrize(("title", "phrase", "holds"), CONSTANTS)
def test_numbers_of_the_text_are_those_of_the_code(title: str, phrase: str, holds: bool) -> None:
    assert phrase in " ".join(section(title).split())
    assert holds


def test_sections_that_the_code_cites_exist() -> None:
    cited = set()
    for path in [*ROOT.glob("enigma/**/*.py"), *ROOT.glob("workers/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        cited |= set(re.findall(r'FORMAT\.md,?\s+"([^"]+)"', path.read_text()))
    titles = set(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))
    assert {re.sub(r"\s+", " ", one) for one in cited} <= titles


# ---- worked examples


def test_padme_examples_are_right() -> None:
    rows = rows_after(section("Objects"), "| length | padded |")
    assert len(rows) >= 5
    for before, after in rows:
        assert objects.padme(int(before.replace(",", ""))) == int(after.replace(",", ""))


def test_padme_follows_the_formula_of_the_text() -> None:
    for length in [*range(2, 3000), 2**20 - 1, 2**20, 2**20 + 1, 33_000_000, 2**40 + 12345]:
        exponent = length.bit_length() - 1
        step = 2 ** max(0, exponent - (exponent.bit_length() - 1) - 1) if exponent else 1
        assert objects.padme(length) == -(-length // step) * step


def test_the_example_header_is_what_the_code_writes() -> None:
    assert shown_bytes(section("Objects")) == [HEADER.encode()]


def test_the_example_key_is_what_the_code_derives() -> None:
    key = sealing.object_key(
        bytes(range(32)), object_id=HEADER.object_id, repository_id=HEADER.repository_id, object_type=4
    )
    assert f"`{key.hex()}`" in section("Keys of objects")


def test_the_example_leaf_is_what_the_code_encodes() -> None:
    entry = entries.Entry(b"a", 1, 0o644, 1000, 1000, "u", "g", 1, 2, 3, 0)
    assert shown_bytes(section("Catalog")) == [msgspec.msgpack.encode([entry])]


# ---- other implementations, written from the text alone


@dataclass(frozen=True, slots=True)
class PlainFastCdc:
    """The cutting rule of "Chunking" word by word, one byte at a time."""

    target: int
    seed: int

    def lengths(self, data: bytes) -> list[int]:
        gear = [
            int.from_bytes(hashlib.md5(bytes([b]) * 64, usedforsecurity=False).digest()[:8], "big") ^ self.seed
            for b in range(256)
        ]
        masks = {int(i): int(mask, 16) for i, mask in rows_after(section("Chunking"), "| i | M[i] |")}
        n = self.target.bit_length() - 1
        found = []
        while data:
            found.append(self._first(data, gear, masks[n + 1], masks[n - 1]))
            data = data[found[-1] :]
        return found

    def _first(self, data: bytes, gear: list[int], small: int, large: int) -> int:
        least, most = self.target // 4, self.target * 4
        if len(data) <= least:
            return len(data)
        end = min(len(data), most)
        middle = min(self.target, end)
        value = 0
        for i in range(2 * (least // 2), 2 * (end // 2)):
            value = ((value << 1) + gear[data[i]]) & (1 << 64) - 1
            if value & (small if i < 2 * (middle // 2) else large) == 0:
                return i
        return end


@pytest.mark.parametrize("length", [0, 16_384, 16_385, 700_001])
def test_a_chunker_written_from_the_text_cuts_like_ours(length: int) -> None:
    data = random.Random(length).randbytes(length)
    seed = 0xFEDC_BA98_7654
    ours = chunking.Chunker(chunking.ChunkerSpec.fastcdc(65_536, seed)).cuts(memoryview(data), final=True)
    assert ours == PlainFastCdc(65_536, seed).lengths(data)


@pytest.mark.parametrize("exponent", range(16, 23))
def test_masks_of_every_target_are_those_of_the_text(exponent: int) -> None:
    from pyfastcdc.py.constants import MASKS

    masks = {int(i): int(mask, 16) for i, mask in rows_after(section("Chunking"), "| i | M[i] |")}
    assert (masks[exponent + 1], masks[exponent - 1]) == (MASKS[exponent + 1], MASKS[exponent - 1])


class PlainReader:
    """Opens a stored repository with nothing but the text's layouts; shares no code with the program."""

    def __init__(self, store: Path, passphrase: bytes) -> None:
        self._store = store
        slot_raw = next(store.glob("keys/slot-*")).read_bytes()
        self._keys = dict(self._data_keys(self._master_key(slot_raw, passphrase)))
        self._places: dict[bytes, tuple[dict[str, Any], bytes]] = {}
        for path in store.glob("index/*/*"):
            for pack in self.record(path)["packs"]:
                for at in range(0, len(pack["records"]), 64):
                    line = pack["records"][at : at + 64]
                    self._places[line[:32]] = (pack, line)

    def record(self, path: Path) -> dict[str, Any]:
        raw = path.read_bytes()
        head = raw[:80]
        assert xxhash.xxh3_128(raw[:-16]).digest() == raw[-16:]
        body = AESGCM(self._key(head)).decrypt(raw[80:92], raw[92:-16], head)
        length = int.from_bytes(body[1:9], "little")
        assert not any(body[9 + length :])
        assert len(body) == objects.padme(9 + length)
        found: dict[str, Any] = msgspec.msgpack.decode(_plain(body[0], body[9 : 9 + length]))
        return found

    def chunk(self, chunk_id: bytes) -> bytes:
        pack, line = self._places[chunk_id]
        digits = pack["pack_id"].hex()
        folder = {1: "backup", 2: "catalog"}[pack["pack_set"]]
        raw = (self._store / "packs" / folder / digits[:2] / digits).read_bytes()
        offset, stored, length = (int.from_bytes(line[at : at + 4], "little") for at in (44, 48, 52))
        cipher = AESGCM(self._key(raw[:80]))
        content = cipher.decrypt(line[32:44], raw[offset : offset + stored], raw[:80] + chunk_id + line[57:58])
        plain = _plain(line[57], content)
        assert (len(plain), hashlib.sha256(plain).digest()) == (length, chunk_id)
        self._check_end(raw, cipher, pack)
        return plain

    def entries(self, chunk_id: bytes, depth: int) -> list[list[Any]]:
        lines: list[list[Any]] = msgspec.msgpack.decode(self.chunk(chunk_id))
        return lines if depth == 0 else [entry for line in lines for entry in self.entries(line[1], depth - 1)]

    def content(self, references: bytes, depth: int) -> bytes:
        parts = (self.chunk(references[at : at + 32]) for at in range(0, len(references), 36))
        return b"".join(parts if depth == 0 else (self.content(part, depth - 1) for part in parts))

    def _check_end(self, raw: bytes, cipher: AESGCM, pack: dict[str, Any]) -> None:
        assert xxhash.xxh3_128(raw[:-16]).digest() == raw[-16:]
        at, size, total = (int.from_bytes(raw[-64:][at : at + 8], "little") for at in (0, 8, 16))
        table = cipher.decrypt(raw[at : at + 12], raw[at + 12 : at + size], raw[:80] + b"table")
        count, zeros = int.from_bytes(table[:4], "little"), int.from_bytes(table[4:12], "little")
        assert table[16 : 16 + 64 * count] == pack["records"]
        assert not any(raw[at - zeros : at])
        assert total == len(raw) == objects.padme(len(raw) - zeros)

    def _key(self, head: bytes) -> bytes:
        info = b"enigma/1" + head[11:12] + head[24:40] + head[10:11]
        return _hkdf(self._keys[head[56:72]], head[40:56], info)

    def _data_keys(self, master: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        for path in self._store.glob("keys/data-*"):
            raw = path.read_bytes()
            body = _key_body(raw)
            sealed, made = body["sealed"], body["created_ns"].to_bytes(8, "little", signed=True)
            found.append((raw[40:56], AESGCM(master).decrypt(sealed[:12], sealed[12:], raw[:80] + b"data" + made)))
        return found

    @staticmethod
    def _master_key(raw: bytes, passphrase: bytes) -> bytes:
        from argon2.low_level import Type, hash_secret_raw
        from pqcrypto.kem import ml_kem_768

        body, head = _key_body(raw), raw[:80]
        salt, cost = body["salt"], (body["passes"], body["memory_kib"], body["lanes"])
        known = hash_secret_raw(passphrase, salt, *cost, 32, Type.ID, 19)
        sealed = body["mlkem_secret"]
        cipher = AESGCM(_hkdf(known, salt, b"enigma-mlkem-secret-v1"))
        secret = cipher.decrypt(sealed[:12], sealed[12:], head + b"mlkem")
        assert len(secret) == 2400
        shared = bytes(ml_kem_768.decaps(secret, body["mlkem_ciphertext"]))
        cipher = AESGCM(_hkdf(known + shared, salt, b"enigma-hybrid-v1"))
        return cipher.decrypt(
            body["master"][:12],
            body["master"][12:],
            head + b"master" + body["created_ns"].to_bytes(8, "little", signed=True),
        )


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def _plain(encoding: int, content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(content) if encoding else content


def _key_body(raw: bytes) -> dict[str, Any]:
    assert xxhash.xxh3_128(raw[:-16]).digest() == raw[-16:]
    length = int.from_bytes(raw[80:84], "little")
    found: dict[str, Any] = msgspec.msgpack.decode(raw[84 : 84 + length])
    return found


def test_a_reader_written_from_the_text_restores_the_golden_repository() -> None:
    reader = PlainReader(GOLDEN / "store", PASSPHRASE.encode())
    snapshots = {one["snapshot_id"].hex(): one for one in map(reader.record, (GOLDEN / "store/snapshots").iterdir())}
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert {one["id"] for one in expected} == set(snapshots)
    texts = set()
    for snapshot in snapshots.values():
        listed = reader.entries(snapshot["root"], snapshot["depth"])
        assert [entry[0].replace(b"/", b"\0") for entry in listed] == sorted(
            entry[0].replace(b"/", b"\0") for entry in listed
        )
        assert len(listed) == snapshot["entry_count"]
        for entry in listed:
            if entry[1] == entries.Kind.FILE:
                content = reader.content(entry[12], entry[13])
                assert len(content) == entry[10]
                texts |= {content} if entry[0].endswith(b"text") else set()
    assert {b"the same line again\n" * 2000, b"a second version\n" * 500} <= texts
