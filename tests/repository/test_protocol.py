"""What a backup owes to garbage collections, other machines and providers with a memory. FORMAT.md, "Sessions and
deletion"."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enigma.clock import Clock
from enigma.config import Config
from enigma.errors import (
    AccessDenied,
    ConfigError,
    FormatUnsupported,
    Locked,
    ProviderUnavailable,
    SessionFenced,
    SnapshotNotFound,
)
from enigma.maintenance.verify import Findings, adopt, verify
from enigma.model.ids import ObjectId
from enigma.model.records import CondemnRecord, FenceRecord, RescueRecord, SessionRecord, SweptRecord, TombRecord
from enigma.repository import names, sessions
from enigma.repository.opening import exclusive
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.snapshots.backup import BackupResult, BackupSpec, back_up
from enigma.snapshots.excludes import Excludes
from enigma.snapshots.selection import find_snapshot
from workers.objects import ObjectType, PackSet

Opened = Callable[..., Repository]


class Silent:
    """Watches and says nothing; keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def expect(self, content_bytes: int) -> None: ...

    def read(self, length_bytes: int, new_bytes: int) -> None: ...

    def entry(self, inherited_bytes: int) -> None: ...

    def warn(self, path: bytes, message: str) -> None:
        self.warnings.append(message)

    def problem(self, subject: str, message: str) -> None:
        self.warnings.append(f"{subject}: {message}")

    def checked(self, length_bytes: int, total_bytes: int) -> None: ...


def spec_of(source: Path, **changes: object) -> BackupSpec:
    excludes = Excludes.from_options(patterns=[], pattern_file=None, larger_than=None, caches=False)
    return BackupSpec(sources=(os.fsencode(source),), excludes=excludes, host="h", user="u", **changes)


def run_backup(opened: Opened, source: Path, **changes: object) -> BackupResult:
    with opened() as repository, repository.session("backup") as session:
        return back_up(repository, session, spec_of(source, **changes), Silent())


def problems_of(opened: Opened) -> Findings:
    with opened(settle=False) as repository, repository.session("verify") as session:
        return verify(repository, session, repository.manifest.snapshots(), Silent())


@contextmanager
def session_of(opened: Opened) -> Iterator[tuple[Repository, Session]]:
    with opened() as repository, repository.session("test") as session:
        yield repository, session


def put_fact(repository: Repository, kind: ObjectType, record: object) -> None:
    repository.store.put(names.gc_key(kind, ObjectId.random()), record)  # type: ignore[arg-type]


def condemn(repository: Repository, *pack_ids: bytes) -> bytes:
    condemn_id = os.urandom(16)
    put_fact(
        repository,
        ObjectType.CONDEMN,
        CondemnRecord(condemn_id=condemn_id, session_id=os.urandom(16), created_ns=1, pack_ids=pack_ids),
    )
    return condemn_id


def test_the_session_object_stands_before_anything_is_read(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as repository:
        calls: list[tuple[str, str]] = []
        store = repository.store
        monkeypatch.setattr(store, "put_bytes", recording(calls, "put", store.put_bytes))
        monkeypatch.setattr(store, "list", recording(calls, "list", store.list))
        with repository.session("backup"):
            pass
    verb, key = calls[0]
    assert (verb, key.split("/")[0]) == ("put", "sessions")
    order = [key for verb, key in calls if verb == "list"]
    assert order.index("snapshots/") < order.index("index/backup/") < order.index("packs/backup/")


def recording(calls: list[tuple[str, str]], verb: str, call: Callable) -> Callable:
    def recorded(key: str, *rest: object) -> object:
        calls.append((verb, key))
        return call(key, *rest)

    return recorded


def test_a_session_leaves_no_object_behind(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    with opened() as repository:
        assert repository.store.list(names.SESSIONS) == {}


def test_the_session_names_its_parent_as_read(opened: Opened, source: Path) -> None:
    first = run_backup(opened, source).record.snapshot_id
    with session_of(opened) as (repository, session):
        session.reading([first])
        records = [repository.store.get(key, SessionRecord) for key in repository.store.list(names.SESSIONS)]
    assert max(records, key=lambda record: record.sequence).reads_snapshots == (first,)


def test_a_snapshot_deleted_before_it_was_declared_is_noticed(opened: Opened, source: Path) -> None:
    first = run_backup(opened, source).record.snapshot_id
    with session_of(opened) as (repository, session):
        snapshot = find_snapshot(repository.manifest, "latest")
        with opened() as other:
            other.delete_snapshot(snapshot, session.session_id, "forgotten")
        with pytest.raises(SnapshotNotFound):
            session.reading([first])


def test_chunks_of_condemned_packs_are_stored_again(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    with opened() as repository:
        condemn(repository, *(pack.pack_id for pack in repository.manifest.packs()))
    second = run_backup(opened, source)
    assert second.read_files == 30
    assert second.data_packs == 1
    with opened() as repository, repository.session("x"):
        usable = [pack for pack in repository.manifest.packs(PackSet.BACKUP) if pack.state == 0]
        assert len(usable) == 1
    assert problems_of(opened).problems == []


def test_a_rescue_cancels_exactly_the_condemnation_it_names(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    with opened() as repository:
        packs = tuple(bytes(pack.pack_id) for pack in repository.manifest.packs())
        first, second = condemn(repository, *packs), condemn(repository, *packs)
        rescue = RescueRecord(condemn_id=first, session_id=os.urandom(16), pack_ids=packs)
        put_fact(repository, ObjectType.RESCUE, rescue)
    with session_of(opened) as (repository, session):
        assert session.refreshed.gc.condemned == {first: frozenset(), second: frozenset(packs)}
        assert all(pack.state != 0 for pack in repository.manifest.packs())


def test_a_condemnation_in_mid_run_is_rescued_then_acknowledged(opened: Opened, source: Path) -> None:
    """The run relies on a pack by deduplication; the next heartbeat answers before it acknowledges."""
    run_backup(opened, source)
    with opened() as repository, repository.session("backup") as session:
        back_up(repository, session, spec_of(source, force=True), Silent())
        relied_on = {bytes(pack.pack_id) for pack in repository.manifest.packs(PackSet.BACKUP)}
        condemn_id = condemn(repository, *relied_on)
        session.beat()
        rescues = [
            repository.store.get(key, RescueRecord)
            for key in repository.store.list(names.GC)
            if names.type_of(key) is ObjectType.RESCUE
        ]
        records = [repository.store.get(key, SessionRecord) for key in repository.store.list(names.SESSIONS)]
    assert [(one.condemn_id, set(one.pack_ids)) for one in rescues] == [(condemn_id, relied_on)]
    assert max(records, key=lambda record: record.sequence).acknowledged == (condemn_id,)


def test_a_fenced_session_reports_no_success_and_its_snapshot_is_void(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    with opened() as repository, repository.session("backup") as session:
        fence = FenceRecord(session_id=session.session_id, by_session_id=os.urandom(16), created_ns=1)
        repository.store.put(names.fence_key(session.session_id, ObjectId.random()), fence)
        with pytest.raises(SessionFenced):
            back_up(repository, session, spec_of(source), Silent())
    with session_of(opened) as (repository, session):
        good, void = repository.manifest.snapshots()
        assert (good.void, void.void) == (False, True)
        assert find_snapshot(repository.manifest, "latest").object_id == good.object_id
        adopt(repository, session, void)
    with session_of(opened) as (repository, _):
        assert find_snapshot(repository.manifest, "latest").record.snapshot_id == void.record.snapshot_id


def test_a_void_snapshot_is_never_a_parent(opened: Opened, source: Path) -> None:
    with opened() as repository, repository.session("backup") as session:
        fence = FenceRecord(session_id=session.session_id, by_session_id=os.urandom(16), created_ns=1)
        repository.store.put(names.fence_key(session.session_id, ObjectId.random()), fence)
        with pytest.raises(SessionFenced):
            back_up(repository, session, spec_of(source), Silent())
    assert run_backup(opened, source).record.parent_id == b""


def test_a_tombstone_hides_what_a_provider_shows_again(opened: Opened, source: Path, config: Config) -> None:
    run_backup(opened, source)
    store = Path(config.providers[0].bucket)
    (path,) = (store / "snapshots").iterdir()
    kept = path.read_bytes()
    with session_of(opened) as (repository, session):
        repository.delete_snapshot(find_snapshot(repository.manifest, "latest"), session.session_id, "forgotten")
        tombs = [repository.store.get(key, TombRecord) for key in repository.store.list(names.TOMBS)]
        assert [tomb.key for tomb in tombs] == [f"snapshots/{path.name}"]
    assert not path.exists()
    path.write_bytes(kept)
    with session_of(opened) as (repository, _):
        assert repository.manifest.snapshots() == ()
    assert problems_of(opened).problems == []


def test_a_snapshot_that_disappears_without_a_tombstone_is_missed(opened: Opened, source: Path, config: Config) -> None:
    first = run_backup(opened, source).record.snapshot_id
    (path,) = (Path(config.providers[0].bucket) / "snapshots").iterdir()
    run_backup(opened, source)
    path.unlink()
    found = problems_of(opened)
    assert [path.name in why for _, why in found.problems] == [True]
    for local in config.db_path.parent.glob("enigma.db*"):
        local.unlink()
    found = problems_of(opened)  # a machine that never saw it hears of it from the later snapshot
    assert [(subject, "no provider shows it" in why) for subject, why in found.problems] == [(first.hex(), True)]


def test_a_withheld_tombstone_resurrects_nothing(opened: Opened, source: Path, config: Config) -> None:
    run_backup(opened, source)
    (path,) = (Path(config.providers[0].bucket) / "snapshots").iterdir()
    kept = path.read_bytes()
    with session_of(opened) as (repository, session):
        repository.delete_snapshot(find_snapshot(repository.manifest, "latest"), session.session_id, "forgotten")
    (tomb,) = (Path(config.providers[0].bucket) / "tomb").iterdir()
    with session_of(opened):
        pass
    tomb.unlink()
    path.write_bytes(kept)
    with session_of(opened) as (repository, _):
        assert repository.manifest.snapshots() == ()
    assert [tomb.name in why for _, why in problems_of(opened).problems] == [True]


def test_a_damaged_marker_or_config_stops_nobody(opened: Opened, source: Path, config: Config) -> None:
    run_backup(opened, source)
    store = Path(config.providers[0].bucket)
    (store / "marker").write_bytes(b"rot")
    next((store / "config").iterdir()).write_bytes(b"rot")
    subjects = {subject.split("/")[0] for subject, _ in problems_of(opened).problems}
    assert subjects == {"marker", "config"}
    assert run_backup(opened, source).read_files == 0
    assert {subject.split("/")[0] for subject, _ in problems_of(opened).problems} == {"config"}


def test_a_pack_that_the_listing_lacks_is_not_believed_in(opened: Opened, source: Path, config: Config) -> None:
    run_backup(opened, source)
    (pack,) = (Path(config.providers[0].bucket) / "packs" / "backup").glob("*/*")
    pack.unlink()
    second = run_backup(opened, source)
    assert (second.read_files, second.data_packs) == (30, 1)


def test_a_lost_index_makes_files_be_read_again(opened: Opened, source: Path, config: Config) -> None:
    run_backup(opened, source)
    (index,) = (Path(config.providers[0].bucket) / "index" / "backup").iterdir()
    index.unlink()
    assert run_backup(opened, source).read_files == 30


def test_a_session_that_slept_too_long_takes_itself_for_dead(opened: Opened) -> None:
    now = [0]
    with opened() as repository:
        repository.clock = Clock(wall_ns=lambda: now[0], boot_ns=lambda: 0)
        with repository.session("backup") as session:
            now[0] = sessions.LONGEST_SILENCE_NS + 1
            with pytest.raises(SessionFenced):
                session.beat()


def test_one_process_at_a_time_per_configuration_directory(config: Config) -> None:
    with exclusive(config), pytest.raises(Locked, match=str(os.getpid())), exclusive(config):
        pass


def test_checkpoints_are_parents_and_never_latest(opened: Opened, source: Path) -> None:
    class Stop(Exception):
        pass

    class Stopping(Silent):
        def __init__(self) -> None:
            super().__init__()
            self.entries = 0

        def entry(self, inherited_bytes: int) -> None:
            self.entries += 1
            if self.entries == 29:
                raise Stop

    with opened() as repository, repository.session("backup") as session, pytest.raises(Stop):
        back_up(repository, session, spec_of(source, checkpoint_s=0), Stopping())
    with session_of(opened) as (repository, _):
        assert [row.record.complete for row in repository.manifest.snapshots()] == [False]
        with pytest.raises(SnapshotNotFound):
            find_snapshot(repository.manifest, "latest")
    assert run_backup(opened, source).read_files < 15
    assert problems_of(opened).problems == []


def test_a_run_removes_its_own_checkpoints(opened: Opened, source: Path) -> None:
    run_backup(opened, source, checkpoint_s=0)
    with session_of(opened) as (repository, _):
        assert [row.record.complete for row in repository.manifest.snapshots()] == [True]


def test_the_chunker_is_obeyed_until_the_first_snapshot_and_refused_after(config: Config, source: Path) -> None:
    from enigma.config import load
    from enigma.repository.opening import open_repository
    from tests.repository.conftest import unlock

    def edit(old: str, new: str) -> Config:
        path = config.config_dir / "enigma.toml"
        path.write_text(path.read_text().replace(old, new))
        return load(config.config_dir)

    edited = edit('distribution = "RoundRobin"', 'distribution = "RoundRobin"\nchunk_strategy.Fixed.size = 65536')
    run_backup(lambda: open_repository(edited, unlock(config), settle=True), source)
    with open_repository(edited, unlock(config)) as repository:
        assert repository.chunker.max_bytes == 65536
        assert repository.settings.generation == 2
    edited = edit("65536", "131072")
    with pytest.raises(ConfigError, match="65536"):
        open_repository(edited, unlock(config), settle=True)
    with open_repository(edited, unlock(config)) as repository:
        assert repository.chunker.max_bytes == 65536


def test_the_rescue_of_a_fenced_session_counts_for_nothing(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    dead = os.urandom(16)
    with opened() as repository:
        packs = tuple(bytes(pack.pack_id) for pack in repository.manifest.packs())
        condemn_id = condemn(repository, *packs)
        put_fact(repository, ObjectType.RESCUE, RescueRecord(condemn_id=condemn_id, session_id=dead, pack_ids=packs))
    with session_of(opened) as (_, session):
        assert session.refreshed.gc.condemned == {condemn_id: frozenset()}
    with opened() as repository:
        fence = FenceRecord(session_id=dead, by_session_id=os.urandom(16), created_ns=1)
        repository.store.put(names.fence_key(dead, ObjectId.random()), fence)
    with session_of(opened) as (_, session):
        assert session.refreshed.gc.condemned == {condemn_id: frozenset(packs)}


def test_what_a_sweep_spared_is_trusted_again(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    with opened() as repository:
        first, second = (bytes(pack.pack_id) for pack in repository.manifest.packs())
        condemn_id = condemn(repository, first, second)
        swept = SweptRecord(condemn_id=condemn_id, session_id=os.urandom(16), pack_ids=(first,))
        put_fact(repository, ObjectType.SWEPT, swept)
    with session_of(opened) as (repository, session):
        assert session.refreshed.gc.condemned == {condemn_id: frozenset({first})}
        assert [pack.state == 0 for pack in repository.manifest.packs()] == [False, True]


def test_a_snapshot_that_somebody_reads_is_buried_and_not_yet_deleted(opened: Opened, source: Path) -> None:
    first = run_backup(opened, source).record.snapshot_id
    with session_of(opened) as (reader, reading):
        reading.reading([first])
        with opened() as repository:
            snapshot = find_snapshot(repository.manifest, "latest")
            repository.delete_snapshot(snapshot, os.urandom(16), "forgotten")
            assert names.snapshot_key(snapshot.object_id) in repository.store.list(names.SNAPSHOTS)
            assert len(repository.store.list(names.TOMBS)) == 1
        assert reader.blobs.get(snapshot.record.root, snapshot.record.root_bytes)
    with session_of(opened) as (repository, _):
        assert repository.manifest.snapshots() == ()


def test_a_run_that_fails_keeps_what_it_has_stored_for_the_next(opened: Opened, source: Path) -> None:
    """Its packs are indexed, though there is no snapshot: the next run reads the files and stores nothing."""

    class Failing(Silent):
        def expect(self, content_bytes: int) -> None: ...

        def entry(self, inherited_bytes: int) -> None:
            if self.warnings == ["last"]:
                raise RuntimeError("the power of the observer fails")

    with opened() as repository, repository.session("backup") as session:
        original = repository.placer.put

        def counting(*rest: object) -> object:
            failing.warnings = ["last"]
            return original(*rest)  # type: ignore[arg-type]

        failing = Failing()
        repository.placer.put = counting  # type: ignore[method-assign]
        spec = spec_of(source, checkpoint_s=0)
        with pytest.raises(RuntimeError):
            back_up(repository, session, spec, failing)
    assert run_backup(opened, source).data_packs == 0


def test_a_provider_that_is_silent_at_the_end_fails_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as repository:

        def refuse(_key: str) -> None:
            raise ProviderUnavailable("gone")

        with repository.session("backup"):
            monkeypatch.setattr(repository.store, "delete", refuse)
        assert len(repository.store.list(names.SESSIONS)) == 1


def test_a_changed_passphrase_is_not_undone_by_a_machine_that_has_the_old_one(
    opened: Opened, source: Path, config: Config, tmp_path: Path
) -> None:
    import dataclasses
    import shutil

    from enigma.repository.opening import open_repository
    from tests.repository.conftest import PASSPHRASE, unlock

    other = dataclasses.replace(config, keyfile_path=tmp_path / "other.enc", db_path=tmp_path / "other.db")
    shutil.copy(config.keyfile_path, other.keyfile_path)
    with session_of(opened) as (repository, session):
        repository.change_passphrase(
            b"another passphrase", old=PASSPHRASE, session_id=session.session_id, allow_weak=False
        )
        slots = {key for key in repository.store.list(names.KEYS) if "slot" in key}
    with open_repository(other, unlock(other), settle=True) as repository, repository.session("backup"):
        assert {key for key in repository.store.list(names.KEYS) if "slot" in key} == slots


def test_a_newer_configuration_is_not_passed_over(opened: Opened, source: Path) -> None:
    import msgspec

    with opened() as repository:
        chunker = msgspec.structs.replace(repository.settings.chunker, required=("a better chunker",))
        newer = msgspec.structs.replace(repository.settings, generation=2, chunker=chunker)
        repository.store.put(names.config_key(2, ObjectId.random()), newer)
    with pytest.raises(FormatUnsupported, match="a better chunker"):
        opened()


def test_adoption_changes_no_head(opened: Opened, source: Path) -> None:
    run_backup(opened, source)
    run_backup(opened, source)
    with session_of(opened) as (repository, session):
        adopt(repository, session, repository.manifest.snapshots()[0])
    assert problems_of(opened).problems == []


def test_a_key_object_of_a_kind_to_come_stops_nobody(opened: Opened, source: Path, config: Config) -> None:
    (Path(config.providers[0].bucket) / "keys" / ("share-" + "ab" * 16)).write_bytes(b"from the future")
    assert run_backup(opened, source).read_files == 30


def test_a_read_only_provider_can_be_read(opened: Opened, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_backup(opened, source)
    with opened(settle=False) as repository:

        def refuse(_key: str, _data: bytes) -> list[str]:
            raise AccessDenied("read-only")

        monkeypatch.setattr(repository.store, "put_bytes", refuse)
        with repository.session("restore", only_reads=True) as session:
            session.reading([repository.manifest.snapshots()[0].record.snapshot_id])
        with pytest.raises(AccessDenied), repository.session("backup"):
            pass


def test_a_machine_whose_slot_was_buried_buries_no_other(
    opened: Opened, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passphrase was changed by a machine whose clock is behind: its slot looks older, and is the only way in."""
    import dataclasses
    import shutil

    from enigma.repository.opening import open_repository
    from tests.repository.conftest import PASSPHRASE, unlock

    other = dataclasses.replace(config, keyfile_path=tmp_path / "other.enc", db_path=tmp_path / "other.db")
    shutil.copy(config.keyfile_path, other.keyfile_path)
    monkeypatch.setattr("enigma.keys.local.wall_ns", lambda: 1)
    with session_of(opened) as (repository, session):
        repository.change_passphrase(
            b"another passphrase", old=PASSPHRASE, session_id=session.session_id, allow_weak=False
        )
        slots = {key for key in repository.store.list(names.KEYS) if "slot" in key}
    with open_repository(other, unlock(other), settle=True) as repository:
        assert {key for key in repository.store.list(names.KEYS) if "slot" in key} == slots
