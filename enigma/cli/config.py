"""Show the configuration in force, defaults included, secrets left out.

The output is a valid enigma.toml, except that each secret is replaced by "***".

Usage:
  enigma config [options]
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    """Check the file and show what it means; needs no repository and no passphrase."""
    config = ctx.load_config()
    ctx.output.result(config.redacted_toml().rstrip("\n"), config.redacted())
    return EXIT_DONE
