"""kill -9 at any moment, of the parent or a worker: nothing stored is lost, nothing is left behind, the next run works.

ENIGMA_KILL_ROUNDS sets how many backups are killed; rounds are short, so that every moment of a run is met often.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.program import Done, Program, Tree, finish, poll, shared_memory, workers

ROUNDS = int(os.environ.get("ENIGMA_KILL_ROUNDS", "30"))
COMPARE_EVERY = 10
GONE_WITHIN_S = 2.0
SEED = 20250101


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
    poll(lambda: process.poll() is not None, within_s=chance.uniform(0.0, usual_s / 2))
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
        _, hit = victim(program.start("--json", "backup", tree.root), chance, usual_s)
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
    other = another_machine(
        program, tmp_path / "other"
    )  # whole packs that a killed run left unlisted come back as well
    other.verify("--read-data")
    other.restores("latest", tree.root, tmp_path / "restored")
