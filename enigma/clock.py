"""Time: the only place in enigma that reads the wall clock. Who needs the time takes one of these as an argument.

Two clocks, because neither is enough alone: the wall clock is what users read and may jump either way; the boot clock
never goes back and, unlike CLOCK_MONOTONIC, goes on while the machine sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def wall_ns() -> int:
    """Nanoseconds since 1970 in UTC by this machine's clock, right or wrong."""
    return time.time_ns()


def boot_ns() -> int:
    """Nanoseconds since boot, time asleep included. Only differences mean something."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks, for who needs both; a test hands in others."""

    wall_ns: Callable[[], int] = wall_ns
    boot_ns: Callable[[], int] = boot_ns


SYSTEM_CLOCK = Clock()
