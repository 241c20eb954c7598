"""FORMAT.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import enigma
from enigma.keys import kdf, local, slots
from enigma.model import entries, records
from enigma.repository import catalog, names, repository
from enigma.snapshots import entries as made
from workers import compression, objects, packs, plan, sealing

TEXT = (Path(enigma.__file__).parent / "FORMAT.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str, head: str) -> list[list[str]]:
    """The rows of the table in a section whose last column is called `head`."""
    after = section(title).split(f"| {head} |\n")[1]
    rows = after.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def magic(text: str) -> bytes:
    found = re.search(r"magic `((?:[0-9a-f]{2} )*[0-9a-f]{2})`", text)
    assert found
    return bytes.fromhex(found[1])


@pytest.mark.parametrize(
    ("title", "head", "size"),
    [
        ("Objects", "field", objects.HEADER_BYTES),
        ("Keys", "envelope field", local.ENVELOPE.size),
        ("Packs", "record field", packs.RECORD_BYTES),
        ("Packs", "trailer field", packs.TRAILER_BYTES),
    ],
)
def test_byte_tables_have_no_gap_and_the_codes_size(title: str, head: str, size: int) -> None:
    at = 0
    for offset, length, _ in table(title, head):
        assert int(offset) == at
        at += int(length)
    assert at == size


def test_the_fields_lie_where_the_tables_say() -> None:
    header = objects.Header(
        objects.ObjectType.PACK, b"R" * 16, b"O" * 16, b"K" * 16, objects.PackSet.CATALOG, 0, 7, 9
    ).encode()
    values = {
        name.split(",")[0].split(":")[0].split(";")[0]: (int(at), int(n)) for at, n, name in table("Objects", "field")
    }
    part = lambda name: header[values[name][0] : sum(values[name])]  # noqa: E731
    assert magic(section("Objects")) == part("magic `89 45 4e 49 47 4d 41 0a`") == objects.MAGIC
    assert part("format version") == b"\1\0"
    assert (part("object type"), part("suite")) == (b"\4", b"\1")
    assert part("feature bits a writer must know") == b"\7\0\0\0"
    assert part("feature bits a garbage collection must know") == b"\x09\0\0\0"
    assert (part("repository id"), part("object id"), part("key id")) == (b"R" * 16, b"O" * 16, b"K" * 16)
    assert part("pack set") == b"\2"


def test_a_record_lies_where_its_table_says() -> None:
    raw = packs.RECORD.pack(b"H" * 32, b"N" * 12, 1, 2, 3, 4, 5, 6, 0)
    cells = {
        name.split(":")[0].split(",")[0]: raw[int(at) : int(at) + int(n)]
        for at, n, name in table("Packs", "record field")
    }
    assert cells["chunk id"] == b"H" * 32
    assert cells["nonce"] == b"N" * 12
    assert cells["offset of the blob in the pack"] == (1).to_bytes(4, "little")
    assert cells["stored length"] == (2).to_bytes(4, "little")
    assert cells["length of the chunk"] == (3).to_bytes(4, "little")
    assert (cells["hash algorithm"], cells["encoding"]) == (b"\4", b"\5")


def test_types_and_sets_have_their_numbers() -> None:
    listed = {int(number) for row in table("Names", "type") for number in row[2].split(",")}
    assert listed | {14} == {int(kind) for kind in objects.ObjectType}
    assert "0 none, 1 backup, 2 catalog, 3 gateway" in TEXT
    assert [one.name for one in objects.PackSet] == ["NONE", "BACKUP", "CATALOG", "GATEWAY"]


def test_every_listed_name_is_ours_and_has_its_type() -> None:
    an_id = "0123456789abcdef" * 2
    for pattern, _, types in table("Names", "type"):
        for one, number in zip(re.findall(r"`([^`]+)`", pattern)[:3], types.split(","), strict=False):
            key = one.replace("<generation, 8 digits>", "00000001").replace("<number, 6 digits>", "000001")
            key = key.replace("<first 2 digits of id>", "01").replace("<set>", "backup")
            key = re.sub(r"<(id|session)>", an_id, key)
            if key.startswith("gateway/") or key == ".<n>":
                continue
            assert names.is_ours(key), key
            assert names.type_of(key) == int(number)


def test_every_record_has_the_listed_fields() -> None:
    for name, fields in table("Records", "fields"):
        struct = getattr(records, name)
        assert re.findall(r"`(\w+)`", fields) == [
            field for field in struct.__struct_fields__ if field not in ("extra", "required")
        ]
    kinds = {one.__name__ for one in records.Record.__subclasses__()}
    assert kinds == {row[0] for row in table("Records", "fields")}


def test_an_entry_has_the_listed_fields_in_order() -> None:
    listed = [name for row in table("Catalog", "meaning") for name in re.findall(r"`(\w+)`", row[0])]
    assert listed == list(entries.Entry.__struct_fields__)
    kinds = {
        int(number): word for number, word in re.findall(r"(\d) ([a-z ]+?)(?:,|$)", table("Catalog", "meaning")[1][1])
    }
    assert kinds == {int(kind): kind.name.lower().replace("_", " ") for kind in entries.Kind}


def test_slots_have_the_listed_fields() -> None:
    listed = [name for row in table("Keys", "meaning") for name in re.findall(r"`(\w+)`", row[0])]
    assert listed == list(slots.SlotBody.__struct_fields__)
    assert magic(section("Keys")) == local.MAGIC
    assert local.MLKEM_MAGIC.hex(" ") == "89 45 4e 49 4b 45 4d 0a"
    for info in (slots.HYBRID_INFO, slots.SECRET_INFO, slots.FILE_INFO):
        assert f'"{info.decode()}"' in section("Keys")
    assert (kdf.MEMORY_KIB[0], kdf.MEMORY_KIB[-1]) == (8 << 10, 1 << 20)


@pytest.mark.parametrize(
    ("title", "phrase", "value"),
    [
        ("Catalog", "low 9 bits", catalog.LEAF_MASK == (1 << 9) - 1),
        ("Catalog", "after 4,096 entries", catalog.LEAF_ENTRIES_LIMIT == 4096),
        ("Catalog", "786,432 bytes", catalog.LEAF_BYTES_LIMIT == 786_432),
        ("Catalog", "low 7 bits", catalog.NODE_MASK == (1 << 7) - 1),
        ("Catalog", "2,048 children", catalog.NODE_CHILDREN_LIMIT == 2048),
        ("Catalog", "more than 4,096 chunks", catalog.LIST_REFS == 4096),
        ("Catalog", "low 11 bits", catalog.LIST_MASK == (1 << 11) - 1),
        ("Catalog", "20 ms", made.TICK_NS == 20_000_000),
        ("Packs", "at most 16,384 blobs", packs.MAX_BLOBS == 16_384),
        ("Packs", "catalog: 8 MiB", repository.CATALOG_PACK_BYTES == 8 << 20),
        ("Packs", "32 MiB", repository.PACK_TARGETS[0] == (1 << 40, 32 << 20)),
        ("Packs", "encoding: 0 raw, 1 zstd", (compression.ENCODING_RAW, compression.ENCODING_ZSTD) == (0, 1)),
        ("Packs", "1 = SHA-256", packs.HASH_SHA256 == 1),
        ("Objects", "1 = AES-256-GCM", sealing.SUITE_AES256GCM_HKDF_SHA256 == 1),
        ("Keys of objects", '"enigma/1"', plan.READ_BLOBS > 0),
    ],
)
def test_numbers_of_the_text_are_those_of_the_code(title: str, phrase: str, value: bool) -> None:
    assert phrase in section(title)
    assert value


def test_padme_examples_are_right() -> None:
    for before, after in re.findall(r"([\d,]+)\s+becomes\s+([\d,]+\d)", section("Objects")):
        assert objects.padme(int(before.replace(",", ""))) == int(after.replace(",", ""))


def test_sections_that_the_code_cites_exist() -> None:
    root = Path(enigma.__file__).parent.parent
    cited = set()
    for path in [*root.glob("enigma/**/*.py"), *root.glob("workers/**/*.py"), *root.glob("tests/**/*.py")]:
        cited |= set(re.findall(r'FORMAT\.md,\s+"([^"]+)"', path.read_text()))
    titles = set(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))
    assert {re.sub(r"\s+", " ", one) for one in cited} <= titles
