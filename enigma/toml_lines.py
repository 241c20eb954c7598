"""Where in a TOML text each key stands, which tomllib does not tell, and how text is quoted in TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]
"""("providers", 1, "bucket"): keys, and for arrays of tables the index of the element."""

_TOKEN = re.compile(
    r'''
      (?P<string> """(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<space> [ \t\r]+ )
    | (?P<bare> [A-Za-z0-9_-]+ )
    | (?P<mark> . )
    ''',
    re.VERBOSE | re.DOTALL,
)
_SPECIAL = re.compile(r'[\x00-\x1f"\\\x7f]')


def find_lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of every table header and every key outside inline tables.

    `text` must be valid TOML. A key inside an inline table has no entry of its own: look for its longest known prefix.
    """
    scanner = _Scanner()
    statement: list[tuple[str, str]] = []
    line = start = 1
    depth = 0
    for kind, token in _tokens(text):
        if kind == "newline" and depth == 0:
            scanner.statement(statement, start)
            statement = []
        elif kind not in ("newline", "space", "comment"):
            start = start if statement else line
            statement.append((kind, token))
            depth += _nesting(kind, token)
        line += token.count("\n")
    scanner.statement(statement, start)
    return scanner.lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the nearest table or key around it; 1 for the whole file."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def quote(text: str) -> str:
    """`text` as a TOML basic string. Undecodable bytes (surrogates) have no form in TOML and become "?"."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return '"' + _SPECIAL.sub(lambda match: f"\\u{ord(match.group()):04x}", clean) + '"'


@dataclass(slots=True)
class _Scanner:
    """The table that statements belong to, and how many elements each array of tables has so far."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    table: KeyPath = ()
    counts: dict[KeyPath, int] = field(default_factory=dict)

    def statement(self, tokens: list[tuple[str, str]], line: int) -> None:
        """Take in one header or one key with its value."""
        marks = [token if kind == "mark" else "" for kind, token in tokens[:2]]
        if marks == ["[", "["]:
            self._header(_key(tokens[2:]), line, is_array=True)
        elif marks[:1] == ["["]:
            self._header(_key(tokens[1:]), line, is_array=False)
        else:
            self._note((*self.table, *_key(tokens)), len(self.table), line)

    def _header(self, key: list[str], line: int, *, is_array: bool) -> None:
        path: KeyPath = ()
        for name in key[:-1]:
            path = self._last_element((*path, name))
        path = (*path, *key[-1:])
        self._note(path, 0, line)
        if is_array:
            self.counts[path] = self.counts.get(path, 0) + 1
        self.table = self._last_element(path)
        self.lines[self.table] = line

    def _last_element(self, path: KeyPath) -> KeyPath:
        return (*path, self.counts[path] - 1) if path in self.counts else path

    def _note(self, path: KeyPath, known: int, line: int) -> None:
        for length in range(known + 1, len(path) + 1):
            self.lines.setdefault(path[:length], line)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(text):
        yield match.lastgroup or "", match.group()


def _nesting(kind: str, token: str) -> int:
    if kind != "mark":
        return 0
    return {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)


def _key(tokens: list[tuple[str, str]]) -> list[str]:
    """The dotted key at the start of `tokens`, up to "=" or "]"."""
    names = []
    for kind, word in tokens:
        if kind == "mark" and word != ".":
            break
        if kind == "bare":
            names.append(word)
        elif kind == "string":
            names.append(str(tomllib.loads(f"key = {word}")["key"]))
    return names
