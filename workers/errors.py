"""What can go wrong in the engine. The rooms above map these to the errors a user meets."""

from __future__ import annotations


class EngineError(Exception):
    """Root of the engine's errors."""


class WorkerDied(EngineError):
    """A worker process ended on its own. `exit_code` is negative for a signal, as in subprocess."""

    def __init__(self, pid: int, exit_code: int) -> None:
        super().__init__(f"worker process {pid} died with exit code {exit_code}")
        self.pid = pid
        self.exit_code = exit_code


class StageFailed(EngineError):
    """A stage raised in a worker; `remote_traceback` is the worker's traceback as text."""

    def __init__(self, message: str, remote_traceback: str) -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback
        self.add_note(remote_traceback)  # shown wherever this error's own traceback is


class EngineClosed(EngineError):
    """A verb was called on an engine that is closed or has failed."""


class SealBroken(EngineError):
    """Stored bytes fail their tag, checksum, hash or structure."""


NEEDS_NEWER = "needs a newer Enigma"  # in every message about bytes that are not understood, and no others


class FormatNewer(EngineError):
    """The bytes say that a newer program wrote them. Not corruption."""
