"""What the frame hands to every command: where the repository is, where output goes, how to ask for the passphrase."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enigma.cli.output import Output
from enigma.cli.passphrase import PassphraseSource

if TYPE_CHECKING:
    from enigma.config import Config

Args = Mapping[str, Any]
"""What docopt found: `<name>` -> str or list[str], `--flag` -> bool, `--option` -> str or None."""


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one run of one command. `verbosity` counts the -v: 0, 1, 2."""

    config_dir: Path
    output: Output
    passphrase_source: PassphraseSource
    verbosity: int = 0

    def passphrase(self) -> bytes:
        """The passphrase of an existing repository; asks on a terminal if nothing gives it. Raises UsageError."""
        return self.passphrase_source.read()

    def new_passphrase(self) -> bytes:
        """A passphrase about to be set: asked twice when it has to be asked. Raises UsageError."""
        return self.passphrase_source.read(prompt="New passphrase: ", confirm=True)

    def load_config(self) -> Config:
        """The checked configuration; warns if others can read secrets in it. Raises ConfigError, RepositoryNotFound."""
        from enigma.config import config_path, load

        config = load(self.config_dir)
        path = config_path(self.config_dir)
        if config.has_secrets and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            self.output.warn(f"{path} holds secrets and other users can open it; run: chmod 600 {path}")
        return config
