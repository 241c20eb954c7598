"""Back up files and directories.

Usage:
  enigma backup [options] [--exclude PATTERN]... [--tag TAG]... <path>...

Options:
  -e, --exclude PATTERN        Leave out what matches; gitignore rules, may be repeated.
  --exclude-file FILE          Read patterns from a file, one a line.
  --exclude-larger-than SIZE   Leave out files larger than this: 500K, 20M, 4G.
  --exclude-caches             Leave out directories that are marked by a CACHEDIR.TAG.
  -x, --one-file-system        Do not descend into other file systems.
  -f, --force                  Read every file again, also those that look unchanged.
  --tag TAG                    Label the snapshot; may be repeated.
  --description TEXT           Say what this snapshot is.
  --stdin-name NAME            The name for what comes from standard input, with `-` as the only path [default: stdin].

One directory is stored as it is; several paths are stored under their whole names. Ends with 3 if something could not
be read: the rest is stored.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from enigma.cli.context import Args, Context
from enigma.cli.opening import snapshot_record, unlocking, writing
from enigma.cli.output import ProgressBar, format_bytes, format_duration, path_text
from enigma.errors import EXIT_DONE, EXIT_INPUT_UNREADABLE, EXIT_REDUCED_REDUNDANCY, UsageError

if TYPE_CHECKING:
    from enigma.repository.repository import Repository
    from enigma.snapshots.backup import BackupResult, BackupSpec


def run(ctx: Context, args: Args) -> int:
    unlock = unlocking(ctx)
    from enigma.snapshots.backup import back_up

    spec = _spec(ctx, args)
    with writing(ctx, "backup", unlock) as (repository, session):
        with ctx.output.progress("backup") as bar:
            result = back_up(repository, session, spec, _Watcher(ctx, bar))
        return _report(ctx, repository, result)


SHOW_EVERY_FILES = 128  # the bar looks at the clock this often, not for each of a million files
SHOW_EVERY_BYTES = 16 << 20


class _Watcher:
    """Turns what a backup reports into progress and warnings."""

    def __init__(self, ctx: Context, bar: ProgressBar) -> None:
        self._ctx = ctx
        self._bar = bar
        self._files = 0
        self._bytes = 0
        self._new_bytes = 0
        self._errors = 0

    def expect(self, content_bytes: int) -> None:
        self._bar.advance(total_bytes=content_bytes)

    def read(self, length_bytes: int, new_bytes: int) -> None:
        self._bytes += length_bytes
        self._new_bytes = new_bytes
        if self._bytes - self._bar.state.length_bytes >= SHOW_EVERY_BYTES:
            self._show()

    def entry(self, inherited_bytes: int) -> None:
        self._files += 1
        self._bytes += inherited_bytes
        if self._files % SHOW_EVERY_FILES == 0:
            self._show()

    def warn(self, path: bytes, message: str) -> None:
        self._errors += 1
        name = path_text(path)
        self._ctx.output.warn(f"{name}: {message}" if path else message, path=name)

    def _show(self) -> None:
        self._bar.advance(
            files=self._files, length_bytes=self._bytes, new_bytes=self._new_bytes, error_count=self._errors
        )


def _spec(ctx: Context, args: Args) -> BackupSpec:
    import getpass

    from enigma.repository.opening import this_host
    from enigma.snapshots.backup import BackupSpec
    from enigma.snapshots.excludes import Excludes

    paths: list[str] = args["<path>"]
    stream = paths == ["-"]
    if "-" in paths and not stream:
        raise UsageError("Standard input (-) can't be combined with other paths.")
    name = os.fsencode(args["--stdin-name"])
    if stream and sys.stdin is None:
        raise UsageError("Standard input is closed; pipe into it what is to be stored.")
    if stream and (b"/" in name or name in (b"", b".", b"..")):
        raise UsageError("--stdin-name must be a plain file name without slashes.")
    excludes = Excludes.from_options(
        patterns=args["--exclude"],
        pattern_file=args["--exclude-file"],
        larger_than=args["--exclude-larger-than"],
        caches=args["--exclude-caches"],
    )
    return BackupSpec(
        sources=() if stream else tuple(os.path.abspath(os.fsencode(path)) for path in paths),
        excludes=excludes,
        host=this_host(ctx.load_config()),
        user=getpass.getuser(),
        one_file_system=args["--one-file-system"],
        force=args["--force"],
        tags=tuple(args["--tag"]),
        description=args["--description"] or "",
        exclude_texts=tuple(args["--exclude"]),
        stream=read_stdin if stream else None,
        stream_name=name if stream else b"",
    )


def read_stdin(into: memoryview) -> int:
    """Read from standard input without a buffer between; 0 at its end."""
    return os.readv(sys.stdin.fileno(), [into])


def _report(ctx: Context, repository: Repository, result: BackupResult) -> int:
    record = result.record
    seconds = record.duration_ns / 1e9
    text = (
        f"snapshot {record.snapshot_id.hex()[:8]} saved: {record.file_count} files, "
        f"{format_bytes(record.content_bytes)}, in {format_duration(seconds)}\n"
        f"  {result.read_files} files read, {result.inherited_files} unchanged; "
        f"{format_bytes(record.new_bytes)} new, {format_bytes(record.stored_bytes)} stored"
    )
    if record.unreadable_count:
        text += f"\n  {record.unreadable_count} could not be read or changed while they were read"
    ctx.output.result(
        text,
        {
            "snapshot": snapshot_record(record),
            "read_files": result.read_files,
            "data_packs": result.data_packs,
            "degraded": sorted(repository.store.degraded),
        },
    )
    if repository.store.degraded:
        ctx.output.warn(f"not everything is at {', '.join(sorted(repository.store.degraded))}, which did not answer")
        return EXIT_REDUCED_REDUNDANCY
    return EXIT_INPUT_UNREADABLE if record.unreadable_count else EXIT_DONE
