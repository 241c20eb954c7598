"""The manifest's schema: what each table and column means, and what always holds. Written to be read.

Everything here is a view: `enigma recover` rebuilds it from the providers, so no promise rests on it. Conventions:

    *_id        raw bytes: 32 for a chunk id (SHA-256 of the plaintext), 16 for every other id
    *_no        a local number, never stored at a provider and never used again once given out
    *_ns        nanoseconds since 1970 UTC
    *_bytes     a length in bytes
    pack_set    1 backup, 2 catalog, 3 gateway: sets share nothing

A change to the schema is a new entry at the end of MIGRATIONS; an entry that was released is never edited.
PRAGMA user_version is the number of migrations that this file has seen, PRAGMA application_id says whose file it is.
"""

from __future__ import annotations

APPLICATION_ID = 0x456E4D66  # "EnMf"

_VIEW = """
-- Small facts by name; the values are the caller's bytes. The key 'clean' is this room's own: it stands while no
-- process has the manifest open for writing. Absent at open: the last writer died, so the file is checked.
CREATE TABLE meta (
    key         TEXT PRIMARY KEY,
    value       BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Packs that an index object lists, or that a running session has stored and not yet indexed.
CREATE TABLE packs (
    pack_no         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: stale rows of `blobs` must find no new owner
    pack_id         BLOB NOT NULL UNIQUE CHECK (length(pack_id) = 16),
    pack_set        INTEGER NOT NULL,
    length_bytes    INTEGER NOT NULL,   -- the whole pack as one object, before it is cut into shards
    key_id          BLOB NOT NULL CHECK (length(key_id) = 16),
    session_id      BLOB NOT NULL CHECK (length(session_id) = 16),  -- who stored it
    index_id        BLOB,               -- one of the index objects that list it (see index_packs);
                                        -- NULL: stored and confirmed by session_id, but in no durable index yet
    provider_ids    BLOB NOT NULL,      -- 16 bytes each, in the order of the copies or shards
    data_shards     INTEGER NOT NULL,
    parity_shards   INTEGER NOT NULL,
    retain_until_ns INTEGER NOT NULL,   -- 0: not locked
    storage_class   TEXT NOT NULL,      -- '': the provider's default
    extra           BLOB,               -- fields of the index record that this version does not know, encoded; or NULL
    blob_count      INTEGER NOT NULL,   -- records in its table of contents
    stored_bytes    INTEGER NOT NULL,   -- sum over the blobs, as stored
    plain_bytes     INTEGER NOT NULL,   -- sum over the blobs, as chunks
    listed          INTEGER NOT NULL CHECK (listed IN (0, 1)),
                                        -- 1: in the newest listing of its set with this length, or just confirmed by
                                        -- its own session, whose listing may be older than the pack
    state           INTEGER NOT NULL DEFAULT 0
                                        -- follows from the facts below, the first that holds:
                                        -- 4 TOMBSTONED (in tombs), 3 SUSPECT (in suspects),
                                        -- 2 CONDEMNED (in condemnations), 1 MISSING (not listed), 0 USABLE
) STRICT;
CREATE INDEX packs_unusable ON packs (state) WHERE state <> 0;
CREATE INDEX packs_unindexed ON packs (session_id) WHERE index_id IS NULL;

-- Where a chunk is: line `slot` (from 0) of the table of contents of pack `pack_no`. Several packs may hold a chunk.
-- No second index: inserting is what a backup waits for. A row counts only while its pack_no is in `packs`; rows of
-- packs that are gone are found through their table of contents and swept by vacuum_blobs().
CREATE TABLE blobs (
    chunk_id    BLOB NOT NULL,
    pack_no     INTEGER NOT NULL,
    slot        INTEGER NOT NULL,
    PRIMARY KEY (chunk_id, pack_no)
) STRICT, WITHOUT ROWID;

-- A pack's table of contents as it is in the pack and in the index: 64 bytes per blob, FORMAT.md "Packs".
-- Offsets, lengths and nonces are kept here once, and `blobs` stays half as wide: measured, inserting is 1.5 times
-- as fast. Outlives its row in `packs` until vacuum_blobs() has used it.
CREATE TABLE contents (
    pack_no     INTEGER PRIMARY KEY,
    records     BLOB NOT NULL           -- blob_count * 64 bytes
) STRICT;

-- Index objects whose packs were taken in.
CREATE TABLE index_objects (
    index_id    BLOB PRIMARY KEY CHECK (length(index_id) = 16),
    pack_set    INTEGER NOT NULL,       -- 0: it lists no pack
    loaded_ns   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which index object lists which pack. Compaction makes several list the same pack for a while; a pack leaves the view
-- when the last of them does.
CREATE TABLE index_packs (
    index_id    BLOB NOT NULL,
    pack_no     INTEGER NOT NULL,
    PRIMARY KEY (index_id, pack_no)
) STRICT, WITHOUT ROWID;
CREATE INDEX index_packs_by_pack ON index_packs (pack_no);

-- The newest listing of pack objects at the providers, per set. Kept so that a pack counts as seen also when its index
-- is read after the listing, and never only because an index says so.
CREATE TABLE listing (
    pack_set        INTEGER NOT NULL,
    pack_id         BLOB NOT NULL,
    length_bytes    INTEGER NOT NULL,
    PRIMARY KEY (pack_set, pack_id)
) STRICT, WITHOUT ROWID;

-- Facts about packs by pack id, known or not: they hold when a pack's index is dropped, rewritten and read again.
-- Packs that a garbage collection means to sweep. A rescue cancels exactly the condemnation that it names.
CREATE TABLE condemnations (
    condemn_id  BLOB NOT NULL CHECK (length(condemn_id) = 16),
    pack_id     BLOB NOT NULL CHECK (length(pack_id) = 16),
    PRIMARY KEY (condemn_id, pack_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX condemnations_by_pack ON condemnations (pack_id);

-- Packs of which somebody read bytes that were not what was stored, until a check finds them whole again.
CREATE TABLE suspects (
    pack_id     BLOB PRIMARY KEY CHECK (length(pack_id) = 16),
    time_ns     INTEGER NOT NULL,
    reason      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Packs that were deleted on purpose; a provider that still shows one missed that.
CREATE TABLE tombs (
    pack_id     BLOB PRIMARY KEY CHECK (length(pack_id) = 16)
) STRICT, WITHOUT ROWID;

-- Tombstones ever seen, by the key of the tombstone: a provider that withholds one resurrects nothing here.
CREATE TABLE tombstones (
    key         TEXT PRIMARY KEY,
    record      BLOB NOT NULL                                     -- the encoded TombRecord
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    object_id   BLOB PRIMARY KEY CHECK (length(object_id) = 16),  -- the object at the providers
    snapshot_id BLOB NOT NULL CHECK (length(snapshot_id) = 16),   -- the logical id; re-sealing makes a second object
    created_ns  INTEGER NOT NULL,
    void        INTEGER NOT NULL CHECK (void IN (0, 1)),          -- 1: its session was fenced; never latest or parent
    record      BLOB NOT NULL                                     -- the encoded SnapshotRecord, the whole truth
) STRICT, WITHOUT ROWID;

-- What was done to the repository from this machine. The newest 100,000 lines are kept.
CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ns     INTEGER NOT NULL,
    action      TEXT NOT NULL,          -- a verb: backup, forget, gc, rotate, ...
    subject     TEXT NOT NULL,          -- the id or name it was done to
    detail      TEXT NOT NULL           -- one line for people; no secrets
) STRICT;
"""

MIGRATIONS: tuple[str, ...] = (_VIEW,)
SCHEMA_VERSION = len(MIGRATIONS)
