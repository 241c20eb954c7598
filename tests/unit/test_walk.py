"""The walk is sorted as the catalog is, meets everything once, and goes on past what it can't read."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.errors import SourceError
from enigma.model.entries import Kind, path_key
from enigma.snapshots import walk as walk_module
from enigma.snapshots.excludes import Excludes
from enigma.snapshots.walk import Found, walk
from tests.trees import build_nasty_tree, is_root, tree_facts

ALL = Excludes()
needs_root = pytest.mark.skipif(not is_root(), reason="needs root")


def never(path: bytes, error: OSError) -> None:
    raise AssertionError(path) from error


def rules(*patterns: str) -> Excludes:
    return Excludes.from_options(patterns=patterns, pattern_file=None, larger_than=None, caches=False)


def walked(*sources: Path | str, excludes: Excludes = ALL, one_file_system: bool = False) -> list[Found]:
    encoded = [os.fsencode(source) for source in sources]
    return list(walk(encoded, excludes, one_file_system=one_file_system, on_error=never))


def paths_below(found: list[Found], top: Path) -> set[str]:
    """What was found at or below `top`, of several sources."""
    stem = os.fsencode(top).strip(b"/")
    inside = [one.path for one in found if one.path == stem or one.path.startswith(stem + b"/")]
    assert len(inside) == len(set(inside))
    return {os.fsdecode(path[len(stem) + 1 :]) for path in inside}


NAMES = st.binary(min_size=1, max_size=5).filter(lambda name: not {47, 0} & set(name) and name not in (b".", b".."))
LEAVES = st.lists(st.sampled_from([b"a", b"a.b", b"a-", b"\x01", b"\xff"]) | NAMES, min_size=1, max_size=5)


@settings(max_examples=60)
@given(st.lists(LEAVES, max_size=25), st.sampled_from([2, 3, 100_000]))
def test_the_order_is_that_of_the_catalog(leaves: list[list[bytes]], run_entries: int) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk_module, "RUN_ENTRIES", run_entries)
        top = os.fsencode(place)
        expected = {b""}
        for leaf in leaves:
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                os.makedirs(os.path.join(top, *leaf[:-1]), exist_ok=True)
                os.close(os.open(os.path.join(top, *leaf), os.O_CREAT | os.O_EXCL))
        for above, directories, files in os.walk(top):
            expected |= {os.path.relpath(os.path.join(above, name), top) for name in directories + files}
        found = [one.path for one in walked(place)]
        assert found == sorted(expected, key=path_key)


def test_every_kind_of_entry_is_found_with_its_own_stat(tmp_path: Path) -> None:
    build_nasty_tree(tmp_path)
    found = walked(tmp_path)
    facts = tree_facts(tmp_path)
    assert [one.path for one in found] == sorted(facts, key=path_key)
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK, stat.S_IFIFO: Kind.FIFO}
    kinds |= {stat.S_IFSOCK: Kind.SOCKET, stat.S_IFCHR: Kind.CHARACTER_DEVICE, stat.S_IFBLK: Kind.BLOCK_DEVICE}
    for one in found:
        assert one.kind is kinds[facts[one.path]["kind"]]
        assert one.stat.st_mtime_ns == facts[one.path]["mtime"]
        assert os.path.samestat(os.lstat(one.absolute), one.stat)


def test_a_huge_directory_is_sorted_in_runs_that_are_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "RUN_ENTRIES", 500)
    names = {f"{number * 7919 % 4001:05}" + "x" * (number % 200) for number in range(4001)}
    for name in names:
        (tmp_path / name).touch()
    open_before = len(os.listdir("/proc/self/fd"))
    steps = walk([os.fsencode(tmp_path)], ALL, on_error=never)
    assert isinstance(steps, Iterator)
    next(steps)
    next(steps)
    assert len(os.listdir("/proc/self/fd")) > open_before
    assert [os.fsdecode(one.path) for one in steps] == sorted(names)[1:]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_walk_that_is_given_up_closes_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "RUN_ENTRIES", 5)
    for number in range(20):
        (tmp_path / str(number)).touch()
    open_before = len(os.listdir("/proc/self/fd"))
    steps = walk([os.fsencode(tmp_path)], ALL, on_error=never)
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_depth_is_limited_only_by_the_length_of_a_path(tmp_path: Path) -> None:
    levels = (4000 - len(os.fsencode(tmp_path))) // 2
    subprocess.run(["mkdir", "-p", tmp_path / "/".join("d" * levels)], check=True)
    assert levels > 1500  # Python's own limit is 1000
    assert len(walked(tmp_path)) == levels + 1
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_what_is_too_deep_for_a_path_is_reported_and_the_rest_is_found(tmp_path: Path) -> None:
    name = "n" * 250
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    (tmp_path / "z").touch()
    errors: list[bytes] = []
    found = list(walk([os.fsencode(tmp_path)], ALL, on_error=lambda path, _: errors.append(path)))
    assert len(errors) == 1
    assert found[-1].path == b"z"
    assert len(found) >= 15
    subprocess.run(["rm", "-r", tmp_path / name], check=True)


# ---- sources


def test_a_file_as_the_source_stands_alone_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "other").touch()
    root, file = walked(tmp_path / "file", excludes=rules("file"))
    assert (root.path, root.kind) == (b"", Kind.DIRECTORY)
    assert (file.path, file.absolute, file.kind) == (b"file", os.fsencode(tmp_path / "file"), Kind.FILE)
    assert stat.S_ISDIR(root.stat.st_mode)


def test_a_link_as_the_source_is_kept_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    assert [(one.path, one.kind) for one in walked(tmp_path / "link")][1:] == [(b"link", Kind.SYMLINK)]


def test_several_sources_stand_under_their_absolute_paths(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/x", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = walked(tmp_path / "z", tmp_path / "a" / "b", tmp_path / "z")
    paths = [one.path for one in found]
    assert paths == sorted(set(paths), key=path_key)
    assert found[0].absolute == b"/"
    above = [os.fsencode(parent).strip(b"/") for parent in tmp_path.parents]
    assert set(above) <= set(paths)
    assert paths_below(found, tmp_path) == {"", "a", "a/b", "a/b/c", "z"}
    assert all(os.path.samestat(os.lstat(one.absolute), one.stat) for one in found)


def test_a_source_inside_another_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").touch()
    assert paths_below(walked(tmp_path, tmp_path / "a/b"), tmp_path) == {"", "a", "a/b", "a/b/c"}
    assert paths_below(walked(tmp_path / "a/b/c", tmp_path / "a/b"), tmp_path) == {"", "a", "a/b", "a/b/c"}


def test_a_source_inside_a_directory_that_another_leaves_out_is_still_kept(tmp_path: Path) -> None:
    for name in ("out/in/f", "out/other", "g", "x.tmp", "out/in/y.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = walked(tmp_path, tmp_path / "out/in", tmp_path / "x.tmp", excludes=rules("out/", "*.tmp"))
    assert paths_below(found, tmp_path) == {"", "g", "out", "out/in", "out/in/f", "x.tmp"}


def test_patterns_are_relative_to_each_source(tmp_path: Path) -> None:
    for name in ("a/x", "a/b/x", "c/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = walked(tmp_path / "a", tmp_path / "c", excludes=rules("/x"))
    assert paths_below(found, tmp_path) == {"", "a", "a/b", "a/b/x", "c"}


def test_a_source_behind_a_link_stands_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real/d").mkdir(parents=True)
    (tmp_path / "real/d/f").touch()
    (tmp_path / "other").touch()
    (tmp_path / "link").symlink_to("real")
    found = {
        os.path.relpath(b"/" + one.path, os.fsencode(tmp_path)): one
        for one in walked(tmp_path / "link/d", tmp_path / "other")
    }
    assert found[b"link"].kind is Kind.DIRECTORY
    assert stat.S_ISDIR(found[b"link"].stat.st_mode)
    assert found[b"link/d/f"].kind is Kind.FILE
    assert os.path.samefile(found[b"link/d/f"].absolute, tmp_path / "real/d/f")


def test_a_link_and_what_is_behind_it_can_not_both_be_sources(tmp_path: Path) -> None:
    (tmp_path / "real/d").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    for outer in (tmp_path / "link", tmp_path):
        with pytest.raises(SourceError, match="link"):
            walked(outer, tmp_path / "link/d")


def test_a_missing_source_ends_the_walk_only_if_there_is_no_other(tmp_path: Path) -> None:
    missing, there = os.fsencode(tmp_path / "missing"), os.fsencode(tmp_path / "there")
    (tmp_path / "there").touch()
    errors: list[bytes] = []

    def on_error(path: bytes, _: OSError) -> None:
        errors.append(path)

    with pytest.raises(SourceError, match="missing"):
        walk([missing], ALL, on_error=on_error)
    with pytest.raises(SourceError):
        walk([missing, missing + b"/x"], ALL, on_error=on_error)
    errors.clear()
    found = list(walk([missing, there], ALL, on_error=on_error))
    assert errors == [missing]
    assert found[-1].path == there.strip(b"/")


# ---- what can't be read


def test_what_vanishes_under_way_is_reported_and_the_walk_goes_on(tmp_path: Path) -> None:
    for name in ("a", "b", "c/d", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    errors: dict[bytes, int | None] = {}
    found = []
    for one in walk([os.fsencode(tmp_path)], ALL, on_error=lambda path, exc: errors.update({path: exc.errno})):
        found.append(one.path)
        if one.path == b"a":
            (tmp_path / "b").unlink()
        if one.path == b"c":
            shutil.rmtree(tmp_path / "c")
    assert found == [b"", b"a", b"c", b"e"]
    assert set(errors) == {os.fsencode(tmp_path / "b"), os.fsencode(tmp_path / "c")}


UNPRIVILEGED = """
import os, sys
from enigma.errors import SourceError
from enigma.snapshots.excludes import Excludes
from enigma.snapshots.walk import walk
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    for one in walk([os.fsencode(sys.argv[1])], Excludes(), on_error=lambda path, exc: print("error", exc.errno, path)):
        print("found", one.path)
except SourceError as exc:
    print("source error", exc)
"""


def as_nobody(place: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, place], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@needs_root
def test_an_unreadable_directory_is_kept_empty_and_reported() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        for name in ("closed/x", "open/y"):
            Path(place, name).parent.mkdir()
            Path(place, name).touch()
        os.chmod(Path(place, "closed"), 0o700)
        closed = os.fsencode(place) + b"/closed"
        told = as_nobody(Path(place))
        assert told == ["found b''", "found b'closed'", f"error 13 {closed!r}", "found b'open'", "found b'open/y'"]


@needs_root
def test_an_unreadable_root_is_an_error_and_no_empty_snapshot() -> None:
    with tempfile.TemporaryDirectory() as place:
        (told,) = as_nobody(Path(place))
        assert told.startswith("source error") and place in told


# ---- file systems


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tree with another file system at `m`, which holds `m/d/f`."""
    (tmp_path / "m").mkdir()
    (tmp_path / "z").touch()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "enigma-test", tmp_path / "m"], capture_output=True, check=False)
    if mounting.returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        (tmp_path / "m/d").mkdir()
        (tmp_path / "m/d/f").touch()
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path / "m"], check=True)


@needs_root
def test_other_file_systems_are_not_entered_if_so_wanted(mounted: Path) -> None:
    assert [one.path for one in walked(mounted)] == [b"", b"m", b"m/d", b"m/d/f", b"z"]
    kept = walked(mounted, one_file_system=True)
    assert [one.path for one in kept] == [b"", b"m", b"z"]
    assert kept[1].stat.st_dev != kept[0].stat.st_dev


@needs_root
@pytest.mark.parametrize("inner", ["m", "m/d"])
def test_a_source_on_another_file_system_inside_a_source_is_entered(mounted: Path, inner: str) -> None:
    found = walked(mounted, mounted / inner, one_file_system=True)
    assert paths_below(found, mounted) == {"", "m", "m/d", "m/d/f", "z"}
