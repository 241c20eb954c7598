"""The machine is gone: what the provider holds and the passphrase bring everything back."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.program import Program, same_tree

OLD_PASSPHRASE = "the passphrase of the first day"
PASSPHRASE = "the passphrase of all later days"


@dataclass(frozen=True)
class Lost:
    """What a disaster leaves: the provider's folder, and the trees to compare with. The original home is untouched."""

    original: Program
    store: Path
    tree: Path
    earlier: Path  # as `tree` was at the first snapshot
    data_keys: tuple[str, str]  # the objects of the one that the first snapshot is sealed under, and of the second's

    def machine(self, tmp_path: Path, *, passphrase: str = PASSPHRASE) -> Program:
        """A new machine with a copy of the store, whose configuration does no more than name it."""
        shutil.copytree(self.store, tmp_path / "store")
        program = Program(tmp_path / "machine", passphrase=passphrase)
        program.config.mkdir(parents=True)
        toml = f'[[providers]]\nname = "disk"\ntype = "Local"\nbucket = "{tmp_path / "store"}"\n'
        (program.config / "enigma.toml").write_text(toml)
        return program

    def is_usable(self, program: Program) -> None:
        """The short check: every byte is sound, and a backup finds nothing to do."""
        program.verify("--read-data")
        again = program.backup(self.tree)
        assert (again["read_files"], again["data_packs"]) == (0, 0)

    def all_is_back(self, program: Program, tmp_path: Path) -> None:
        """Both snapshots, by every command, and a backup that finds nothing to do."""
        first, second = program.snapshots()
        assert [first["id"], second["id"]] == [one["id"] for one in self.original.snapshots()]
        program.verify("--read-data")
        program.restores(second["id"], self.tree, tmp_path / "target")
        program.restores(first["id"], self.earlier, tmp_path / "earlier target")
        assert "+ new" in program.run("diff", first["id"], second["id"]).expect(0).stdout.splitlines()
        assert "12" in program.run("ls", first["id"]).expect(0).stdout.splitlines()
        again = program.backup(self.tree)
        assert (again["read_files"], again["data_packs"]) == (0, 0)
        assert again["snapshot"]["parent"] == second["id"]
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "file").write_bytes(random.Random(5).randbytes(5000))
        assert program.backup(tmp_path / "more")["data_packs"] == 1
        program.verify("--read-data")


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Two snapshots under two data keys, after a change of the passphrase."""
    root = tmp_path_factory.mktemp("disaster")
    original = Program(root / "home", passphrase=OLD_PASSPHRASE).init()
    source = random.Random(8)
    tree = root / "tree"
    tree.mkdir()
    for number in range(30):
        (tree / f"{number}").write_bytes(source.randbytes(number * 700))
    _settle()
    original.backup(tree)
    shutil.copytree(tree, root / "earlier", symlinks=True)
    shutil.copystat(tree, root / "earlier")
    (first_key,) = (original.store / "keys").glob("data-*")
    original.run("key", "rotate").expect(0)
    (second_key,) = set((original.store / "keys").glob("data-*")) - {first_key}
    (tree / "new").write_bytes(source.randbytes(9000))
    (tree / "12").unlink()
    _settle()
    original.backup(tree)
    (root / "new passphrase").write_text(PASSPHRASE)
    original.run("key", "passphrase", "--new-passphrase-file", root / "new passphrase").expect(0)
    original.passphrase = PASSPHRASE
    return Lost(original, original.store, tree, root / "earlier", (f"keys/{first_key.name}", f"keys/{second_key.name}"))


def _settle() -> None:
    """Let the clock leave the timestamps behind: a file changed in the moment of reading is read again, by design."""
    until = time.time_ns() + 30_000_000
    while time.time_ns() < until:
        os.sched_yield()


def _drop_indexes(store: Path) -> None:
    shutil.rmtree(store / "index")


@pytest.mark.parametrize("before", [lambda _: None, _drop_indexes], ids=["all objects", "no index"])
def test_a_new_machine_has_everything_back(lost: Lost, tmp_path: Path, before: Callable[[Path], None]) -> None:
    program = lost.machine(tmp_path)
    before(tmp_path / "store")
    done = program.run("--json", "recover").expect(0)
    assert done.records()[0]["snapshots"] == 2
    lost.all_is_back(program, tmp_path)


def test_without_any_configuration_the_folder_beside_it_serves(lost: Lost, tmp_path: Path) -> None:
    program = Program(tmp_path / "machine", passphrase=PASSPHRASE)
    shutil.copytree(lost.store, program.store)
    program.run("recover").expect(0)
    lost.is_usable(program)


def test_recovering_twice_changes_nothing(lost: Lost, tmp_path: Path) -> None:
    program = lost.machine(tmp_path)
    shutil.rmtree(tmp_path / "store" / "index")
    assert program.run("--json", "recover").expect(0).records()[0]["packs_reindexed"] == 4
    held = sorted(tmp_path.glob("store/index/*/*"))
    assert program.run("--json", "recover").expect(0).records()[0]["packs_reindexed"] == 0
    assert sorted(tmp_path.glob("store/index/*/*")) == held


def test_a_wrong_passphrase_is_said_and_does_no_harm(lost: Lost, tmp_path: Path) -> None:
    program = lost.machine(tmp_path, passphrase=OLD_PASSPHRASE)  # it opened this repository once
    done = program.run("recover").expect(12)
    done.sentence()
    program.passphrase = PASSPHRASE
    program.run("recover").expect(0)
    lost.is_usable(program)


def test_an_index_that_is_gone_is_rebuilt_on_the_same_machine(lost: Lost, tmp_path: Path) -> None:
    program = lost.machine(tmp_path)
    program.run("recover").expect(0)
    shutil.rmtree(tmp_path / "store" / "index")
    program.run("verify").expect(1)
    program.run("recover").expect(0)
    lost.is_usable(program)


def _garbage(db: Path) -> None:
    db.write_bytes(random.Random(3).randbytes(70_000))


def _half(db: Path) -> None:
    db.write_bytes(db.read_bytes()[: db.stat().st_size // 2])


def _empty(db: Path) -> None:
    db.write_bytes(b"")


def _scrambled(db: Path) -> None:
    """A sound header, and then not."""
    data = db.read_bytes()
    db.write_bytes(data[:4096] + random.Random(4).randbytes(len(data) - 4096))


@pytest.mark.parametrize("damage", [_garbage, _half, _empty, _scrambled, Path.unlink])
def test_a_damaged_manifest_is_said_and_rebuilt(lost: Lost, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    program = lost.machine(tmp_path)
    program.run("recover").expect(0)
    db = program.config / "enigma.db"
    for suffix in ("-wal", "-shm"):
        db.with_name(db.name + suffix).unlink(missing_ok=True)
    damage(db)
    for command in ("list", "verify"):
        done = program.run(command)
        if done.status:
            done.sentence()
    program.run("recover").expect(0)
    lost.is_usable(program)


@pytest.mark.parametrize("length_bytes", [0, 500])
def test_a_damaged_keystore_is_said_and_comes_back_from_the_provider(
    lost: Lost, tmp_path: Path, length_bytes: int
) -> None:
    program = lost.machine(tmp_path)
    program.run("recover").expect(0)
    (keyfile,) = program.config.glob("*key*")
    keyfile.write_bytes(random.Random(length_bytes).randbytes(length_bytes))
    for command in ("verify", "recover"):
        done = program.run(command)
        assert done.status in (1, 12), done.told()
        assert "recover" in done.sentence() or "move" in done.sentence()
    keyfile.unlink()
    program.run("recover").expect(0)
    lost.is_usable(program)


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])


@pytest.mark.parametrize("kind", ["marker", "config/*", "index/backup/*", "index/catalog/*", "tomb/*"])
def test_damage_that_leaves_another_way_stops_no_recovery(lost: Lost, tmp_path: Path, kind: str) -> None:
    """One object of the kind is broken. What it said is said elsewhere too, or can be read from the packs."""
    program = lost.machine(tmp_path)
    victim = min((tmp_path / "store").glob(kind))
    _flip(victim)
    done = program.run("recover")
    assert "Traceback" not in done.stderr
    assert done.status in (0, 1), done.told()
    key = str(victim.relative_to(tmp_path / "store"))
    assert key in done.stderr or (done.status == 0 and kind in ("marker", "config/*")), done.told()
    verified = program.run("--json", "verify", "--read-data").expect(1)
    assert key in verified.stdout
    assert verified.records()[0]["damaged_snapshots"] == []
    program.restores("latest", lost.tree, tmp_path / "target")
    again = program.backup(lost.tree)
    assert (again["read_files"], again["data_packs"]) == (0, 0)


@pytest.mark.parametrize("kind", ["snapshots/*", "packs/backup/*/*", "packs/catalog/*/*"])
@pytest.mark.parametrize("number", [0, 1])
def test_damage_that_costs_something_costs_no_more(lost: Lost, tmp_path: Path, kind: str, number: int) -> None:
    """One of two is broken: recovery names it, the other one's data is there, and a backup works."""
    program = lost.machine(tmp_path)
    victim = sorted((tmp_path / "store").glob(kind))[number]
    _flip(victim)
    key = str(victim.relative_to(tmp_path / "store"))
    done = program.run("recover")
    assert "Traceback" not in done.stderr
    assert done.status in (0, 1), done.told()
    verified = program.run("--json", "verify", "--read-data").expect(1)
    assert key in verified.stdout, verified.told()
    for snapshot in program.snapshots():
        done = program.run("--json", "restore", snapshot["id"], tmp_path / snapshot["id"])
        assert "Traceback" not in done.stderr
        expected = lost.tree if snapshot["parent"] else lost.earlier
        different = set(same_tree(expected, tmp_path / snapshot["id"]))
        failed = {one["path"] for one in done.records()[0]["failed"]} if done.status else set()
        assert different <= failed or any(path.startswith("catalog ") for path in failed), done.told()
    assert program.backup(lost.tree)["snapshot"]["complete"]
    program.restores("latest", lost.tree, tmp_path / "target")


def test_a_lost_data_key_costs_what_is_sealed_under_it(lost: Lost, tmp_path: Path) -> None:
    """Of what was made before that key, nothing."""
    program = lost.machine(tmp_path)
    _flip(tmp_path / "store" / lost.data_keys[1])
    key_id = lost.data_keys[1].rpartition("-")[2]
    done = program.run("recover").expect(1)
    assert "Traceback" not in done.stderr
    assert key_id in done.stderr
    verified = program.run("--json", "verify", "--read-data").expect(1)
    assert key_id in verified.stdout, verified.told()
    first = lost.original.snapshots()[0]["id"]
    program.restores(first, lost.earlier, tmp_path / "target")


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_with_the_first_data_key_lost_the_repository_still_opens(lost: Lost, tmp_path: Path, how: str) -> None:
    """The configuration is sealed under every key that there has been; what only the lost one opens is named."""
    program = lost.machine(tmp_path)
    victim = tmp_path / "store" / lost.data_keys[0]
    _flip(victim) if how == "flipped" else victim.unlink()
    done = program.run("recover").expect(1)
    assert "Traceback" not in done.stderr
    assert lost.data_keys[0].rpartition("-")[2] in done.stderr
    assert "snapshots/" in done.stderr
    assert program.backup(lost.tree)["snapshot"]["complete"]
    program.restores("latest", lost.tree, tmp_path / "target")


def test_with_the_only_slot_lost_the_sentence_says_so(lost: Lost, tmp_path: Path) -> None:
    """What is in the slot opens all the keys."""
    program = lost.machine(tmp_path)
    _flip(next((tmp_path / "store/keys").glob("slot-*")))
    done = program.run("recover")
    assert done.status in (1, 12), done.told()
    done.sentence()


@pytest.mark.parametrize("strategy", ["Fixed]\nsize = 131072", "Cdc]\ntarget_size = 65536"])
def test_a_chunker_that_nobody_states_is_the_repositorys(tmp_path: Path, strategy: str) -> None:
    program = Program(tmp_path / "home", passphrase=PASSPHRASE)
    program.config.mkdir(parents=True)
    (program.config / "enigma.toml").write_text(f"[enigma.chunk_strategy.{strategy}\n")
    program.init()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(random.Random(3).randbytes(1 << 20))
    _settle()
    program.backup(tmp_path / "tree")
    shutil.copytree(program.store, tmp_path / "machine" / ".enigma" / "store")
    recovered = Program(tmp_path / "machine", passphrase=program.passphrase)
    recovered.run("recover").expect(0)
    again = recovered.backup(tmp_path / "tree", "--force")
    assert (again["snapshot"]["new_bytes"], again["data_packs"]) == (0, 0)


def test_an_empty_place_is_no_repository(lost: Lost, tmp_path: Path) -> None:
    program = lost.machine(tmp_path)
    shutil.rmtree(tmp_path / "store")
    program.run("recover").expect(1).sentence()
    (tmp_path / "store").mkdir()
    program.run("recover").expect(10).sentence()
    shutil.copytree(lost.store, tmp_path / "store", dirs_exist_ok=True)
    program.run("recover").expect(0)
    lost.is_usable(program)
