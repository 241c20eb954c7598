"""Log records of all rooms, shown the way this run shows everything else.

-v    enigma and workers   everyone else
0     warnings             nothing: a library's retry is not the user's business
1     what happens         warnings
2     everything           what happens
"""

from __future__ import annotations

import logging

from enigma.cli.output import Output

_OWN_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_FOREIGN_LEVELS = (logging.CRITICAL, logging.WARNING, logging.INFO)


class OutputHandler(logging.Handler):
    """Warnings and worse become warnings of the run; the rest becomes trace lines."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._output.warn(record.getMessage())
        else:
            self._output.trace(f"{record.name}: {record.getMessage()}")


def start_logging(output: Output, verbosity: int) -> None:
    """Send every log record to `output`, as the table above says. Called once, before the command runs."""
    row = min(verbosity, 2)
    logging.basicConfig(handlers=[OutputHandler(output)], level=_FOREIGN_LEVELS[row], force=True)
    for package in ("enigma", "workers"):
        logging.getLogger(package).setLevel(_OWN_LEVELS[row])
