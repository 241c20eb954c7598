"""The Provider interface: what a place that keeps objects must promise.

Keys are ASCII, `/`-separated, made by Enigma only (see FORMAT.md, "Names"); they never hold user data. Objects are
written once and never modified. A wrapper (retry, meter, fault, ...) has the same verbs, and every provider and every
wrapper passes the one contract suite in tests/contract.

    bytes in    `put` reads `data` during the call and keeps no reference to it afterwards: the caller reuses the memory
    bytes out   `get` writes into the caller's memory and allocates nothing large
    errors      only enigma.errors.ProviderError subclasses leave a provider; `retryable` says whether to try again
    threads     all verbs may be called from several threads at once
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from enigma.errors import ObjectCorrupt


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of one object."""

    key: str
    length_bytes: int
    modified_s: float  # by the provider's own clock, seconds since 1970


@dataclass(frozen=True, slots=True)
class Traits:
    """What a provider can do, as data.

    list_after_put   a finished put is in every listing that starts afterwards
    conditional_put  if_absent is atomic: of several writers exactly one wins
    """

    list_after_put: bool = True
    conditional_put: bool = True
    max_parallel: int = 8


class Provider(Protocol):
    """Seven verbs. See the module docstring for the promises that hold for all of them."""

    name: str
    traits: Traits

    def put(self, key: str, data: memoryview, *, if_absent: bool = False) -> None:
        """Store `data` under `key`; when this returns it survives a power cut of the provider's own machine.

        Atomic: a reader sees nothing or all of it, also if the writer dies in between. Putting the same bytes twice
        is harmless. Raises ObjectExists with if_absent, ProviderFull, AccessDenied, ProviderUnavailable.
        """

    def get(self, key: str, into: memoryview, *, offset: int = 0) -> int:
        """Fill `into` with the object's bytes from `offset`; return how many there were (fewer only at the end).

        Raises ObjectMissing, ProviderUnavailable, AccessDenied.
        """

    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in no promised order. Unfinished puts never show."""

    def delete(self, key: str) -> None:
        """Remove the object; succeeds when it is already gone."""

    def close(self) -> None:
        """Release connections; the provider is not used afterwards. Closing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def fetch(provider: Provider, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
    """The whole object as bytes. Raises ObjectCorrupt if it is longer than any object of its kind may be."""
    length_bytes = provider.head(key).length_bytes
    if length_bytes > limit_bytes:
        raise ObjectCorrupt(
            f"Object {key} at {provider.name} claims {length_bytes} bytes; nothing so large belongs here."
        )
    buffer = bytearray(length_bytes)
    count = provider.get(key, memoryview(buffer))
    return bytes(memoryview(buffer)[:count])
