"""Show the state of the repository and its providers.

Usage:
  enigma status [options]

Shows what this machine knew after its last command, and asks each provider whether it answers; needs no passphrase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enigma.cli.context import Args, Context
from enigma.cli.opening import local_time, local_view
from enigma.cli.output import format_bytes
from enigma.errors import EXIT_DONE, EXIT_FAILED, EnigmaError

if TYPE_CHECKING:
    from enigma.config import ProviderConfig


def run(ctx: Context, args: Args) -> int:
    from workers.objects import PackSet

    with local_view(ctx) as manifest:
        snapshots = [row.record for row in manifest.snapshots() if row.record.complete]
        totals = {PackSet(one.pack_set).name.lower(): one for one in manifest.totals()}
        suspects = manifest.suspects()
        last_actions = manifest.audit_log(5)
    providers = [_provider_state(provider) for provider in ctx.load_config().providers]
    lines = [f"snapshots   {len(snapshots)}"]
    if snapshots:
        lines.append(f"newest      {snapshots[-1].snapshot_id.hex()[:8]}  {local_time(snapshots[-1].created_ns)}")
    for name, total in totals.items():
        lines.append(
            f"{name:<11} {total.pack_count} packs, {format_bytes(total.length_bytes)} stored for "
            f"{format_bytes(total.plain_bytes)} in {total.blob_count} chunks"
            + (f"; {total.unusable_count} packs not usable" if total.unusable_count else "")
        )
    lines += [f"provider    {name} ({place}): {state}" for name, place, state, _ in providers]
    lines += [f"suspect     pack {pack_id}: {reason}" for pack_id, reason in suspects.items()]
    lines += [f"log         {local_time(line.time_ns)}  {line.action}  {line.detail}" for line in last_actions]
    healthy = all(fine for *_, fine in providers) and not suspects
    ctx.output.result(
        "\n".join(lines),
        {
            "snapshots": len(snapshots),
            "newest": snapshots[-1].snapshot_id.hex() if snapshots else None,
            "sets": {
                name: {
                    "packs": total.pack_count,
                    "unusable_packs": total.unusable_count,
                    "chunks": total.blob_count,
                    "stored_bytes": total.length_bytes,
                    "plain_bytes": total.plain_bytes,
                }
                for name, total in totals.items()
            },
            "providers": [{"name": name, "state": state, "healthy": fine} for name, _, state, fine in providers],
            "suspect_packs": [str(pack_id) for pack_id in suspects],
        },
    )
    return EXIT_DONE if healthy else EXIT_FAILED


def _provider_state(settings: ProviderConfig) -> tuple[str, str, str, bool]:
    """(name, place, what it answers, whether that is well)."""
    from enigma.providers.open import open_provider
    from enigma.repository.store import read_marker

    try:
        with open_provider(settings) as provider:
            repository_id, _ = read_marker(provider)
        return settings.name, settings.bucket, f"answers, repository {str(repository_id)[:8]}", True
    except EnigmaError as exc:
        return settings.name, settings.bucket, str(exc), False
