"""The list of snapshots, as the newest listing of the providers showed it."""

from __future__ import annotations

from enigma.errors import ObjectCorrupt, SnapshotNotFound
from enigma.manifest.database import Row
from enigma.manifest.part import MAX_INTEGER, Part
from enigma.manifest.rows import Snapshot
from enigma.model.ids import OBJECT_ID_BYTES, ObjectId
from enigma.model.records import SnapshotRecord, TombRecord, decode, encode

_SNAPSHOT = "SELECT object_id, void, record FROM snapshots"
_HEX_DIGITS = frozenset("0123456789abcdef")


class SnapshotPart(Part):
    """Keyed by object id: a snapshot that was sealed anew has two objects for a while, and one logical id."""

    def put_snapshot(self, object_id: bytes, record: SnapshotRecord, *, void: bool = False) -> None:
        """Add a snapshot, or replace what is known of this object. Raises ObjectCorrupt if its fields make no sense."""
        if len(record.snapshot_id) != OBJECT_ID_BYTES or abs(record.created_ns) > MAX_INTEGER:
            raise ObjectCorrupt(f"The record in snapshots/{object_id.hex()} makes no sense; run `enigma verify`.")
        self._db.change(
            "INSERT OR REPLACE INTO snapshots (object_id, snapshot_id, created_ns, void, record)"
            " VALUES (?, ?, ?, ?, ?)",
            (object_id, record.snapshot_id, record.created_ns, int(void), encode(record)),
        )

    def drop_snapshot(self, object_id: bytes) -> None:
        """The object is gone or has a tombstone."""
        self._db.change("DELETE FROM snapshots WHERE object_id = ?", (object_id,))

    def put_tombstone(self, key: str, record: TombRecord) -> None:
        """Remember a tombstone by its own key."""
        self._db.change("INSERT OR REPLACE INTO tombstones (key, record) VALUES (?, ?)", (key, encode(record)))

    def tombstones(self) -> dict[str, TombRecord]:
        """All that this machine has ever seen, by their own keys."""
        return {
            key: decode(TombRecord, bytes(raw), key) for key, raw in self._db.rows("SELECT key, record FROM tombstones")
        }

    def snapshots(self) -> tuple[Snapshot, ...]:
        """All of them, void ones too, oldest first."""
        return self._snapshots(f"{_SNAPSHOT} ORDER BY created_ns, object_id", ())

    def snapshot_by_prefix(self, prefix: str) -> Snapshot:
        """The one snapshot whose logical id begins with these hex digits. Raises SnapshotNotFound for none or several.

        Of several objects with the same logical id, one that is not void, if there is one.
        """
        digits = prefix.lower()
        if not digits or not _HEX_DIGITS.issuperset(digits):
            raise SnapshotNotFound(f"{prefix!r} is no snapshot id; `enigma list` shows them.")
        found = self._snapshots(
            f"{_SNAPSHOT} WHERE substr(lower(hex(snapshot_id)), 1, ?) = ? ORDER BY void, object_id",
            (len(digits), digits),
        )
        if not found:
            raise SnapshotNotFound(f"No snapshot id begins with {digits}; `enigma list` shows them.")
        if len({snapshot.record.snapshot_id for snapshot in found}) > 1:
            raise SnapshotNotFound(f"Several snapshot ids begin with {digits}; give more digits.")
        return found[0]

    def _snapshots(self, sql: str, bindings: tuple[int | str, ...]) -> tuple[Snapshot, ...]:
        try:
            return self._decoded(_snapshot, self._db.rows(sql, bindings))
        except ObjectCorrupt as exc:
            raise self._db.damage("a snapshot record can't be read") from exc


def _snapshot(row: Row) -> Snapshot:
    object_id, void, record = row
    key = ObjectId(object_id)
    return Snapshot(key, bool(void), decode(SnapshotRecord, record, f"snapshots/{key}"))
