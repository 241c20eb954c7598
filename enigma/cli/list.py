"""List snapshots.

Usage:
  enigma list [options]

Options:
  --all   Also the incomplete ones, which interrupted backups left.

Shows what this machine knew after its last command; needs no passphrase.
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.cli.opening import local_time, local_view, snapshot_record
from enigma.cli.output import format_bytes, path_text
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    with local_view(ctx) as manifest:
        rows = [row for row in manifest.snapshots() if args["--all"] or row.record.complete]
    if not rows:
        ctx.output.note("There is no snapshot yet; `enigma backup PATH` makes one.")
    for row in rows:
        record = row.record
        marks = " incomplete" * (not record.complete) + " void" * row.void
        sources = " ".join(path_text(source) for source in record.sources)
        tags = "".join(f" #{tag}" for tag in record.tags)
        ctx.output.result(
            f"{record.snapshot_id.hex()[:8]}  {local_time(record.created_ns)}  {record.host}  "
            f"{record.file_count:>9,} files  {format_bytes(record.content_bytes):>10}  {sources}{tags}{marks}",
            snapshot_record(record) | {"void": row.void},
        )
    return EXIT_DONE
