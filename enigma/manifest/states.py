"""Which packs may be trusted: listings, condemnations, suspects, tombs, and the state that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apsw

from enigma.manifest.part import Part
from enigma.manifest.rows import ListingChange
from enigma.model.ids import ObjectId, PackId
from workers.packs import RECORD_BYTES

# The one rule for a pack's state: each fact is kept by itself, so that taking one back brings the others to light.
RESTATE = (
    "UPDATE packs SET state = CASE"
    " WHEN EXISTS (SELECT 1 FROM tombs AS t WHERE t.pack_id = packs.pack_id) THEN 4"
    " WHEN EXISTS (SELECT 1 FROM suspects AS s WHERE s.pack_id = packs.pack_id) THEN 3"
    " WHEN EXISTS (SELECT 1 FROM condemnations AS c WHERE c.pack_id = packs.pack_id) THEN 2"
    " WHEN NOT listed THEN 1 ELSE 0 END"
)
_IS_SEEN = (
    "EXISTS (SELECT 1 FROM listing AS l WHERE l.pack_set = packs.pack_set AND l.pack_id = packs.pack_id"
    " AND l.length_bytes = packs.length_bytes)"
)


class StatePart(Part):
    """Facts about packs are by pack id and hold whether or not the pack is in the view yet."""

    def mark_listing(self, pack_set: int, listing: Iterable[tuple[bytes, int]]) -> ListingChange:
        """The newest listing of a set's packs: (pack id, length of the whole pack), from all providers together.

        An indexed pack that is not in it, or there with another length, is MISSING until a later listing shows it.
        A pack that its session has confirmed and not yet indexed may be younger than the listing and is left alone.
        """
        seen = dict(listing)
        with self._db.transaction():
            self._keep_listing(pack_set, seen)
            missing_before = self._missing(pack_set)
            self._db.change(
                f"UPDATE packs SET listed = {_IS_SEEN}"  # noqa: S608  a constant of this module
                f" WHERE pack_set = ? AND index_id IS NOT NULL AND listed <> {_IS_SEEN}",
                (pack_set,),
            )
            self._db.change(f"{RESTATE} WHERE pack_set = ? AND state < 2 AND listed <> (state = 0)", (pack_set,))
            missing = self._missing(pack_set)
        return ListingChange(len(seen), len(missing), len(missing - missing_before), len(missing_before - missing))

    def set_condemned(self, condemn_id: bytes, pack_ids: Iterable[bytes]) -> None:
        """A garbage collection means to sweep these packs: nothing in them is known any more."""
        facts = [(pack_id, condemn_id) for pack_id in pack_ids]
        self._change_facts("INSERT OR IGNORE INTO condemnations (pack_id, condemn_id) VALUES (?1, ?2)", facts)

    def clear_condemned(self, condemn_id: bytes, pack_ids: Iterable[bytes] | None = None) -> None:
        """Take this condemnation back for some packs (a rescue) or altogether (None). Others stay in force."""
        if pack_ids is None:
            pack_ids = [pack_id for of, pack_id in self._condemned() if of == condemn_id]
        facts = [(pack_id, condemn_id) for pack_id in pack_ids]
        self._change_facts("DELETE FROM condemnations WHERE pack_id = ?1 AND condemn_id = ?2", facts)

    def condemnations(self) -> dict[ObjectId, frozenset[PackId]]:
        """Condemnation -> the packs that it still condemns."""
        by_id: dict[ObjectId, set[PackId]] = {}
        for condemn_id, pack_id in self._condemned():
            by_id.setdefault(condemn_id, set()).add(pack_id)
        return {condemn_id: frozenset(pack_ids) for condemn_id, pack_ids in by_id.items()}

    def mark_suspect(self, pack_id: bytes, reason: str = "") -> None:
        """Bytes read from this pack were not what was stored. `reason` is one line for people."""
        fact = (pack_id, self._clock_ns(), reason)
        self._change_facts("INSERT OR IGNORE INTO suspects (pack_id, time_ns, reason) VALUES (?1, ?2, ?3)", [fact])

    def clear_suspect(self, pack_id: bytes) -> None:
        """The pack was checked or mended and is whole."""
        self._change_facts("DELETE FROM suspects WHERE pack_id = ?1", [(pack_id,)])

    def suspects(self) -> dict[PackId, str]:
        """Suspect pack -> reason."""
        rows = self._db.rows("SELECT pack_id, reason FROM suspects ORDER BY time_ns")
        return dict(self._decoded(lambda row: (PackId(row[0]), str(row[1])), rows))

    def set_tombstoned(self, pack_ids: Iterable[bytes]) -> None:
        """These packs were deleted on purpose, whatever a provider still lists."""
        self._change_facts("INSERT OR IGNORE INTO tombs (pack_id) VALUES (?1)", [(one,) for one in pack_ids])

    def clear_tombstoned(self, pack_ids: Iterable[bytes]) -> None:
        """The tombstones of these packs have done their work and are gone."""
        self._change_facts("DELETE FROM tombs WHERE pack_id = ?1", [(one,) for one in pack_ids])

    def bad_chunks(self) -> set[bytes]:
        """Chunks that packs hold, but no USABLE one: what refers to them must be read and stored again.

        Costs nothing while every pack is USABLE, else in proportion to the blobs of those that are not.
        """
        bad: set[bytes] = set()
        with self._db.reading():
            for (pack_no,) in self._db.rows("SELECT pack_no FROM packs WHERE state <> 0"):
                bad |= self._bad_chunks_of(pack_no)
        return bad

    def _bad_chunks_of(self, pack_no: int) -> set[bytes]:
        records = self._records(pack_no)
        chunk_ids = {records[at : at + 32] for at in range(0, len(records), RECORD_BYTES)}
        if not chunk_ids:
            return set()
        standing = self._db.rows(
            "SELECT b.chunk_id FROM carray(?) AS asked CROSS JOIN blobs AS b ON b.chunk_id = asked.value"
            " CROSS JOIN packs AS p ON p.pack_no = b.pack_no WHERE p.state = 0",
            (apsw.carray(tuple(chunk_ids)),),
        )
        return chunk_ids.difference(chunk_id for (chunk_id,) in standing)

    def _keep_listing(self, pack_set: int, seen: dict[bytes, int]) -> None:
        """Write only what differs from the listing before: most of it is the same every time."""
        before: dict[bytes, int] = dict(
            self._db.rows("SELECT pack_id, length_bytes FROM listing WHERE pack_set = ?", (pack_set,))
        )
        gone = [(pack_set, pack_id) for pack_id in before.keys() - seen.keys()]
        new = [(pack_set, pack_id, length) for pack_id, length in seen.items() if before.get(pack_id) != length]
        self._db.change_many("DELETE FROM listing WHERE pack_set = ? AND pack_id = ?", gone)
        self._db.change_many("INSERT OR REPLACE INTO listing (pack_set, pack_id, length_bytes) VALUES (?, ?, ?)", new)

    def _missing(self, pack_set: int) -> set[int]:
        # "<> 0" as well, or SQLite does not see that the partial index on unusable packs will do
        rows = self._db.rows("SELECT pack_no FROM packs WHERE state = 1 AND state <> 0 AND pack_set = ?", (pack_set,))
        return {pack_no for (pack_no,) in rows}

    def _condemned(self) -> tuple[tuple[ObjectId, PackId], ...]:
        rows = self._db.rows("SELECT condemn_id, pack_id FROM condemnations")
        return self._decoded(lambda row: (ObjectId(row[0]), PackId(row[1])), rows)

    def _change_facts(self, sql: str, facts: Sequence[tuple[bytes | int | str, ...]]) -> None:
        """Run `sql` for each fact, whose first field (?1) is a pack id, and let the states follow."""
        with self._db.transaction():
            self._db.change_many(sql, facts)
            self._db.change_many(f"{RESTATE} WHERE pack_id = ?", [fact[:1] for fact in facts])
