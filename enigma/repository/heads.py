"""Heads: what the newest objects say they have seen, so that a provider that withholds one is found out."""

from __future__ import annotations

from enigma.manifest import Manifest
from enigma.model.records import Head, head_of


def heads(manifest: Manifest) -> tuple[Head, ...]:
    """The snapshots that no other one names: whoever writes now has seen them, and through them all before."""
    held = [row.record for row in manifest.snapshots()]
    named = {head.logical_id for record in held for head in record.heads}
    return tuple(head_of(record.snapshot_id, record) for record in held if record.snapshot_id not in named)
