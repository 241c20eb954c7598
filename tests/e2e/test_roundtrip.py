"""Trees as people have them, through the real program and back, compared by rsync."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.program import Program

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home").init()


def differences(one: Path, other: Path) -> list[str]:
    """What rsync would change to make `other` like `one`: attributes, ACLs, hard links, content, and what is extra."""
    command = ["rsync", "-aHAXn", "--checksum", "--itemize-changes", "--delete", f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def settle() -> None:
    """Let the clock leave the timestamps behind: a file changed in the moment of reading is read again, by design."""
    until = time.time_ns() + 30_000_000
    while time.time_ns() < until:
        os.sched_yield()


def nasty(root: Path) -> Path:
    """One of everything."""
    source = random.Random(4)
    root.mkdir()
    (root / "hard 1").write_bytes(source.randbytes(5000))
    os.link(root / "hard 1", root / "hard 2")
    (root / "dir").mkdir()
    os.link(root / "hard 1", root / "dir" / "hard 3")
    for link, target in {"dangling": "nowhere", "to dir": "dir", "absolute": "/etc/passwd", "up": "../.."}.items():
        (root / link).symlink_to(target)
    with (root / "sparse").open("wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(source.randbytes(10_000))
    (root / "zeros").write_bytes(bytes(3 << 20))
    (root / "large").write_bytes(source.randbytes(40 << 20))
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # the name of a socket may be only 107 bytes long
        listener.bind("socket")
        os.chdir(here)
    (root / "empty" / "within").mkdir(parents=True)
    for name in (b"not utf-8 \xff\xfe", b"line\nbreak", b" ", b"n" * 255, b"*?[", "größe €".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    for name, mode in {"none": 0, "setuid": 0o4755, "setgid": 0o2755}.items():
        (root / name).write_bytes(b"x")
        (root / name).chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    for number in range(5):
        (root / f"zero {number}").touch()
    deep = root / "deep"
    for _ in range(120):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"bottom")
    attributes(root)
    for name, seconds in {"before 1970": -86_400 * 365, "far future": 4_000_000_000, "ns": 1_600_000_000}.items():
        (root / name).write_bytes(b"x")
        os.utime(root / name, ns=(1, seconds * 10**9 + 123_456_789))
    return root


def attributes(root: Path) -> None:
    """Extended attributes, ACLs, owners and devices, as far as this user and file system allow."""
    (root / "attributes").write_bytes(b"x")
    try:
        os.setxattr(root / "attributes", "user.one", b"value\0\xff")
        os.setxattr(root / "attributes", "user.large", b"v" * 3000)
        os.setxattr(root / "dir", "user.empty", b"")
    except OSError as exc:
        pytest.skip(f"this file system takes no extended attributes: {exc.strerror}")
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:1234:rw,g:55:r", root / "attributes"], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", root / "dir"], check=True)
        (root / "dir" / "inherits").write_bytes(b"x")
    if os.geteuid() == 0:
        os.chown(root / "zeros", 12345, 54321)
        os.lchown(root / "dangling", 7, 8)
        os.mknod(root / "character", 0o620 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(root / "block", 0o660 | stat.S_IFBLK, os.makedev(7, 99))


@needs_rsync
def test_one_of_everything_comes_back_and_costs_nothing_the_second_time(program: Program, tmp_path: Path) -> None:
    tree = nasty(tmp_path / "tree")
    settle()
    program.backup(tree)
    again = program.backup(tree)
    assert again["read_files"] == 1  # the one dated in the future is never believed to be unchanged
    assert (again["data_packs"], again["snapshot"]["new_bytes"]) == (0, 0)
    target = tmp_path / "target"
    program.run("restore", "latest", target).expect(0)
    assert differences(tree, target) == []
    assert differences(target, tree) == []
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (target / "hard 1").stat().st_ino == (target / "dir" / "hard 3").stat().st_ino
    program.verify("--read-data")


@needs_rsync
def test_every_kind_of_change_is_seen_and_each_snapshot_stays_itself(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "b", "c", "d"):
        (tree / name).write_bytes(name.encode() * 1000)
    program.backup(tree)
    shutil.copytree(tree, tmp_path / "before", symlinks=True)
    shutil.copystat(tree, tmp_path / "before")
    (tree / "a").write_bytes(b"new content")
    (tree / "b").chmod(0o400)
    (tree / "c").unlink()
    (tree / "c").mkdir()
    (tree / "c" / "inside").write_bytes(b"x")
    (tree / "d").rename(tree / "e")
    program.backup(tree)
    first, second = (one["id"] for one in program.snapshots())
    marks = {
        line.split(" ", 1)[1]: line[0] for line in program.run("diff", first, second).expect(0).stdout.splitlines()[:-1]
    }
    assert {name: marks[name] for name in ("a", "b", "c", "c/inside", "d", "e")} == {
        "a": "M",
        "b": "m",
        "c": "M",
        "c/inside": "+",
        "d": "-",
        "e": "+",
    }
    for snapshot, expected in ((first, tmp_path / "before"), (second, tree)):
        program.run("restore", snapshot, tmp_path / snapshot).expect(0)
        assert differences(expected, tmp_path / snapshot) == []


def test_one_changed_byte_of_a_large_file_stores_at_most_three_chunks(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    content = bytearray(random.Random(1).randbytes(64 << 20))
    (tree / "large").write_bytes(content)
    program.backup(tree)
    before = program.run("status", "--json").records()[0]["sets"]["backup"]["chunks"]
    content[32 << 20] ^= 1
    (tree / "large").write_bytes(content)
    program.backup(tree)
    after = program.run("status", "--json").records()[0]["sets"]["backup"]["chunks"]
    assert 1 <= after - before <= 3


def test_the_number_of_chunks_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    source = random.Random(2)
    for number in range(900):
        (tree / f"{number}").write_bytes(source.randbytes(number * 10))
    (tree / "large").write_bytes(source.randbytes(50 << 20))
    first = Program(tmp_path / "home 1").init()
    counts = set()
    for workers in (1, 2, 5):
        program = Program(tmp_path / f"home {workers}")
        if workers > 1:  # the same repository's seed, before anything was stored in it
            shutil.copytree(tmp_path / "pristine", program.home, dirs_exist_ok=True)
        else:
            shutil.copytree(first.home, tmp_path / "pristine")
        toml = program.config / "enigma.toml"
        text = toml.read_text().replace(str(first.home), str(program.home))
        toml.write_text(text.replace("[enigma]\n", f"[enigma]\nworkers = {workers}\n", 1))
        program.backup(tree)
        counts.add(program.run("status", "--json").records()[0]["sets"]["backup"]["chunks"])
    assert len(counts) == 1


def test_force_reads_everything_and_stores_nothing_new(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    settle()
    program.backup(tree)
    forced = program.backup("--force", tree)
    assert (forced["read_files"], forced["data_packs"]) == (1, 0)


def test_several_sources_stand_under_their_whole_names(program: Program, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "file").write_text(name)
    program.backup(tmp_path / "src" / "two", tmp_path / "src" / "one", tmp_path / "src" / "one" / "file")
    target = tmp_path / "target"
    program.run("restore", "latest", target).expect(0)
    inside = target / str(tmp_path).lstrip("/") / "src"
    assert [(inside / name / "file").read_text() for name in ("one", "two")] == ["one", "two"]


def test_a_single_file_is_a_snapshot_of_its_own(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("alone")
    program.backup(tmp_path / "file")
    program.run("restore", "latest", tmp_path / "target").expect(0)
    assert (tmp_path / "target" / "file").read_text() == "alone"
    assert os.listdir(tmp_path / "target") == ["file"]


@pytest.mark.parametrize("length", [0, 5, 40 << 20])
def test_standard_input_becomes_a_named_file(program: Program, tmp_path: Path, length: int) -> None:
    content = random.Random(length).randbytes(length)
    (tmp_path / "dump").write_bytes(content)
    with (tmp_path / "dump").open("rb") as file:
        program.run("backup", "--stdin-name", "db.sql", "-", stdin=file).expect(0)
    program.run("restore", "latest", tmp_path / "target").expect(0)
    assert (tmp_path / "target" / "db.sql").read_bytes() == content


def test_parts_are_restored_with_the_directories_above_them(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("docs/a.rs", "docs/deep/b.rs", "docs/c.txt", "docs2/d.rs", "e.rs"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "docs").chmod(0o750)
    program.backup(tree)

    def restored(*options: str) -> set[str]:
        target = tmp_path / f"target {len(list(tmp_path.iterdir()))}"
        program.run("restore", *options, "latest", target).expect(0)
        if (target / "docs").exists():
            assert stat.S_IMODE((target / "docs").stat().st_mode) == 0o750
        return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}

    assert restored("--path", "docs/") == {"docs/a.rs", "docs/deep/b.rs", "docs/c.txt"}
    assert restored("--path", "docs/deep") == {"docs/deep/b.rs"}
    assert restored("--glob", "*.rs") == {"docs/a.rs", "docs/deep/b.rs", "docs2/d.rs", "e.rs"}
    assert restored("--path", "docs", "--glob", "*.rs") == {"docs/a.rs", "docs/deep/b.rs"}
    assert restored("--glob", "docs/*.rs") == {"docs/a.rs", "docs/deep/b.rs"}
    listed = program.run("restore", "--list", "--glob", "*.txt", "latest").expect(0)
    assert listed.stdout.splitlines() == ["docs/c.txt"]
    assert program.run("ls", "latest", "docs2").expect(0).stdout.splitlines() == ["docs2", "docs2/d.rs"]
    assert "docs/c.txt" in program.run("find", "*.txt").expect(0).stdout
    program.run("find", "*.none").expect(1)


@pytest.mark.parametrize(
    ("rule", "older", "newer", "same"),
    [
        ("always", "stored", "stored", "stored"),
        ("if-newer", "stored", "mine", "mine"),
        ("if-changed", "stored", "stored", "mine"),
        ("never", "mine", "mine", "mine"),
    ],
)
def test_what_exists_is_replaced_by_the_rule(
    program: Program, tmp_path: Path, rule: str, older: str, newer: str, same: str
) -> None:
    """`same` has the stored size and time, and other content, to show that it was not looked into."""
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    target.mkdir()
    for name, shift_s in {"older": -100, "newer": 100, "same": 0}.items():
        (tree / name).write_text("stored")
        (target / name).write_text("mine--" if name == "same" else "mine")
        os.utime(target / name, ns=(1, (tree / name).stat().st_mtime_ns + shift_s * 10**9))
    program.backup(tree)
    program.run("restore", "--overwrite", rule, "latest", target).expect(0)
    assert {name: (target / name).read_text().rstrip("-") for name in ("older", "newer", "same")} == {
        "older": older,
        "newer": newer,
        "same": same,
    }


def test_in_place_means_where_it_came_from(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("good")
    program.backup(tree)
    (tree / "file").write_text("broken")
    (tree / "later").write_text("stays")
    program.run("restore", "--in-place", "latest").expect(0)
    assert (tree / "file").read_text() == "good"
    assert (tree / "later").read_text() == "stays"


def test_no_link_leads_a_restore_out_of_its_target(program: Program, tmp_path: Path) -> None:
    """Links lie in the target where directories and files must go; what they point to must not change."""
    tree, target, outside = tmp_path / "tree", tmp_path / "target", tmp_path / "outside"
    (tree / "dir" / "deep").mkdir(parents=True)
    (tree / "dir" / "file").write_text("stored")
    (tree / "dir" / "deep" / "file").write_text("stored")
    (tree / "plain").write_text("stored")
    program.backup(tree)
    (outside / "deep").mkdir(parents=True)
    (outside / "victim").write_text("mine")
    target.mkdir()
    (target / "dir").symlink_to(outside)
    (target / "plain").symlink_to(outside / "victim")
    program.run("restore", "latest", target).expect(0)
    assert sorted(os.listdir(outside)) == ["deep", "victim"]
    assert os.listdir(outside / "deep") == []
    assert (outside / "victim").read_text() == "mine"
    assert (target / "dir" / "deep" / "file").read_text() == "stored"
    assert not (target / "plain").is_symlink()


def test_excludes_leave_out_exactly_what_they_say(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    names = [
        "a.tmp",
        "keep.tmp",
        "src/b.tmp",
        "src/c.py",
        "build/out",
        "src/build/out",
        "big",
        "cache/data",
        "cache/CACHEDIR.TAG",
    ]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "big").write_bytes(bytes(3000))
    (tree / "cache" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (tmp_path / "rules").write_text("# comment\n/build/\n")

    def stored(*options: str | Path) -> set[str]:
        program.backup(*options, tree)
        lines = program.run("ls", "latest").expect(0).stdout.splitlines()
        return {line for line in lines if (tree / line).is_file()}

    assert stored("--exclude", "*.tmp", "--exclude", "!keep.tmp") == set(names) - {"a.tmp", "src/b.tmp"}
    assert stored("--exclude-file", tmp_path / "rules") == set(names) - {"build/out"}
    assert stored("--exclude-larger-than", "2K") == set(names) - {"big"}
    assert stored("--exclude-caches") == set(names) - {"cache/data"}
    assert program.run("backup", "--exclude-larger-than", "huge", tree).status == 2


def test_recovery_needs_nothing_but_the_store_and_the_passphrase(program: Program, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(40):
        (tree / f"{number}").write_bytes(random.Random(number).randbytes(number * 500))
    settle()
    program.backup(tree)
    store = tmp_path / "store"
    program.store.rename(store)
    shutil.rmtree(program.home)
    other = Program(tmp_path / "another machine")
    toml = f'[[providers]]\nname = "disk"\ntype = "Local"\nbucket = "{store}"\n'
    for lost in ("", "index", "manifest"):
        if lost == "index":
            shutil.rmtree(store / "index")
        if lost == "manifest":
            (other.config / "enigma.db").write_bytes(b"garbage" * 1000)
        else:
            shutil.rmtree(other.home)
            other.config.mkdir(parents=True)
            (other.config / "enigma.toml").write_text(toml)
        other.run("recover").expect(0)
        other.verify("--read-data")
        again = other.backup(tree)
        assert (again["read_files"], again["data_packs"]) == (0, 0)
        other.restores("latest", tree, tmp_path / f"target {lost}")


def test_recovery_with_a_wrong_passphrase_says_so(program: Program, tmp_path: Path) -> None:
    program.backup(tmp_path / "home")
    other = Program(tmp_path / "other", passphrase="not the right passphrase")
    other.config.mkdir(parents=True)
    (other.config / "enigma.toml").write_text(
        f'[[providers]]\nname = "d"\ntype = "Local"\nbucket = "{program.store}"\n'
    )
    other.run("recover").expect(12)
