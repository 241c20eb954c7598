"""What a provider was asked for: calls, bytes, seconds and errors by verb."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from enigma.clock import boot_ns
from enigma.providers.base import ObjectInfo, Provider

VERBS = ("put", "get", "head", "list", "delete")


@dataclass(frozen=True, slots=True)
class VerbMeter:
    """Sums over all calls of one verb."""

    calls: int = 0
    errors: int = 0
    length_bytes: int = 0
    seconds: float = 0.0


class MeterProvider(Provider):
    """Wraps a provider and counts."""

    def __init__(self, inner: Provider, *, clock_ns: Callable[[], int] = boot_ns) -> None:
        self.name = inner.name
        self.traits = inner.traits
        self._inner = inner
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._meters = {verb: VerbMeter() for verb in VERBS}

    def reading(self) -> dict[str, VerbMeter]:
        """The sums so far, by verb."""
        with self._lock:
            return dict(self._meters)

    def put(self, key: str, data: memoryview, *, if_absent: bool = False) -> None:
        with self._metered("put", length_bytes=data.nbytes):
            self._inner.put(key, data, if_absent=if_absent)

    def get(self, key: str, into: memoryview, *, offset: int = 0) -> int:
        with self._metered("get"):
            count = self._inner.get(key, into, offset=offset)
        self._add("get", VerbMeter(length_bytes=count))
        return count

    def head(self, key: str) -> ObjectInfo:
        with self._metered("head"):
            return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """One call; its seconds are those that the provider took, not what is done between two objects."""
        with self._metered("list"):
            listing = iter(self._inner.list(prefix))
        while True:
            with self._metered("list", calls=0):
                info = next(listing, None)
            if info is None:
                return
            yield info

    def delete(self, key: str) -> None:
        with self._metered("delete"):
            self._inner.delete(key)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def _metered(self, verb: str, *, calls: int = 1, length_bytes: int = 0) -> Iterator[None]:
        began_ns, failed = self._clock_ns(), True
        try:
            yield
            failed = False
        finally:
            seconds = (self._clock_ns() - began_ns) / 1e9
            self._add(verb, VerbMeter(calls, int(failed), 0 if failed else length_bytes, seconds))

    def _add(self, verb: str, more: VerbMeter) -> None:
        with self._lock:
            held = self._meters[verb]
            self._meters[verb] = replace(
                held,
                calls=held.calls + more.calls,
                errors=held.errors + more.errors,
                length_bytes=held.length_bytes + more.length_bytes,
                seconds=held.seconds + more.seconds,
            )
