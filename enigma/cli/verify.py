"""Check that snapshots can be restored.

Usage:
  enigma verify [options] [<snapshot>...]

Options:
  --read-data           Read every byte of every pack as well.
  --read-data-subset S  Read a part of the packs: n/t for part n of t, P% for a share, SIZE (500M) for an amount.

Without a snapshot all are checked. `snapshot` is the beginning of an id, or `latest`. Names everything that is damaged
or missing, and ends with 1 if anything is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from enigma.cli.context import Args, Context
from enigma.cli.opening import reading, unlocking
from enigma.cli.output import ProgressBar, format_bytes
from enigma.errors import EXIT_DONE, EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from enigma.maintenance.verify import Subset


def run(ctx: Context, args: Args) -> int:
    subset = _subset(args)
    unlock = unlocking(ctx)
    from enigma.maintenance.verify import adopt, verify
    from enigma.snapshots.selection import find_snapshot

    with reading(ctx, "verify", unlock) as (repository, session):
        names = args["<snapshot>"]
        snapshots = (
            [find_snapshot(repository.manifest, name, void_too=True) for name in names]
            if names
            else list(repository.manifest.snapshots())
        )
        with ctx.output.progress("verify") as bar:
            seed = repository.clock.wall_ns()
            found = verify(repository, session, snapshots, _Watcher(ctx, bar), read_data=subset, seed=seed)
        if not found.problems:
            for snapshot in snapshots:
                if snapshot.void:
                    adopt(repository, session, snapshot)
                    ctx.output.note(f"snapshot {snapshot.record.snapshot_id.hex()[:8]} was void and is adopted")
    read = f", {found.packs_read} packs with {format_bytes(found.bytes_read)} read" if subset else ""
    verdict = f"{len(found.problems)} problems" if found.problems else "no problem"
    ctx.output.result(
        f"{found.snapshots} snapshots, {found.entries} entries, {found.chunks} chunks, {found.objects} objects"
        f"{read}: {verdict}",
        {
            "snapshots": found.snapshots,
            "entries": found.entries,
            "chunks": found.chunks,
            "objects": found.objects,
            "packs_read": found.packs_read,
            "bytes_read": found.bytes_read,
            "problems": [{"subject": subject, "message": message} for subject, message in found.problems],
            "damaged_snapshots": sorted(found.damaged_snapshots),
        },
    )
    return EXIT_FAILED if found.problems else EXIT_DONE


class _Watcher:
    def __init__(self, ctx: Context, bar: ProgressBar) -> None:
        self._ctx = ctx
        self._bar = bar

    def problem(self, subject: str, message: str) -> None:
        self._ctx.output.warn(f"{subject}: {message}", subject=subject)

    def checked(self, length_bytes: int, total_bytes: int) -> None:
        done_bytes = self._bar.state.length_bytes + length_bytes
        self._bar.advance(length_bytes=done_bytes, total_bytes=total_bytes)


def _subset(args: Args) -> Subset | None:
    from enigma.maintenance.verify import Subset

    text = args["--read-data-subset"]
    if text is None:
        return Subset() if args["--read-data"] else None
    if args["--read-data"]:
        raise UsageError("Give --read-data for all packs or --read-data-subset for a part of them, not both.")
    if match := re.fullmatch(r"(\d+)/(\d+)", text):
        number, parts = int(match[1]), int(match[2])
        if 1 <= number <= parts:
            return Subset(part=(number, parts))
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
        if 0 < float(match[1]) <= 100:
            return Subset(share=float(match[1]) / 100)
    elif match := re.fullmatch(r"(\d+)([KMGT]?)", text):
        return Subset(amount_bytes=int(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
    raise UsageError(f"--read-data-subset takes n/t with n from 1 to t, P%, or a size such as 500M, not {text}.")
