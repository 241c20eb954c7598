"""What a backup leaves out: gitignore patterns, files that are too large, caches that say so themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enigma.errors import UsageError
from enigma.model.entries import Kind

CACHEDIR_TAG = b"CACHEDIR.TAG"
CACHEDIR_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)

Level = int
"""How many bytes of a path lead to the source that holds it: patterns are relative to the source."""


@dataclass(frozen=True, slots=True)
class Excludes:
    """The rules of one backup. Without any, the walk doesn't ask."""

    larger_than_bytes: int | None = None
    caches: bool = False
    _spec: Any = field(default=None, repr=False)

    @classmethod
    def from_options(
        cls, *, patterns: Sequence[str], pattern_file: str | None, larger_than: str | None, caches: bool
    ) -> Excludes:
        """Raises UsageError for a pattern, a size or a file that makes no sense."""
        lines = [*_file_lines(pattern_file), *patterns] if pattern_file else list(patterns)
        return cls(parse_size(larger_than) if larger_than else None, caches, _spec_of(lines))

    @property
    def keeps_all(self) -> bool:
        return self._spec is None and self.larger_than_bytes is None

    def top(self, path: bytes) -> Level:
        """The level of a source that stands at `path` of the snapshot."""
        return len(path) + 1 if path else 0

    def keeps(self, level: Level, path: bytes, info: os.stat_result, kind: Kind) -> bool:
        """Whether an entry stays; an excluded directory is not descended."""
        if self.larger_than_bytes is not None and kind is Kind.FILE and info.st_size > self.larger_than_bytes:
            return False
        if self._spec is None:
            return True
        name = os.fsdecode(path[level:])
        return not self._spec.match_file(name + "/" if kind is Kind.DIRECTORY else name)

    def is_cache(self, directory: bytes) -> bool:
        """Whether a directory is marked as a cache, and caches are left out: then only the mark is kept."""
        if not self.caches:
            return False
        try:
            with open(os.path.join(directory, CACHEDIR_TAG), "rb") as tag:
                return tag.read(len(CACHEDIR_SIGNATURE)) == CACHEDIR_SIGNATURE
        except OSError:
            return False


def parse_size(text: str) -> int:
    """500K, 20M, 1.5G in bytes (powers of 1024). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"A size is a number with K, M, G or T behind it, such as 20M, not {text}.")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _spec_of(lines: list[str]) -> Any:
    if not any(line.strip() and not line.lstrip().startswith("#") for line in lines):
        return None
    import pathspec

    for line in lines:
        try:
            pathspec.GitIgnoreSpec.from_lines([line])
        except ValueError as exc:
            raise UsageError(f"The exclude pattern {line!r} is no valid gitignore pattern.") from exc
    return pathspec.GitIgnoreSpec.from_lines(lines)


def _file_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as exc:
        raise UsageError(f"Can't read the exclude file {path}: {exc.strerror}.") from exc
