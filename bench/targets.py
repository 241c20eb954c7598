"""Table `targets`: two versions of a tree at several chunk sizes. Smaller chunks find more, larger ones cost less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MIB, Run, Spread, passes, told_passes
from bench.programs import Enigma
from bench.tables import Row, Table, figure
from bench.trees import Tree, warm

TARGETS_MIB = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Result:
    """Two backups into one repository, and what it held after each."""

    first: Run
    second: Run
    first_bytes: int
    both_bytes: int


def run(tree: Tree, changed: Tree, work: Path, *, repeats: int, targets_mib: Sequence[int] = TARGETS_MIB) -> Table:
    table = Table(
        "targets", f"chunk size: {tree.name}, then a changed version of it, into one repository; {told_passes(repeats)}"
    )
    results: dict[int, list[Result]] = {target_mib: [] for target_mib in targets_mib}
    for version in (tree, changed):
        warm(version.root)
    for counts in passes(repeats):
        for target_mib in targets_mib:
            result = _measure(tree, changed, work, target_mib)
            if counts:
                results[target_mib].append(result)
    table.rows += [_row(tree, changed, target_mib, some) for target_mib, some in results.items()]
    table.notes.append("dedup: bytes of both versions divided by bytes stored; compression is off.")
    return table


def _measure(tree: Tree, changed: Tree, work: Path, target_mib: int) -> Result:
    program = Enigma(work / "enigma", level=0, target_bytes=target_mib * MIB)
    try:
        program.init()
        first = program.backup(tree)
        first_bytes = program.stored_bytes()
        second = program.backup(changed)
        return Result(first, second, first_bytes, program.stored_bytes())
    finally:
        program.remove()


def _row(tree: Tree, changed: Tree, target_mib: int, results: list[Result]) -> Row:
    first = Spread.of([one.first.wall_s for one in results])
    second = Spread.of([one.second.wall_s for one in results])
    stored_bytes = results[0].both_bytes
    return {
        "target": f"{target_mib} MiB",
        "first s": figure(first.median),
        "min s": figure(first.low),
        "max s": figure(first.high),
        "MB/s": figure(tree.length_bytes / first.median / 1e6),
        "changed s": figure(second.median),
        "stored MB": figure(results[0].first_bytes / 1e6),
        "added MB": figure((stored_bytes - results[0].first_bytes) / 1e6),
        "dedup": figure((tree.length_bytes + changed.length_bytes) / stored_bytes),
        "peak MiB": figure(max(one.first.peak_bytes for one in results) / MIB),
    }
