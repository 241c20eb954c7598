"""The programs that are measured: Enigma, restic and borg, each in a home of its own with a fresh repository on disk.

Every program is asked for the same: encryption, zstd, a repository in a local folder, its own caches as by default.
A child gets a small environment made here; nothing of the user's configuration or keys reaches it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.measure import Run, drop_writes, run_program
from bench.trees import Tree

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
PASSPHRASE = "slow copper lantern over nine harbours"  # noqa: S105  it guards nothing


@dataclass(slots=True)
class Program(ABC):
    """One fresh repository. `home` must not exist; `remove` deletes it."""

    name: ClassVar[str]
    home: Path

    @classmethod
    @abstractmethod
    def words(cls) -> list[str]:
        """How it is started."""

    @abstractmethod
    def init(self) -> None: ...

    @abstractmethod
    def backup(self, tree: Tree) -> Run: ...

    @abstractmethod
    def restore(self, target: Path) -> Run:
        """The last backup, into an empty folder that exists."""

    @property
    @abstractmethod
    def store(self) -> Path:
        """The folder that would lie at a provider."""

    @classmethod
    def installed(cls) -> bool:
        return shutil.which(cls.words()[0]) is not None

    def stored_bytes(self) -> int:
        return sum(
            os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(self.store) for name in names
        )

    def remove(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(self.home)}

    def run(self, *words: str, cwd: Path | None = None) -> tuple[Run, bytes]:
        """Earlier writes are flushed first, so that each run pays for its own."""
        self.home.mkdir(parents=True, exist_ok=True)
        drop_writes()
        return run_program([*self.words(), *words], env=self.environment(), cwd=cwd or self.home, good=self.good())

    def good(self) -> Sequence[int]:
        return (0,)


@dataclass(slots=True)
class Enigma(Program):
    """This checkout. `settings` are lines of its configuration; `last` is the result record of the last command."""

    name: ClassVar[str] = "enigma"
    level: int | None = None
    target_bytes: int | None = None
    last: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def words(cls) -> list[str]:
        return [sys.executable, "-m", "enigma"]

    def good(self) -> Sequence[int]:
        return (0, 3)  # 3: the tree holds something unreadable, and the rest is stored

    def init(self) -> None:
        config = self.home / ".enigma" / "enigma.toml"
        config.parent.mkdir(parents=True, mode=0o700)
        lines = ["[enigma]"]
        if self.target_bytes is not None:
            lines += ["[enigma.chunk_strategy.Cdc]", f"target_size = {self.target_bytes}"]
        if self.level is not None:
            lines += ["[enigma.compression]", "enabled = true", f"level = {self.level}"]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        config.chmod(0o600)
        self._command("init")

    def backup(self, tree: Tree) -> Run:
        return self._command("backup", str(tree.root))

    def restore(self, target: Path) -> Run:
        return self._command("restore", "latest", str(target))

    def verify(self) -> Run:
        return self._command("verify", "--read-data")

    @property
    def store(self) -> Path:
        return self.home / ".enigma" / "store"

    def environment(self) -> dict[str, str]:
        return Program.environment(self) | {"ENIGMA_PASSPHRASE": PASSPHRASE, "PYTHONPATH": str(REPOSITORY_ROOT)}

    def _command(self, *words: str) -> Run:
        run, said = self.run("--json", *words)
        records = [json.loads(line) for line in said.splitlines() if line.startswith(b"{")]
        self.last = next((record for record in records if record["type"] == "result"), {})
        return run


@dataclass(slots=True)
class Restic(Program):
    """Repository version 2 with its default compression (`auto`)."""

    name: ClassVar[str] = "restic"

    @classmethod
    def words(cls) -> list[str]:
        return ["restic"]

    def init(self) -> None:
        self.run("init", "--repository-version", "2")

    def backup(self, tree: Tree) -> Run:
        return self.run("backup", "--compression", "auto", str(tree.root))[0]

    def restore(self, target: Path) -> Run:
        return self.run("restore", "latest", "--target", str(target))[0]

    @property
    def store(self) -> Path:
        return self.home / "store"

    def environment(self) -> dict[str, str]:
        own = {
            "RESTIC_REPOSITORY": str(self.store),
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }
        return Program.environment(self) | own


@dataclass(slots=True)
class Borg(Program):
    """repokey (AES-256 with HMAC-SHA-256) and zstd level 3, as Enigma's default."""

    name: ClassVar[str] = "borg"
    archives: int = 0

    @classmethod
    def words(cls) -> list[str]:
        return ["borg"]

    def good(self) -> Sequence[int]:
        return (0, 1)  # 1: warnings

    def init(self) -> None:
        self.run("init", "--encryption", "repokey")

    def backup(self, tree: Tree) -> Run:
        self.archives += 1
        return self.run("create", "--compression", "zstd,3", f"::{self.archives}", str(tree.root))[0]

    def restore(self, target: Path) -> Run:
        return self.run("extract", f"::{self.archives}", cwd=target)[0]

    @property
    def store(self) -> Path:
        return self.home / "store"

    def environment(self) -> dict[str, str]:
        own = {"BORG_REPO": str(self.store), "BORG_PASSPHRASE": PASSPHRASE, "BORG_BASE_DIR": str(self.home)}
        return Program.environment(self) | own


PEERS: tuple[type[Program], ...] = (Restic, Borg)


def check_restored(tree: Tree, target: Path) -> None:
    """Fails unless as many files and bytes came back: a figure for half the work would be no figure."""
    back = Tree.at("restored", target)
    if (back.files, back.length_bytes) != (tree.files, tree.length_bytes):
        raise AssertionError(f"{tree.name}: {back.files} of {tree.files} files came back")
