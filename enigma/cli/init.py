"""Make a repository, its keys and its configuration.

Usage:
  enigma init [options]

Options:
  --allow-weak-passphrase  Take a passphrase that is easy to guess.

Writes a commented enigma.toml into the configuration directory unless there is one, and then makes the repository at
the providers it names: each must answer and be empty. Without [[providers]] a folder `store` beside it serves.
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    from enigma.config import write_default
    from enigma.repository.opening import create_repository, exclusive

    path = write_default(ctx.config_dir)
    config = ctx.load_config()
    with exclusive(config):
        repository_id = create_repository(config, ctx.new_passphrase, allow_weak=args["--allow-weak-passphrase"])
    places = ", ".join(f"{provider.name} ({provider.bucket})" for provider in config.providers)
    ctx.output.result(
        f"Repository {repository_id} at {places}.\nConfiguration: {path}\nKeys: {config.keyfile_path}",
        {
            "repository": str(repository_id),
            "config": str(path),
            "keystore": str(config.keyfile_path),
            "providers": [provider.name for provider in config.providers],
        },
    )
    ctx.output.note("Remember the passphrase: nothing can be restored without it.")
    return EXIT_DONE
