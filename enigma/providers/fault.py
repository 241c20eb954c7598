"""A provider that misbehaves on command, exactly as told: for tests, and for trying out what Enigma does then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Self

from enigma.errors import ProviderUnavailable
from enigma.providers.base import ObjectInfo, Provider

Fault = Callable[[str, str], None]
"""Called with (verb, key) before each call; raises to make it fail."""


class FaultProvider(Provider):
    """Wraps a provider.

    before / after   called around each call with its verb and key; what they raise, the call raises
    down             every call is ProviderUnavailable
    mangle           what a get brought is passed through it: (key, offset, bytes) -> bytes of the same length or less
    lag              keys that listings don't show yet; `catch_up` empties it; with `lagging`, each put adds its key
    """

    def __init__(self, inner: Provider) -> None:
        self.name = inner.name
        self.traits = inner.traits
        self.before: Fault | None = None
        self.after: Fault | None = None
        self.mangle: Callable[[str, int, bytes], bytes] | None = None
        self.down = False
        self.lagging = False
        self.calls: list[tuple[str, str]] = []
        self._inner = inner
        self._hidden: set[str] = set()
        self._lock = threading.Lock()

    def fail_at(self, call_number: int, error: Exception, *, verb: str = "") -> None:
        """Make the n-th call from now (1 is the next; of `verb`, if given) raise, once."""
        left = [call_number]

        def fault(called: str, _key: str) -> None:
            if verb in ("", called):
                left[0] -= 1
                if left[0] == 0:
                    raise error

        self.before = fault

    def catch_up(self) -> None:
        """Listings show everything again."""
        with self._lock:
            self._hidden.clear()

    def put(self, key: str, data: memoryview, *, if_absent: bool = False) -> None:
        self._enter("put", key)
        self._inner.put(key, data, if_absent=if_absent)
        if self.lagging:
            with self._lock:
                self._hidden.add(key)
        self._leave("put", key)

    def get(self, key: str, into: memoryview, *, offset: int = 0) -> int:
        self._enter("get", key)
        count = self._inner.get(key, into, offset=offset)
        if self.mangle is not None:
            changed = self.mangle(key, offset, bytes(into[:count]))
            into[: len(changed)] = changed
            count = len(changed)
        self._leave("get", key)
        return count

    def head(self, key: str) -> ObjectInfo:
        self._enter("head", key)
        info = self._inner.head(key)
        self._leave("head", key)
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._enter("list", prefix)
        for info in self._inner.list(prefix):
            with self._lock:
                shown = info.key not in self._hidden
            if shown:
                yield info
        self._leave("list", prefix)

    def delete(self, key: str) -> None:
        self._enter("delete", key)
        self._inner.delete(key)
        self._leave("delete", key)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _enter(self, verb: str, key: str) -> None:
        with self._lock:
            self.calls.append((verb, key))
        if self.down:
            raise ProviderUnavailable(f"Provider {self.name} does not answer.")
        if self.before is not None:
            self.before(verb, key)

    def _leave(self, verb: str, key: str) -> None:
        if self.after is not None:
            self.after(verb, key)
