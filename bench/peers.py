"""Table `peers`: the same trees through Enigma, restic and borg, taking turns; ratios of medians, peer to Enigma."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench.measure import MIB, Run, Spread, passes, set_aside, settle, told_noise, told_passes
from bench.programs import PEERS, Enigma, Program, check_restored
from bench.tables import Row, Table, figure
from bench.trees import Tree, warm

OPERATIONS = ("backup", "unchanged", "restore")
Runs = dict[tuple[str, str], list[Run]]


def run(trees: Iterable[Tree], work: Path, *, repeats: int) -> Table:
    programs: list[type[Program]] = [Enigma, *(peer for peer in PEERS if peer.installed())]
    table = Table("peers", f"Enigma and its peers in turns; {told_passes(repeats)}")
    for tree in trees:
        runs, stored_bytes = _measure(tree, work, programs, repeats)
        table.notes.append(f"{tree.name}: {told_noise(one for some in runs.values() for one in some)}")
        for operation in OPERATIONS:
            table.rows += [_row(tree, operation, one.name, runs, stored_bytes) for one in programs]
    missing = [peer.name for peer in PEERS if not peer.installed()]
    table.notes.append(
        "`times` and `CPU times`: the program's median divided by Enigma's; above 1, Enigma is faster, or works less."
    )
    table.notes.append("Before a backup its tree, before a restore its repository is read into the page cache.")
    if missing:
        table.notes.append(f"not installed here: {', '.join(missing)}")
    return table


def _measure(tree: Tree, work: Path, programs: list[type[Program]], repeats: int) -> tuple[Runs, dict[str, int]]:
    runs: Runs = defaultdict(list)
    stored_bytes: dict[str, int] = {}
    settle(work, files=tree.files)
    for counts in passes(repeats):
        for kind in programs:
            program = kind(work / kind.name)
            pass_runs, stored_bytes[kind.name] = _pass(program, tree, work, check=not counts or repeats == 0)
            if counts:
                for operation, one in zip(OPERATIONS, pass_runs, strict=True):
                    runs[kind.name, operation].append(one)
    return runs, stored_bytes


def _pass(program: Program, tree: Tree, work: Path, *, check: bool) -> tuple[tuple[Run, Run, Run], int]:
    """One program through all operations on a fresh repository; the bytes it stored too."""
    target = work / "restored"
    target.mkdir()
    try:
        program.init()
        warm(tree.root)
        backup = program.backup(tree)
        stored_bytes = program.stored_bytes()
        unchanged = program.backup(tree)
        warm(program.store)
        runs = (backup, unchanged, program.restore(target))
        if check:
            check_restored(tree, target)
    finally:
        program.remove()
        set_aside(target, work, files=tree.files)
    return runs, stored_bytes


def _row(tree: Tree, operation: str, name: str, runs: Runs, stored_bytes: dict[str, int]) -> Row:
    mine = runs[name, operation]
    wall = Spread.of([one.wall_s for one in mine])
    cpu_s = Spread.of([one.cpu_s for one in mine]).median
    ours = runs[Enigma.name, operation]
    ours_s = Spread.of([one.wall_s for one in ours]).median
    ours_cpu_s = Spread.of([one.cpu_s for one in ours]).median
    return {
        "tree": tree.name,
        "operation": operation,
        "program": name,
        "wall s": figure(wall.median),
        "min s": figure(wall.low),
        "max s": figure(wall.high),
        "CPU s": figure(cpu_s),
        "peak MiB": figure(Spread.of([one.peak_bytes / MIB for one in mine]).high),
        "stored MB": figure(stored_bytes[name] / 1e6),
        "times": figure(wall.median / ours_s),
        "CPU times": figure(cpu_s / ours_cpu_s),
    }
