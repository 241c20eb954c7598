"""The real program in real processes: an isolated home, its runs, what they leave behind, and trees to compare."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSPHRASE = "quiet river under the old stone bridge 41"
TIMEOUT_S = 120.0
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "TMPDIR")


def command() -> list[str]:
    """How this environment's program is started."""
    script = Path(sys.prefix) / "bin" / "enigma"
    return [str(script)] if script.exists() else [sys.executable, "-m", "enigma"]


@dataclass(frozen=True, slots=True)
class Done:
    """A run that ended. `status` is negative for a signal that killed it."""

    args: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    duration_s: float

    def records(self, kind: str = "result") -> list[dict[str, Any]]:
        """The JSON lines of one kind, of a run with --json."""
        lines = [json.loads(line) for line in (self.stdout + self.stderr).splitlines() if line.startswith("{")]
        return [line for line in lines if line["type"] == kind]

    def told(self) -> str:
        """What is to be shown when an assertion fails."""
        return f"enigma {' '.join(self.args)}: {self.status}\n{self.stdout[-2000:]}\n{self.stderr[-4000:]}"

    def expect(self, status: int) -> Done:
        assert self.status == status, self.told()
        return self

    def sentence(self) -> str:
        """The one sentence that says why the run ended; fails if there is none, or more, or a traceback."""
        assert "Traceback" not in self.stderr + self.stdout, self.told()
        lines = [line for line in self.stderr.splitlines() if line.startswith("enigma: ")]
        assert len(lines) == 1, self.told()
        text = lines[0].removeprefix("enigma: ")
        assert text.endswith((".", "?")) and len(text.split()) >= (1 if text == "Interrupted." else 3), self.told()
        assert "Unexpected " not in text and "internal" not in text, self.told()
        rest = [line for line in self.stderr.splitlines() if line != lines[0] and not line.startswith("warning: ")]
        if rest:
            assert self.status == 2 and rest[0].startswith("Usage:"), self.told()
        return text


@dataclass(slots=True)
class Program:
    """A home of its own with the program in it. `prefix` are words put before the command, such as setpriv."""

    home: Path
    passphrase: str | None = PASSPHRASE
    config_dir: Path | None = None
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> Path:
        return self.config_dir or self.home / ".enigma"

    @property
    def store(self) -> Path:
        return self.config / "store"

    def start(self, *args: str | Path, prefix: Sequence[str] = (), **popen: Any) -> subprocess.Popen[str]:
        """A run under way, its output in pipes."""
        words = [*self.prefix, *prefix, *command(), *map(str, args)]
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": self.home,
            "env": self.environ(),
        }
        return subprocess.Popen(words, **(settings | popen))

    def run(self, *args: str | Path, prefix: Sequence[str] = (), feed: str | None = None, **popen: Any) -> Done:
        """One run from its start to its end."""
        started_s = time.monotonic()
        if feed is not None:
            popen["stdin"] = subprocess.PIPE
        return finish(self.start(*args, prefix=prefix, **popen), args, started_s=started_s, feed=feed)

    def environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        own = {"HOME": str(self.home)}
        if self.passphrase is not None:
            own["ENIGMA_PASSPHRASE"] = self.passphrase
        if self.config_dir is not None:
            own["ENIGMA_CONFIG_DIR"] = str(self.config_dir)
        return kept | own | self.environment

    # ---- what is asked often

    def init(self, *args: str) -> Program:
        self.run("init", *args).expect(0)
        return self

    def backup(self, *args: str | Path, status: int = 0) -> dict[str, Any]:
        """The result record of a backup that ends with `status`."""
        return dict(self.run("--json", "backup", *args).expect(status).records()[0])

    def verify(self, *args: str) -> None:
        """Fails unless everything can be restored."""
        done = self.run("--json", "verify", *args).expect(0)
        assert done.records()[0]["problems"] == [], done.told()

    def snapshots(self) -> list[dict[str, Any]]:
        return self.run("--json", "list").expect(0).records()

    def restores(self, snapshot: str, source: Path, target: Path) -> None:
        """Fails unless the snapshot brings back `source` as it is now."""
        self.run("restore", snapshot, target).expect(0)
        assert same_tree(source, target) == []

    def processes(self) -> list[int]:
        """Every living process of this home, workers included."""
        mark = f"HOME={self.home}".encode()
        return [pid for pid in _pids() if mark in _read_proc(pid, "environ").split(b"\0")]


def finish(
    process: subprocess.Popen[str], args: Sequence[str | Path], *, started_s: float, feed: str | None = None
) -> Done:
    """Wait for the end of a run; one that hangs is killed and fails the test."""
    with process:
        try:
            stdout, stderr = process.communicate(feed, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Done(tuple(map(str, args)), process.returncode, stdout, stderr, time.monotonic() - started_s)


def children(pid: int) -> list[int]:
    """The child processes of a process; empty once it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def workers(pid: int) -> list[int]:
    """Those children that are workers by now, and no longer copies of the parent about to become one."""
    return [child for child in children(pid) if b"workers.worker" in _read_proc(child, "cmdline")]


def poll(true: Callable[[], bool], *, within_s: float) -> bool:
    """Whether it comes true in time."""
    until_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.002)
    return True


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read_proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # gone, or another user's
        return b""


# ---- trees


def tree_facts(root: Path) -> dict[str, tuple[Any, ...]]:
    """What must come back of each entry: kind, mode, times, and content or target."""
    facts: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in [".", *files, *(one for one in folders if os.path.islink(os.path.join(folder, one)))]:
            path = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(path)
            content: Any = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif name != ".":
                content = Path(path).read_bytes()
            facts[os.path.relpath(path, root)] = (status.st_mode, status.st_mtime_ns, content)
    return facts


def same_tree(one: Path, other: Path) -> list[str]:
    """The entries that differ; never their content, which would drown the message."""
    left, right = tree_facts(one), tree_facts(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


@dataclass(slots=True)
class Tree:
    """A tree big enough for a pool of workers, small and large files mixed, that `change` makes new in part."""

    root: Path
    seed: int
    small_files: int = 850
    large_bytes: int = 34 << 20
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        for number in range(self.small_files):
            self._small(number)
        (self.root / "large").mkdir()
        with (self.root / "large" / "one").open("wb") as file:
            for _ in range(0, self.large_bytes, 2 << 20):
                file.write(self._random.randbytes(2 << 20))
        (self.root / "large" / "two").write_bytes(self._random.randbytes(2 << 20))
        (self.root / "link").symlink_to("large/one")

    def change(self, *, new_bytes: int = 3 << 20) -> None:
        """Most small files anew, so that a pool starts again; the large file touched, with new bytes in its middle."""
        keep = self._random.randrange(20)
        for number in range(self.small_files):
            if number % 20 != keep:
                self._small(number)
        large = self.root / "large" / "one"
        with large.open("r+b") as file:
            file.seek(self._random.randrange(self.large_bytes - new_bytes))
            file.write(self._random.randbytes(new_bytes))
        extra = self.root / "large" / f"extra-{self._random.randrange(3)}"
        extra.write_bytes(self._random.randbytes(self._random.choice((0, 1, 70_000, 5 << 20))))

    def _small(self, number: int) -> None:
        folder = self.root / f"folder-{number % 17:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"small-{number:04}").write_bytes(self._random.randbytes(self._random.randrange(3000)))
