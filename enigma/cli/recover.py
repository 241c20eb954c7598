"""Rebuild the local state from the providers alone.

Usage:
  enigma recover [options]

Needs a configuration that names the providers (without one, the folder `store` in the configuration directory is
assumed) and the passphrase. Brings back the keystore and the manifest, and indexes packs whose index is lost.
"""

from __future__ import annotations

from pathlib import Path

from enigma.cli.context import Args, Context
from enigma.errors import EXIT_DONE, EXIT_FAILED


def run(ctx: Context, args: Args) -> int:
    from enigma.config import write_default
    from enigma.keys.unlocking import Unlocking
    from enigma.maintenance.recover import recover
    from enigma.repository.opening import exclusive, open_repository, recover_keystore

    write_default(ctx.config_dir)
    config = ctx.load_config()
    passphrase = ctx.passphrase()
    with exclusive(config):
        if not config.keyfile_path.exists():
            recover_keystore(config, lambda: passphrase)
        set_aside(config.db_path)
        unlock = Unlocking(config.keyfile_path, lambda: passphrase, config.mlkem_key_path)
        with open_repository(config, unlock) as repository, repository.session("recover") as session:
            done = recover(repository, session, _Watcher(ctx))
    ctx.output.result(
        f"recovered: {done.snapshots} snapshots, {done.packs} packs, {done.blobs} chunks"
        + (f"; {done.packs_reindexed} packs were indexed anew" if done.packs_reindexed else ""),
        {
            "snapshots": done.snapshots,
            "packs": done.packs,
            "chunks": done.blobs,
            "packs_reindexed": done.packs_reindexed,
            "problems": done.problems,
        },
    )
    return EXIT_FAILED if done.problems else EXIT_DONE


def set_aside(db_path: Path) -> None:
    """The manifest that is there may be what is wrong; the providers know better."""
    for suffix in ("", "-wal", "-shm"):
        db_path.with_name(db_path.name + suffix).unlink(missing_ok=True)


class _Watcher:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def problem(self, subject: str, message: str) -> None:
        self._ctx.output.warn(f"{subject}: {message}", subject=subject)
