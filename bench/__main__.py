"""Measure Enigma on this machine.

Usage:
  bench [options] [--tree NAME]... [<table>...]

Options:
  --repeats N       Counted repeats of everything that runs programs; one more is thrown away [default: 3].
  --tree NAME       Trees for `pipeline` and `peers`: large, text, small; may be repeated. Default: all.
  --large-mib N     Size of each of the two files of the large tree [default: 3072].
  --text-mib N      Size of the text tree [default: 512].
  --small-files N   Files of the small tree [default: 66000].
  --mixed-mib N     Size of the tree that `targets` cuts [default: 1024].
  --work DIR        Make trees and repositories here and leave the trees for the next run. Default: a folder beside
                    the program that is removed afterwards. The figures hang on this file system.
  --json FILE       Write the results as JSON too.
  --quick           Tiny trees, a single pass: does everything run?
  -h, --help        Show this.

Tables: stages, chunkers, pipeline, keys, peers, targets, levels. Default: all, which takes about half an hour and 40 GB.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docopt import docopt

from bench import chunkers, keys, levels, peers, pipeline, stages, targets
from bench.measure import ASIDE, MIB
from bench.programs import REPOSITORY_ROOT
from bench.tables import Table, machine, machine_text, save
from bench.trees import Sizes, Tree, make, make_changed

TREES = ("large", "text", "small")


@dataclass(frozen=True, slots=True)
class Bench:
    """One call: where, how large, how often."""

    work: Path
    sizes: Sizes
    repeats: int
    tree_names: tuple[str, ...]
    quick: bool

    @property
    def least_s(self) -> float:
        return 0.001 if self.quick else 0.2

    def trees(self, *names: str) -> list[Tree]:
        return [make(name, self.work / "trees", self.sizes) for name in names]

    def stages(self) -> Table:
        return stages.run(sizes_mib=(1,) if self.quick else stages.SIZES_MIB, least_s=self.least_s)

    def chunkers(self) -> Table:
        return chunkers.run(sizes_mib=(1,) if self.quick else chunkers.SIZES_MIB, least_s=self.least_s)

    def pipeline(self) -> Table:
        return pipeline.run(self.trees(*self.tree_names), self.work, repeats=self.repeats, least_s=self.least_s)

    def keys(self) -> Table:
        return keys.run(self.work, least_s=self.least_s)

    def peers(self) -> Table:
        return peers.run(self.trees(*self.tree_names), self.work, repeats=self.repeats)

    def targets(self) -> Table:
        (tree,) = self.trees("mixed")
        changed_root = self.work / "trees" / "mixed-changed"
        changed = Tree.at("mixed changed", changed_root) if changed_root.exists() else make_changed(tree, changed_root)
        return targets.run(tree, changed, self.work, repeats=self.repeats)

    def levels(self) -> Table:
        some = levels.LEVELS[:2] if self.quick else levels.LEVELS
        return levels.run(self.trees("text", "small"), self.work, repeats=self.repeats, levels=some)


TABLES: dict[str, Callable[[Bench], Table]] = {
    "stages": Bench.stages,
    "chunkers": Bench.chunkers,
    "pipeline": Bench.pipeline,
    "keys": Bench.keys,
    "peers": Bench.peers,
    "targets": Bench.targets,
    "levels": Bench.levels,
}


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__ or "", argv)
    names = args["<table>"] or list(TABLES)
    for name, known in [(name, TABLES) for name in names] + [(name, TREES) for name in args["--tree"]]:
        if name not in known:
            sys.stderr.write(f"bench: there is no {name}; choose from {', '.join(known)}.\n")
            return 2
    with _work_folder(args["--work"]) as work:
        bench, facts, tables = _bench(args, work), machine(work), []
        print(machine_text(facts), flush=True)
        for name in names:
            tables.append(TABLES[name](bench))
            print(tables[-1].text(), flush=True)
            if args["--json"]:  # after each table: an interrupted run keeps what it has
                save(Path(args["--json"]), facts, tables)
    return 0


def _bench(args: dict[str, Any], work: Path) -> Bench:
    sizes = Sizes.quick()
    if not args["--quick"]:
        sizes = replace(
            Sizes(),
            large_file_bytes=int(args["--large-mib"]) * MIB,
            text_bytes=int(args["--text-mib"]) * MIB,
            small_files=int(args["--small-files"]),
            mixed_bytes=int(args["--mixed-mib"]) * MIB,
        )
    repeats = 0 if args["--quick"] else max(1, int(args["--repeats"]))
    return Bench(work, sizes, repeats, tuple(args["--tree"] or TREES), args["--quick"])


@contextmanager
def _work_folder(named: str | None) -> Iterator[Path]:
    if named:
        work = Path(named).absolute()
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        finally:
            shutil.rmtree(work / ASIDE, ignore_errors=True)
        return
    work = Path(tempfile.mkdtemp(prefix=".bench-", dir=REPOSITORY_ROOT))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
