"""What the tests of whole trees share: rsync as the yardstick, and waiting for timestamps to grow old."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


def differences(one: Path, other: Path) -> list[str]:
    """What rsync would change to make `other` like `one`: attributes, ACLs, hard links, content, and what is extra."""
    command = ["rsync", "-aHAXn", "--checksum", "--itemize-changes", "--delete", f"{one}/", f"{other}/"]
    return os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout).splitlines()


def settle() -> None:
    """Let the clock leave the timestamps behind: a file changed in the moment of reading is read again, by design."""
    until = time.time_ns() + 30_000_000
    while time.time_ns() < until:
        os.sched_yield()
