"""The manifest: what is known, located and trusted; and that it survives crashes, garbage, full and read-only disks."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enigma.errors import (
    ChunkMissing,
    EnigmaError,
    FormatUnsupported,
    Locked,
    ManifestCorrupt,
    ObjectCorrupt,
    RepositoryNotFound,
    SnapshotNotFound,
)
from enigma.manifest import READ_ORDER, Manifest, PackState, database
from enigma.model.records import IndexedPack, IndexRecord, SnapshotRecord
from workers.packs import RECORD, BlobRecord

ROOT = Path(__file__).resolve().parents[2]
ME, OTHER = b"M" * 16, b"O" * 16
KEY = b"K" * 16
INDEX, INDEX_2 = b"I" * 16, b"J" * 16
NOW_NS = 1_700_000_000_000_000_000


def chunk(number: int) -> bytes:
    return struct.pack(">I", number) * 8


def pack_id(number: int) -> bytes:
    return struct.pack(">I", number) * 4


def make_pack(number: int, chunks: Sequence[int], *, session_id: bytes = ME, pack_set: int = 1) -> IndexedPack:
    """A pack whose blob in slot i is 100 bytes at 80 + 100 i and decodes to 1000 + i bytes."""
    lines = [
        RECORD.pack(chunk(one), bytes([slot % 256]) * 12, 80 + 100 * slot, 100, 1000 + slot, 1, 1, 0, 0)
        for slot, one in enumerate(chunks)
    ]
    return IndexedPack(
        pack_id=pack_id(number),
        pack_set=pack_set,
        length_bytes=80 + 100 * len(chunks) + 500,
        key_id=KEY,
        session_id=session_id,
        provider_ids=(b"P" * 16, b"Q" * 16),
        records=b"".join(lines),
        data_shards=1,
        parity_shards=1,
    )


def listing_of(*packs: IndexedPack) -> list[tuple[bytes, int]]:
    return [(pack.pack_id, pack.length_bytes) for pack in packs]


def add_listed(manifest: Manifest, *packs: IndexedPack, index_id: bytes = INDEX) -> None:
    """Packs as a refresh takes them in: seen in the listing, then read from their index."""
    for pack_set in {pack.pack_set for pack in packs}:
        manifest.mark_listing(pack_set, listing_of(*(pack for pack in packs if pack.pack_set == pack_set)))
    for pack in packs:
        manifest.add_pack(pack, index_id=index_id)


def make_snapshot(number: int, created_ns: int = NOW_NS) -> SnapshotRecord:
    return SnapshotRecord(
        snapshot_id=pack_id(number),
        session_id=ME,
        parent_id=b"",
        created_ns=created_ns,
        host="host",
        user="user",
        sources=(b"/home",),
        root=chunk(1),
        root_bytes=10,
        depth=0,
        complete=True,
        entry_count=1,
        file_count=1,
        content_bytes=1,
        new_bytes=1,
        stored_bytes=1,
        unreadable_count=0,
        program="enigma",
        tags=("nightly",),
    )


def state_of(manifest: Manifest, number: int) -> PackState:
    pack = manifest.pack(pack_id(number))
    assert pack is not None
    return pack.state


def known(manifest: Manifest, *numbers: int, session_id: bytes = ME) -> set[int]:
    found = manifest.known([chunk(one) for one in numbers], session_id=session_id)
    return {one for one in numbers if chunk(one) in found}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


@pytest.fixture
def manifest(path: Path) -> Iterator[Manifest]:
    with Manifest.open(path, create=True, clock_ns=lambda: NOW_NS) as one:
        yield one


# --- what is known


def test_chunk_of_an_indexed_and_listed_pack_is_known_to_every_session(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10, 11], session_id=OTHER))
    assert known(manifest, 10, 11, 12) == {10, 11}


def test_nothing_is_asked_and_nothing_answered(manifest: Manifest) -> None:
    assert manifest.known([], session_id=ME) == {}
    assert manifest.locate([]) == {}


def test_unindexed_pack_is_known_to_its_own_session_only(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10]), index_id=None)
    assert known(manifest, 10) == {10}
    assert known(manifest, 10, session_id=OTHER) == set()


def test_index_makes_an_unindexed_pack_known_to_all(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10]), index_id=None)
    manifest.set_index([pack_id(1)], INDEX)
    assert known(manifest, 10, session_id=OTHER) == {10}
    assert manifest.index_ids() == {INDEX}


def test_indexed_pack_that_no_listing_showed_is_not_known(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10]), index_id=INDEX)
    assert known(manifest, 10) == set()
    assert state_of(manifest, 1) is PackState.MISSING


def test_order_of_listing_and_index_does_not_matter(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10]), index_id=INDEX)
    manifest.mark_listing(1, listing_of(make_pack(1, [10])))
    assert known(manifest, 10) == {10}


def test_known_answers_many_questions_at_once(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, range(5000)))
    found = manifest.known([chunk(one) for one in range(10_000)], session_id=ME)
    assert found == {chunk(one): 1 for one in range(5000)}


def test_dead_sessions_unindexed_packs_are_forgotten(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10], session_id=OTHER), index_id=None)
    manifest.add_pack(make_pack(2, [11], session_id=ME), index_id=None)
    add_listed(manifest, make_pack(3, [12], session_id=OTHER))
    assert manifest.forget_unindexed(ME) == 1
    assert [pack.pack_id for pack in manifest.packs()] == [pack_id(2), pack_id(3)]
    assert known(manifest, 10, session_id=OTHER) == set()


def test_pack_number_is_never_used_again(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10], session_id=OTHER), index_id=None)
    manifest.forget_unindexed(ME)
    manifest.add_pack(make_pack(2, [11]), index_id=None)
    assert manifest.known([chunk(10), chunk(11)], session_id=ME) == {chunk(11): 2}


# --- where a chunk is


def test_location_says_all_that_reading_needs(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(7, [10, 11, 12], pack_set=2))
    (location,) = manifest.locations_of(chunk(12))
    assert (location.pack_id, location.pack_set, location.key_id) == (pack_id(7), 2, KEY)
    assert (location.offset, location.stored_bytes, location.plain_bytes) == (280, 100, 1002)
    assert (location.nonce, location.encoding, location.hash_algorithm) == (b"\x02" * 12, 1, 1)
    assert manifest.locate([chunk(12), chunk(99)]) == {chunk(12): location}


def test_copies_are_tried_in_the_order_of_trust(manifest: Manifest) -> None:
    packs = [make_pack(number, [number + 100, 10]) for number in range(5)]
    add_listed(manifest, *packs)
    manifest.set_tombstoned([pack_id(0)])
    manifest.set_condemned(b"c" * 16, [pack_id(2)])
    manifest.mark_suspect(pack_id(3))
    manifest.mark_listing(1, listing_of(*(packs[number] for number in (0, 1, 2, 3))))
    assert tuple(one.state for one in manifest.locations_of(chunk(10))) == READ_ORDER
    assert manifest.locate([chunk(10)])[chunk(10)].pack_id == pack_id(1)
    assert manifest.locate([chunk(104)])[chunk(104)].state is PackState.MISSING


def test_pack_records_and_index_record_come_back_unchanged(manifest: Manifest) -> None:
    plain = make_pack(1, [10, 11])
    odd = IndexedPack(
        pack_id=pack_id(2),
        pack_set=3,
        length_bytes=100,
        key_id=KEY,
        session_id=OTHER,
        provider_ids=(),
        records=b"",
        retain_until_ns=NOW_NS,
        storage_class="COLD",
        extra={"later": [1, 2]},
    )
    add_listed(manifest, plain, odd)
    assert manifest.indexed_pack(plain.pack_id) == plain
    assert manifest.indexed_pack(odd.pack_id) == odd
    assert manifest.indexed_pack(pack_id(3)) is None
    assert manifest.pack_records(1) == plain.records


def test_records_of_a_pack_that_is_not_there_are_never_an_empty_list(manifest: Manifest, path: Path) -> None:
    with pytest.raises(ChunkMissing):
        manifest.pack_records(1)
    manifest.add_pack(make_pack(1, [10]), index_id=None)
    edit(path, "DELETE FROM contents")
    with pytest.raises(ManifestCorrupt):
        manifest.pack_records(1)


# --- taking in and dropping


def test_adding_a_pack_twice_is_adding_it_once(manifest: Manifest) -> None:
    pack = make_pack(1, [10, 11])
    manifest.add_pack(pack, index_id=None)
    manifest.add_pack(pack, index_id=None)
    manifest.add_index(INDEX, IndexRecord(packs=(pack,)))
    manifest.add_index(INDEX, IndexRecord(packs=(pack,)))
    counts = manifest.counts()
    assert (counts.pack_count, counts.blob_count, counts.index_count) == (1, 2, 1)
    assert len(manifest.locations_of(chunk(10))) == 1


def test_later_index_restates_the_placement(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10]))
    moved = make_pack(1, [10])
    moved = IndexedPack(**{name: getattr(moved, name) for name in moved.__struct_fields__} | {"provider_ids": (KEY,)})
    manifest.add_pack(moved, index_id=INDEX_2)
    pack = manifest.pack(pack_id(1))
    assert pack is not None
    assert pack.provider_ids == (KEY,)


def test_pack_leaves_with_the_last_index_that_lists_it(manifest: Manifest) -> None:
    both, first_only = make_pack(1, [10]), make_pack(2, [11])
    manifest.mark_listing(1, listing_of(both, first_only))
    manifest.add_index(INDEX, IndexRecord(packs=(both, first_only)))
    manifest.add_index(INDEX_2, IndexRecord(packs=(both,)))
    assert manifest.drop_index(INDEX) == 1
    assert known(manifest, 10, 11) == {10}
    assert manifest.drop_index(INDEX_2) == 1
    assert known(manifest, 10, 11) == set()
    assert manifest.index_ids() == frozenset()


def test_dropping_the_newer_index_leaves_a_pack_to_the_older_one(manifest: Manifest) -> None:
    pack = make_pack(1, [10])
    manifest.mark_listing(1, listing_of(pack))
    manifest.add_index(INDEX, IndexRecord(packs=(pack,)))
    manifest.add_index(INDEX_2, IndexRecord(packs=(pack,)))
    assert manifest.drop_index(INDEX_2) == 0
    assert known(manifest, 10) == {10}


def test_index_ids_are_told_by_set(manifest: Manifest) -> None:
    manifest.add_index(INDEX, IndexRecord(packs=(make_pack(1, [10], pack_set=1),)))
    manifest.add_index(INDEX_2, IndexRecord(packs=(make_pack(2, [11], pack_set=2),)))
    manifest.add_index(KEY, IndexRecord(packs=()))
    assert manifest.index_ids() == {INDEX, INDEX_2, KEY}
    assert manifest.index_ids(2) == {INDEX_2, KEY}


def test_vacuum_sweeps_exactly_what_gone_packs_left(manifest: Manifest, path: Path) -> None:
    manifest.add_pack(make_pack(1, [10, 11, 12], session_id=OTHER), index_id=None)
    manifest.add_pack(make_pack(2, [12, 13]), index_id=None)
    manifest.forget_unindexed(ME)
    assert manifest.vacuum_blobs() == 3
    assert manifest.vacuum_blobs() == 0
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT pack_no, slot FROM blobs ORDER BY chunk_id").fetchall() == [(2, 0), (2, 1)]
        assert raw.execute("SELECT pack_no FROM contents").fetchall() == [(2,)]
    raw.close()


def with_fields(**changes: object) -> IndexedPack:
    pack = make_pack(1, [10])
    return IndexedPack(**{name: getattr(pack, name) for name in pack.__struct_fields__} | changes)


@pytest.mark.parametrize(
    "broken",
    [
        with_fields(records=make_pack(1, [10]).records[:-1]),
        with_fields(records=bytes(64 * 16_385), length_bytes=1 << 40),
        with_fields(length_bytes=100),
        with_fields(length_bytes=1 << 63),
        with_fields(length_bytes=-1),
        with_fields(pack_id=b"short"),
        with_fields(provider_ids=(b"short",)),
        with_fields(retain_until_ns=1 << 64),
    ],
    ids=["ragged", "too many", "past the end", "huge", "negative", "pack id", "provider id", "retention"],
)
def test_index_record_that_makes_no_sense_changes_nothing(manifest: Manifest, broken: IndexedPack) -> None:
    with manifest.transaction():
        with pytest.raises(ObjectCorrupt):
            manifest.add_index(INDEX, IndexRecord(packs=(make_pack(2, [11]), broken)))
        manifest.meta_put("kept", b"1")
    assert manifest.counts().pack_count == 0
    assert manifest.index_ids() == frozenset()
    assert manifest.meta_get("kept") == b"1"


# --- states


def test_listing_makes_missing_and_brings_back(manifest: Manifest) -> None:
    first, second = make_pack(1, [10]), make_pack(2, [11])
    add_listed(manifest, first, second)
    change = manifest.mark_listing(1, listing_of(first))
    assert (change.listed_count, change.missing_count, change.newly_missing_count) == (1, 1, 1)
    assert known(manifest, 10, 11) == {10}
    again = manifest.mark_listing(1, listing_of(first))
    assert (again.missing_count, again.newly_missing_count) == (1, 0)
    back = manifest.mark_listing(1, listing_of(first, second))
    assert (back.missing_count, back.returned_count) == (0, 1)
    assert known(manifest, 10, 11) == {10, 11}


def test_pack_of_another_length_is_missing(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10]))
    manifest.mark_listing(1, [(pack_id(1), 77), (pack_id(2), 77)])
    assert state_of(manifest, 1) is PackState.MISSING
    manifest.add_pack(make_pack(2, [11]), index_id=INDEX)
    assert state_of(manifest, 2) is PackState.MISSING


def test_listing_of_one_set_says_nothing_about_another(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10], pack_set=1), make_pack(2, [11], pack_set=2))
    manifest.mark_listing(1, [])
    assert state_of(manifest, 1) is PackState.MISSING
    assert state_of(manifest, 2) is PackState.USABLE


def test_listing_older_than_a_fresh_pack_does_not_condemn_it(manifest: Manifest) -> None:
    manifest.add_pack(make_pack(1, [10]), index_id=None)
    manifest.mark_listing(1, [])
    assert known(manifest, 10) == {10}
    manifest.set_index([pack_id(1)], INDEX)
    manifest.mark_listing(1, [])
    assert known(manifest, 10) == set()


CONDEMN, CONDEMN_2 = b"c" * 16, b"d" * 16
MARKS: dict[PackState, Callable[[Manifest], None]] = {
    PackState.MISSING: lambda one: one.mark_listing(1, []) and None,
    PackState.CONDEMNED: lambda one: one.set_condemned(CONDEMN, [pack_id(1)]),
    PackState.SUSPECT: lambda one: one.mark_suspect(pack_id(1), "tag"),
    PackState.TOMBSTONED: lambda one: one.set_tombstoned([pack_id(1)]),
}
CLEARS: dict[PackState, Callable[[Manifest], None]] = {
    PackState.MISSING: lambda one: one.mark_listing(1, listing_of(make_pack(1, [10]))) and None,
    PackState.CONDEMNED: lambda one: one.clear_condemned(CONDEMN),
    PackState.SUSPECT: lambda one: one.clear_suspect(pack_id(1)),
    PackState.TOMBSTONED: lambda one: one.clear_tombstoned([pack_id(1)]),
}


@pytest.mark.parametrize("first", MARKS)
@pytest.mark.parametrize("second", MARKS)
def test_state_is_the_worst_fact_and_falls_back_to_the_other(
    manifest: Manifest, first: PackState, second: PackState
) -> None:
    add_listed(manifest, make_pack(1, [10]))
    MARKS[first](manifest)
    assert state_of(manifest, 1) is first
    MARKS[second](manifest)
    assert state_of(manifest, 1) is max(first, second)
    assert known(manifest, 10) == set()
    CLEARS[first](manifest)
    assert state_of(manifest, 1) is (second if first is not second else PackState.USABLE)
    CLEARS[second](manifest)
    assert state_of(manifest, 1) is PackState.USABLE
    assert known(manifest, 10) == {10}


@pytest.mark.parametrize("mark", [PackState.CONDEMNED, PackState.SUSPECT, PackState.TOMBSTONED])
def test_facts_outlive_the_index_that_named_the_pack(manifest: Manifest, mark: PackState) -> None:
    pack = make_pack(1, [10])
    MARKS[mark](manifest)
    add_listed(manifest, pack)
    assert state_of(manifest, 1) is mark
    manifest.drop_index(INDEX)
    add_listed(manifest, pack)
    assert state_of(manifest, 1) is mark


def test_rescue_cancels_exactly_the_condemnation_it_names(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10]), make_pack(2, [11]))
    manifest.set_condemned(CONDEMN, [pack_id(1), pack_id(2)])
    manifest.set_condemned(CONDEMN_2, [pack_id(1)])
    manifest.clear_condemned(CONDEMN, [pack_id(1)])
    assert state_of(manifest, 1) is PackState.CONDEMNED
    assert state_of(manifest, 2) is PackState.CONDEMNED
    assert manifest.condemnations() == {CONDEMN: {pack_id(2)}, CONDEMN_2: {pack_id(1)}}
    manifest.clear_condemned(CONDEMN)
    manifest.clear_condemned(CONDEMN_2)
    assert known(manifest, 10, 11) == {10, 11}


def test_suspects_keep_their_first_reason(manifest: Manifest) -> None:
    manifest.mark_suspect(pack_id(1), "tag")
    manifest.mark_suspect(pack_id(1), "again")
    assert manifest.suspects() == {pack_id(1): "tag"}


@dataclass
class Model:
    """The rules said once more, over plain dicts."""

    packs: dict[int, tuple[list[int], set[bytes], bool]] = field(default_factory=dict)  # chunks, indexes, listed
    facts: dict[PackState, set[int]] = field(default_factory=lambda: {state: set() for state in PackState})
    listing: set[int] = field(default_factory=set)

    def state(self, number: int) -> PackState:
        for state in (PackState.TOMBSTONED, PackState.SUSPECT, PackState.CONDEMNED):
            if number in self.facts[state]:
                return state
        return PackState.USABLE if self.packs[number][2] else PackState.MISSING

    def usable(self) -> set[int]:
        return {number for number in self.packs if self.state(number) is PackState.USABLE}

    def chunks(self, numbers: set[int]) -> set[int]:
        return {one for number in numbers for one in self.packs[number][0]}


CHUNKS_OF = {number: sorted({number, number // 2, number * 3 % 5}) for number in range(6)}
FACTS = [PackState.CONDEMNED, PackState.SUSPECT, PackState.TOMBSTONED]
PACK_NUMBERS = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just("add"), PACK_NUMBERS, st.sampled_from([None, INDEX, INDEX_2])),
    st.tuples(st.just("listing"), st.sets(PACK_NUMBERS)),
    st.tuples(st.just("mark"), PACK_NUMBERS, st.sampled_from(FACTS)),
    st.tuples(st.just("clear"), PACK_NUMBERS, st.sampled_from(FACTS)),
    st.tuples(st.just("drop"), st.sampled_from([INDEX, INDEX_2])),
    st.tuples(st.just("forget")),
    st.tuples(st.just("vacuum")),
)


def owner(number: int) -> bytes:
    return ME if number % 2 else OTHER


def run_step(manifest: Manifest, model: Model, step: tuple[object, ...]) -> None:
    """One step on both; packs with an odd number are this session's."""
    match step:
        case ("add", int(number), index_id):
            assert index_id is None or isinstance(index_id, bytes)
            manifest.add_pack(make_pack(number, CHUNKS_OF[number], session_id=owner(number)), index_id=index_id)
            fresh = (CHUNKS_OF[number], set[bytes](), index_id is None or number in model.listing)
            indexes = model.packs.setdefault(number, fresh)[1]
            indexes |= {index_id} if index_id else set()
        case ("listing", set(numbers)):
            manifest.mark_listing(1, listing_of(*(make_pack(number, CHUNKS_OF[number]) for number in numbers)))
            model.listing = numbers
            for number, (chunks, indexes, listed) in model.packs.items():
                model.packs[number] = (chunks, indexes, number in numbers if indexes else listed)
        case ("mark", int(number), PackState() as fact):
            marks = {
                PackState.CONDEMNED: lambda: manifest.set_condemned(CONDEMN, [pack_id(number)]),
                PackState.SUSPECT: lambda: manifest.mark_suspect(pack_id(number)),
                PackState.TOMBSTONED: lambda: manifest.set_tombstoned([pack_id(number)]),
            }
            marks[fact]()
            model.facts[fact].add(number)
        case ("clear", int(number), PackState() as fact):
            clears = {
                PackState.CONDEMNED: lambda: manifest.clear_condemned(CONDEMN, [pack_id(number)]),
                PackState.SUSPECT: lambda: manifest.clear_suspect(pack_id(number)),
                PackState.TOMBSTONED: lambda: manifest.clear_tombstoned([pack_id(number)]),
            }
            clears[fact]()
            model.facts[fact].discard(number)
        case ("drop", bytes(index_id)):
            manifest.drop_index(index_id)
            for number, (_, indexes, _) in list(model.packs.items()):
                if index_id in indexes:
                    indexes.discard(index_id)
                    if not indexes:
                        del model.packs[number]
        case ("forget",):
            manifest.forget_unindexed(ME)
            model.packs = {no: pack for no, pack in model.packs.items() if pack[1] or owner(no) == ME}
        case ("vacuum",):
            manifest.vacuum_blobs()


def check_against(manifest: Manifest, model: Model) -> None:
    everything = [chunk(one) for one in range(30)]
    assert {pack.pack_id: pack.state for pack in manifest.packs()} == {
        pack_id(number): model.state(number) for number in model.packs
    }
    trusted = {number for number in model.usable() if model.packs[number][1] or owner(number) == ME}
    assert set(manifest.known(everything, session_id=ME)) == set(map(chunk, model.chunks(trusted)))
    assert set(manifest.locate(everything)) == set(map(chunk, model.chunks(set(model.packs))))
    bad = model.chunks(set(model.packs) - model.usable()) - model.chunks(model.usable())
    assert manifest.bad_chunks() == set(map(chunk, bad))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_known_located_and_bad_chunks_are_those_of_the_model(steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Manifest.open(Path(folder) / "m", create=True) as manifest:
        model = Model()
        for step in steps:
            run_step(manifest, model, step)
            check_against(manifest, model)


# --- transactions


def test_failed_transaction_leaves_nothing(manifest: Manifest) -> None:
    with pytest.raises(KeyError), manifest.transaction():
        manifest.add_pack(make_pack(1, [10]), index_id=None)
        raise KeyError
    assert manifest.packs() == ()
    manifest.add_pack(make_pack(1, [10]), index_id=None)
    assert known(manifest, 10) == {10}


def test_part_that_failed_dooms_the_whole_transaction(manifest: Manifest) -> None:
    def fail() -> None:
        with manifest.transaction():
            manifest.meta_put("half", b"1")
            raise KeyError

    with pytest.raises(EnigmaError, match="taken back"), manifest.transaction(), suppress(KeyError):
        fail()
    assert manifest.meta_get("half") is None
    with manifest.transaction():
        manifest.meta_put("whole", b"1")
    assert manifest.meta_get("whole") == b"1"


# --- snapshots, audit, meta, totals


def test_snapshots_are_listed_oldest_first_and_whole(manifest: Manifest) -> None:
    late, early = make_snapshot(1, NOW_NS), make_snapshot(2, NOW_NS - 5)
    manifest.put_snapshot(b"a" * 16, late)
    manifest.put_snapshot(b"b" * 16, early, void=True)
    assert [(one.object_id, one.void, one.record) for one in manifest.snapshots()] == [
        (b"b" * 16, True, early),
        (b"a" * 16, False, late),
    ]
    manifest.put_snapshot(b"b" * 16, early, void=False)
    assert [one.void for one in manifest.snapshots()] == [False, False]
    manifest.drop_snapshot(b"a" * 16)
    assert [one.record for one in manifest.snapshots()] == [early]


def test_snapshot_prefix_must_name_exactly_one(manifest: Manifest) -> None:
    manifest.put_snapshot(b"a" * 16, make_snapshot(0x12AB0000), void=True)
    manifest.put_snapshot(b"b" * 16, make_snapshot(0x12AB0000))
    manifest.put_snapshot(b"c" * 16, make_snapshot(0x12CD0000))
    assert manifest.snapshot_by_prefix("12AB").object_id == b"b" * 16
    assert manifest.snapshot_by_prefix("12c").object_id == b"c" * 16
    for prefix, message in (("12", "Several"), ("13", "No snapshot"), ("", "no snapshot id"), ("1%", "no snapshot id")):
        with pytest.raises(SnapshotNotFound, match=message):
            manifest.snapshot_by_prefix(prefix)


def test_snapshot_record_that_makes_no_sense_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ObjectCorrupt):
        manifest.put_snapshot(b"a" * 16, make_snapshot(1, 1 << 63))


def test_audit_log_is_newest_first_and_dated(manifest: Manifest) -> None:
    manifest.audit("backup", "one")
    manifest.audit("forget", "two", "because")
    assert [(line.action, line.subject, line.detail) for line in manifest.audit_log(5)] == [
        ("forget", "two", "because"),
        ("backup", "one", ""),
    ]
    assert manifest.audit_log(1)[0].time_ns == NOW_NS


def test_audit_log_keeps_the_newest_lines_only(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enigma.manifest.journal.AUDIT_LINES_KEPT", 3)
    for number in range(10):
        manifest.audit("a", str(number))
    assert [line.subject for line in manifest.audit_log(99)] == ["9", "8", "7"]


def test_meta_values_are_kept_over_a_reopening(path: Path) -> None:
    with Manifest.open(path, create=True) as manifest:
        manifest.meta_put("generation", b"\x00\x01")
    with Manifest.open(path) as manifest:
        assert manifest.meta_get("generation") == b"\x00\x01"
        assert manifest.meta_get("other") is None


def test_totals_are_sums_per_set(manifest: Manifest) -> None:
    add_listed(manifest, make_pack(1, [10, 11]), make_pack(2, [12]), make_pack(3, [13], pack_set=2))
    manifest.mark_suspect(pack_id(2))
    backup, catalog = manifest.totals()
    assert (backup.pack_set, backup.pack_count, backup.unusable_count, backup.blob_count) == (1, 2, 1, 3)
    assert (backup.stored_bytes, backup.plain_bytes, backup.length_bytes) == (300, 3001, 780 + 680)
    assert (catalog.pack_set, catalog.blob_count) == (2, 1)
    assert manifest.counts().suspect_count == 1


# --- opening


def test_files_are_for_their_owner_only(path: Path) -> None:
    with Manifest.open(path, create=True) as manifest:
        manifest.meta_put("a", b"1")
        files = list(path.parent.iterdir())
        assert len(files) == 3
        assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
    path.chmod(0o644)
    with Manifest.open(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_missing_file_is_no_repository_and_is_not_made(path: Path) -> None:
    for readonly in (False, True):
        with pytest.raises(RepositoryNotFound, match="enigma recover"):
            Manifest.open(path, readonly=readonly)
    assert not path.exists()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnigmaError, match="folder"):
        Manifest.open(tmp_path / "none" / "m", create=True)


def test_folder_in_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(EnigmaError, match="regular file"):
        Manifest.open(path)


def test_empty_file_is_damage_unless_it_is_to_be_made(path: Path) -> None:
    path.touch()
    for readonly in (False, True):
        with pytest.raises(ManifestCorrupt, match="enigma recover"):
            Manifest.open(path, readonly=readonly)
    with Manifest.open(path, create=True) as manifest:
        assert manifest.counts().pack_count == 0


def test_newer_version_is_unsupported_not_corrupt(path: Path) -> None:
    Manifest.open(path, create=True).close()
    edit(path, f"PRAGMA user_version = {database.SCHEMA_VERSION + 1}")
    for readonly in (False, True):
        with pytest.raises(FormatUnsupported):
            Manifest.open(path, readonly=readonly)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    edit(path, "CREATE TABLE photos (name)")
    before = path.read_bytes()
    with pytest.raises(ManifestCorrupt, match="another program"):
        Manifest.open(path, create=True)
    assert path.read_bytes() == before


def test_lost_table_is_damage(path: Path) -> None:
    Manifest.open(path, create=True).close()
    edit(path, "DROP TABLE snapshots")
    with Manifest.open(path) as manifest, pytest.raises(ManifestCorrupt):
        manifest.snapshots()


def test_opening_again_migrates_nothing_again(path: Path) -> None:
    Manifest.open(path, create=True).close()
    before = schema_of(path)
    for _ in range(2):
        with Manifest.open(path, create=True) as manifest:
            manifest.add_pack(make_pack(1, [10]), index_id=None)
    assert schema_of(path) == before


def test_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest.open(path, create=True) as manifest:
        add_listed(manifest, make_pack(1, [10]))
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE more (a INTEGER) STRICT;"))
    monkeypatch.setattr(database, "SCHEMA_VERSION", database.SCHEMA_VERSION + 1)
    with Manifest.open(path) as manifest:
        assert known(manifest, 10) == {10}
    version, names = schema_of(path)
    assert version == database.SCHEMA_VERSION
    assert "more" in names


def test_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifest.open(path, create=True).close()
    before = schema_of(path)
    script = "CREATE TABLE more (a INTEGER) STRICT; CREATE TABLE packs (a);"
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, script))
    monkeypatch.setattr(database, "SCHEMA_VERSION", database.SCHEMA_VERSION + 1)
    with pytest.raises(EnigmaError):
        Manifest.open(path)
    assert schema_of(path) == before


def edit(path: Path, sql: str) -> None:
    raw = sqlite3.connect(path)
    raw.execute(sql)
    raw.commit()
    raw.close()


def schema_of(path: Path) -> tuple[int, set[str]]:
    raw = sqlite3.connect(path)
    version = raw.execute("PRAGMA user_version").fetchone()[0]
    names = {name for (name,) in raw.execute("SELECT name FROM sqlite_schema")}
    raw.close()
    return version, names


# --- crashes and other processes

CHILD = """
import os, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from test_manifest import *
"""


def child(body: str, *arguments: object, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A process that runs `body` with this module's names at hand."""
    code = CHILD.format(root=str(ROOT), here=str(Path(__file__).parent)) + body
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


DYING_WRITER = """
manifest = Manifest.open(Path(sys.argv[1]), create=True)
manifest.add_pack(make_pack(1, range(500)), index_id=None)
with manifest.transaction():
    for number in range(2, 60):
        manifest.add_pack(make_pack(number, range(number * 1000, number * 1000 + 900)), index_id=None)
    print("deep in it", flush=True)
    sys.stdin.read()
"""


def test_killed_writer_leaves_what_it_committed_and_no_more(path: Path) -> None:
    with child(DYING_WRITER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deep in it\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with Manifest.open(path, readonly=True) as manifest:
        assert manifest.counts().pack_count == 1
    with Manifest.open(path) as manifest:
        assert [pack.pack_id for pack in manifest.packs()] == [pack_id(1)]
        assert known(manifest, *range(500), 2000) == set(range(500))
        manifest.add_pack(make_pack(2, [2000]), index_id=None)
        assert known(manifest, 2000) == {2000}


def filled(path: Path) -> None:
    with Manifest.open(path, create=True) as manifest:
        for number in range(20):
            add_listed(manifest, make_pack(number, range(number * 100, number * 100 + 90)))
        manifest.put_snapshot(b"a" * 16, make_snapshot(1))
        manifest.audit("a", "b", "c")


def smash_pages(path: Path) -> None:
    """Overwrite every page after the first four tenths of the file."""
    length_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(length_bytes * 4 // 10 // 4096 * 4096)
        file.write(b"\x5a" * (length_bytes - file.tell()))


def test_unclean_end_has_the_file_checked_at_the_next_open(path: Path) -> None:
    filled(path)
    with child("Manifest.open(Path(sys.argv[1])); os.kill(os.getpid(), 9)", path) as process:
        assert process.wait() == -signal.SIGKILL
    smash_pages(path)
    with pytest.raises(ManifestCorrupt, match=r"unclean end.*enigma recover"):
        Manifest.open(path)


def test_clean_end_saves_the_check_and_damage_is_met_in_use(path: Path) -> None:
    filled(path)
    smash_pages(path)
    with Manifest.open(path) as manifest, pytest.raises(ManifestCorrupt, match="enigma recover"):
        use_everything(manifest)
    with pytest.raises(ManifestCorrupt, match="unclean end"):
        Manifest.open(path)


def test_readers_see_whole_transactions_beside_a_writer(path: Path) -> None:
    Manifest.open(path, create=True).close()
    body = """
with Manifest.open(Path(sys.argv[1])) as manifest:
    print("open", flush=True)
    for number in range(0, 400, 2):
        with manifest.transaction():
            manifest.add_pack(make_pack(number, [number]), index_id=None)
            manifest.add_pack(make_pack(number + 1, [number + 1]), index_id=None)
"""
    seen: set[int] = set()
    with child(body, path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with Manifest.open(path, readonly=True, busy_timeout_s=0) as reader:
            while len(seen) < 400:
                now = known(reader, *range(400))
                assert seen <= now
                assert {number ^ 1 for number in now} == now
                seen = now
                assert writer.poll() in (None, 0)
        output_of(writer)


def test_reader_never_takes_a_pack_that_leaves_for_damage(path: Path) -> None:
    Manifest.open(path, create=True).close()
    body = """
with Manifest.open(Path(sys.argv[1])) as manifest:
    print("open", flush=True)
    for number in range(600):
        manifest.add_pack(make_pack(number, [10, 11], session_id=OTHER), index_id=None)
        manifest.mark_suspect(pack_id(number))
        manifest.forget_unindexed(ME)
        manifest.vacuum_blobs()
"""
    with child(body, path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with Manifest.open(path, readonly=True) as reader:
            while writer.poll() is None:
                assert set(reader.locate([chunk(10), chunk(11)])) in (set(), {chunk(10), chunk(11)})
                assert reader.bad_chunks() in (set(), {chunk(10), chunk(11)})
                for pack in reader.packs():
                    assert reader.indexed_pack(pack.pack_id) in (None, make_pack_like(pack.pack_id))
        output_of(writer)


def make_pack_like(id_of_pack: bytes) -> IndexedPack:
    return make_pack(int.from_bytes(id_of_pack[:4], "big"), [10, 11], session_id=OTHER)


def test_writer_commits_while_somebody_is_in_the_middle_of_reading(path: Path) -> None:
    filled(path)
    with Manifest.open(path, busy_timeout_s=0) as writer:
        raw = sqlite3.connect(path, isolation_level=None)
        raw.execute("BEGIN")
        before = raw.execute("SELECT count(*) FROM packs").fetchone()
        writer.add_pack(make_pack(99, [9999]), index_id=None)
        assert raw.execute("SELECT count(*) FROM packs").fetchone() == before == (20,)
        assert writer.counts().pack_count == 21
        raw.close()


def test_second_writer_is_locked_out(path: Path) -> None:
    with Manifest.open(path, create=True, busy_timeout_s=0) as first, Manifest.open(path, busy_timeout_s=0) as second:
        with first.transaction():
            first.meta_put("a", b"1")
            with pytest.raises(Locked):
                second.meta_put("b", b"2")
            with pytest.raises(Locked), second.transaction():
                raise AssertionError("never entered")
        second.meta_put("b", b"2")
        assert first.meta_get("b") == b"2"


def test_readonly_manifest_refuses_to_write(path: Path) -> None:
    Manifest.open(path, create=True).close()
    with Manifest.open(path, readonly=True) as manifest, pytest.raises(EnigmaError, match="writable"):
        manifest.meta_put("a", b"1")


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    return bool(unshare) and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip


needs_mount = pytest.mark.skipif(not can_mount(), reason="may not mount a small file system here")
MOUNT = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'


@needs_mount
def test_full_disk_is_said_clearly_and_costs_only_the_transaction(tmp_path: Path) -> None:
    body = """
path = Path(sys.argv[1]) / "m"
with Manifest.open(path, create=True) as manifest:
    number = 0
    try:
        while True:
            number += 1
            manifest.add_pack(make_pack(number, range(number * 1000, number * 1000 + 900)), index_id=None)
    except EnigmaError as exc:
        print(type(exc).__name__, exc)
    assert len(manifest.packs()) == number - 1 > 0
    assert known(manifest, 1000, number * 1000) == {1000}
with Manifest.open(path, readonly=True) as manifest:
    print(len(manifest.packs()) == number - 1)
"""
    prefix = ["unshare", "-m", "sh", "-c", MOUNT, str(tmp_path)]
    message, again = output_of(child(body, tmp_path, prefix=prefix)).splitlines()
    assert message.startswith("EnigmaError There is no space left for the manifest")
    assert again == "True"


@needs_mount
def test_read_only_file_system_is_said_clearly(tmp_path: Path) -> None:
    body = """
path = Path(sys.argv[1]) / "m"
filled(path)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for readonly in (False, True):
    try:
        with Manifest.open(path, readonly=readonly) as manifest:
            print(manifest.counts().pack_count)
    except EnigmaError as exc:
        print(type(exc).__name__, exc)
"""
    prefix = ["unshare", "-m", "sh", "-c", MOUNT, str(tmp_path)]
    lines = output_of(child(body, tmp_path, prefix=prefix)).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("EnigmaError The manifest") and "writable" in line for line in lines), lines


# --- garbage


def use_everything(manifest: Manifest) -> None:
    """Every question and every kind of change, on whatever is there."""
    chunk_ids = [chunk(one) for one in range(0, 2000, 7)]
    manifest.known(chunk_ids, session_id=ME)
    manifest.locate(chunk_ids)
    manifest.locations_of(chunk(105))
    for pack in manifest.packs():
        manifest.indexed_pack(pack.pack_id)
    manifest.mark_suspect(pack_id(3))
    manifest.set_condemned(CONDEMN, [pack_id(4)])
    manifest.mark_listing(1, listing_of(make_pack(5, range(500, 590))))
    manifest.bad_chunks()
    (manifest.condemnations(), manifest.suspects(), manifest.index_ids(), manifest.totals(), manifest.counts())
    (manifest.snapshots(), manifest.audit_log(5), manifest.meta_get("a"))
    manifest.add_pack(make_pack(50, [10]), index_id=INDEX)
    manifest.drop_index(INDEX)
    manifest.vacuum_blobs()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(min_size=1, max_size=600), st.binary(max_size=300).map(b"SQLite format 3\0".__add__))
)
def test_garbage_file_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    for readonly in (False, True):
        with pytest.raises(ManifestCorrupt):
            Manifest.open(path, readonly=readonly)


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "m"
    filled(path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_file_raises_only_our_errors(good_file: bytes, data: st.DataObject) -> None:
    content = bytearray(good_file)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.integers(100, len(content) - 1), st.integers(0, len(content) - 1)))
        piece = data.draw(st.binary(min_size=1, max_size=40))
        content[at : at + len(piece)] = piece
    if data.draw(st.integers(0, 9)) == 0:
        del content[data.draw(st.integers(1, len(content))) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        path.write_bytes(content)
        try:
            with Manifest.open(path) as manifest:
                use_everything(manifest)
        except EnigmaError as exc:
            assert str(path) in str(exc) or "makes no sense" in str(exc) or "holds no valid" in str(exc)


def test_records_are_read_as_the_engine_writes_them() -> None:
    (record,) = map(BlobRecord._make, RECORD.iter_unpack(make_pack(1, [10]).records))
    assert (record.chunk_id, record.offset, record.stored_bytes, record.plain_bytes) == (chunk(10), 80, 100, 1000)
