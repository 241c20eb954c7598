"""Every parser of outside bytes survives garbage, truncation and mutation, and complains only in our own words."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import random
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.errors import ChunkMissing, EnigmaError
from enigma.keys import slots
from enigma.keys.kdf import KdfParams
from enigma.keys.local import MLKEM_MAGIC, _read_mlkem
from enigma.model import records
from enigma.model.entries import Entry, Kind
from enigma.model.ids import KeyId, RepositoryId
from enigma.providers.memory import MemoryProvider
from enigma.repository import names
from enigma.repository.catalog import CatalogReader, CatalogWriter, ChunkListWriter, Root, content_refs, list_blobs
from enigma.repository.store import read_marker
from tests.engine.owner import DATA_KEY, KEY_ID, REPOSITORY_ID
from workers.compression import Decompressor, compress_small, decompress_small
from workers.errors import EngineError, SealBroken
from workers.messages import Check
from workers.objects import Header, ObjectType, PackSet, check_whole, checksum, open_object, seal_object
from workers.opening import BlobOpener
from workers.packs import (
    RECORD_BYTES,
    TRAILER_BYTES,
    BlobRecord,
    PackReader,
    PackSpec,
    PackWriter,
    Trailer,
    check_pack_ends,
    iter_records,
)

OURS = (EngineError, EnigmaError)
ID = bytes(range(16))
GARBAGE = st.binary(max_size=400)


def survives(call: Callable[[], object]) -> bool:
    """True if it went well, False if it was refused in our words; anything else comes out."""
    try:
        call()
    except OURS:
        return False
    return True


def mutated(data: bytes, seed: int) -> bytes:
    """Cut, flip, insert or repeat something."""
    source = random.Random(seed)
    at, end = sorted((source.randrange(len(data) + 1), source.randrange(len(data) + 1)))
    kind = source.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1 and data:
        at = source.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << source.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + source.randbytes(5) + data[at:]
    return data[:end] + data[at:]


HEADER = Header(ObjectType.INDEX, REPOSITORY_ID, ID, KEY_ID)
SEALED = seal_object(HEADER, DATA_KEY, b"a body that compresses " * 50)


@given(GARBAGE)
def test_garbage_is_no_object(garbage: bytes) -> None:
    assert not survives(lambda: Header.decode(garbage))
    assert not survives(lambda: check_whole(garbage))
    assert not survives(lambda: open_object(garbage, HEADER, DATA_KEY))


@given(st.integers(0, 10**9))
@settings(max_examples=400)
def test_no_mutation_of_a_sealed_object_opens(seed: int) -> None:
    data = mutated(SEALED, seed)
    if data != SEALED:
        assert not survives(lambda: open_object(data, Header.decode(data), DATA_KEY))


@given(st.binary(max_size=200), st.booleans())
def test_any_body_comes_back_or_is_refused(body: bytes, zstd: bool) -> None:
    encoding, stored = compress_small(body)
    assert decompress_small(encoding, stored) == body
    survives(lambda: decompress_small(int(zstd), body))
    survives(lambda: Decompressor().decompress(body, 100))


def test_a_frame_that_promises_a_terabyte_gets_no_memory() -> None:
    import zstandard

    frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(100_000))
    with pytest.raises(SealBroken):
        Decompressor().decompress(frame, 10)
    forged = bytes.fromhex("28b52ffde00000000000010000") + frame[6:]
    assert not survives(lambda: decompress_small(1, forged))


@pytest.fixture(scope="module")
def pack() -> bytes:
    spec = PackSpec(Header(ObjectType.PACK, REPOSITORY_ID, bytes(16), KEY_ID, PackSet.BACKUP), DATA_KEY, 1 << 20)
    memory = memoryview(mmap.mmap(-1, spec.slot_bytes(1 << 16)))
    writer = PackWriter(spec, ID, memory)
    for number in range(20):
        plain = bytes([number]) * (100 + number)
        writer.add(bytes([number]) * 32, plain, encoding=0, plain_bytes=len(plain))
    return bytes(memory[: writer.close()[0]])


PACK_HEADER = Header(ObjectType.PACK, REPOSITORY_ID, ID, KEY_ID, PackSet.BACKUP)


def open_whole(data: bytes) -> list[BlobRecord]:
    """As a check of a pack does it: ends, table, each blob."""
    check_pack_ends(memoryview(data), PACK_HEADER)
    trailer = Trailer.decode(data[-TRAILER_BYTES:], len(data))
    reader = PackReader(PACK_HEADER, DATA_KEY)
    table = reader.open_table(data[trailer.table_offset : trailer.table_offset + trailer.table_bytes])
    out = memoryview(bytearray(1 << 16))
    found = list(iter_records(table))
    for record in found:
        reader.open_blob(memoryview(data)[record.offset : record.offset + record.stored_bytes], record, out)
    return found


def test_a_sound_pack_opens_whole(pack: bytes) -> None:
    assert len(open_whole(pack)) == 20


@given(st.integers(0, 10**9))
@settings(max_examples=400)
def test_no_mutation_of_a_pack_goes_unnoticed(pack: bytes, seed: int) -> None:
    data = mutated(pack, seed)
    if data != pack:
        assert not survives(lambda: open_whole(data))


@given(GARBAGE, st.integers(0, 10**12))
def test_garbage_is_no_trailer_table_or_record(garbage: bytes, length: int) -> None:
    survives(lambda: Trailer.decode(garbage, length))
    assert not survives(lambda: Trailer.decode(garbage[:64].ljust(64, b"\0"), length))
    assert not survives(lambda: PackReader(PACK_HEADER, DATA_KEY).open_table(garbage))
    if len(garbage) % RECORD_BYTES:
        assert not survives(lambda: list(iter_records(garbage)))


@given(st.builds(BlobRecord, *(st.binary(min_size=n, max_size=n) for n in (32, 12)), *(st.integers(0, 2**32 - 1),) * 7))
def test_a_forged_record_opens_nothing(record: BlobRecord) -> None:
    opener = BlobOpener(REPOSITORY_ID, {KEY_ID: DATA_KEY}, 1 << 16)
    for sealed in (b"", b"x" * 40, b"x" * min(record.stored_bytes, 1000)):
        assert not survives(partial(opener.open, ID, 1, KEY_ID, record, memoryview(sealed)))


def test_a_check_of_garbage_says_so() -> None:
    from tests.engine.owner import plan_for
    from workers.opening import Opener

    opener = Opener(plan_for(1), memoryview(bytearray(1 << 20)))
    for data in (b"", b"x" * 63, random.Random(1).randbytes(5000)):
        errors, digest = opener.check_pack(Check(1, 0, len(data), ID, 1, KEY_ID), memoryview(data))
        assert errors
        assert digest == b""


KINDS = sorted(records.Record.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(garbage=GARBAGE)
@settings(max_examples=60)
def test_garbage_is_no_record(kind: type[records.Record], garbage: bytes) -> None:
    survives(lambda: records.decode(kind, garbage, "some/key"))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=60)
def test_well_formed_nonsense_is_no_record(kind: type[records.Record], data: st.DataObject) -> None:
    fields = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(kind.__struct_fields__, ANYTHING)))
    survives(lambda: records.decode(kind, msgspec.msgpack.encode(fields), "some/key"))


def test_deep_nesting_is_refused_without_a_crash() -> None:
    bomb = b"\x81\xa5extra" + b"\x81\xa1a" * 100_000 + b"\xc0"
    assert not survives(lambda: records.decode(records.FenceRecord, bomb, "fence/x"))


def test_an_array_that_promises_billions_gets_no_memory() -> None:
    assert not survives(lambda: records.decode(records.IndexRecord, b"\x81\xa5packs\xdd\xff\xff\xff\xff", "index/x"))


def test_what_a_later_version_requires_is_unsupported_and_not_corrupt() -> None:
    from enigma.errors import FormatUnsupported

    record = records.FenceRecord(session_id=ID, by_session_id=ID, created_ns=1, required=("time travel",))
    with pytest.raises(FormatUnsupported, match="time travel"):
        records.decode(records.FenceRecord, records.encode(record), "fence/x")
    later = msgspec.msgpack.decode(records.encode(record)) | {"required": [], "a new field": 7}
    assert records.decode(records.FenceRecord, msgspec.msgpack.encode(later), "fence/x").created_ns == 1


@given(GARBAGE, st.integers(-3, 40))
def test_garbage_is_no_catalog(garbage: bytes, depth: int) -> None:
    survives(lambda: list(CatalogReader(Root(ID * 2, len(garbage), depth), lambda *_: garbage).entries()))


@given(st.data())
@settings(max_examples=100)
def test_well_formed_nonsense_is_no_catalog(data: st.DataObject) -> None:
    blob = msgspec.msgpack.encode(data.draw(st.lists(st.lists(ANYTHING, max_size=12), max_size=3)))
    for depth in (0, 1, 2):
        survives(lambda depth=depth: list(CatalogReader(Root(ID * 2, len(blob), depth), lambda *_: blob).entries()))


def test_a_catalog_that_contains_itself_ends() -> None:
    from enigma.repository.catalog import Child

    blob = msgspec.msgpack.encode([Child(b"", ID * 2, 1, 1)])
    assert not survives(lambda: list(CatalogReader(Root(ID * 2, 1, 12), lambda *_: blob).entries()))


@given(GARBAGE, st.integers(-2, 30))
def test_garbage_is_no_chunk_list(garbage: bytes, depth: int) -> None:
    entry = Entry(b"x", Kind.FILE, 0, 0, 0, "", "", 0, 0, 0, 0, content=garbage, depth=depth)
    survives(
        lambda: [next(content_refs(entry, lambda *_: garbage), None), next(list_blobs(entry, lambda *_: garbage), None)]
    )


@given(GARBAGE)
def test_garbage_is_no_marker(garbage: bytes) -> None:
    provider = MemoryProvider("m")
    provider.put(names.MARKER, memoryview(garbage))
    assert not survives(lambda: read_marker(provider))


@given(
    st.text(max_size=80)
    | st.sampled_from(["snapshots/", "config/00000001-", "packs/backup/ab/"]).map(lambda p: p + "zz")
)
def test_foreign_names_are_left_alone(name: str) -> None:
    if not names.is_ours(name):
        survives(lambda: names.object_id_of(name))
        survives(lambda: names.type_of(name))
        survives(lambda: names.generation_of(name))


# ---- valid bytes, mutated


def sample(annotation: Any) -> Any:
    """Some value of a record's field, by its type."""
    if isinstance(annotation, type) and issubclass(annotation, records.Record):
        return annotation(**{field.name: sample(field.type) for field in msgspec.structs.fields(annotation)})
    plain: dict[Any, Any] = {bytes: ID, int: 7, str: "text", bool: True, float: 0.5}
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return () if inner is str else (sample(inner), sample(inner))
    return {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(seed=st.integers(0, 10**9))
@settings(max_examples=100)
def test_a_mutated_record_is_a_record_or_refused(kind: type[records.Record], seed: int) -> None:
    whole = records.encode(sample(kind))
    assert records.encode(records.decode(kind, whole, "some/key")) == whole
    survives(lambda: records.decode(kind, mutated(whole, seed), "some/key"))


class Blobs(dict[bytes, bytes]):
    """By chunk id; too many to be shown."""

    def __repr__(self) -> str:
        return f"{len(self)} blobs"


@pytest.fixture(scope="module")
def catalog() -> tuple[Blobs, Root]:
    """The blobs of a catalog with nodes above its leaves, and with a file that has lists of lists of chunks."""
    blobs = Blobs()

    def put(plain: bytes) -> bytes:
        blobs[hashlib.sha256(plain).digest()] = plain
        return hashlib.sha256(plain).digest()

    source = random.Random(3)
    chunks = ChunkListWriter(put)
    chunks.add(b"".join(source.randbytes(32) + (1).to_bytes(4, "little") for _ in range(9000)))
    content, depth = chunks.finish()
    writer = CatalogWriter(put, lambda chunk_id: chunk_id in blobs)
    for number in range(2500):
        entry = Entry(b"%05d" % number, Kind.FILE, 0o644, 1, 1, "user", "group", number, number, number, 9, content=ID)
        writer.add(msgspec.structs.replace(entry, content=content, depth=depth) if number == 100 else entry)
    root = writer.finish()
    assert root.depth >= 1
    assert depth >= 1
    return blobs, root


def read_catalog(blobs: dict[bytes, bytes], root: Root) -> int:
    """As restore and verify do it. A blob's hash is not looked at here, so that what was mutated gets this far."""

    def get(chunk_id: bytes, _length: int) -> bytes:
        if chunk_id not in blobs:
            raise ChunkMissing("a chunk is missing")
        return blobs[chunk_id]

    reader = CatalogReader(root, get)
    count = 0
    for entry in reader.entries():
        count += 1
        if entry.depth:
            count += sum(1 for _ in content_refs(entry, get)) + sum(1 for _ in list_blobs(entry, get))
    reader.find(b"01234")
    return count


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_a_mutated_catalog_is_read_or_refused(catalog: tuple[Blobs, Root], seed: int) -> None:
    blobs, root = catalog
    source = random.Random(seed)
    victim = root.chunk_id if source.random() < 0.3 else source.choice(sorted(blobs))
    survives(lambda: read_catalog(blobs | {victim: mutated(blobs[victim], seed)}, root))


def test_the_whole_catalog_is_read(catalog: tuple[Blobs, Root]) -> None:
    assert read_catalog(*catalog) > 2500 + 9000


def test_a_catalog_with_the_same_leaf_a_million_times_is_refused() -> None:
    """Paths ascend. What does not is no catalog, and twelve levels of it would be read for ever."""
    from enigma.repository.catalog import Child

    leaf = msgspec.msgpack.encode([Entry(b"path", Kind.FIFO, 0, 0, 0, "", "", 0, 0, 0, 0)])
    reads = 0

    def get(chunk_id: bytes, _length: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 5000, "it goes on and on"
        if chunk_id[0] == 0:
            return leaf
        return msgspec.msgpack.encode([Child(b"path", bytes([chunk_id[0] - 1]) * 32, 1, 1)] * 100)

    assert not survives(lambda: list(CatalogReader(Root(bytes([12]) * 32, 1, 12), get).entries()))


# ---- keys


KEY_OBJECT_HEADERS = {
    slots.SlotBody: Header(ObjectType.SLOT, REPOSITORY_ID, ID, KEY_ID),
    slots.DataKeyBody: Header(ObjectType.DATA_KEY, REPOSITORY_ID, ID, KEY_ID),
}


def open_key_object(data: bytes) -> None:
    """As a slot and as a data key; with a key at hand, so that nothing costs Argon2id's memory."""
    secret = bytes(2400)
    for mlkem_secret in (secret, b"", None):
        survives(lambda mlkem_secret=mlkem_secret: slots.open_slot(data, b"x", mlkem_secret, known=bytes(32)))
    survives(lambda: slots.open_data_key(data, KeyId(KEY_ID), bytes(32)))


@given(GARBAGE)
def test_garbage_is_no_key_object(garbage: bytes) -> None:
    open_key_object(garbage)
    for header in KEY_OBJECT_HEADERS.values():
        open_key_object(header.encode() + garbage)
        open_key_object(slots._stored(header, garbage))  # with a checksum that fits


@pytest.mark.parametrize("kind", KEY_OBJECT_HEADERS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=100)
def test_well_formed_nonsense_is_no_key_object(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    """Whoever can write at a provider can make the checksum fit."""
    sound: dict[str, Any] = {"kind": slots.KIND_HYBRID, "memory_kib": 65536, "passes": 3, "lanes": 4, "salt": ID}
    sound |= {"mlkem_id": ID, "mlkem_ciphertext": bytes(slots.MLKEM_CIPHERTEXT_BYTES), "mlkem_secret": b"", "label": ""}
    sound |= {"master": bytes(60), "sealed": bytes(60), "created_ns": 1}
    fields = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(kind.__struct_fields__, ANYTHING)))
    body = {name: sound[name] for name in kind.__struct_fields__} | fields
    open_key_object(slots._stored(KEY_OBJECT_HEADERS[kind], msgspec.msgpack.encode(body)))


@given(GARBAGE)
@settings(max_examples=60)
def test_garbage_is_no_mlkem_key_file(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "mlkem"
    for data in (garbage, MLKEM_MAGIC + garbage, MLKEM_MAGIC + garbage + checksum(MLKEM_MAGIC + garbage)):
        path.write_bytes(data)
        with contextlib.suppress(EnigmaError):
            secret = _read_mlkem(path)
            sound = make_slot_object()
            assert not survives(
                lambda secret=secret, sound=sound: slots.open_slot(sound, b"x", secret, known=bytes(32))
            )


@functools.cache
def make_slot_object() -> bytes:
    _, stored, _ = slots.make_slot(
        RepositoryId(REPOSITORY_ID),
        KeyId(KEY_ID),
        bytes(32),
        b"x",
        slots.MlKemPair.random(),
        kdf=KdfParams(),
        salt=ID,
        split=True,
        now_ns=1,
    )
    return stored
