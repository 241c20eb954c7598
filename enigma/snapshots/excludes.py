"""What a backup leaves out: gitignore patterns, files that are too large, caches that say so themselves.

The patterns are git's, relative to the source, and the last one that matches an entry decides. A directory that is left
out is not entered, so nothing below it can be taken back in, as with git.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from enigma.errors import UsageError
from enigma.model.entries import Kind

CACHEDIR_TAG = b"CACHEDIR.TAG"
CACHEDIR_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_TAG_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)

# A name may hold a line feed, which the expressions of patterns don't expect; this stands in its place. No name decodes
# to it: bytes that are no UTF-8 become U+DC80 to U+DCFF.
_LINE_FEED = "\udc0a"
_DIRECTORY_MARK = "ps_d"  # pathspec's group for the slash that ends what a pattern matched of a path

_ENCODING = sys.getfilesystemencoding()

Level = int
"""How many bytes of a path lead to the source that holds it: patterns are relative to the source."""


class _Rule(NamedTuple):
    """One pattern.

    by_name  it holds no slash, so it is about the last component of a path, wherever that is
    marks    its expression may end at a directory above the entry, and then does not count
    """

    find: Callable[[str], re.Match[str] | None]
    excludes: bool
    by_name: bool
    marks: bool


@dataclass(frozen=True, slots=True)
class Excludes:
    """The rules of one backup. Without any, the walk doesn't ask."""

    larger_than_bytes: int | None = None
    caches: bool = False
    _rules: tuple[_Rule, ...] = field(default=(), repr=False)  # the last pattern first

    @classmethod
    def from_options(
        cls, *, patterns: Sequence[str], pattern_file: str | None, larger_than: str | None, caches: bool
    ) -> Excludes:
        """Patterns of the command line come after those of the file. Raises UsageError for what makes no sense."""
        lines = [*_file_lines(pattern_file), *patterns] if pattern_file else list(patterns)
        return cls(parse_size(larger_than) if larger_than else None, caches, _rules_of(lines))

    @property
    def keeps_all(self) -> bool:
        return not self._rules and self.larger_than_bytes is None

    def top(self, path: bytes) -> Level:
        """The level of a source that stands at `path` of the snapshot."""
        return len(path) + 1 if path else 0

    def keeps(self, level: Level, path: bytes, info: os.stat_result, kind: Kind) -> bool:
        """Whether an entry stays; those above it must be known to stay."""
        if self.larger_than_bytes is not None and kind is Kind.FILE and info.st_size > self.larger_than_bytes:
            return False
        if not self._rules:
            return True
        path_text = path[level:].decode(_ENCODING, "surrogateescape")  # os.fsdecode takes three times as long
        if "\n" in path_text:
            path_text = path_text.replace("\n", _LINE_FEED)
        name = path_text.rpartition("/")[2]
        if kind is Kind.DIRECTORY:
            path_text += "/"
            name += "/"
        for find, excludes, by_name, marks in self._rules:
            text = name if by_name else path_text
            match = find(text)
            if match is not None and (not marks or _ends(match, text)):
                return not excludes
        return True

    def is_cache(self, directory: bytes) -> bool:
        """Whether a directory is marked as a cache, and caches are left out: then only the mark is kept."""
        if not self.caches:
            return False
        try:
            fd = os.open(os.path.join(directory, CACHEDIR_TAG), _TAG_FLAGS)
        except OSError:
            return False
        try:
            is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            return is_file and os.read(fd, len(CACHEDIR_SIGNATURE)) == CACHEDIR_SIGNATURE
        except OSError:
            return False
        finally:
            os.close(fd)


def parse_size(text: str) -> int:
    """500K, 20M, 1.5G in bytes (powers of 1024). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"A size is a number with K, M, G or T behind it, such as 20M, not {text}.")
    return int(Fraction(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _ends(match: re.Match[str], name: str) -> bool:
    """Whether a pattern matched the entry itself, not only a directory above it.

    Those above were judged before, each by all patterns; here they would let `!a/` take back in what `b` excludes.
    """
    if match.end(_DIRECTORY_MARK) in (-1, len(name)):
        return True
    return any(again.end(_DIRECTORY_MARK) == len(name) for again in match.re.finditer(name, match.end()))


def _rules_of(lines: list[str]) -> tuple[_Rule, ...]:
    rules = [_rule(line) for line in lines if line.strip() and not line.startswith("#")]
    return tuple(reversed(rules))


def _rule(line: str) -> _Rule:
    import pathspec

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a set that Python takes for something else than git does
            (pattern,) = pathspec.GitIgnoreSpec.from_lines([_spelled_out(line)]).patterns
    except (ValueError, re.error, Warning) as exc:
        raise UsageError(f"The exclude pattern {line!r} is no valid gitignore pattern.") from exc
    if pattern.include is None or not isinstance(expression := getattr(pattern, "regex", None), re.Pattern):
        raise UsageError(f"The exclude pattern {line!r} can't match anything.")
    by_name = "/" not in line.strip().removesuffix("/")
    return _Rule(expression.search, pattern.include, by_name, _DIRECTORY_MARK in expression.groupindex)


def _spelled_out(line: str) -> str:
    """`a/**` is what is in a; only written as `a/**/*` does pathspec not take it for a itself as well."""
    line = line.rstrip(" ") if not line.endswith("\\ ") else line
    slash = "/" if line.endswith("/") else ""
    if line.removesuffix("/").endswith("/**"):
        line = line.removesuffix("/") + "/*" + slash
    return line.replace("\n", _LINE_FEED)


def _file_lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read().removeprefix(b"\xef\xbb\xbf")
    except OSError as exc:
        raise UsageError(f"Can't read the exclude file {path}: {exc.strerror}.") from exc
    return [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]
