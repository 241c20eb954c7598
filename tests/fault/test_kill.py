"""kill -9 at any moment, of the parent or a worker: nothing stored is lost, nothing is left behind, the next run works.

ENIGMA_KILL_ROUNDS sets how many backups are killed; rounds are short, so that every moment of a run is met often.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.program import PASSPHRASE, Done, Program, Tree, finish, poll, shared_memory, workers

ROUNDS = int(os.environ.get("ENIGMA_KILL_ROUNDS", "30"))
COMPARE_EVERY = 10
GONE_WITHIN_S = 2.0
SEED = 20250101
pytestmark = pytest.mark.timeout(60 + 10 * ROUNDS)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "home").init()
    yield program
    for pid in program.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "source", SEED)


@pytest.fixture(autouse=True)
def _no_shared_memory_left() -> Iterator[None]:
    before = shared_memory()
    yield
    assert shared_memory() - before == set()


def assert_nobody_left(program: Program) -> None:
    assert poll(lambda: not program.processes(), within_s=GONE_WITHIN_S), program.processes()


def empty_temps(program: Program) -> None:
    """What an unfinished put left may vanish at any time: nothing may need it."""
    for temp in (program.store / "tmp").iterdir():
        temp.unlink()


def standing(program: Program) -> set[str]:
    return {record["id"] for record in program.snapshots() if record["complete"]}


def another_machine(program: Program, home: Path) -> Program:
    """A second machine that has the providers and the passphrase and nothing else."""
    other = Program(home)
    other.config.mkdir()
    bucket = program.store
    (other.config / "enigma.toml").write_text(f'[[providers]]\nname = "local"\ntype = "Local"\nbucket = "{bucket}"\n')
    other.run("recover").expect(0)
    return other


# ---- backup


def kill_parent(process: subprocess.Popen[str], chance: random.Random, usual_s: float) -> tuple[Done, bool]:
    """Kill a backup at a random moment of its usual time; whether the kill came before its end."""
    started_s = time.monotonic()
    poll(lambda: process.poll() is not None, within_s=chance.uniform(0.0, usual_s))
    process.kill()
    done = finish(process, ("backup",), started_s=started_s)
    if done.status != -signal.SIGKILL:
        done.expect(0)
    return done, done.status != 0


def kill_worker(process: subprocess.Popen[str], chance: random.Random, usual_s: float) -> tuple[Done, bool]:
    """Kill one worker at a random moment of its usual life; the parent must say so and end at once."""
    started_s = time.monotonic()
    found: list[int] = []
    assert poll(lambda: found.extend(workers(process.pid)) or bool(found), within_s=20.0)
    poll(lambda: process.poll() is not None, within_s=chance.uniform(0.0, usual_s / 4))
    alive = workers(process.pid)
    killed_s = time.monotonic()
    if alive:
        os.kill(chance.choice(alive), signal.SIGKILL)
    done = finish(process, ("backup",), started_s=started_s)
    if done.status == 0:  # the last word of that worker was heard before
        return done, False
    assert time.monotonic() - killed_s < GONE_WITHIN_S
    sentence = done.expect(1).sentence()
    assert "worker" in sentence.lower() and ("SIGKILL" in sentence or "-9" in sentence or "signal 9" in sentence)
    return done, True


@pytest.mark.parametrize("victim", [kill_parent, kill_worker])
def test_killed_backup_harms_no_snapshot_and_the_next_one_is_whole(program, tree, tmp_path, victim) -> None:
    chance = random.Random(SEED)
    first = program.run("--json", "backup", tree.root).expect(0)
    usual_s, hits = first.duration_s, Counter()
    known = standing(program)
    for number in range(1, ROUNDS // 2 + 1):
        tree.change(new_bytes=chance.choice((1, 100_000, 3 << 20)))
        _, hit = victim(program.start("backup", tree.root), chance, usual_s)
        hits[hit] += 1
        assert_nobody_left(program)
        program.verify()
        assert known <= standing(program)
        if number % COMPARE_EVERY == 0 or number == ROUNDS // 2:
            empty_temps(program)
            known.add(program.backup(tree.root)["snapshot"]["id"])
            program.restores("latest", tree.root, tmp_path / "restored")
            shutil.rmtree(tmp_path / "restored")
    print(f"{victim.__name__}: {hits[True]} killed, {hits[False]} had ended before")
    assert hits[True] >= ROUNDS // 6
    assert known <= standing(program)
    other = another_machine(program, tmp_path / "other")  # lists the whole packs that a killed run left unlisted
    other.verify("--read-data")
    other.restores("latest", tree.root, tmp_path / "restored")


# ---- other commands

OTHER_ROUNDS = max(4, ROUNDS // 8)
OTHER_PASSPHRASE = "seven green lanterns beside the harbour 88"


def killed(program: Program, chance: random.Random, usual_s: float, *args: str | Path) -> Done:
    """A run that was killed at a random moment of its usual time."""
    done, _ = kill_parent(program.start(*args), chance, usual_s)
    assert_nobody_left(program)
    return done


def test_killed_restore_can_be_run_again_into_the_same_folder(program, tree, tmp_path) -> None:
    chance, target = random.Random(SEED), tmp_path / "restored"
    program.backup(tree.root)
    usual_s = program.run("restore", "latest", tmp_path / "first").expect(0).duration_s
    for _ in range(OTHER_ROUNDS):
        killed(program, chance, usual_s, "restore", "latest", target)
        program.restores("latest", tree.root, target)
        shutil.rmtree(target)
    program.verify()


def test_killed_worker_ends_a_restore_with_one_sentence(program, tree, tmp_path) -> None:
    program.backup(tree.root)
    started_s = time.monotonic()
    process = program.start("restore", "latest", tmp_path / "restored")
    found: list[int] = []
    assert poll(lambda: found.extend(workers(process.pid)) or bool(found), within_s=20.0)
    os.kill(found[0], signal.SIGKILL)
    killed_s = time.monotonic()
    done = finish(process, ("restore",), started_s=started_s)
    assert time.monotonic() - killed_s < GONE_WITHIN_S
    assert "SIGKILL" in done.expect(1).sentence()
    assert_nobody_left(program)
    program.restores("latest", tree.root, tmp_path / "restored")


@pytest.mark.parametrize("args", [("verify", "--read-data"), ("key", "rotate")], ids=" ".join)
def test_killed_command_is_run_again_and_nothing_is_lost(program, tree, tmp_path, args) -> None:
    chance = random.Random(SEED)
    program.backup(tree.root)
    usual_s = program.run(*args).expect(0).duration_s
    for _ in range(OTHER_ROUNDS):
        killed(program, chance, usual_s, *args)
        program.run(*args).expect(0)
        program.verify()
    tree.change()
    program.backup(tree.root)
    another_machine(program, tmp_path / "other").restores("latest", tree.root, tmp_path / "restored")


def test_killed_recover_is_run_again(program, tree, tmp_path) -> None:
    chance = random.Random(SEED)
    program.backup(tree.root)
    other = another_machine(program, tmp_path / "other")
    usual_s = other.run("recover").expect(0).duration_s
    for _ in range(OTHER_ROUNDS):
        killed(other, chance, usual_s, "recover")
        if chance.random() < 0.5:
            (other.config / "keys.enc").unlink(missing_ok=True)
        other.run("recover").expect(0)
        other.verify()
    other.restores("latest", tree.root, tmp_path / "restored")


# ---- every step

KILLED_AT_STEP = """
import os, signal, sys
at, seen = int(sys.argv[1]), 0
def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global seen
        seen += 1
        if seen == at:
            if name in ("write", "pwrite") and len(args[1]) > 1:
                real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])  # a torn write
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
for name in ("fdopen", "replace", "rename", "link", "unlink", "fsync", "fdatasync", "write", "pwrite", "mkdir"):
    counted(name)
from enigma.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def run_killed_at(program: Program, step: int, *args: str | Path) -> Done:
    """A run of the program that kills itself instead of making its `step`-th change to the file system."""
    words = [sys.executable, "-c", KILLED_AT_STEP, str(step), *map(str, args)]
    done = subprocess.run(words, env=program.environ(), capture_output=True, text=True, timeout=60, check=False)
    return Done(tuple(map(str, args)), done.returncode, done.stdout, done.stderr, 0.0)


def steps(stride: int = 1 if ROUNDS >= 100 else 2) -> Iterator[int]:
    """1, 3, 5 and on, or every one in a long run, until the test finds that a run ended before it was killed."""
    return iter(range(1, 400, stride))


@dataclass(frozen=True, slots=True)
class Reset:
    """Puts a home back to what it was, at the same place: configurations and sources name their paths."""

    home: Path
    saved: Path

    @classmethod
    def of(cls, program: Program) -> Reset:
        saved = program.home.with_name(program.home.name + ".saved")
        shutil.copytree(program.home, saved, symlinks=True)
        return cls(program.home, saved)

    def __call__(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.saved, self.home, symlinks=True)


def opens(program: Program, passphrase: str) -> bool:
    """Whether this passphrase opens the keystore; anything but yes or no fails."""
    done = Program(program.home, passphrase=passphrase).run("key", "list")
    return done.status == 0 or not done.expect(12).sentence()


def forget_local_state(program: Program) -> None:
    """All that is left is what the providers hold."""
    for file in program.config.iterdir():
        if file.name.startswith(("keys", "enigma.db")):
            file.unlink()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


def test_passphrase_change_killed_at_any_step_leaves_one_that_opens(program, data, tmp_path) -> None:
    program.backup(data)
    (tmp_path / "new").write_text(OTHER_PASSPHRASE + "\n")
    reset = Reset.of(program)
    for step in steps(stride=1):
        program.passphrase = PASSPHRASE
        reset()
        done = run_killed_at(program, step, "key", "passphrase", "--new-passphrase-file", tmp_path / "new")
        if done.status != -signal.SIGKILL:
            break
        new = opens(program, OTHER_PASSPHRASE)
        assert new != opens(program, PASSPHRASE), f"step {step}"
        program.passphrase = OTHER_PASSPHRASE if new else PASSPHRASE
        program.backup(data)
        program.verify()
        forget_local_state(program)
        program.run("recover").expect(0)
    done.expect(0)
    assert step > 10
    print(f"key passphrase: killed at {step - 1} steps")


def test_passphrase_that_was_replaced_is_gone_from_the_providers_however_the_change_was_killed(
    program, data, tmp_path
) -> None:
    """Whoever changes a passphrase because it leaked is rid of it once the new one has served."""
    program.backup(data)
    (tmp_path / "new").write_text(OTHER_PASSPHRASE + "\n")
    reset, still_opens = Reset.of(program), []
    for step in steps():
        program.passphrase = PASSPHRASE
        reset()
        done = run_killed_at(program, step, "key", "passphrase", "--new-passphrase-file", tmp_path / "new")
        if not opens(program, OTHER_PASSPHRASE):
            continue
        program.passphrase = OTHER_PASSPHRASE
        program.backup(data)
        forget_local_state(program)
        if Program(program.home, passphrase=PASSPHRASE).run("recover").status != 12:
            still_opens.append(step)
        if done.status != -signal.SIGKILL:
            break
    assert still_opens == []


def test_backup_killed_at_any_step_harms_no_snapshot(program, data) -> None:
    program.backup(data)
    (data / "new").write_bytes(random.Random(SEED).randbytes(50_000))
    reset, known = Reset.of(program), standing(program)
    for step in steps():
        reset()
        done = run_killed_at(program, step, "backup", data)
        program.verify("--read-data")
        assert known <= standing(program)
        if done.status != -signal.SIGKILL:
            break
        program.backup(data)
        program.verify()
    done.expect(0)
    assert step > 10
    print(f"backup: killed at {step - 1} steps")


def test_key_rotation_killed_at_any_step_loses_no_key(program, data) -> None:
    program.backup(data)
    reset = Reset.of(program)
    for step in steps():
        reset()
        done = run_killed_at(program, step, "key", "rotate")
        (data / "file").write_text(f"content {step}")
        program.backup(data)
        forget_local_state(program)
        program.run("recover").expect(0)
        program.verify("--read-data")
        if done.status != -signal.SIGKILL:
            break
    done.expect(0)
    assert step > 5
    print(f"key rotate: killed at {step - 1} steps")


def test_changed_configuration_taken_in_and_killed_at_any_step_is_taken_in_next_time(program, data, tmp_path) -> None:
    program.backup(data)
    toml = program.config / "enigma.toml"
    (program.config / "second").mkdir()
    toml.write_text(
        toml.read_text() + f'\n[[providers]]\nname = "second"\ntype = "Local"\nbucket = "{program.config}/second"\n'
    )
    reset = Reset.of(program)
    for step in steps():
        reset()
        done = run_killed_at(program, step, "key", "rotate")
        (data / "file").write_text(f"content {step}")
        program.backup(data)
        second = program.config / "second"
        assert (second / "marker").exists() and list((second / "config").glob("*")), f"step {step}"
        forget_local_state(program)
        program.run("recover").expect(0)
        program.restores("latest", data, tmp_path / f"restored-{step}")
        if done.status != -signal.SIGKILL:
            break
    done.expect(0)
    assert step > 10


def test_init_killed_at_any_step_is_run_again_or_says_what_to_do(tmp_path, data) -> None:
    """Told to empty the place or to move a file away, a user who does just that gets a repository."""
    refused: Counter[str] = Counter()
    for step in steps():
        program = Program(tmp_path / f"home-{step}")
        done = run_killed_at(program, step, "init")
        if done.status != -signal.SIGKILL:
            break
        again = program.run("init")
        if again.status:
            sentence = again.expect(1).sentence()
            refused[sentence.replace(str(program.home), "~")] += 1
            follow(program, sentence)
        program.backup(data)
    done.expect(0)
    assert step > 5
    print(f"init: killed at {step - 1} steps, refused: {dict(refused)}")


def follow(program: Program, sentence: str) -> None:
    """Do what the sentence says, as a user would: move away what is named, empty what is named."""
    for _ in range(4):
        for file in program.config.iterdir():
            if f"{file} " in sentence:
                file.rename(file.with_name(file.name + ".away"))
        if "not empty" in sentence or "empty the place" in sentence:
            shutil.rmtree(program.store)
        done = program.run("init")
        if done.status == 0:
            return
        sentence = done.expect(1).sentence()
    raise AssertionError(f"following the advice leads nowhere: {sentence}")


# ---- signals


def lock_is_held(program: Program, process: subprocess.Popen[str]) -> bool:
    """The run has come to its work: an interpreter that only starts does not know our signals yet."""
    lock = program.config / "enigma.lock"
    return process.poll() is not None or (lock.exists() and lock.read_text() == str(process.pid))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_backup_with_one_sentence_and_nothing_left(program, tree, tmp_path, number, status) -> None:
    chance, hits = random.Random(SEED), 0
    usual_s = program.run("backup", tree.root).expect(0).duration_s
    for _ in range(OTHER_ROUNDS * 2):
        tree.change()
        started_s = time.monotonic()
        process = program.start("backup", tree.root)
        poll(lambda process=process: lock_is_held(program, process), within_s=20.0)
        poll(lambda process=process: process.poll() is not None, within_s=chance.uniform(0.0, usual_s * 0.7))
        process.send_signal(number)
        sent_s = time.monotonic()
        done = finish(process, ("backup",), started_s=started_s)
        if done.stdout:  # it had ended, but for the interpreter
            assert done.status in (0, status, -number), done.told()
            continue
        hits += 1
        done.expect(status).sentence()
        assert time.monotonic() - sent_s < 10.0
        assert_nobody_left(program)
        assert list((program.store / "tmp").iterdir()) == []
        assert list((program.store / "sessions").iterdir()) == []
    assert hits >= OTHER_ROUNDS // 2
    program.verify()
    program.backup(tree.root)
    program.restores("latest", tree.root, tmp_path / "restored")


def test_second_interrupt_leaves_nothing_behind_either(program, tree) -> None:
    chance = random.Random(SEED)
    for _ in range(OTHER_ROUNDS):
        process = program.start("backup", "--force", tree.root)
        started_s = time.monotonic()
        assert poll(lambda process=process: bool(workers(process.pid)), within_s=20.0)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            poll(lambda process=process: process.poll() is not None, within_s=chance.uniform(0.0, 0.05))
        done = finish(process, ("backup",), started_s=started_s)
        if not done.stdout:
            assert done.status in (130, -signal.SIGINT), done.told()  # a shell reports both as 130
            done.sentence()
        assert_nobody_left(program)
    program.backup(tree.root)
    program.verify()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_backup_after_an_interrupt_does_not_store_again_what_was_stored(program, tmp_path, number) -> None:
    tree = Tree(tmp_path / "source", SEED, large_bytes=400 << 20)
    process = program.start("backup", tree.root)
    started_s = time.monotonic()
    assert poll(lambda: stored_bytes(program) >= 96 << 20 or process.poll() is not None, within_s=60.0)
    process.send_signal(number)
    finish(process, ("backup",), started_s=started_s).expect(128 + number).sentence()
    held_bytes = stored_bytes(program)
    again = program.backup(tree.root)["snapshot"]
    assert again["stored_bytes"] <= again["bytes"] - held_bytes + (40 << 20)
    program.restores("latest", tree.root, tmp_path / "restored")


def stored_bytes(program: Program) -> int:
    """What lies at the provider as data packs."""
    return sum(path.stat().st_size for path in (program.store / "packs" / "backup").rglob("*") if path.is_file())
