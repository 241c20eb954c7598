"""Every stored object, damaged in every way: named by verify, survived by the rest, healed by the next backup."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from enigma.config import Config, load
from enigma.errors import EnigmaError
from enigma.keys.local import LocalKeystore
from enigma.maintenance.verify import Findings, Subset, verify
from enigma.model.ids import ObjectId, SessionId
from enigma.model.records import FenceRecord
from enigma.repository import names
from enigma.repository.opening import exclusive, open_repository
from enigma.repository.repository import Repository
from tests.program import Done, Program, same_tree
from workers.objects import CHECKSUM_BYTES, HEADER_BYTES
from workers.packs import TRAILER_BYTES, Trailer, iter_records
from workers.sealing import NONCE_BYTES, TAG_BYTES

PASSPHRASES = ("first passphrase of three", "second passphrase of three", "third passphrase of three")
KEPT, LOST = 6, 5  # files that only the first, and only the second data pack holds

HEADER_FIELDS = {
    "magic": 0,
    "version": 8,
    "type": 10,
    "suite": 11,
    "reader features": 12,
    "writer features": 16,
    "gc features": 20,
    "repository id": 24,
    "object id": 40,
    "key id": 56,
    "set": 72,
    "reserved": 75,
}
TRAILER_FIELDS = {
    "table offset": 0,
    "table length": 8,
    "pack length": 16,
    "blob count": 24,
    "pack version": 28,
    "pack set": 30,
    "trailer padding": 31,
    "trailer key id": 32,
    "pack checksum": 48,
}


@dataclass(frozen=True)
class Store:
    """A pristine copy of a small repository, and which of its objects is which."""

    program: Program
    pristine: Path
    tree: Path
    chosen: dict[str, str]  # kind of object -> the key that gets damaged
    others: dict[str, str]  # the same kind, another object, to swap with
    regions: dict[str, dict[str, int]]  # kind -> region -> offset of the byte to flip

    def path(self, key: str) -> Path:
        return self.program.store / key

    def fresh(self) -> None:
        """The home as it was: the same path, so that the configuration goes on being right."""
        shutil.rmtree(self.program.home)
        shutil.copytree(self.pristine, self.program.home)

    def damage(self, kind: str, how: str) -> set[str]:
        """Do it; the keys of the objects that are damaged now."""
        key = self.chosen[kind]
        path = self.path(key)
        data = path.read_bytes()
        if how == "deleted":
            path.unlink()
        elif how == "swapped":
            other = self.path(self.others[kind])
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return {key, self.others[kind]}
        elif how in CUTS:
            path.write_bytes(CUTS[how](data))
        else:
            at = self.regions[kind][how]
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        return {key}


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "one byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "one byte long": lambda data: data + b"\0",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("damage")
    program = Program(root / "home", passphrase=PASSPHRASES[0]).init()
    source = random.Random(11)
    tree = root / "tree"
    (tree / "kept").mkdir(parents=True)
    for number in range(KEPT):
        (tree / "kept" / f"{number}").write_bytes(source.randbytes(2000 + number * 3001))
    held = [_objects(program)]
    program.backup(tree)
    held.append(_objects(program))
    program.run("key", "rotate").expect(0)
    (tree / "lost").mkdir()
    for number in range(LOST):
        (tree / "lost" / f"{number}").write_bytes(b"a line that compresses well\n" * 99 + source.randbytes(4000))
    program.backup(tree)
    held.append(_objects(program))
    for new in PASSPHRASES[1:]:
        (root / "new").write_text(new)
        program.run("key", "passphrase", "--new-passphrase-file", root / "new").expect(0)
        program.passphrase = new
        held.append(_objects(program))
    _put_fences(program)
    held[-1] = _objects(program)
    chosen, others = _choose(*held)
    with _opened(program) as repository:
        regions = {kind: _regions(kind, key, program, repository) for kind, key in chosen.items()}
    shutil.copytree(program.home, root / "pristine")
    return Store(program, root / "pristine", tree, chosen, others, regions)


def _objects(program: Program) -> set[str]:
    paths = (path for path in program.store.rglob("*") if path.is_file())
    return {key for key in (str(path.relative_to(program.store)) for path in paths) if names.is_ours(key)}


def _choose(
    empty: set[str], first: set[str], second: set[str], third: set[str], last: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The object to damage is the second backup's, where each backup made one."""
    chosen, others = {"marker": "marker"}, {}
    for kind, prefix in {
        "snapshot": names.SNAPSHOTS,
        "data index": "index/backup/",
        "catalog index": "index/catalog/",
        "data pack": "packs/backup/",
        "catalog pack": "packs/catalog/",
    }.items():
        (others[kind],) = (key for key in first - empty if key.startswith(prefix))
        (chosen[kind],) = (key for key in second - first if key.startswith(prefix))
    for kind, prefix in {"fence": names.FENCES, "data key": "keys/data-"}.items():
        chosen[kind], others[kind] = sorted(key for key in last if key.startswith(prefix))
    chosen["config"], others["config"] = sorted(key for key in empty if key.startswith(names.CONFIGS))
    (others["tomb"],) = (key for key in third if key.startswith(names.TOMBS))
    (chosen["tomb"],) = (key for key in last - third if key.startswith(names.TOMBS))
    (chosen["slot"],) = (key for key in last if key.startswith("keys/slot-"))
    return chosen, others


def _put_fences(program: Program) -> None:
    """Of sessions that never were: they make nothing void."""
    with _opened(program) as repository:
        for _ in range(2):
            session_id = SessionId.random()
            record = FenceRecord(session_id=session_id, by_session_id=SessionId.random(), created_ns=1)
            repository.store.put(names.fence_key(session_id, ObjectId.random()), record)


def _regions(kind: str, key: str, program: Program, repository: Repository) -> dict[str, int]:
    data = (program.store / key).read_bytes()
    regions = dict(HEADER_FIELDS)
    if kind == "marker":
        return regions | {"checksum": len(data) - 1}
    if not kind.endswith("pack"):
        return regions | {
            "nonce": HEADER_BYTES,
            "body": (HEADER_BYTES + NONCE_BYTES + len(data) - TAG_BYTES - CHECKSUM_BYTES) // 2,
            "tag": len(data) - CHECKSUM_BYTES - 1,
            "checksum": len(data) - 1,
        }
    trailer = Trailer.decode(data[-TRAILER_BYTES:], len(data))
    indexed = repository.manifest.indexed_pack(names.object_id_of(key))
    assert indexed is not None
    blobs = list(iter_records(indexed.records))
    blobs_end = max(blob.offset + blob.stored_bytes for blob in blobs)
    assert blobs_end < trailer.table_offset, "the pack needs padding for this test"
    regions |= {
        "first blob": blobs[0].offset,
        "last blob's tag": blobs_end - 1,
        "padding": blobs_end,
        "table's nonce": trailer.table_offset,
        "table": trailer.table_offset + trailer.table_bytes // 2,
        "table's tag": trailer.table_offset + trailer.table_bytes - 1,
    }
    return regions | {name: len(data) - TRAILER_BYTES + at for name, at in TRAILER_FIELDS.items()}


@contextmanager
def _opened(program: Program) -> Iterator[Repository]:
    """Open as a command does, but for the key: to derive it for every case would take longer than all the rest."""
    config = load(program.config)
    repository = open_repository(config, lambda: _keystore(config, program.passphrase or ""))
    try:
        yield repository
    finally:
        repository.manifest.close()


_opened_keystores: dict[tuple[Path, str], LocalKeystore] = {}


def _keystore(config: Config, passphrase: str) -> LocalKeystore:
    place = (config.keyfile_path, passphrase)
    if place not in _opened_keystores:
        _opened_keystores[place] = LocalKeystore.open(config.keyfile_path, passphrase=passphrase.encode())
    return _opened_keystores[place]


class Quiet:
    """Watches a verify and says nothing."""

    def problem(self, subject: str, message: str) -> None: ...

    def checked(self, length_bytes: int, total_bytes: int) -> None: ...


def verify_all(program: Program) -> Findings:
    """What `enigma verify --read-data` does, without starting a process."""
    with (
        exclusive(load(program.config)),
        _opened(program) as repository,
        repository.session("verify") as session,
    ):
        return verify(repository, session, list(repository.manifest.snapshots()), Quiet(), read_data=Subset())


# ---- the matrix

SMALL = ("nonce", "body", "tag", "checksum")
PACK = ("first blob", "last blob's tag", "padding", "table's nonce", "table", "table's tag", *TRAILER_FIELDS)
KINDS = (
    "config",
    "slot",
    "data key",
    "data index",
    "catalog index",
    "snapshot",
    "data pack",
    "catalog pack",
    "tomb",
    "fence",
)


def cases() -> Iterator[tuple[str, str]]:
    yield from (("marker", how) for how in (*HEADER_FIELDS, "checksum", *CUTS, "deleted"))
    for kind in KINDS:
        yield from ((kind, how) for how in (PACK if kind.endswith("pack") else SMALL))
        header = HEADER_FIELDS if kind in ("config", "snapshot", "data pack", "catalog pack") else ("version", "type")
        yield from ((kind, how) for how in header)
        yield from ((kind, how) for how in CUTS)
        if kind != "fence":  # one that is gone is as if it had never been
            yield kind, "deleted"
        if kind != "slot":  # there is one
            yield kind, "swapped"


@pytest.mark.parametrize(("kind", "how"), list(cases()), ids=lambda word: word.replace(" ", "-"))
def test_verify_names_what_is_damaged(store: Store, kind: str, how: str) -> None:
    store.fresh()
    damaged = store.damage(kind, how)
    told = told_by_verify(store.program)
    if (kind, how) == ("config", "swapped"):  # both copies of what opens everything: only the first is come to
        assert any(key in told[0] for key in damaged), told
        return
    if (kind, how) == ("config", "deleted"):
        damaged = {"config/00000001"}
    for key in damaged:
        assert any(key in line for line in told), told
    for line in told:  # and nothing else is accused
        assert line.startswith("snapshot ") or any(key in line for key in damaged), told


def told_by_verify(program: Program) -> list[str]:
    """One line per problem, or the one sentence with which it gives up."""
    try:
        found = verify_all(program)
    except EnigmaError as exc:
        _opened_keystores.clear()  # it was closed on the way out
        return [f"gave up: {exc}"]
    return [f"{subject}: {message}" for subject, message in found.problems]


def test_a_sound_repository_has_no_problem(store: Store) -> None:
    store.fresh()
    assert verify_all(store.program).problems == []


# ---- the commands


def sound(done: Done) -> Done:
    """Ended in our own words."""
    assert "Traceback" not in done.stdout + done.stderr, done.told()
    assert "Unexpected" not in done.stderr, done.told()
    return done


LOST_PATHS = {f"lost/{number}" for number in range(LOST)}


@pytest.mark.parametrize("how", ["first blob", "half", "deleted", "swapped", "object id"])
def test_a_damaged_data_pack_costs_its_files_and_is_healed_by_the_next_backup(
    store: Store, tmp_path: Path, how: str
) -> None:
    store.fresh()
    program = store.program
    (key, *_) = sorted(store.damage("data pack", how))
    done = sound(program.run("--json", "verify", "--read-data"))
    assert done.status == 1, done.told()
    assert key in done.stdout, done.told()

    done = sound(program.run("--json", "restore", "latest", tmp_path / "hurt"))
    failed = {one["path"] for one in done.records()[0]["failed"]}
    survives = "object id" if how == "object id" else ""  # the header is not needed for reading blobs
    if survives:
        assert (done.status, failed) == (0, set()), done.told()
    elif how == "swapped":
        assert done.status == 1, done.told()
        assert failed == LOST_PATHS | {f"kept/{number}" for number in range(KEPT)}
    else:
        assert done.status == 1, done.told()
        assert failed <= LOST_PATHS, done.told()
        assert failed
        if how in ("half", "deleted"):
            assert failed == LOST_PATHS
        different = set(same_tree(store.tree, tmp_path / "hurt"))
        assert different <= failed | {"lost"}, different

    again = program.backup(store.tree)
    assert again["data_packs"] == 1
    assert again["read_files"] == (KEPT + LOST if how == "swapped" else LOST)
    for snapshot in program.snapshots()[1:]:  # the old one needs the same chunks, and they are stored again
        program.restores(snapshot["id"], store.tree, tmp_path / f"healed {snapshot['id']}")
    third = program.backup(store.tree)
    assert (third["read_files"], third["data_packs"]) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("marker", "deleted"),
        ("marker", "checksum"),
        ("marker", "version"),
        ("config", "body"),
        ("config", "deleted"),
        ("slot", "body"),
        ("slot", "deleted"),
        ("data key", "body"),
        ("data key", "deleted"),
        ("data index", "deleted"),
        ("data index", "body"),
        ("catalog index", "deleted"),
        ("catalog index", "body"),
        ("snapshot", "body"),
        ("snapshot", "deleted"),
        ("tomb", "deleted"),
        ("tomb", "body"),
    ],
    ids=lambda word: word.replace(" ", "-"),
)
def test_a_damaged_small_object_is_named_and_stops_nothing(store: Store, tmp_path: Path, kind: str, how: str) -> None:
    """This machine's manifest and keystore know it all; one copy at the provider is not the last word."""
    store.fresh()
    program = store.program
    (key,) = store.damage(kind, how)
    (tmp_path / "target").mkdir()
    done = sound(program.run("--json", "verify"))
    assert done.status == 1, done.told()
    told = json.dumps(done.records()[0]["problems"])
    assert ("config/00000001" if (kind, how) == ("config", "deleted") else key) in told, done.told()
    if kind.endswith("index") and how == "deleted":  # said again, as long as it is so
        assert sound(program.run("verify")).status == 1
    again = program.backup(store.tree)
    assert again["snapshot"]["complete"]
    program.restores("latest", store.tree, tmp_path / "target" / "all")


@pytest.mark.parametrize("how", ["first blob", "table", "deleted", "half"])
def test_a_damaged_catalog_pack_costs_one_snapshot(store: Store, tmp_path: Path, how: str) -> None:
    store.fresh()
    program = store.program
    (key,) = store.damage("catalog pack", how)
    first, second = (one["id"] for one in program.snapshots())
    done = sound(program.run("--json", "verify", "--read-data"))
    assert done.status == 1, done.told()
    found = done.records()[0]
    assert key in json.dumps(found["problems"])
    assert first not in found["damaged_snapshots"]
    if how != "table":  # which restoring does not read
        assert found["damaged_snapshots"] == [second]
        done = sound(program.run("restore", second, tmp_path / "hurt"))
        assert done.status == 1, done.told()
    sound(program.run("restore", first, tmp_path / "first")).expect(0)
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"kept"}
    again = program.backup(store.tree)
    assert (again["snapshot"]["complete"], again["data_packs"]) == (True, 0)
    program.restores("latest", store.tree, tmp_path / "all")
