"""How commands get at a repository and name a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from enigma.errors import EXIT_DONE, EXIT_FAILED, RepositoryNotFound

if TYPE_CHECKING:
    from enigma.cli.context import Context
    from enigma.keys.unlocking import Unlocking
    from enigma.manifest import Manifest
    from enigma.model.records import SnapshotRecord
    from enigma.repository.repository import Repository
    from enigma.repository.sessions import Session


def unlocking(ctx: Context) -> Unlocking:
    """Begin to open the keystore; what a command imports next is imported meanwhile."""
    from enigma.keys.unlocking import Unlocking

    config = ctx.load_config()
    return Unlocking(config.keyfile_path, ctx.passphrase, config.mlkem_key_path)


@contextmanager
def writing(ctx: Context, kind: str, unlock: Unlocking | None = None) -> Iterator[tuple[Repository, Session]]:
    """The repository with a session, no other process writing through this configuration directory meanwhile."""
    unlock = unlock or unlocking(ctx)
    from enigma.repository.opening import exclusive, open_repository

    config = ctx.load_config()
    with (
        exclusive(config),
        open_repository(config, unlock, settle=True) as repository,
        repository.session(kind) as session,
    ):
        _warn_of_problems(ctx, session)
        yield repository, session


@contextmanager
def reading(ctx: Context, kind: str, unlock: Unlocking | None = None) -> Iterator[tuple[Repository, Session]]:
    """As `writing`: what is read is declared in a session, and the view is refreshed, so one process at a time."""
    unlock = unlock or unlocking(ctx)
    from enigma.repository.opening import exclusive, open_repository

    config = ctx.load_config()
    with (
        exclusive(config),
        open_repository(config, unlock) as repository,
        repository.session(kind, only_reads=True) as session,
    ):
        _warn_of_problems(ctx, session)
        yield repository, session


@contextmanager
def local_view(ctx: Context) -> Iterator[Manifest]:
    """The manifest alone: what was known after the last command; needs no passphrase and asks no provider."""
    from enigma.manifest import Manifest

    config = ctx.load_config()
    if not config.db_path.exists():
        raise RepositoryNotFound(
            f"There is no manifest at {config.db_path}; run `enigma init`, or `enigma recover` to rebuild it."
        )
    with Manifest.open(config.db_path, readonly=True) as manifest:
        yield manifest


def snapshot_record(record: SnapshotRecord) -> dict[str, object]:
    """A snapshot as JSON output shows it."""
    from datetime import UTC, datetime

    from enigma.cli.output import path_text

    return {
        "id": record.snapshot_id.hex(),
        "time": datetime.fromtimestamp(record.created_ns / 1e9, UTC).isoformat(),
        "host": record.host,
        "user": record.user,
        "sources": [path_text(source) for source in record.sources],
        "complete": record.complete,
        "files": record.file_count,
        "entries": record.entry_count,
        "bytes": record.content_bytes,
        "new_bytes": record.new_bytes,
        "stored_bytes": record.stored_bytes,
        "unreadable": record.unreadable_count,
        "parent": record.parent_id.hex(),
        "tags": list(record.tags),
        "description": record.description,
        "duration_s": round(record.duration_ns / 1e9, 3),
    }


def found(ctx: Context, count: int) -> int:
    """The exit status of a command that looked for something; says so if there is nothing."""
    if not count:
        ctx.output.note("Nothing matches.")
    return EXIT_DONE if count else EXIT_FAILED


def local_time(time_ns: int) -> str:
    """2026-03-01 14:05:09, in the machine's time zone."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _warn_of_problems(ctx: Context, session: Session) -> None:
    for _, message in session.refreshed.problems:
        ctx.output.warn(message)
