"""Compare two snapshots.

Usage:
  enigma diff [options] <old> <new>

Shows `+` for what is new, `-` for what is gone, `M` where the content changed, `m` where only attributes did.
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.cli.opening import reading
from enigma.cli.output import format_bytes, path_text
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    from enigma.snapshots.compare import compare
    from enigma.snapshots.selection import find_snapshot

    counts = dict.fromkeys("+-Mm", 0)
    grown_bytes = 0
    with reading(ctx, "diff") as (repository, session):
        old = find_snapshot(repository.manifest, args["<old>"])
        new = find_snapshot(repository.manifest, args["<new>"])
        session.reading({old.record.snapshot_id, new.record.snapshot_id})
        for change in compare(repository, old, new):
            counts[change.mark] += 1
            grown_bytes += change.grown_bytes
            ctx.output.result(
                f"{change.mark} {ctx.output.name(change.path)}",
                {"change": change.mark, "path": path_text(change.path), "grown_bytes": change.grown_bytes},
            )
    sign = "-" if grown_bytes < 0 else "+"
    ctx.output.note(
        f"{counts['+']} added, {counts['-']} removed, {counts['M']} changed, {counts['m']} attributes only, "
        f"{sign}{format_bytes(abs(grown_bytes))}"
    )
    return EXIT_DONE
