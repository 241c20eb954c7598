"""Change the passphrase and manage keys.

Usage:
  enigma key list [options]
  enigma key rotate [options]
  enigma key passphrase [options] [--new-passphrase-file FILE]

Options:
  --new-passphrase-file FILE  Read the new passphrase from a file instead of asking for it.
  --allow-weak-passphrase     Take a new passphrase that is easy to guess.

`list` shows the data keys, `rotate` makes a new one for everything stored from now on, `passphrase` changes what opens
the keystore; nothing that is stored needs to be encrypted again. An old copy of the keystore opens with the old
passphrase for ever.
"""

from __future__ import annotations

from enigma.cli.context import Args, Context
from enigma.cli.opening import local_time, reading, writing
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    if args["list"]:
        return _list(ctx)
    return _rotate(ctx) if args["rotate"] else _change_passphrase(ctx, args)


def _list(ctx: Context) -> int:
    with reading(ctx, "key") as (repository, _):
        for info in repository.keystore.info():
            mark = "  current" if info.is_current else ""
            ctx.output.result(
                f"{info.key_id}  {local_time(info.created_ns)}{mark}",
                {"key": str(info.key_id), "created_ns": info.created_ns, "current": info.is_current},
            )
    return EXIT_DONE


def _rotate(ctx: Context) -> int:
    with writing(ctx, "key") as (repository, _):
        key_id = repository.rotate_key()
    ctx.output.result(f"New data is sealed under key {key_id} from now on.", {"key": str(key_id)})
    return EXIT_DONE


def _change_passphrase(ctx: Context, args: Args) -> int:
    from enigma.cli.passphrase import PassphraseSource

    source = PassphraseSource(file=args["--new-passphrase-file"])
    with writing(ctx, "key") as (repository, session):
        new = source.read(prompt="New passphrase: ", confirm=True)
        repository.change_passphrase(
            new, old=ctx.passphrase(), session_id=session.session_id, allow_weak=args["--allow-weak-passphrase"]
        )
    ctx.output.result("The passphrase is changed.", {"changed": True})
    return EXIT_DONE
