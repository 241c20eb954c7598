"""Table `pipeline`: the real program over whole trees, and how near it comes to its limit (see limits.py)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench.limits import Amounts, Limit, Speeds, measure_speeds, sink_speed
from bench.measure import MIB, Run, Spread, passes, set_aside, settle, told_noise, told_passes
from bench.programs import Enigma, check_restored
from bench.tables import Row, Table, figure
from bench.trees import Tree, regular_files, warm
from enigma.config import ChunkStrategy, Compression
from enigma.repository.repository import PACK_TARGETS
from workers.direct import DIRECT_FROM_BYTES

OPERATIONS = ("backup", "unchanged", "restore", "verify")
PACK_BYTES = PACK_TARGETS[0][1]


def run(trees: Iterable[Tree], work: Path, *, repeats: int, least_s: float = 0.2) -> Table:
    table = Table("pipeline", f"the program over whole trees; {told_passes(repeats)}")
    cores = len(os.sched_getaffinity(0))
    table.notes.append("limits, their parts and the sinks (this disk, per tree) are explained in bench/limits.py")
    for tree in trees:
        file_cost_s = settle(work, files=tree.files)
        runs, amounts = _measure(tree, work, repeats)
        speeds = measure_speeds(
            tree, work, level=Compression().level, target_bytes=ChunkStrategy().target_bytes, least_s=least_s
        )
        sink = sink_speed(work, PACK_BYTES, total_bytes=amounts.packs_bytes)
        limits = _limits(speeds, amounts, sink, cores)
        for operation in OPERATIONS:
            table.rows.append(_row(tree, operation, runs[operation], limits.get(operation)))
        table.notes.append(f"{tree.name}: {told_noise(one for some in runs.values() for one in some)}")
        table.notes += [f"limit of {tree.name} {operation}: {limit.text()}" for operation, limit in limits.items()]
        table.notes.append(
            f"{tree.name}: {tree.files} files, {tree.length_bytes / 1e6:.0f} MB, {amounts.new_bytes / 1e6:.0f} MB new, "
            f"{amounts.packs_bytes / 1e6:.0f} MB stored; sink {sink / 1e6:.0f} MB/s; making an empty file took {file_cost_s * 1e6:.0f} us before"
        )
    return table


def _measure(tree: Tree, work: Path, repeats: int) -> tuple[dict[str, list[Run]], Amounts]:
    """Every operation in turn, on a fresh repository each time; the first pass warms up and checks the result."""
    runs: dict[str, list[Run]] = defaultdict(list)
    amounts = Amounts(0, 0, 0, 0)
    for counts in passes(repeats):
        program = Enigma(work / "enigma")
        target = work / "restored"
        program.init()
        target.mkdir()
        try:
            warm(tree.root)
            backup = program.backup(tree)
            amounts = _amounts(program, tree)
            unchanged = program.backup(tree)
            warm(program.store)
            pass_runs = (backup, unchanged, program.restore(target), program.verify())
            if not counts or repeats == 0:
                check_restored(tree, target)
        finally:
            program.remove()
            set_aside(target, work, files=tree.files)
        if counts:
            for operation, one in zip(OPERATIONS, pass_runs, strict=True):
                runs[operation].append(one)
    return runs, amounts


def _amounts(program: Enigma, tree: Tree) -> Amounts:
    sizes = [os.path.getsize(path) for path in regular_files(tree.root)]
    past_cache_bytes = sum(size for size in sizes if size >= DIRECT_FROM_BYTES)
    return Amounts(tree.length_bytes, program.last["snapshot"]["new_bytes"], program.stored_bytes(), past_cache_bytes)


def _limits(speeds: Speeds, amounts: Amounts, sink: float, cores: int) -> dict[str, Limit]:
    return {
        "backup": speeds.backup(amounts, sink, cores),
        "restore": speeds.restore(amounts, sink, cores),
        "verify": speeds.verify(amounts, cores),
    }


def _row(tree: Tree, operation: str, runs: list[Run], limit: Limit | None) -> Row:
    wall = Spread.of([one.wall_s for one in runs])
    return {
        "tree": tree.name,
        "operation": operation,
        "wall s": figure(wall.median),
        "min s": figure(wall.low),
        "max s": figure(wall.high),
        "MB/s": figure(tree.length_bytes / wall.median / 1e6),
        "files/s": figure(tree.files / wall.median),
        "CPU s": figure(Spread.of([one.cpu_s for one in runs]).median),
        "peak MiB": figure(Spread.of([one.peak_bytes / MIB for one in runs]).high),
        "limit s": figure(limit.seconds) if limit else None,
        "efficiency": figure(limit.seconds / wall.median) if limit else None,
    }
