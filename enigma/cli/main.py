"""Enigma: encrypted, deduplicated backups spread over several clouds.

Usage:
  enigma [options] [<command> [<args>...]]

Commands:
  init      Make a repository, its keys and its configuration.
  backup    Back up files and directories.
  restore   Restore a snapshot, or part of it.
  verify    Check that snapshots can be restored.
  list      List snapshots.
  ls        List the files of a snapshot.
  find      Find files in all snapshots.
  diff      Compare two snapshots.
  status    Show the state of the repository and its providers.
  key       Change the passphrase and manage keys.
  recover   Rebuild the local state from the providers alone.
  config    Show the configuration in force.
  version   Show the versions of Enigma and what it runs on.

Global options, before or after the command:
  --config-dir DIR          Where the configuration lives; ENIGMA_CONFIG_DIR does the same. Else ~/.enigma.
  --passphrase TEXT         The passphrase; other users can see it in the process list.
  --passphrase-file FILE    Read the passphrase from a file.
  --passphrase-command CMD  Read the passphrase from the output of a command.
  --json                    Write JSON lines for programs.
  -q, --quiet               Show results, warnings and errors only.
  -v, --verbose             Say more; -vv adds debugging output and tracebacks.
  -h, --help                Show this, or after a command its own help.
  --version                 Show the version.

The passphrase may also be in ENIGMA_PASSPHRASE; if nothing gives it, a terminal is asked.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import io
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from docopt import DocoptExit, docopt

from enigma import __version__
from enigma.cli.context import Args, Context
from enigma.cli.output import Output, OutputClosed
from enigma.cli.passphrase import PassphraseSource, take_from_environment
from enigma.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EnigmaError, UsageError

COMMANDS = (
    "init",
    "backup",
    "restore",
    "verify",
    "list",
    "ls",
    "find",
    "diff",
    "status",
    "key",
    "recover",
    "config",
    "version",
)

GC_THRESHOLD = 200_000

# What a shell reports for a program that SIGPIPE killed: nobody reads on, which is no failure of ours.
EXIT_BROKEN_PIPE = 141

# No argument of a process can hold a NUL, so this marks words that docopt must take as they are.
_LITERAL = "\0"

_OPTION_LINE = re.compile(r"^ +(?=-)(.*?)(?=  |$)", re.MULTILINE)
_FLAG = re.compile(r"(?<![^\s,])--?[A-Za-z][\w-]*")
_USAGE = re.compile(r"^Usage:.*?(?=\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL)
_HELP_FLAGS = frozenset({"-h", "--help"})
_FRAME_ONLY = _HELP_FLAGS | {"--version"}


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The options that every command takes. `verbosity` counts the -v."""

    config_dir: str | None = None
    passphrase: str | None = field(default=None, repr=False)
    passphrase_file: str | None = None
    passphrase_command: str | None = None
    json: bool = False
    quiet: bool = False
    verbosity: int = 0


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command line that made sense."""

    command: ModuleType
    args: Args
    options: GlobalOptions


class CommandLineError(UsageError):
    """A command line that made no sense; `usage` is what to show below the message."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class Shown(Exception):
    """Help or the version was asked for; `text` is all there is to do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Terminated(BaseException):
    """A signal asked this process to end; unwinds like Ctrl-C so that every `with` block cleans up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def main(argv: list[str] | None = None) -> int:
    """Run one command line; return its exit status. The only place where errors become text and status."""
    words = sys.argv[1:] if argv is None else argv
    # Until the options are parsed, a failure must already be told in the form that was asked for.
    output = Output(json="--json" in words)
    debug = "-vv" in words
    _prepare_process()
    try:
        try:
            invocation = parse(words)
            debug = invocation.options.verbosity > 1
            output = Output(json=invocation.options.json, quiet=invocation.options.quiet)
            status = _run(invocation, output)
        except Shown as shown:
            output.text(shown.text)
            status = EXIT_DONE
        output.flush()
        return status
    except OutputClosed:
        return _leave_broken_pipe()
    except (Exception, KeyboardInterrupt, Terminated) as exc:  # noqa: BLE001 - nothing may leave as a traceback
        return _report(exc, output, debug=debug)


def parse(words: list[str]) -> Invocation:
    """Split a command line. Raises CommandLineError; raises Shown where help or the version is all that is wanted."""
    help_text = __doc__ or ""
    before = _docopt(help_text, words, options_first=True)
    name, rest = before["<command>"], before["<args>"]
    if before["--version"]:
        raise Shown(f"enigma {__version__}\n")
    if name == "help" or before["--help"]:
        name, rest = (rest[0] if name == "help" and rest else name), ["--help"]
    if name == "help" or (name is None and rest):
        raise Shown(help_text)
    if name is None:
        raise CommandLineError("No command given; `enigma --help` lists them.", _usage(help_text))
    command = _load(name)
    usage_text = command.__doc__ or ""
    if (_HELP_FLAGS - _flags(usage_text)) & set(_before_dashes(rest)):
        raise Shown(usage_text + "\nGlobal options: see `enigma --help`.\n")
    args = _parse_command(usage_text, [name, *rest])
    return Invocation(command, args, _merge(before, args, own=_flags(usage_text)))


def _run(invocation: Invocation, output: Output) -> int:
    from enigma.cli.logs import start_logging
    from enigma.config import default_config_dir

    options = invocation.options
    start_logging(output, options.verbosity)
    source = PassphraseSource(
        text=options.passphrase,
        file=options.passphrase_file,
        command=options.passphrase_command,
        environment=take_from_environment(),
    )
    config_dir = Path(options.config_dir).absolute() if options.config_dir else default_config_dir()
    context = Context(config_dir, output, source, options.verbosity)
    status: int = invocation.command.run(context, invocation.args)
    return status


def _load(name: str) -> ModuleType:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        advice = f"did you mean `{near[0]}`?" if near else "`enigma --help` lists the commands."
        raise CommandLineError(f"There is no command `{name}`; {advice}", "")
    return importlib.import_module(f"enigma.cli.{name}")


def _docopt(usage_text: str, words: list[str], *, options_first: bool = False) -> dict[str, Any]:
    """docopt over a usage text, with its errors as CommandLineError."""
    grammar = _counting_verbose(usage_text)
    try:
        return dict(docopt(grammar, words, default_help=False, options_first=options_first))
    except DocoptExit as exc:
        raise CommandLineError(_complaint(exc, words, grammar), _usage(usage_text)) from exc


def _parse_command(usage_text: str, words: list[str]) -> Args:
    """What a command's docopt finds, global options included; words after `--` are taken literally."""
    own = _flags(usage_text)
    lines = [line for line in _option_lines(__doc__ or "") if not (own | _FRAME_ONLY) & _flags_in(line)]
    grammar = usage_text + "\nGlobal options:\n" + "".join(f"  {line}\n" for line in lines)
    found = _docopt(grammar, _protect(words))
    return {key: _unprotect(value) for key, value in found.items()}


def _counting_verbose(usage_text: str) -> str:
    """docopt counts an option only if the usage repeats it; `-v` is the one that may be repeated."""
    return usage_text.replace("[options]", "[options] [--verbose]...")


def _merge(before: Args, after: Args, *, own: frozenset[str]) -> GlobalOptions:
    """Global options from both sides of the command's name; the later one wins, except where the command owns it."""

    def given(flag: str) -> Any:
        later = after.get(flag) if flag not in own else None
        return before[flag] if later is None or later is False else later

    return GlobalOptions(
        config_dir=given("--config-dir"),
        passphrase=given("--passphrase"),
        passphrase_file=given("--passphrase-file"),
        passphrase_command=given("--passphrase-command"),
        json=given("--json"),
        quiet=given("--quiet"),
        verbosity=before["--verbose"] + after["--verbose"],
    )


def _option_lines(usage_text: str) -> list[str]:
    """The flags of each option line, without its description."""
    return _OPTION_LINE.findall(usage_text)


def _flags_in(option_line: str) -> frozenset[str]:
    return frozenset(_FLAG.findall(option_line))


def _flags(usage_text: str) -> frozenset[str]:
    return frozenset().union(*map(_flags_in, _option_lines(usage_text)))


def _usage(usage_text: str) -> str:
    match = _USAGE.search(usage_text)
    return match.group() if match else ""


def _before_dashes(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _protect(words: list[str]) -> list[str]:
    options = _before_dashes(words)
    return options + [_LITERAL + word for word in words[len(options) + 1 :]]


def _unprotect(value: Any) -> Any:
    if isinstance(value, list):
        return [_unprotect(item) for item in value]
    return value.removeprefix(_LITERAL) if isinstance(value, str) else value


def _complaint(exc: DocoptExit, words: list[str], grammar: str) -> str:
    """One sentence for a command line that docopt refused."""
    known = _flags(grammar)
    for word in _before_dashes(words):
        flag = word.partition("=")[0]
        if word.startswith("--") and not any(other.startswith(flag) for other in known):
            near = difflib.get_close_matches(flag, known, n=1)
            return f"There is no option {flag}" + (f"; did you mean {near[0]}?" if near else ".")
        if word[0:1] == "-" and word[1:2].isalpha() and word[:2] not in known:
            return f"There is no option {word[:2]}."
    first_line = str(exc).partition("\n")[0]
    if first_line.startswith("-"):
        return f"Option {first_line}."
    return "These arguments are missing something or have too much."


def _prepare_process() -> None:
    # A backup has tens of thousands of small tuples in flight and makes no cycles of them: looking for cycles as often
    # as Python does by itself took 1.5 % of the CPU time of one of 66,000 files (pairs of runs).
    gc.set_threshold(GC_THRESHOLD)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    # Names that are not UTF-8 leave as the bytes they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def _terminate(signal_number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the cleaning up that the first one starts.
    signal.signal(signal_number, signal.SIG_IGN)
    raise Terminated(signal_number)


def _leave_broken_pipe() -> int:
    # Python flushes stdout once more at exit; give it a place to flush to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


def _report(exc: BaseException, output: Output, *, debug: bool) -> int:
    """Tell why the run ended and return its exit status."""
    if debug and not isinstance(exc, CommandLineError):
        _print_traceback(exc)
    text, code, status = _verdict(exc)
    with suppress(OutputClosed, BrokenPipeError):
        output.error(text, code=code, exit_status=status)
        if isinstance(exc, CommandLineError) and exc.usage and not output.json:
            sys.stderr.write(exc.usage + "\n")
    return status


def _verdict(exc: BaseException) -> tuple[str, str, int]:
    """(sentence, code, exit status)."""
    if isinstance(exc, EnigmaError):
        return str(exc), exc.code, exc.exit_status
    if isinstance(exc, KeyboardInterrupt):
        return "Interrupted.", "interrupted", EXIT_INTERRUPTED
    if isinstance(exc, Terminated):
        name = signal.Signals(exc.signal_number).name
        return f"Stopped by {name}.", "interrupted", 128 + exc.signal_number
    reason = " ".join(str(exc).split())[:300]
    what = f"{type(exc).__name__}: {reason}" if reason else type(exc).__name__
    return f"Unexpected {what} (run again with -vv to see where).", "internal", EXIT_FAILED


def _print_traceback(exc: BaseException) -> None:
    import traceback

    traceback.print_exception(exc)
