"""The reference provider, objects in this process's memory, and the rules that every object key obeys."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from enigma.clock import wall_ns
from enigma.errors import ObjectExists, ObjectMissing, ProviderError
from enigma.providers.base import ObjectInfo, Provider, Traits

RESERVED_FOLDER = "tmp"
MAX_KEY_BYTES = 900
MAX_COMPONENT_BYTES = 200

_WORD = r"[A-Za-z0-9_-]+"
_COMPONENT = rf"{_WORD}(?:\.{_WORD})*"
_KEY = re.compile(rf"(?:{_COMPONENT}/)*{_COMPONENT}")
_PREFIX = re.compile(rf"(?:{_COMPONENT}/)*(?:{_COMPONENT}\.?)?")


def is_key(text: str) -> bool:
    """Whether `text` can name an object.

    Components of letters, digits, `_`, `-` and single inner dots, joined by `/`: legal at every provider, never
    absolute, never `..`, and unlike the files that others leave in a folder (`.nfs0001`, `lost+found`). The folder
    `tmp` is where providers keep unfinished puts.
    """
    return _fits(_KEY, text) and text.partition("/")[0] != RESERVED_FOLDER


def check_key(key: str) -> None:
    """Raises ProviderError unless is_key(key)."""
    if not is_key(key):
        raise ProviderError(f"{key[:100]!r} is no object key: use letters, digits, '_', '-', inner '.', '/', not tmp/.")


def check_prefix(prefix: str) -> None:
    """Raises ProviderError if no key can start with `prefix`."""
    if not _fits(_PREFIX, prefix) or prefix.startswith(f"{RESERVED_FOLDER}/"):
        raise ProviderError(f"{prefix[:100]!r} is no prefix of an object key: start it like a key.")


def check_offset(offset: int) -> None:
    """Raises ProviderError for a negative offset."""
    if offset < 0:
        raise ProviderError(f"Offset {offset} lies before the object's first byte: ask for 0 or more.")


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    if len(text) > MAX_KEY_BYTES or pattern.fullmatch(text) is None:
        return False
    return all(len(component) <= MAX_COMPONENT_BYTES for component in text.split("/"))


@dataclass(frozen=True, slots=True)
class _Stored:
    content: bytes
    modified_s: float


class MemoryProvider(Provider):
    """Keeps objects until the process ends: for dry runs and as the yardstick of the contract suite."""

    def __init__(self, name: str, *, clock_ns: Callable[[], int] = wall_ns) -> None:
        self.name = name
        self.traits = Traits()
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._objects: dict[str, _Stored] = {}

    def put(self, key: str, data: memoryview, *, if_absent: bool = False) -> None:
        check_key(key)
        stored = _Stored(bytes(data), self._clock_ns() / 1e9)
        with self._lock:
            if if_absent and key in self._objects:
                raise ObjectExists(f"Object {key} is already at {self.name}.")
            self._objects[key] = stored

    def get(self, key: str, into: memoryview, *, offset: int = 0) -> int:
        check_offset(offset)
        content = self._stored(key).content
        with into.cast("B") as target, memoryview(content)[offset : offset + len(target)] as piece:
            target[: len(piece)] = piece
            return len(piece)

    def head(self, key: str) -> ObjectInfo:
        stored = self._stored(key)
        return ObjectInfo(key, len(stored.content), stored.modified_s)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            found = {key: stored for key, stored in self._objects.items() if key.startswith(prefix)}
        return (ObjectInfo(key, len(stored.content), stored.modified_s) for key, stored in found.items())

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def close(self) -> None:
        """Nothing to release; the objects stay, so that a test can look at them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _stored(self, key: str) -> _Stored:
        check_key(key)
        with self._lock:
            stored = self._objects.get(key)
        if stored is None:
            raise ObjectMissing(f"Object {key} is not at {self.name}.")
        return stored
