"""Table `levels`: what a zstd level costs and saves on trees of real content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.measure import Run, Spread, passes, told_passes
from bench.programs import Enigma
from bench.tables import Row, Table, figure
from bench.trees import Tree, warm

LEVELS = (0, 1, 3, 6, 9)


def run(trees: Iterable[Tree], work: Path, *, repeats: int, levels: Sequence[int] = LEVELS) -> Table:
    table = Table("levels", f"compression level: time and bytes of a first backup; {told_passes(repeats)}")
    for tree in trees:
        runs: dict[int, list[Run]] = {level: [] for level in levels}
        stored_bytes: dict[int, int] = {}
        warm(tree.root)
        for counts in passes(repeats):
            for level in levels:
                one, stored_bytes[level] = _measure(tree, work, level)
                if counts:
                    runs[level].append(one)
        table.rows += [_row(tree, level, runs[level], stored_bytes[level]) for level in levels]
    return table


def _measure(tree: Tree, work: Path, level: int) -> tuple[Run, int]:
    program = Enigma(work / "enigma", level=level)
    try:
        program.init()
        return program.backup(tree), program.stored_bytes()
    finally:
        program.remove()


def _row(tree: Tree, level: int, runs: list[Run], stored_bytes: int) -> Row:
    wall = Spread.of([one.wall_s for one in runs])
    return {
        "tree": tree.name,
        "level": level,
        "wall s": figure(wall.median),
        "min s": figure(wall.low),
        "max s": figure(wall.high),
        "CPU s": figure(Spread.of([one.cpu_s for one in runs]).median),
        "MB/s": figure(tree.length_bytes / wall.median / 1e6),
        "stored MB": figure(stored_bytes / 1e6),
        "ratio": figure(tree.length_bytes / stored_bytes),
    }
