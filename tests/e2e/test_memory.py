"""Memory follows the README's formula, and not the number or the size of files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.measure import run_program
from tests.program import Program, command
from workers.chunking import ChunkerSpec
from workers.objects import Header, ObjectType, PackSet
from workers.packs import PackSpec
from workers.plan import EnginePlan

MIB = 1 << 20


def plan(workers: int) -> EnginePlan:
    header = Header(ObjectType.PACK, bytes(16), bytes(16), bytes(16), PackSet.BACKUP)
    return EnginePlan(workers, ChunkerSpec.fastcdc(MIB, 1), 3, PackSpec(header, bytes(32), 32 * MIB), {})


def large(tree: Path) -> None:
    source = random.Random(1)
    with (tree / "large").open("wb") as file:
        for _ in range(40):
            file.write(source.randbytes(10 * MIB))


def many(tree: Path) -> None:
    for number in range(20_000):
        folder = tree / f"{number % 50}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(b"%d" % number * 20)


@pytest.mark.parametrize(("fill", "stored_bytes"), [(large, 400 * MIB), (many, 3 * MIB)], ids=["large", "many"])
@pytest.mark.parametrize("workers", [2, 4])
def test_the_formula_predicts_the_peak(tmp_path: Path, fill, stored_bytes: int, workers: int) -> None:
    program = Program(tmp_path / "home").init()
    toml = program.config / "enigma.toml"
    toml.write_text(toml.read_text().replace("[enigma]\n", f"[enigma]\nworkers = {workers}\n", 1))
    tree = tmp_path / "tree"
    tree.mkdir()
    fill(tree)
    run, _ = run_program([*command(), "backup", str(tree)], env=program.environ(), cwd=tmp_path)
    expected = plan(workers).peak_bytes(stored_bytes, stored_bytes)
    assert 0.75 * expected < run.peak_bytes < 1.25 * expected, (run.peak_bytes / MIB, expected / MIB)
