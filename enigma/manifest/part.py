"""What the parts of the manifest share: the open file, the clock, and how to keep stored bytes from passing as ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from enigma.errors import ChunkMissing
from enigma.manifest.database import Database, Row
from workers.packs import RECORD_BYTES

T = TypeVar("T")
MAX_INTEGER = (1 << 63) - 1


class Part:
    """Base of the parts that Manifest is put together from."""

    _db: Database
    _clock_ns: Callable[[], int]

    def _decoded(self, make: Callable[[Row], T], rows: Iterable[Row]) -> tuple[T, ...]:
        """`make` of each row; a row that breaks the schema's promises is damage."""
        try:
            return tuple(make(row) for row in rows)
        except (ValueError, TypeError) as exc:
            raise self._db.damage(str(exc)) from exc

    def pack_records(self, pack_no: int) -> bytes:
        """The table of contents of a pack in the view: 64 bytes per blob (FORMAT.md, "Packs").

        Raises ChunkMissing if the pack is not in the view (any more); never an empty answer for that.
        """
        with self._db.reading():
            if self._db.value("SELECT 1 FROM packs WHERE pack_no = ?", (pack_no,)) is None:
                raise ChunkMissing(f"Pack number {pack_no} has left the manifest meanwhile; run the command again.")
            return self._records(pack_no)

    def _records(self, pack_no: int) -> bytes:
        """The same, of a pack that may have left the view and is not swept yet."""
        records = self._db.value("SELECT records FROM contents WHERE pack_no = ?", (pack_no,))
        if not isinstance(records, bytes) or len(records) % RECORD_BYTES:
            raise self._db.damage(f"pack number {pack_no} has no table of contents")
        return records
