'''The command line: one file per command; the file's docstring is its usage text.

A command file looks like this, and `enigma.cli.main.COMMANDS` names it:

    """Do something to a snapshot.

    Usage:
      enigma something [options] <snapshot> [<path>...]

    Options:
      -n, --dry-run  Show what would be done and do nothing.
      --tag TAG      Only snapshots with this tag.
    """

    def run(ctx: Context, args: Args) -> int:
        """The exit status, one of enigma.errors.EXIT_*."""

Rules that the frame relies on:
- The first line of the docstring is a sentence; every usage line starts with `enigma <name> [options]`. The frame adds
  the global options (`--json`, `--quiet`, ...) there, so they may stand before or after the command's name. An option
  that the command defines itself wins over a global one of the same name.
- `run` takes what docopt found: `args["<path>"]` is a list, `args["--dry-run"]` a bool, `args["--tag"]` text or None.
  Words after `--` arrive as plain arguments, whatever they start with. File names arrive as the system's `str`; use
  `os.fsencode` for their bytes.
- Top-level imports stay light (`enigma.errors`, `enigma.cli.*`); import the rooms below inside `run`.
- Results go through `ctx.output`, never through print. Raise an EnigmaError to fail: the frame prints its sentence and
  exits with its status. Ctrl-C and SIGTERM arrive as exceptions, so a `with` block is all the cleanup there is.
'''
