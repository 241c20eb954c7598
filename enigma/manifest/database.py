"""The SQLite file: opening and checking it, its settings, transactions, and its errors in Enigma's words.

WAL, so that `enigma list` reads beside a running backup. synchronous=NORMAL: a power cut may take back the last
commits but never damages the file, and what it takes back is a view: the next start lists the providers and has it
again. FULL would cost an fsync per commit for nothing.

One connection, used by one thread. Only this package imports apsw; nothing but EnigmaErrors comes out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from enigma.errors import EnigmaError, FormatUnsupported, Locked, ManifestCorrupt, RepositoryNotFound
from enigma.manifest.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION

Row = tuple[Any, ...]

CLEAN_KEY = "clean"
_CACHE_KIB = 32_768  # pages of `blobs` are touched at random: what does not fit costs a read per chunk
_CHECKPOINT_PAGES = 4_000  # the same page is written many times: a longer log folds more of them into one write
_LOG_LIMIT_BYTES = 64 << 20

_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.SQLError,  # a table or column that the schema's version promises is not there
    apsw.MismatchError,
    apsw.TooBigError,
    UnicodeDecodeError,
)
_FOREIGN = (apsw.Error, UnicodeDecodeError)


class Database:
    """An open manifest file. Every method raises Locked, ManifestCorrupt, or EnigmaError for a full or failing disk."""

    def __init__(self, path: Path, *, create: bool, readonly: bool, busy_timeout_s: float) -> None:
        """Raises RepositoryNotFound if there is no file, FormatUnsupported if a newer Enigma wrote it."""
        self.path = path
        self.readonly = readonly
        self._damaged = False
        self._in_transaction = False
        self._doomed = False
        _prepare_file(path, create=create, readonly=readonly)
        self._connection = self._connect(busy_timeout_s)
        try:
            self._set_up(create)
        except BaseException:
            self._connection.close(True)
            raise

    def close(self) -> None:
        """Write the mark that this was an orderly end, and let go of the file. Safe to call twice."""
        if not self.readonly and not self._damaged and not self._in_transaction:
            with suppress(EnigmaError):  # without the mark the next open checks the file: slower, and right
                self._mark_clean()
        self._connection.close(True)

    def rows(self, sql: str, bindings: Sequence[Any] = ()) -> list[Row]:
        """All rows of one statement."""
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except _FOREIGN as exc:
            raise self._mapped(exc) from exc

    def row(self, sql: str, bindings: Sequence[Any] = ()) -> Row | None:
        """The first row, or None."""
        found = self.rows(sql, bindings)
        return found[0] if found else None

    def value(self, sql: str, bindings: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self.rows(sql, bindings)
        return found[0][0] if found else None

    def change(self, sql: str, bindings: Sequence[Any] = ()) -> int:
        """Run one statement that writes; returns how many rows it changed."""
        self.rows(sql, bindings)
        return self._connection.changes()

    def change_many(self, sql: str, bindings: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each element of `bindings`, inside the caller's transaction."""
        try:
            self._connection.executemany(sql, bindings)
        except _FOREIGN as exc:
            raise self._mapped(exc) from exc

    def last_row_no(self) -> int:
        return self._connection.last_insert_rowid()

    def read_slices(
        self, table: str, column: str, row_no: int, offsets: Sequence[int], length_bytes: int
    ) -> list[bytes]:
        """Pieces of one stored value, each `length_bytes` long, without loading the value."""
        try:
            with closing(self._connection.blob_open("main", table, column, row_no, False)) as blob:
                return [_slice(blob, offset, length_bytes) for offset in offsets]
        except (*_FOREIGN, ValueError) as exc:
            raise self._mapped(exc) from exc

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Inside another transaction it joins that one.

        No savepoints: measured, they double the cost of an insert. So a part that fails dooms the whole, also where
        the caller swallows the part's exception; the outermost end then rolls back and raises.
        """
        if self._in_transaction:
            with self._dooming():
                yield
            return
        self.rows("BEGIN IMMEDIATE")
        self._in_transaction, self._doomed = True, False
        try:
            yield
            if self._doomed:
                raise EnigmaError("A change of the manifest was taken back because a part of it failed; try again.")
            self.rows("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._in_transaction = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Several questions about one state of the file, whatever another process commits meanwhile."""
        if self._connection.in_transaction:
            yield
            return
        self.rows("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    @contextmanager
    def _dooming(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._doomed = True
            raise

    def _roll_back(self) -> None:
        with suppress(apsw.Error):  # a full disk has ended it already; and the exception on its way says more
            self._connection.execute("ROLLBACK")

    def damage(self, what: str) -> ManifestCorrupt:
        """The error for contents that break the schema's promises; the next open checks the whole file."""
        self._damaged = True
        return ManifestCorrupt(
            f"The manifest {self.path} is damaged ({what}); run `enigma recover` to rebuild it from the providers."
        )

    def _connect(self, busy_timeout_s: float) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READONLY if self.readonly else apsw.SQLITE_OPEN_READWRITE
        try:
            connection = apsw.Connection(os.fspath(self.path), flags=flags)
            connection.set_busy_timeout(round(busy_timeout_s * 1000))
            return connection
        except _FOREIGN as exc:
            raise self._mapped(exc) from exc

    def _set_up(self, create: bool) -> None:
        version = self._check_owner()
        if version == 0 and not create:
            raise self.damage("it is empty")
        self._set_pragmas()
        if self.readonly:
            return  # a crashed writer's file is checked by the next writer; a reader may meet a live one
        if version < SCHEMA_VERSION:
            self._migrate()
        if version and self.value("SELECT 1 FROM meta WHERE key = ?", (CLEAN_KEY,)) is None:
            self._check_pages()
        self.change("DELETE FROM meta WHERE key = ?", (CLEAN_KEY,))

    def _check_owner(self) -> int:
        """The number of migrations the file has seen."""
        version = int(self.value("PRAGMA user_version"))
        application_id = self.value("PRAGMA application_id")
        is_blank = version == 0 and not self.value("SELECT count(*) FROM sqlite_schema")
        if application_id != APPLICATION_ID and not is_blank:
            raise self.damage("another program wrote this file")
        if version > SCHEMA_VERSION:
            raise FormatUnsupported(f"The manifest {self.path} was written by a newer Enigma; use that one.")
        return max(0, version)

    def _set_pragmas(self) -> None:
        if not self.readonly:
            self.rows("PRAGMA journal_mode = WAL")
            self.rows("PRAGMA synchronous = NORMAL")
            self.rows(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            self.rows(f"PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES}")
        self.rows(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.rows("PRAGMA temp_store = MEMORY")
        self.rows("PRAGMA trusted_schema = OFF")
        self.rows("PRAGMA cell_size_check = ON")

    def _migrate(self) -> None:
        with self.transaction():
            seen = int(self.value("PRAGMA user_version"))  # again, now that nobody else can move it
            for script in MIGRATIONS[seen:]:
                self.rows(script)
            self.rows(f"PRAGMA application_id = {APPLICATION_ID}")
            self.rows(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_pages(self) -> None:
        verdict = self.value("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise self.damage(f"found after an unclean end: {str(verdict).splitlines()[-1]}")

    def _mark_clean(self) -> None:
        self.change("INSERT OR REPLACE INTO meta (key, value) VALUES (?, x'01')", (CLEAN_KEY,))

    def _mapped(self, exc: BaseException) -> EnigmaError:
        """The EnigmaError that says what `exc` means for the user."""
        extended = getattr(exc, "extendedresult", 0)
        if isinstance(exc, (*_DAMAGE, ValueError)) or extended == apsw.SQLITE_IOERR_CORRUPTFS:
            return self.damage(str(exc))
        if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
            return Locked(f"Another process is writing the manifest {self.path}; wait until it is done.")
        if isinstance(exc, apsw.FullError) or extended == apsw.SQLITE_IOERR_SHMSIZE:
            return EnigmaError(f"There is no space left for the manifest {self.path}; free some and try again.")
        if isinstance(exc, apsw.ReadOnlyError):
            return EnigmaError(f"The manifest {self.path} can't be written; make its file and folder writable.")
        if isinstance(exc, (apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError)):
            return EnigmaError(f"The manifest {self.path} can't be opened; make its folder readable and writable.")
        return EnigmaError(f"The manifest {self.path} can't be used ({exc}); check the disk and try again.")


def _slice(blob: apsw.Blob, offset: int, length_bytes: int) -> bytes:
    blob.seek(offset)
    piece = blob.read(length_bytes)
    if len(piece) != length_bytes:
        raise ValueError("a stored value is too short")
    return piece


def _prepare_file(path: Path, *, create: bool, readonly: bool) -> None:
    """See to it that the file is there and nobody else's to read: SQLite gives its side files the same mode."""
    try:
        if create and not path.exists():
            # Never opened again by hand: closing any descriptor of the file would drop SQLite's locks on it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise EnigmaError(f"The manifest {path} is no regular file; move it away and run `enigma recover`.")
        if mode & 0o077 and not readonly:
            os.chmod(path, mode & 0o700)
    except FileNotFoundError as exc:
        if create:
            raise EnigmaError(f"The manifest {path} can't be made; make its folder first.") from exc
        raise RepositoryNotFound(
            f"There is no manifest at {path}; run `enigma init` for a new repository, `enigma recover` for an old one."
        ) from exc
    except OSError as exc:
        raise EnigmaError(f"The manifest {path} can't be opened ({exc.strerror}); check its folder.") from exc
