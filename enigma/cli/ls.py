"""List the files of a snapshot.

Usage:
  enigma ls [options] <snapshot> [<path>]

Options:
  -l, --long   Mode, owner, size and time as well.

`snapshot` is the beginning of an id, or `latest`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from enigma.cli.context import Args, Context
from enigma.cli.opening import found, local_time, reading
from enigma.cli.output import path_text

if TYPE_CHECKING:
    from enigma.model.entries import Entry


def run(ctx: Context, args: Args) -> int:
    from enigma.snapshots.selection import Selection, find_snapshot, selected

    with reading(ctx, "ls") as (repository, session):
        snapshot = find_snapshot(repository.manifest, args["<snapshot>"])
        session.reading([snapshot.record.snapshot_id])
        selection = Selection.from_options(path=args["<path>"], globs=())
        count = 0
        for entry in selected(repository, snapshot, selection):
            count += 1
            name = ctx.output.name(entry.path or b".")
            ctx.output.result(_line(entry, name) if args["--long"] else name, _record(entry))
    return found(ctx, count)


def _line(entry: Entry, name: str) -> str:
    import stat

    from enigma.snapshots.selection import STAT_TYPES

    mode = stat.filemode(STAT_TYPES.get(entry.kind, 0) | entry.mode & 0o7777)
    owner = f"{entry.user or entry.uid}:{entry.group or entry.gid}"
    arrow = f" -> {path_text(entry.link)}" if entry.link else ""
    when = local_time(entry.mtime_ns)
    return f"{mode}  {owner:<16} {entry.size:>14,}  {when}  {name}{arrow}"


def _record(entry: Entry) -> dict[str, object]:
    from enigma.model.entries import Kind

    names = {int(kind): kind.name.lower() for kind in Kind}
    return {
        "path": path_text(entry.path),
        "kind": names.get(entry.kind, f"unknown ({entry.kind})"),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "link": os.fsdecode(entry.link),
    }
