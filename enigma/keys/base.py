"""What the rooms above need of keys, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from enigma.model.ids import KeyId


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One data key, without the key."""

    key_id: KeyId
    created_ns: int
    is_current: bool


class KeyProvider(Protocol):
    """Data keys by id. Keys are only ever added; rotation makes the next one current."""

    @property
    def current(self) -> KeyId:
        """The key for everything sealed from now on."""

    def data_key(self, key_id: bytes) -> bytes:
        """32 bytes. Raises KeyMissing."""

    def key_ids(self) -> tuple[KeyId, ...]: ...

    def info(self) -> tuple[KeyInfo, ...]: ...

    def rotate(self) -> KeyId:
        """Make a new data key and make it current; it is not at the providers yet."""

    def objects(self) -> Mapping[str, bytes]:
        """What must be at every provider, by object key, so that nothing local is needed to recover."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
