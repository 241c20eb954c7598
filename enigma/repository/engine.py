"""The engine as the rooms above use it: its failures become errors that a user can act on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from enigma.errors import EngineFailed
from workers.engine import Engine
from workers.errors import EngineError, StageFailed, WorkerDied
from workers.owner import Owner
from workers.plan import EnginePlan


@contextmanager
def running_engine(plan: EnginePlan, owner: Owner, *, inline: bool | None = None) -> Iterator[Engine]:
    """An engine for the length of a block. Raises EngineFailed, which names the worker or the stage."""
    try:
        with Engine(plan, owner, inline=inline) as engine:
            yield engine
    except WorkerDied as exc:
        raise EngineFailed(
            f"Worker process {exc.pid} {_end(exc.exit_code)}; nothing half stored counts, so run the command again."
        ) from exc
    except StageFailed as exc:
        raise EngineFailed(f"A worker failed ({exc}); run again with -vv to see where.") from exc
    except EngineError as exc:
        raise EngineFailed(f"The engine failed: {exc}.") from exc


def _end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    hint = ", perhaps by the system for want of memory" if exit_code == -signal.SIGKILL else ""
    return f"was killed by signal {name} (exit code {exit_code}){hint}"
