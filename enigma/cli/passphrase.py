"""Where the passphrase comes from: option, file, command, environment, and last a prompt on the terminal."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from enigma.errors import UsageError

ENVIRONMENT_VARIABLE = "ENIGMA_PASSPHRASE"

# Longer than any passphrase, short enough that a wrong path (a disk image) is noticed at once.
MAX_PASSPHRASE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PassphraseSource:
    """The places a passphrase may come from, in falling precedence. Reading is lazy: most commands need none."""

    text: str | None = field(default=None, repr=False)
    file: str | None = None
    command: str | None = None
    environment: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.text, self.file, self.command)) > 1:
            raise UsageError("Give only one of --passphrase, --passphrase-file and --passphrase-command.")

    def read(self, *, prompt: str = "Passphrase: ", confirm: bool = False) -> bytes:
        """The passphrase as bytes, without the line end of a file or command; never empty. Raises UsageError."""
        if self.text is not None:
            passphrase = os.fsencode(self.text)
        elif self.file is not None:
            passphrase = _from_file(Path(self.file))
        elif self.command is not None:
            passphrase = _from_command(self.command)
        elif self.environment is not None:
            passphrase = os.fsencode(self.environment)
        else:
            passphrase = _from_prompt(prompt, confirm=confirm)
        return _checked(passphrase)


def take_from_environment() -> str | None:
    """ENIGMA_PASSPHRASE, removed from the environment so that no child process inherits it."""
    return os.environ.pop(ENVIRONMENT_VARIABLE, None)


def _checked(passphrase: bytes) -> bytes:
    if not passphrase:
        raise UsageError("The passphrase is empty; give one that isn't.")
    if len(passphrase) > MAX_PASSPHRASE_BYTES:
        raise UsageError(f"The passphrase is longer than {MAX_PASSPHRASE_BYTES} bytes; is this the right file?")
    return passphrase


def _without_line_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _without_line_end(file.read(MAX_PASSPHRASE_BYTES + 2))
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise UsageError(f"Can't read the passphrase file {path}: {reason}.") from exc


def _from_command(command: str) -> bytes:
    import shlex
    import subprocess

    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, check=False)
    except (OSError, ValueError, IndexError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise UsageError(f"Can't run the passphrase command: {reason}.") from exc
    if done.returncode:
        raise UsageError(f"The passphrase command failed with exit status {done.returncode}.")
    return _without_line_end(done.stdout)


def _from_prompt(prompt: str, *, confirm: bool) -> bytes:
    import getpass

    if not sys.stdin.isatty():
        raise UsageError(
            "No passphrase given; use --passphrase-file, --passphrase-command or ENIGMA_PASSPHRASE, "
            "or run on a terminal."
        )
    try:
        passphrase = getpass.getpass(prompt)
        if confirm and getpass.getpass("The same again: ") != passphrase:
            raise UsageError("The two passphrases differ; nothing was changed.")
    except EOFError as exc:
        raise UsageError("No passphrase given: the terminal was closed.") from exc
    return os.fsencode(passphrase)
