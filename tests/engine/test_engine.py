"""The engine's promises: same result whoever works, nothing hangs, nothing leaks, errors travel."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.owner import MemoryOwner, digest_of, items_of, plan_for
from workers.attributes import Attributes
from workers.engine import Engine
from workers.errors import EngineClosed, StageFailed, WorkerDied
from workers.messages import Target
from workers.owner import PackCheck, RangeRead
from workers.units import FileItem, ReadyItem, StreamItem, Written

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    """Small files, empty ones, duplicates, and two that are larger than a window."""
    source = random.Random(7)
    paths = []
    for number in range(900):
        path = tmp_path / f"small-{number:04d}"
        path.write_bytes(source.randbytes(source.randrange(0, 9000)) if number % 7 else b"")
        paths.append(path)
    twin = source.randbytes(200_000)
    for name in ("twin-1", "twin-2"):
        (tmp_path / name).write_bytes(twin)
        paths.append(tmp_path / name)
    for name, size in (("large-1", 40 * MIB + 17), ("large-2", 17 * MIB)):
        (tmp_path / name).write_bytes(source.randbytes(size))
        paths.append(tmp_path / name)
    return sorted(paths)


def write_all(engine: Engine, items: list) -> dict[object, tuple[bytes, Written]]:
    """Content and last event by tag, asserting that events come in the order of the items."""
    contents: dict[object, bytes] = {}
    last: dict[object, tuple[bytes, Written]] = {}
    order = []
    for event in engine.write(items):
        contents[event.tag] = contents.get(event.tag, b"") + event.content
        if event.last:
            order.append(event.tag)
            last[event.tag] = (contents[event.tag], event)
    assert order == [item.tag for item in items]
    engine.flush()
    return last


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_chunks_and_blobs_are_the_same_however_many_work(tree: list[Path], workers: int) -> None:
    alone, together = MemoryOwner(), MemoryOwner()
    with Engine(plan_for(1), alone, inline=True) as engine:
        expected = write_all(engine, items_of(tree))
    with Engine(plan_for(workers), together, inline=False) as engine:
        results = write_all(engine, items_of(tree))
    assert {path: content for path, (content, _) in results.items()} == {
        path: content for path, (content, _) in expected.items()
    }
    assert together.chunks.keys() == alone.chunks.keys()
    assert together.duplicates == alone.duplicates == 0


def test_small_work_starts_no_process_and_large_work_does(tree: list[Path]) -> None:
    few = items_of(tree[-300:-10])
    with Engine(plan_for(2), MemoryOwner()) as engine:
        write_all(engine, few)
        assert engine.worker_pids == []
    with Engine(plan_for(2), MemoryOwner()) as engine:
        write_all(engine, items_of(tree))
        assert len(engine.worker_pids) == 2


def test_what_begins_small_goes_over_to_a_pool_when_it_grows(tree: list[Path]) -> None:
    owner = MemoryOwner()
    items = [*items_of(tree[:3]), *(ReadyItem(("ready", number)) for number in range(9000)), *items_of(tree[3:])]
    with Engine(plan_for(2), owner) as engine:
        write_all(engine, items)
        assert len(engine.worker_pids) == 2
    assert owner.duplicates == 0


def test_an_unchanged_tree_starts_nothing_at_all() -> None:
    with Engine(plan_for(2), MemoryOwner()) as engine:
        events = list(engine.write(ReadyItem(number) for number in range(20_000)))
        assert [event.tag for event in events] == list(range(20_000))
        assert engine.worker_pids == []


@pytest.mark.parametrize("inline", [True, False])
def test_what_was_written_reads_back_identical(tree: list[Path], tmp_path: Path, inline: bool) -> None:
    owner = MemoryOwner()
    with Engine(plan_for(2), owner, inline=inline) as engine:
        results = write_all(engine, items_of(tree))
    target = tmp_path / "restored"
    target.mkdir()
    requests = []
    for path, (content, _) in results.items():
        (target / path.name).touch()
        offset = 0
        for at in range(0, len(content), 36):
            pack, record = owner.chunks[content[at : at + 32]]
            goes_to = Target(os.fsencode(path.name), offset)
            requests.append(
                RangeRead(
                    pack.pack_id,
                    pack.pack_set,
                    pack.key_id,
                    record.offset,
                    record.stored_bytes,
                    ((record, (goes_to,)),),
                )
            )
            offset += record.plain_bytes
    plan = plan_for(2)
    plan = type(plan)(**{name: getattr(plan, name) for name in plan.__slots__} | {"target_root": os.fsencode(target)})
    with Engine(plan, owner, inline=inline) as engine:
        for opened in engine.read(requests):
            assert opened.failure is None
            assert opened.errors == ()
    assert all(digest_of(path) == digest_of(target / path.name) for path in tree)


def test_neighbours_in_a_file_are_joined_and_a_damaged_one_takes_no_other_along(tmp_path: Path) -> None:
    """Two files whose chunks lie in one pack, the first half compressible; one chunk of the first is damaged."""
    owner, source = MemoryOwner(), random.Random(5)
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    paths = [tmp_path / "from" / name for name in ("a", "b")]
    paths[0].write_bytes(bytes(source.choices(b"abcd", k=3 * MIB)) + source.randbytes(6 * MIB))
    paths[1].write_bytes(source.randbytes(MIB + 77))
    plan = plan_for(1, pack_bytes=32 * MIB)
    with Engine(plan, owner, inline=True) as engine:
        results = write_all(engine, items_of(paths))
    (pack,) = owner.stored_packs
    blobs = []
    for path, (content, _) in results.items():
        offset = 0
        for at in range(0, len(content), 36):
            record = owner.chunks[content[at : at + 32]][1]
            blobs.append((record, (Target(os.fsencode(path.name), offset),)))
            offset += record.plain_bytes
        (tmp_path / "to" / path.name).touch()
    victim, ((_, lost_at, *_),) = blobs[len(blobs) // 2]
    damaged = bytearray(owner.packs[pack.pack_id])
    damaged[victim.offset + 3] ^= 0x10
    owner.packs[pack.pack_id] = bytes(damaged)
    request = RangeRead(pack.pack_id, pack.pack_set, pack.key_id, 0, min(pack.length_bytes, 8 * MIB), tuple(blobs))
    with Engine(replace(plan, target_root=os.fsencode(tmp_path / "to")), owner, inline=False) as engine:
        (opened,) = engine.read([request])
    assert [index for index, _ in opened.errors] == [len(blobs) // 2]
    assert opened.unwritten == ()
    for path in paths:
        expected = bytearray(path.read_bytes())
        if path is paths[0]:
            expected[lost_at : lost_at + victim.plain_bytes] = bytes(victim.plain_bytes)
        assert (tmp_path / "to" / path.name).read_bytes() == expected


def test_a_flipped_byte_is_named_and_the_other_blobs_still_open(tree: list[Path], tmp_path: Path) -> None:
    owner = MemoryOwner()
    with Engine(plan_for(2), owner, inline=True) as engine:
        write_all(engine, items_of(tree[-100:]))
    pack = owner.stored_packs[0]
    victim = next(record for where, record in owner.chunks.values() if where is pack)
    damaged = bytearray(owner.packs[pack.pack_id])
    damaged[victim.offset + 3] ^= 0x10
    owner.packs[pack.pack_id] = bytes(damaged)
    blobs = tuple((record, ()) for where, record in owner.chunks.values() if where is pack)[:50]
    request = RangeRead(pack.pack_id, pack.pack_set, pack.key_id, 0, min(pack.length_bytes, 4 * MIB), blobs)
    with Engine(plan_for(2), owner, inline=False) as engine:
        (opened,) = engine.read([request])
        assert [blobs[index][0].chunk_id for index, _ in opened.errors] == [victim.chunk_id]
        (checked,) = engine.check([PackCheck(pack.pack_id, pack.pack_set, pack.key_id, pack.length_bytes)])
    assert any("checksum" in error for error in checked.errors)
    assert any(victim.chunk_id.hex()[:16] in error for error in checked.errors)


def test_a_sound_pack_checks_without_an_error(tree: list[Path]) -> None:
    owner = MemoryOwner()
    with Engine(plan_for(2), owner, inline=True) as engine:
        write_all(engine, items_of(tree[-100:]))
    checks = [PackCheck(one.pack_id, one.pack_set, one.key_id, one.length_bytes) for one in owner.stored_packs]
    with Engine(plan_for(2), owner, inline=False) as engine:
        for checked in engine.check(checks):
            pack = next(one for one in owner.stored_packs if one.pack_id == checked.request.pack_id)
            assert checked.errors == ()
            assert checked.records_sha256 == hashlib.sha256(pack.records).digest()


@pytest.mark.parametrize("length", [0, 1, 100_000, 16 * MIB, 16 * MIB + 1, 50 * MIB])
def test_a_stream_is_cut_as_a_file_of_the_same_bytes(tmp_path: Path, length: int) -> None:
    content = random.Random(length).randbytes(length)
    path = tmp_path / "file"
    path.write_bytes(content)
    with Engine(plan_for(2), MemoryOwner(), inline=False) as engine:
        from_file = write_all(engine, [FileItem(os.fsencode(path), length, "it")])
    for inline in (True, False):
        stream = io.BytesIO(content)
        with Engine(plan_for(2), MemoryOwner(), inline=inline) as engine:
            from_stream = write_all(engine, [StreamItem(stream.readinto, "it")])
        assert from_stream["it"][0] == from_file["it"][0]
        assert from_stream["it"][1].facts.size == length


def test_a_stream_that_fails_fails_alone(tree: list[Path]) -> None:
    def broken(_view: memoryview) -> int:
        raise RuntimeError("the peer went away")

    with Engine(plan_for(2), MemoryOwner(), inline=False) as engine:
        results = write_all(engine, [*items_of(tree[:5]), StreamItem(broken, "stream"), *items_of(tree[5:9])])
        assert str(results["stream"][1].error) == "the peer went away"
        assert results[tree[8]][1].facts.error == 0


def test_unreadable_files_are_facts_and_not_failures(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fine").write_bytes(b"fine")
    names = ["gone", "dir", "link", "fifo", "fine"]
    items = [FileItem(os.fsencode(tmp_path / name), 10, name) for name in names]
    with Engine(plan_for(2), MemoryOwner(), inline=False) as engine:
        results = write_all(engine, items)
    errors = {name: event.facts.error for name, (_, event) in results.items()}
    assert errors["gone"] == errno.ENOENT
    assert errors["link"] == errno.ELOOP
    assert errors["dir"] == errors["fifo"] == errno.ESTALE
    assert errors["fine"] == 0


def test_a_large_file_that_vanishes_between_segments_is_an_error_of_that_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(20 * MIB))
    with Engine(plan_for(1), MemoryOwner(), inline=True) as engine:
        events = []
        for event in engine.write([FileItem(os.fsencode(path), 60 * MIB, "large"), FileItem(b"/nowhere", 1, "x")]):
            events.append(event)
            path.unlink(missing_ok=True)
    last = [event for event in events if event.last and event.tag == "large"]
    assert len(last) == 1


def test_a_killed_worker_is_reported_at_once_with_its_exit_code(tree: list[Path]) -> None:
    with Engine(plan_for(2), MemoryOwner(), inline=False) as engine:
        events = engine.write(items_of(tree) * 20)
        next(events)
        victim = engine.worker_pids[0]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(WorkerDied) as caught:
            list(events)
        assert time.monotonic() - began < 2
        assert caught.value.exit_code == -signal.SIGKILL
        pids = engine.worker_pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_failing_stage_brings_its_traceback_from_the_worker(tmp_path: Path) -> None:
    plan = plan_for(2)
    broken = type(plan)(**{name: getattr(plan, name) for name in plan.__slots__} | {"level": 99})
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with Engine(broken, MemoryOwner(), inline=False) as engine, pytest.raises(StageFailed) as caught:
        list(engine.write([FileItem(os.fsencode(tmp_path / "file"), 1000)]))
    assert "Traceback" in caught.value.remote_traceback
    assert "compression.py" in caught.value.remote_traceback


def test_a_failing_upload_fails_the_engine(tree: list[Path]) -> None:
    with Engine(plan_for(2), MemoryOwner(fail_at=2), inline=False) as engine, pytest.raises(OSError, match="space"):
        write_all(engine, items_of(tree))


def test_a_closed_engine_says_so() -> None:
    engine = Engine(plan_for(2), MemoryOwner())
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.flush()


def test_nothing_is_left_in_shared_memory_or_among_the_children(tree: list[Path]) -> None:
    gc.collect()  # what earlier tests left open is not this one's
    before = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    with Engine(plan_for(3), MemoryOwner(), inline=False) as engine:
        write_all(engine, items_of(tree))
        pids = engine.worker_pids
    assert (set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_no_key_is_in_argv_or_environment_of_a_worker(tree: list[Path]) -> None:
    with Engine(plan_for(2), MemoryOwner(), inline=False) as engine:
        next(iter(engine.write(items_of(tree))))
        for pid in engine.worker_pids:
            seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert b"d" * 32 not in seen
            assert b"PASSPHRASE" not in seen


def test_attributes_never_hide_in_a_message_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    try:
        os.setxattr(path, "user.large", b"v" * 3000)
    except OSError:
        pytest.skip("this file system takes no extended attributes")
    with Engine(plan_for(1), MemoryOwner(), inline=False) as engine:
        results = write_all(engine, [FileItem(os.fsencode(path), 7, "it")])
    assert results["it"][1].facts.xattrs == ((b"user.large", b"v" * 3000),)
    assert isinstance(Attributes(0o644, 0, 0, 0), tuple)
