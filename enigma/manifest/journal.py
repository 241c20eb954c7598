"""Small things: named values, the audit log, and the sums that `enigma status` prints."""

from __future__ import annotations

from enigma.manifest.part import Part
from enigma.manifest.rows import AuditLine, Counts, SetTotals

AUDIT_LINES_KEPT = 100_000


class JournalPart(Part):
    """What is neither pack nor snapshot."""

    def meta_get(self, key: str) -> bytes | None:
        value = self._db.value("SELECT value FROM meta WHERE key = ?", (key,))
        return None if value is None else bytes(value)

    def meta_put(self, key: str, value: bytes) -> None:
        """Remember a small value. The key 'clean' is the manifest's own."""
        self._db.change("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def audit(self, action: str, subject: str, detail: str = "") -> None:
        """Add a line, dated now. Never a secret."""
        with self._db.transaction():
            self._db.change(
                "INSERT INTO audit (time_ns, action, subject, detail) VALUES (?, ?, ?, ?)",
                (self._clock_ns(), action, subject, detail),
            )
            self._db.change("DELETE FROM audit WHERE id <= ?", (self._db.last_row_no() - AUDIT_LINES_KEPT,))

    def audit_log(self, limit: int) -> tuple[AuditLine, ...]:
        """The newest lines, newest first."""
        rows = self._db.rows("SELECT time_ns, action, subject, detail FROM audit ORDER BY id DESC LIMIT ?", (limit,))
        return tuple(AuditLine(*row) for row in rows)

    def totals(self) -> tuple[SetTotals, ...]:
        """Sums per set of packs, for the sets that have any."""
        rows = self._db.rows(
            "SELECT pack_set, count(*), sum(state <> 0), sum(blob_count), sum(length_bytes), sum(stored_bytes),"
            " sum(plain_bytes) FROM packs GROUP BY pack_set ORDER BY pack_set"
        )
        return tuple(SetTotals(*row) for row in rows)

    def counts(self) -> Counts:
        """Rows of the view."""
        (row,) = self._db.rows(
            "SELECT (SELECT count(*) FROM packs), (SELECT coalesce(sum(blob_count), 0) FROM packs),"
            " (SELECT count(*) FROM packs WHERE state <> 0), (SELECT count(*) FROM index_objects),"
            " (SELECT count(*) FROM snapshots), (SELECT count(*) FROM suspects)"
        )
        return Counts(*row)
