"""Trees that are hard to keep, through the real program and back; and targets that are hard to restore into."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from enigma.config import load
from enigma.keys.local import LocalKeystore
from enigma.manifest import Manifest
from enigma.model.entries import Entry, Kind
from enigma.model.ids import SnapshotId
from enigma.model.records import SnapshotRecord
from enigma.repository.catalog import CatalogWriter
from enigma.repository.opening import exclusive, open_repository
from enigma.repository.repository import Repository
from enigma.repository.sessions import Session
from enigma.repository.writing import Writer
from enigma.snapshots.backup import BackupSpec, back_up
from enigma.snapshots.excludes import Excludes
from tests.e2e.support import differences, needs_rsync, settle
from tests.program import Program
from tests.trees import assert_same_tree, build_nasty_tree, is_root, tree_facts


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home").init()


@contextmanager
def opened(program: Program, kind: str) -> Iterator[tuple[Repository, Session]]:
    """What a writing command holds, in this process."""
    config = load(program.config)
    passphrase = (program.passphrase or "").encode()
    with (
        exclusive(config),
        open_repository(
            config, lambda: LocalKeystore.open(config.keyfile_path, passphrase=passphrase), settle=True
        ) as repository,
        repository.session(kind) as session,
    ):
        yield repository, session


# ---- there and back


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    tree = tmp_path / "nasty"
    tree.mkdir()
    build_nasty_tree(tree)
    settle()
    return tree


@needs_rsync
def test_a_nasty_tree_comes_back_and_again_onto_itself(program: Program, nasty: Path, tmp_path: Path) -> None:
    program.backup(nasty)
    target = tmp_path / "target"
    for _ in range(2):  # the second time everything is there already, modes that forbid to enter included
        program.run("restore", "latest", target).expect(0)
        assert_same_tree(nasty, target)
        assert differences(nasty, target) == differences(target, nasty) == []
    again = program.backup(nasty)
    assert again["read_files"] == 1  # the one dated in the future is never believed to be unchanged
    assert (again["data_packs"], again["snapshot"]["new_bytes"]) == (0, 0)
    elsewhere = program.backup(target)  # the same content in another place is known already
    assert elsewhere["data_packs"] == 0


def test_holes_come_back_as_holes(program: Program, nasty: Path, tmp_path: Path) -> None:
    program.backup(nasty)
    program.run("restore", "latest", tmp_path / "target").expect(0)
    for name in ("only a hole", "sparse", "hole at its end"):
        ours, theirs = (root / "files" / name for root in (tmp_path / "target", nasty))
        assert ours.stat().st_blocks <= theirs.stat().st_blocks + 16
        assert theirs.stat().st_blocks * 512 < theirs.stat().st_size


@pytest.mark.parametrize("rule", ["always", "if-newer", "if-changed"])
def test_a_tree_of_other_kinds_gives_way(program: Program, nasty: Path, tmp_path: Path, rule: str) -> None:
    """Every name is there already, older and as something else: links for files, files for directories, fifos for all."""
    program.backup(nasty)
    target = tmp_path / "target"
    target.mkdir()
    for path in nasty.iterdir():
        (target / path.name).write_bytes(b"in the way")
        os.utime(target / path.name, ns=(1, -(10**18)))
    (target / "files").unlink()
    (target / "files").mkdir()
    for number, name in enumerate(os.listdir(nasty / "files")):
        there = target / "files" / name
        (os.mkfifo, Path.mkdir, lambda path: os.symlink("/etc/passwd", path))[number % 3](there)
        os.utime(there, ns=(1, -(10**18)), follow_symlinks=False)
    program.run("restore", "--overwrite", rule, "latest", target).expect(0)
    assert_same_tree(nasty, target)


def test_with_never_only_what_is_not_there_is_made(program: Program, tmp_path: Path) -> None:
    tree, target = tmp_path / "tree", tmp_path / "target"
    (tree / "dir").mkdir(parents=True)
    (tree / "file").write_text("stored")
    (tree / "dir" / "new").write_text("stored")
    (tree / "dir" / "old").write_text("stored")
    (tree / "link").symlink_to("stored")
    program.backup(tree)
    (target / "dir").mkdir(parents=True)
    (target / "file").symlink_to("mine")
    (target / "dir" / "old").write_text("mine")
    os.mkfifo(target / "link")
    program.run("restore", "--overwrite", "never", "latest", target).expect(0)
    assert os.readlink(target / "file") == "mine"
    assert (target / "dir" / "old").read_text() == "mine"
    assert (target / "dir" / "new").read_text() == "stored"
    assert stat.S_ISFIFO((target / "link").lstat().st_mode)


@pytest.mark.parametrize("rule", ["never", "if-newer"])
def test_what_is_left_as_it_was_is_no_first_name_of_a_hard_link(program: Program, tmp_path: Path, rule: str) -> None:
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    target.mkdir()
    (tree / "a").write_text("stored")
    for name in ("b", "c"):
        os.link(tree / "a", tree / name)
    program.backup(tree)
    (target / "a").write_text("mine")
    os.utime(target / "a", (4e9, 4e9))
    program.run("restore", "--overwrite", rule, "latest", target).expect(0)
    assert (target / "a").read_text() == "mine"
    assert (target / "b").read_text() == "stored"
    assert (target / "b").samefile(target / "c")


@pytest.mark.parametrize(
    "words",
    [("restore", "--path", "nope", "latest"), ("restore", "--glob", "*.nope", "latest"), ("ls", "latest", "nope")],
)
def test_nothing_that_matches_is_said_and_is_1(program: Program, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("stored")
    program.backup(tmp_path / "tree")
    target = (tmp_path / "target",) if words[0] == "restore" else ()
    for more in ((), ("--list",)) if target else ((),):
        assert "Nothing matches." in program.run(*words, *target, *more).expect(1).stdout


def test_a_directory_that_holds_something_is_not_removed_for_a_file(program: Program, tmp_path: Path) -> None:
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    (tree / "a").write_text("stored")
    (tree / "b").write_text("stored")
    program.backup(tree)
    (target / "a").mkdir(parents=True)
    (target / "a" / "precious").write_text("mine")
    done = program.run("--json", "restore", "latest", target).expect(1)
    assert [one["path"] for one in done.records()[0]["failed"]] == ["a"]
    assert (target / "a" / "precious").read_text() == "mine"
    assert (target / "b").read_text() == "stored"
    assert sorted(os.listdir(target)) == ["a", "b"]


def test_a_further_name_alone_brings_the_content(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "z").mkdir(parents=True)
    (tree / "a").write_bytes(random.Random(1).randbytes(3 << 20))
    os.link(tree / "a", tree / "z" / "b")
    program.backup(tree)
    program.run("restore", "--path", "z", "latest", tmp_path / "target").expect(0)
    assert (tmp_path / "target" / "z" / "b").read_bytes() == (tree / "a").read_bytes()
    assert (tmp_path / "target" / "z" / "b").stat().st_nlink == 1


def test_directories_above_a_part_get_their_attributes(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    deep = tree / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file.rs").write_text("x")
    (tree / "a" / "other").write_text("x")
    for number, path in enumerate((deep, deep.parent, tree / "a", tree)):
        path.chmod(0o710 + number)
        os.utime(path, ns=(1, 10**18 + number))
    program.backup(tree)
    expected = {path: facts for path, facts in tree_facts(tree).items() if path != b"a/other"}
    for number, options in enumerate((["--glob", "*.rs"], ["--path", "a/b/c/file.rs"], ["--path", "/a/b/"])):
        program.run("restore", *options, "latest", tmp_path / f"target {number}").expect(0)
        found = tree_facts(tmp_path / f"target {number}")
        assert found.keys() == expected.keys()
        assert [path for path in found if found[path] != expected[path]] == []


# ---- in place


@pytest.mark.parametrize("kind", ["file", "link to a directory", "link to nothing", "fifo", "directory"])
@pytest.mark.parametrize("now", ["there", "gone"])
def test_a_single_source_comes_back_in_its_own_place(program: Program, tmp_path: Path, kind: str, now: str) -> None:
    """What was lost is what one restores in place: where it goes must not depend on what is there today."""
    around = tmp_path / "around"
    (around / "beside").mkdir(parents=True)
    source = around / "source"
    if kind == "file":
        source.write_text("stored")
    elif kind.startswith("link"):
        source.symlink_to("beside" if kind == "link to a directory" else "nowhere")
    elif kind == "fifo":
        os.mkfifo(source)
    else:
        source.mkdir()
        (source / "inside").write_text("stored")
    before = tree_facts(around)
    program.backup(source)
    if now == "gone":
        shutil.rmtree(source) if kind == "directory" else source.unlink()
    program.run("restore", "--in-place", "latest").expect(0)
    after = tree_facts(around)
    assert after.keys() == before.keys()
    assert [path for path in after if path != b"" and after[path] != before[path]] == []


# ---- nothing outside the target


def outside_of(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "victim").write_text("mine")
    (outside / "dir" / "victim").write_text("mine")
    for path in (outside / "victim", outside / "dir" / "victim", outside / "dir", outside):
        path.chmod(0o751 if path.is_dir() else 0o641)
        os.utime(path, ns=(1, 10**18))
    return outside


@pytest.mark.parametrize("rule", ["always", "if-newer", "if-changed", "never"])
def test_what_is_planted_in_the_target_leads_nowhere(program: Program, tmp_path: Path, rule: str) -> None:
    """Links to files, to directories, to nothing and hard links lie where the snapshot has files and directories."""
    tree, target = tmp_path / "tree", tmp_path / "target"
    for name in ("plain", "hard", "new", "large", "dir/file", "dir/deep/file", "top/dir/victim", "fifo"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("stored")
    (tree / "large").write_bytes(random.Random(2).randbytes(5 << 20))
    os.link(tree / "plain", tree / "second name")
    (tree / "empty").mkdir(mode=0o777)
    program.backup(tree)
    outside = outside_of(tmp_path)
    (target / "dir").mkdir(parents=True)
    (target / "plain").symlink_to(outside / "victim")
    (target / "second name").symlink_to(outside / "victim")
    (target / "large").symlink_to(outside / "dir" / "victim")
    (target / "new").symlink_to(outside / "not there yet")
    os.link(outside / "victim", target / "hard")
    (target / "dir" / "deep").symlink_to(outside / "dir")
    (target / "dir" / "file").symlink_to("../../outside/victim")
    (target / "top").symlink_to(outside)
    (target / "empty").symlink_to(outside / "dir")
    os.mkfifo(target / "fifo")
    before = tree_facts(outside)
    done = program.run("restore", "--overwrite", rule, "latest", target)
    assert tree_facts(outside) == before
    assert "Traceback" not in done.stderr
    if rule == "always":
        done.expect(0)
        assert_same_tree(tree, target)


def test_a_target_that_is_a_link_is_meant(program: Program, tmp_path: Path) -> None:
    """What the user names is the user's business."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("stored")
    program.backup(tmp_path / "tree")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").symlink_to("elsewhere")
    program.run("restore", "latest", tmp_path / "target").expect(0)
    assert (tmp_path / "elsewhere" / "file").read_text() == "stored"


HOSTILE = (
    (b"../escaped", Kind.FILE),
    (b"/tmp/enigma-escaped", Kind.FILE),
    (b"a/../../escaped", Kind.FILE),
    (b"a//b", Kind.FILE),
    (b".", Kind.FILE),
    (b"..", Kind.DIRECTORY),
    (b"../escaped", Kind.DIRECTORY),
    (b"../escaped", Kind.SYMLINK),
    (b"../escaped", Kind.FIFO),
    (b"leads/out", Kind.FILE),
    (b"leads/out", Kind.DIRECTORY),
    (b"leads/victim", Kind.SYMLINK),
    (b"leads/dir/victim", Kind.FILE),
    (b"zero\0byte", Kind.FILE),
    (b"missing/parent", Kind.FILE),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One repository for all the snapshots that no backup would make."""
    return Program(tmp_path_factory.mktemp("shared") / "home").init()


@pytest.mark.parametrize(("path", "kind"), HOSTILE, ids=str)
def test_a_snapshot_made_to_break_out_does_not(shared: Program, tmp_path: Path, path: bytes, kind: Kind) -> None:
    """Somebody who has the keys may store any catalog; the machine that restores it must not suffer."""
    outside = outside_of(tmp_path)
    bad = _entry(path, kind, link=b"x" if kind == Kind.SYMLINK else b"")
    leads = _entry(b"leads", Kind.SYMLINK, link=os.fsencode(outside))
    before, after = ([bad], []) if path < b"leads" else ([], [bad])
    snapshot_id = _store(shared, [_entry(b"a", Kind.DIRECTORY), *before, leads, *after, _entry(b"z", Kind.FILE)])
    (tmp_path / "in" / "target").mkdir(parents=True)
    untouched = tree_facts(outside)
    done = shared.run("--json", "restore", snapshot_id, tmp_path / "in" / "target").expect(1)
    assert "Traceback" not in done.stderr
    assert len(done.records()[0]["failed"]) == 1, done.told()
    assert (tmp_path / "in" / "target" / "z").read_bytes() == _content(b"z")
    assert tree_facts(outside) == untouched
    assert os.listdir(tmp_path / "in") == ["target"]
    assert not os.path.lexists("/tmp/enigma-escaped")


SENSELESS: dict[str, dict[str, object]] = {
    "a kind to come": {"kind": 99},
    "kind zero": {"kind": 0},
    "too many mode bits": {"mode": 2**40 + 0o644},
    "a negative mode": {"mode": -1},
    "owner out of range": {"uid": 2**40, "gid": -5},
    "time out of range": {"mtime_ns": 2**63 + 1},
    "a negative time": {"mtime_ns": -(2**63)},
    "a negative size": {"size": -5},
    "a size beyond any disk": {"size": 2**62},
    "half a reference": {"content": b"x" * 35},
    "a list below nothing": {"depth": 3},
    "a negative depth": {"depth": -1},
    "depth without end": {"depth": 200},
    "a link that is a file": {"kind": Kind.SYMLINK, "link": b""},
    "a link with a zero byte": {"kind": Kind.SYMLINK, "link": b"a\0b"},
    "a device out of range": {"kind": Kind.CHARACTER_DEVICE, "rdev": 2**63},
    "attributes without sense": {"xattrs": ((b"", b""), (b"user.\0", b"x"), (b"n" * 5000, b"v" * 70_000))},
    "holes everywhere": {"holes": ((-5, 2**62), (2**62, -1))},
    "a hard link to itself": {"kind": Kind.DIRECTORY, "hard_link": 1},
    "a path without end": {"path": b"p" * 300},
}


@pytest.mark.parametrize("values", SENSELESS.values(), ids=SENSELESS.keys())
def test_an_entry_without_sense_spoils_nothing_else(shared: Program, tmp_path: Path, values: dict[str, object]) -> None:
    snapshot_id = _store(shared, [_entry(b"p", Kind.FILE, **values), _entry(b"z", Kind.FILE)])
    done = shared.run("restore", snapshot_id, tmp_path / "target")
    assert done.status in (0, 1), done.told()
    assert "Unexpected" not in done.stderr, done.told()
    assert (tmp_path / "target" / "z").read_bytes() == _content(b"z"), done.told()
    for words in (("ls", "-l", snapshot_id), ("verify", snapshot_id)):
        done = shared.run(*words)
        assert "Unexpected" not in done.stderr, done.told()
        assert done.status in (0, 1), done.told()
        assert "Traceback" not in done.stderr


def _content(path: bytes) -> bytes:
    """Of each file its own, so that what happens to one is no other's business; 7 bytes."""
    return hashlib.sha256(path).hexdigest()[:7].encode()


def _entry(path: bytes, kind: Kind, /, **more: object) -> Entry:
    values: dict[str, object] = {"path": path, "kind": kind, "mode": 0o755 if kind is Kind.DIRECTORY else 0o644}
    values |= {"uid": os.getuid(), "gid": os.getgid(), "user": "", "group": "", "inode": 1}
    values |= {"mtime_ns": 10**18, "ctime_ns": 10**18, "size": 7 if kind is Kind.FILE else 0}
    return Entry(**(values | more))  # type: ignore[arg-type]


def _store(program: Program, entries: list[Entry]) -> str:
    """The id of a snapshot with exactly these entries below its root; a file without content gets some."""
    with opened(program, "backup") as (repository, session):
        writer = Writer(repository, session)
        catalog = CatalogWriter(writer.catalog.put, writer.catalog.has)
        for entry in [_entry(b"", Kind.DIRECTORY), *entries]:
            filled = entry.kind == Kind.FILE and not entry.content
            content = writer.catalog.put(_content(entry.path)) + (7).to_bytes(4, "little") if filled else entry.content
            catalog.add(msgspec.structs.replace(entry, content=content))
        root = catalog.finish()
        record = SnapshotRecord(
            snapshot_id=SnapshotId.random(),
            session_id=session.session_id,
            parent_id=b"",
            created_ns=1,
            host="host",
            user="user",
            sources=(b"/source",),
            root=root.chunk_id,
            root_bytes=root.length_bytes,
            depth=root.depth,
            complete=True,
            entry_count=len(entries) + 1,
            file_count=1,
            content_bytes=7,
            new_bytes=0,
            stored_bytes=0,
            unreadable_count=0,
            program="test",
        )
        writer.commit(record)
    return record.snapshot_id.hex()


# ---- one backup after another


def test_what_moves_or_changes_attributes_is_not_stored_again(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    source = random.Random(6)
    for number in range(20):
        (tree / "dir" / f"{number}").write_bytes(source.randbytes(20_000))
    (tree / "becomes a directory").write_text("x")
    (tree / "becomes a file").mkdir()
    (tree / "becomes a file" / "inside").write_bytes(source.randbytes(1000))
    program.backup(tree)
    (tree / "dir").rename(tree / "moved")
    for number in range(10):
        (tree / "moved" / f"{number}").chmod(0o400)
    os.link(tree / "moved" / "3", tree / "another name")
    again = program.backup(tree)
    assert again["data_packs"] == 0
    content = (tree / "becomes a file" / "inside").read_bytes()
    shutil.rmtree(tree / "becomes a file")
    (tree / "becomes a file").write_bytes(content)
    (tree / "becomes a directory").unlink()
    (tree / "becomes a directory").mkdir()
    os.mkfifo(tree / "becomes a directory" / "fifo")
    third = program.backup(tree)
    assert third["data_packs"] == 0
    program.run("restore", "latest", tmp_path / "target").expect(0)
    assert_same_tree(tree, tmp_path / "target")


def test_commands_that_look_show_what_is_there(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "a.txt").write_bytes(b"x" * 1234)
    (tree / "sub" / "a.txt").chmod(0o640)
    (tree / "link").symlink_to("sub/a.txt")
    (tree / "line\nbreak").write_text("x")
    program.backup(tree)
    (tree / "sub" / "a.txt").write_bytes(b"y" * 2234)
    (tree / "link").unlink()
    program.backup(tree)
    first, second = (one["id"] for one in program.snapshots())
    long = program.run("ls", "-l", first).expect(0).stdout
    assert "-rw-r-----" in long
    assert "1,234" in long
    assert "link -> sub/a.txt" in long
    assert _on_a_terminal(program, "ls", first).count("\n") == 5  # a name with a line break makes no line of its own
    records = {one["path"]: one for one in program.run("--json", "ls", first).expect(0).records()}
    assert records["sub/a.txt"]["size"] == 1234
    assert records["link"]["kind"] == "symlink"
    assert stat.S_IMODE(records["sub/a.txt"]["mode"]) == 0o640
    found = program.run("--json", "find", "a.*").expect(0).records()
    assert len(found) == 2
    assert len(program.run("--json", "find", "--snapshot", second, "a.*").expect(0).records()) == 1
    changes = {one["path"]: one for one in program.run("--json", "diff", first, second).expect(0).records()}
    assert (changes["sub/a.txt"]["change"], changes["sub/a.txt"]["grown_bytes"]) == ("M", 1000)
    assert changes["link"]["change"] == "-"
    assert program.run("--json", "diff", second, second).expect(0).records() == []


def _on_a_terminal(program: Program, *args: str) -> str:
    ours, theirs = os.openpty()
    try:
        program.run(*args, stdout=theirs).expect(0)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_one_file_system_is_not_left(program: Program, tmp_path: Path) -> None:
    mounted = Path("/dev/shm")
    if os.stat("/dev").st_dev == mounted.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    marker = mounted / f"enigma-test-{os.getpid()}"
    marker.write_text("x")
    try:
        program.run("backup", "--one-file-system", "/dev")
        lines = program.run("ls", "latest").expect(0).stdout.splitlines()
    finally:
        marker.unlink()
    assert "shm" in lines
    assert [line for line in lines if line.startswith("shm/")] == []
    assert "null" in lines


# ---- interruptions


class Stop:
    """Watches a backup and interrupts it after so many files."""

    def __init__(self, after_files: int) -> None:
        self.left = after_files

    def expect(self, content_bytes: int) -> None: ...

    def read(self, length_bytes: int, new_bytes: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def entry(self, inherited_bytes: int) -> None: ...

    def warn(self, path: bytes, message: str) -> None: ...


def test_after_an_interruption_what_a_checkpoint_holds_is_not_read_again(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    source = random.Random(7)
    for number in range(300):
        (tree / f"{number:03d}").write_bytes(source.randbytes(4000))
    settle()
    with opened(program, "backup") as (repository, session):
        spec = BackupSpec(
            sources=(os.fsencode(tree),),
            excludes=Excludes.from_options(patterns=[], pattern_file=None, larger_than=None, caches=False),
            host=os.uname().nodename,
            user="somebody",
            checkpoint_s=0,
        )
        with pytest.raises(KeyboardInterrupt):
            back_up(repository, session, spec, Stop(200))
    with Manifest.open(load(program.config).db_path, readonly=True) as manifest:
        assert [one.record.complete for one in manifest.snapshots()] == [False]
    program.run("restore", "latest", tmp_path / "nothing").expect(1)  # it is no snapshot to be had by name
    assert len(program.run("--json", "list", "--all").expect(0).records()) == 1
    resumed = program.backup(tree)
    assert resumed["read_files"] <= 110
    assert resumed["snapshot"]["files"] == 300
    program.restores("latest", tree, tmp_path / "target")
    program.verify("--read-data")


def test_the_large_tree_with_any_compression_and_chunker(tmp_path: Path) -> None:
    """Fixed chunks, no compression: other paths through the engine, the same tree at the end."""
    program = Program(tmp_path / "home")
    program.config.mkdir(parents=True)
    (program.config / "enigma.toml").write_text(
        "[enigma]\nworkers = 2\n[enigma.compression]\nenabled = false\n[enigma.chunk_strategy.Fixed]\nsize = 262144\n"
    )
    program.init()
    tree = tmp_path / "tree"
    tree.mkdir()
    build_nasty_tree(tree)
    (tree / "large").write_bytes(random.Random(5).randbytes(40 << 20))
    (tree / "zeros").write_bytes(bytes(10 << 20))
    program.backup(tree)
    program.run("restore", "latest", tmp_path / "target").expect(0)
    assert_same_tree(tree, tmp_path / "target")
    program.verify("--read-data")


needs_setpriv = pytest.mark.skipif(
    not is_root() or shutil.which("setpriv") is None, reason="needs root, to give it up with setpriv"
)


@needs_setpriv
def test_without_the_right_to_change_owners_the_rest_comes_back(program: Program, nasty: Path, tmp_path: Path) -> None:
    """As a plain user would restore it: content, modes and times; owners and devices are warned about."""
    for name in ("special", "links"):
        shutil.rmtree(nasty / name)
    program.backup(nasty)
    refused = "-chown,-mknod,-fowner,-fsetid,-sys_admin"
    done = program.run("restore", "latest", tmp_path / "target", prefix=("setpriv", f"--bounding-set={refused}"))
    assert "Traceback" not in done.stderr
    assert done.status in (0, 1), done.told()
    ours, theirs = tree_facts(tmp_path / "target"), tree_facts(nasty)
    assert ours.keys() == theirs.keys()
    for path, facts in theirs.items():
        assert ours[path].get("content") == facts.get("content")
        assert ours[path]["mtime"] == facts["mtime"], path
        if facts["owner"] == (0, 0):
            assert ours[path]["mode"] == facts["mode"], path
        elif facts["kind"] == stat.S_IFREG:  # a program of somebody else must not become one of who restores it
            assert not int(ours[path]["mode"], 8) & 0o6000, path


def test_rsync_sees_a_difference_when_there_is_one(tmp_path: Path) -> None:
    """The yardstick itself."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        os.utime(tmp_path / name / "file", ns=(1, 10**18))
        os.utime(tmp_path / name, ns=(1, 10**18))
    assert differences(tmp_path / "one", tmp_path / "two") == []
    (tmp_path / "two" / "file").chmod(0o600)
    assert differences(tmp_path / "one", tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_tree(tmp_path / "one", tmp_path / "two")
    subprocess.run(["rsync", "-a", f"{tmp_path / 'one'}/", tmp_path / "two"], check=True)
    assert_same_tree(tmp_path / "one", tmp_path / "two")
