"""Find files in all snapshots.

Usage:
  enigma find [options] <pattern>

Options:
  --snapshot ID   Look only in this one.

The pattern is a shell pattern; without a slash it is compared with the last part of each name.
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.cli.opening import found, local_time, reading
from enigma.cli.output import path_text


def run(ctx: Context, args: Args) -> int:
    from enigma.snapshots.selection import Selection, find_snapshot, selected

    count = 0
    with reading(ctx, "find") as (repository, session):
        if args["--snapshot"]:
            snapshots = [find_snapshot(repository.manifest, args["--snapshot"])]
        else:
            snapshots = [one for one in repository.manifest.snapshots() if one.record.complete and not one.void]
        session.reading(one.record.snapshot_id for one in snapshots)
        selection = Selection.from_options(path=None, globs=(args["<pattern>"],))
        for snapshot in snapshots:
            name = snapshot.record.snapshot_id.hex()
            for entry in selected(repository, snapshot, selection):
                count += 1
                ctx.output.result(
                    f"{name[:8]}  {entry.size:>14,}  {local_time(entry.mtime_ns)}  {ctx.output.name(entry.path)}",
                    {"snapshot": name, "path": path_text(entry.path), "size": entry.size, "mtime_ns": entry.mtime_ns},
                )
    return found(ctx, count)
