"""Temporary errors are tried again, with growing pauses of random length, until a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from enigma.clock import boot_ns
from enigma.errors import ProviderError
from enigma.providers.base import ObjectInfo, Provider

T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 20.0
DEADLINE_S = 300.0


class RetryProvider(Provider):
    """Wraps a provider; only errors that say `retryable` are tried again. Every verb here may be repeated safely.

    A put with if_absent that failed in doubt may find its own object when tried again; whoever relies on the answer
    compares the bytes.
    """

    def __init__(
        self,
        inner: Provider,
        *,
        deadline_s: float = DEADLINE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock_ns: Callable[[], int] = boot_ns,
        share: Callable[[], float] = random.random,
    ) -> None:
        """`share` draws from [0, 1): how much of the longest allowed pause is taken (full jitter)."""
        self.name = inner.name
        self.traits = inner.traits
        self._inner = inner
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._clock_ns = clock_ns
        self._share = share

    def put(self, key: str, data: memoryview, *, if_absent: bool = False) -> None:
        self._retried(lambda: self._inner.put(key, data, if_absent=if_absent))

    def get(self, key: str, into: memoryview, *, offset: int = 0) -> int:
        return self._retried(lambda: self._inner.get(key, into, offset=offset))

    def head(self, key: str) -> ObjectInfo:
        return self._retried(lambda: self._inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """A listing that breaks off is begun anew, so it is held until it is whole."""
        yield from self._retried(lambda: tuple(self._inner.list(prefix)))

    def delete(self, key: str) -> None:
        self._retried(lambda: self._inner.delete(key))

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _retried(self, call: Callable[[], T]) -> T:
        give_up_ns = self._clock_ns() + int(self._deadline_s * 1e9)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except ProviderError as exc:
                if not exc.retryable or self._clock_ns() >= give_up_ns:
                    raise
            self._sleep(pause_s * self._share())
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
