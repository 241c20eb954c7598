"""Restore a snapshot, or part of it.

Usage:
  enigma restore [options] [--glob PATTERN]... <snapshot> [<target>]

Options:
  --path PREFIX       Only what is at or below this path of the snapshot.
  --glob PATTERN      Only what matches this shell pattern; may be repeated.
  --list              List what would be restored, and restore nothing.
  --in-place          Restore to where it came from, instead of into a target.
  --overwrite WHEN    What to do with files that exist: always, if-newer, if-changed, never [default: always].

`snapshot` is the beginning of an id, or `latest`. Every byte is checked before it is written. Ends with 1 if something
could not be restored (the rest is), or if nothing matches.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from enigma.cli.context import Args, Context
from enigma.cli.opening import found, reading, unlocking
from enigma.cli.output import ProgressBar, format_bytes, path_text
from enigma.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from enigma.manifest import Snapshot
    from enigma.repository.repository import Repository
    from enigma.snapshots.restore import Overwrite
    from enigma.snapshots.selection import Selection


def run(ctx: Context, args: Args) -> int:
    if not args["--list"] and bool(args["<target>"]) == args["--in-place"]:
        raise UsageError("Give a target directory, or --in-place.")
    unlock = unlocking(ctx)
    from enigma.snapshots.restore import restore
    from enigma.snapshots.selection import Selection, find_snapshot

    selection = Selection.from_options(path=args["--path"], globs=args["--glob"])
    overwrite = _overwrite(args["--overwrite"])
    with reading(ctx, "restore", unlock) as (repository, session):
        snapshot = find_snapshot(repository.manifest, args["<snapshot>"])
        if args["--list"]:
            session.reading([snapshot.record.snapshot_id])
            return _list(ctx, repository, snapshot, selection)
        target = _original_place(snapshot) if args["--in-place"] else os.path.abspath(os.fsencode(args["<target>"]))
        with ctx.output.progress("restore") as bar:
            bar.advance(total_bytes=snapshot.record.content_bytes if selection.everything else None)
            done = restore(repository, session, snapshot, target, selection, overwrite, _Watcher(ctx, bar))
    ctx.output.result(
        f"restored {done.files} files, {format_bytes(done.content_bytes)} into {path_text(target)}"
        + (f"; {done.skipped} left as they were" if done.skipped else "")
        + (f"; {len(done.failed)} FAILED" if done.failed else ""),
        {
            "snapshot": snapshot.record.snapshot_id.hex(),
            "target": path_text(target),
            "entries": done.entries,
            "files": done.files,
            "bytes": done.content_bytes,
            "skipped": done.skipped,
            "warnings": done.warnings,
            "failed": [{"path": path_text(path), "message": why} for path, why in done.failed.items()],
        },
    )
    return EXIT_FAILED if done.failed else found(ctx, done.entries)


SHOW_EVERY_FILES = 128  # the bar looks at the clock this often, not for each of a million files
SHOW_EVERY_BYTES = 16 << 20


class _Watcher:
    def __init__(self, ctx: Context, bar: ProgressBar) -> None:
        self._ctx = ctx
        self._bar = bar
        self._files = 0
        self._bytes = 0

    def restored(self, length_bytes: int) -> None:
        self._files += 1
        self._bytes += length_bytes
        if self._files % SHOW_EVERY_FILES == 0 or self._bytes - self._bar.state.length_bytes >= SHOW_EVERY_BYTES:
            self._bar.advance(files=self._files, length_bytes=self._bytes)

    def warn(self, path: bytes, message: str) -> None:
        name = path_text(path)
        self._ctx.output.warn(f"{name}: {message}" if path else message, path=name)


def _list(ctx: Context, repository: Repository, snapshot: Snapshot, selection: Selection) -> int:
    from enigma.snapshots.selection import selected

    count = 0
    for entry in selected(repository, snapshot, selection):
        count += 1
        if entry.path:
            ctx.output.result(ctx.output.name(entry.path), {"path": path_text(entry.path), "size": entry.size})
    return found(ctx, count)


def _original_place(snapshot: Snapshot) -> bytes:
    """One directory was stored as itself; several paths, or one that is no directory, under what is above them."""
    from enigma.model.records import ALONE

    record = snapshot.record
    if len(record.sources) != 1:
        return b"/"
    source = record.sources[0]
    if not source.startswith(b"/"):
        raise UsageError("This snapshot came from standard input and has no place of its own; give a target.")
    return os.path.dirname(source) if record.extra.get(ALONE) else source


def _overwrite(text: str) -> Overwrite:
    from enigma.snapshots.restore import Overwrite

    try:
        return Overwrite(text)
    except ValueError as exc:
        raise UsageError(f"--overwrite takes {', '.join(Overwrite)}, not {text}.") from exc
