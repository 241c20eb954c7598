"""Nothing is written outside the target, and what is there stays until its successor is complete."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trees import assert_same_tree, build_nasty_tree, is_root, tree_facts
from workers import targets
from workers.attributes import Attributes, read_xattrs_at
from workers.direct import BLOCK_BYTES
from workers.targets import OPEN_DIRECTORIES, TEMPORARY_PREFIX, TargetTree, UnsafeTarget

HERE = Attributes(0o644, os.getuid(), os.getgid(), 1_000_000_000_000_000_001)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target that must stay as it is."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious").write_bytes(b"precious")
    before = tree_facts(place)
    yield place
    assert tree_facts(place) == before


@pytest.fixture
def tree(root: Path) -> Iterator[TargetTree]:
    with TargetTree(os.fsencode(root)) as opened:
        yield opened


def whole(
    tree: TargetTree, path: bytes, content: bytes = b"new", *, sparse: bool = False, replace: bool = False
) -> None:
    assert tree.write_whole(path, memoryview(content), HERE, sparse=sparse, replace=replace) == []


def temporaries(root: Path) -> list[bytes]:
    return [name for name in os.listdir(os.fsencode(root)) if name.startswith(TEMPORARY_PREFIX)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# every way to make something at a path
WAYS: dict[str, Callable[[TargetTree, bytes], object]] = {
    "file": lambda tree, path: tree.write_whole(path, memoryview(b"x"), HERE),
    "replacing file": lambda tree, path: tree.write_whole(path, memoryview(b"x"), HERE, replace=True),
    "large file": lambda tree, path: tree.begin_file(path, replace=False),
    "part": lambda tree, path: tree.write_part(path, 0, memoryview(b"x")),
    "directory": lambda tree, path: tree.make_directory(path, replace=True),
    "link": lambda tree, path: tree.make_symlink(path, b"/etc", HERE),
    "fifo": lambda tree, path: tree.make_special(path, stat.S_IFIFO, 0, HERE),
    "hard link": lambda tree, path: tree.make_hard_link(path, b"existing", replace=True),
    "hard link from": lambda tree, path: tree.make_hard_link(b"new", path, replace=True),
    "attributes": lambda tree, path: tree.set_directory(path, HERE),
    "removal": lambda tree, path: tree.remove(path),
    "finish": lambda tree, path: tree.finish_file(path, path, 0, HERE),
}
UNSAFE = [
    b"..",
    b".",
    b"a/..",
    b"../x",
    b"a/../x",
    b"a/./x",
    b"./x",
    b"a//x",
    b"/x",
    b"/a/x",
    b"a/",
    b"a\0",
    b"a\0/x",
    b"//",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", UNSAFE)
def test_a_path_that_is_not_plain_and_relative_is_refused(root: Path, tree: TargetTree, way: str, path: bytes) -> None:
    (root / "a").mkdir()
    (root / "existing").touch()
    with pytest.raises(UnsafeTarget):
        WAYS[way](tree, path)
    assert sorted(os.listdir(root)) == ["a", "existing"]
    assert os.listdir(root / "a") == []


def test_the_root_itself_is_no_place_for_a_file(tree: TargetTree) -> None:
    with pytest.raises(UnsafeTarget):
        whole(tree, b"")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", [b"link/x", b"link/precious", b"d/up/x", b"d/up/precious"])
def test_a_planted_link_never_leads_out(root: Path, outside: Path, tree: TargetTree, way: str, path: bytes) -> None:
    (root / "link").symlink_to(outside)
    (root / "d").mkdir()
    (root / "d/up").symlink_to("../../outside")
    (root / "existing").touch()
    with pytest.raises((OSError, UnsafeTarget)):
        WAYS[way](tree, path)
    assert tree.lstat(path) is None


@pytest.mark.parametrize("way", ["replacing file", "link", "fifo", "hard link", "directory"])
def test_a_link_in_the_place_of_what_comes_is_replaced_and_not_followed(
    root: Path, outside: Path, tree: TargetTree, way: str
) -> None:
    (root / "existing").touch()
    for target in (outside, outside / "precious", "nowhere"):
        (root / "x").symlink_to(target)
        WAYS[way](tree, b"x")
        info = (root / "x").lstat()
        assert not stat.S_ISLNK(info.st_mode) or os.readlink(root / "x") == "/etc"
        (root / "x").rmdir() if stat.S_ISDIR(info.st_mode) else (root / "x").unlink()
    assert temporaries(root) == []


@pytest.mark.parametrize("way", ["file", "large file"])
def test_a_new_file_is_never_written_through_what_is_there(
    root: Path, outside: Path, tree: TargetTree, way: str
) -> None:
    (root / "x").symlink_to(outside / "precious")
    with pytest.raises(FileExistsError):
        WAYS[way](tree, b"x")


def test_a_part_is_not_written_into_what_took_the_place_of_its_file(
    root: Path, outside: Path, tree: TargetTree
) -> None:
    for plant in (
        lambda path: os.link(outside / "precious", path),
        lambda path: os.symlink(outside / "precious", path),
        os.mkfifo,
    ):
        name = tree.begin_file(b"x", replace=True)
        path = root / os.fsdecode(name)
        path.unlink()
        plant(path)
        with pytest.raises((OSError, UnsafeTarget)):
            tree.write_part(name, 0, memoryview(b"evil"))
        with pytest.raises((OSError, UnsafeTarget)):
            tree.finish_file(b"x", name, 0, HERE)
        assert not (root / "x").exists()
        path.unlink(missing_ok=True)


# ---- what is there already


def test_a_directory_is_taken_as_it_is_or_takes_the_place_of_a_file(root: Path, tree: TargetTree) -> None:
    assert tree.make_directory(b"d", replace=False)
    (root / "d/kept").touch()
    assert not tree.make_directory(b"d", replace=True)
    assert (root / "d/kept").exists()
    (root / "f").touch()
    with pytest.raises(UnsafeTarget):
        tree.make_directory(b"f", replace=False)
    assert (root / "f").is_file()
    assert tree.make_directory(b"f", replace=True)
    assert (root / "f").is_dir()


@pytest.mark.parametrize("way", ["replacing file", "link", "fifo", "hard link"])
def test_only_an_empty_directory_gives_way(root: Path, tree: TargetTree, way: str) -> None:
    (root / "existing").touch()
    (root / "x/full").mkdir(parents=True)
    with pytest.raises(UnsafeTarget, match="not empty"):
        WAYS[way](tree, b"x")
    assert (root / "x/full").is_dir()
    assert temporaries(root) == []
    (root / "x/full").rmdir()
    WAYS[way](tree, b"x")
    assert not stat.S_ISDIR((root / "x").lstat().st_mode)


def test_the_old_file_stays_until_the_new_one_is_complete(root: Path, tree: TargetTree) -> None:
    (root / "x").write_bytes(b"old")
    name = tree.begin_file(b"x", replace=True)
    tree.write_part(name, 3, memoryview(b"def"))
    assert (root / "x").read_bytes() == b"old"
    tree.write_part(name, 0, memoryview(b"abc"))
    assert tree.finish_file(b"x", name, 6, HERE) == []
    assert (root / "x").read_bytes() == b"abcdef"
    assert temporaries(root) == []


class _Refused(Exception):
    pass


def _refuse(*_: object, **__: object) -> None:
    raise _Refused


def test_the_old_file_stays_if_the_new_one_fails(root: Path, tree: TargetTree, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "x").write_bytes(b"old")
    for step in ("_write", "apply"):
        with monkeypatch.context() as patch, pytest.raises(_Refused):
            patch.setattr(targets, step, _refuse)
            whole(tree, b"x", replace=True)
    with monkeypatch.context() as patch, pytest.raises(_Refused):
        patch.setattr(targets, "apply_at", _refuse)
        tree.make_symlink(b"x", b"y", HERE)
    name = tree.begin_file(b"x", replace=True)
    with monkeypatch.context() as patch, pytest.raises(_Refused):
        patch.setattr(targets, "apply", _refuse)
        tree.finish_file(b"x", name, 0, HERE)
    assert os.listdir(root) == ["x"]
    assert (root / "x").read_bytes() == b"old"


def test_a_file_that_is_finished_where_a_directory_is_leaves_nothing_behind(root: Path, tree: TargetTree) -> None:
    (root / "x/full").mkdir(parents=True)
    name = tree.begin_file(b"x", replace=True)
    with pytest.raises(UnsafeTarget):
        tree.finish_file(b"x", name, 0, HERE)
    assert os.listdir(root) == ["x"]


def test_a_file_is_finished_only_where_it_was_begun(root: Path, tree: TargetTree) -> None:
    (root / "d").mkdir()
    name = tree.begin_file(b"x", replace=True)
    for path in (b"d/x", b"..", b""):
        with pytest.raises(UnsafeTarget):
            tree.finish_file(path, name, 0, HERE)


def test_a_hard_link_that_is_there_already_stays_and_leaves_nothing_behind(root: Path, tree: TargetTree) -> None:
    (root / "one").write_bytes(b"1")
    os.link(root / "one", root / "two")
    tree.make_hard_link(b"two", b"one", replace=True)
    assert sorted(os.listdir(root)) == ["one", "two"]
    assert (root / "one").stat().st_nlink == 2
    with pytest.raises(FileExistsError):
        tree.make_hard_link(b"two", b"one", replace=False)


def test_a_hard_link_to_a_link_is_one_to_the_link_itself(root: Path, outside: Path, tree: TargetTree) -> None:
    (root / "link").symlink_to(outside / "precious")
    tree.make_hard_link(b"too", b"link", replace=True)
    assert os.path.samestat((root / "too").lstat(), (root / "link").lstat())


def test_what_no_system_could_make_is_refused(root: Path, tree: TargetTree) -> None:
    for make in (
        lambda: tree.make_symlink(b"x", b"a\0b", HERE),
        lambda: tree.make_special(b"x", stat.S_IFCHR, 1 << 80, HERE),
        lambda: tree.make_symlink(b"x", b"", HERE),
        lambda: tree.make_symlink(b"x" * 256, b"y", HERE),
    ):
        with pytest.raises((UnsafeTarget, OSError)):
            make()
    assert os.listdir(root) == []


# ---- content


def test_a_small_file_has_content_and_attributes_at_once(root: Path, tree: TargetTree) -> None:
    attributes = HERE._replace(mode=0o4711)
    assert tree.write_whole(b"x", memoryview(b"content"), attributes) == []
    info = (root / "x").stat()
    assert (root / "x").read_bytes() == b"content"
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o4711, HERE.mtime_ns)


@pytest.mark.parametrize("seed", range(4))
def test_parts_in_any_order_make_the_file_and_zero_blocks_stay_holes(root: Path, tree: TargetTree, seed: int) -> None:
    source = random.Random(seed)
    nearly_zero = [bytes(at) + b"x" + bytes(4095 - at) for at in (0, 2000, 4095)]
    blocks = [source.choice((bytes(4096), *nearly_zero, source.randbytes(4096))) for _ in range(300)]
    content = b"".join(blocks) + bytes(source.randrange(4096))
    cuts = sorted({0, len(content), *(source.randrange(len(content)) for _ in range(20))})
    parts = list(itertools.pairwise(cuts))
    source.shuffle(parts)
    for sparse in (False, True):
        path = b"sparse" if sparse else b"whole"
        name = tree.begin_file(path, replace=False)
        for start, end in parts:
            tree.write_part(name, start, memoryview(content)[start:end], sparse=sparse)
        assert tree.finish_file(path, name, len(content), HERE) == []
        assert (root / os.fsdecode(path)).read_bytes() == content


@pytest.mark.parametrize("takes_direct", [True, False])
def test_long_parts_past_the_page_cache_leave_their_neighbours_alone(
    root: Path, tree: TargetTree, monkeypatch: pytest.MonkeyPatch, takes_direct: bool
) -> None:
    """Parts that meet within a block, written in any order, past the page cache and through it."""
    pwrite, direct_writes = os.pwrite, []

    def observed(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct_writes.append(len(data))
            if not takes_direct:
                raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", observed)
    source = random.Random(takes_direct)
    content = source.randbytes(24 << 20)
    cuts = [0, 5_000_001, 5_000_101, 12_000_000, (20 << 20) - 1, 20 << 20, len(content)]
    parts = list(itertools.pairwise(cuts))
    source.shuffle(parts)
    name = tree.begin_file(b"x", replace=False)
    with mmap.mmap(-1, 16 << 20) as memory, memoryview(memory) as pages:
        for start, end in parts:
            at = start % BLOCK_BYTES
            pages[at : at + end - start] = content[start:end]
            with pages[at : at + end - start] as part:
                tree.write_aligned_part(name, start, part)
    tree.finish_file(b"x", name, len(content), HERE)
    assert (root / "x").read_bytes() == content
    if takes_direct:  # not every file system does, but those of tests do
        assert sum(direct_writes) > 20 << 20
    else:
        assert len(direct_writes) == 1


@pytest.mark.parametrize("length_bytes", [0, 1, 4095, 4096, 4097, (1 << 20) + 17])
def test_a_sparse_file_takes_no_room_and_has_its_length(root: Path, tree: TargetTree, length_bytes: int) -> None:
    whole(tree, b"x", bytes(length_bytes), sparse=True)
    info = (root / "x").stat()
    assert info.st_size == length_bytes
    assert info.st_blocks * 512 <= 2 * 4096
    name = tree.begin_file(b"y", replace=False)
    tree.write_part(name, 0, memoryview(bytes(length_bytes)), sparse=True)
    tree.finish_file(b"y", name, length_bytes, HERE)
    assert (root / "y").read_bytes() == bytes(length_bytes)


# ---- descriptors


def deep(root: Path, name: str, levels: int) -> bytes:
    path = name
    (root / path).mkdir()
    for _ in range(levels):
        path += "/d"
        (root / path).mkdir()
    return path.encode()


def test_few_directories_are_held_open_and_all_are_closed(root: Path) -> None:
    before = open_descriptors()
    with TargetTree(os.fsencode(root)) as tree:
        for number in range(3 * OPEN_DIRECTORIES):
            tree.make_directory(b"%d" % number, replace=False)
            whole(tree, b"%d/x" % number)
        bottom = deep(root, "deep", OPEN_DIRECTORIES + 60)
        whole(tree, bottom + b"/x")
        assert (root / os.fsdecode(bottom) / "x").read_bytes() == b"new"
        assert open_descriptors() <= before + OPEN_DIRECTORIES + 1
        tree.write_part(b"1/x", 0, memoryview(b"N"))
    assert open_descriptors() == before
    tree.close()


def test_a_hard_link_between_deep_directories_needs_no_more_descriptors_than_there_are(
    root: Path, tree: TargetTree
) -> None:
    one, two = (deep(root, name, OPEN_DIRECTORIES + 60) for name in ("one", "two"))
    whole(tree, one + b"/x")
    before = open_descriptors()
    tree.make_hard_link(two + b"/y", one + b"/x", replace=True)
    assert open_descriptors() <= before + 1
    assert os.path.samefile(root / os.fsdecode(one) / "x", root / os.fsdecode(two) / "y")


def test_a_full_disk_is_an_os_error_and_leaves_nothing(
    root: Path, tree: TargetTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no space"):
        whole(tree, b"x")
    assert os.listdir(root) == []


# ---- everything at once


def copied(source: Path, tree: TargetTree, *, replace: bool) -> None:
    """What a restore does with a tree."""
    top = os.fsencode(source)
    directories: list[tuple[bytes, Attributes]] = []
    first_names: dict[tuple[int, int], bytes] = {}
    links: list[tuple[bytes, bytes]] = []
    for path, facts in tree_facts(source).items():
        where = os.path.join(top, path)
        info = os.lstat(where)
        attributes = Attributes(
            stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, read_xattrs_at(where)
        )
        kind = facts["kind"]
        first = first_names.setdefault((info.st_dev, info.st_ino), path)
        if kind == stat.S_IFDIR:
            if path:
                tree.make_directory(path, replace=replace)
            directories.append((path, attributes))
        elif first != path:
            links.append((path, first))
        elif kind == stat.S_IFREG:
            content = memoryview(Path(os.fsdecode(where)).read_bytes())
            sparse = info.st_blocks * 512 < info.st_size
            assert tree.write_whole(path, content, attributes, sparse=sparse, replace=replace) == []
        elif kind == stat.S_IFLNK:
            assert tree.make_symlink(path, os.readlink(where), attributes) == []
        else:
            assert tree.make_special(path, kind, info.st_rdev, attributes) == []
    for path, first in links:
        tree.make_hard_link(path, first, replace=replace)
    for path, attributes in sorted(directories, key=lambda one: one[0], reverse=True):
        assert tree.set_directory(path, attributes) == []


@pytest.mark.skipif(not is_root(), reason="needs root: the tree holds devices and files of others")
def test_a_nasty_tree_comes_back_and_again_over_itself(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    build_nasty_tree(source)
    with TargetTree(os.fsencode(root)) as tree:
        copied(source, tree, replace=False)
    assert_same_tree(source, root)
    with TargetTree(os.fsencode(root)) as tree:
        copied(source, tree, replace=True)
    assert_same_tree(source, root)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: (top / "files/block").write_bytes(b"c" * 4096),
    "one more": lambda top: (top / "files/more").touch(),
    "one less": lambda top: (top / "special/fifo too").unlink(),
    "mode": lambda top: (top / "files/empty").chmod(0o4644),
    "time by a nanosecond": lambda top: os.utime(top / "files", ns=(0, (top / "files").stat().st_mtime_ns + 1)),
    "time of a link": lambda top: os.utime(top / "links/absolute", ns=(0, 5), follow_symlinks=False),
    "group": lambda top: os.chown(top / "files/empty", -1, 77) if is_root() else (top / "files/empty").unlink(),
    "target": lambda top: ((top / "links/absolute").unlink(), (top / "links/absolute").symlink_to("elsewhere")),
    "hard link": lambda top: ((top / "links/two").unlink(), (top / "links/two").write_bytes(b"linked")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_of_trees_sees(tmp_path: Path, change: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for top in (one, two):
        top.mkdir()
        build_nasty_tree(top)
    assert_same_tree(one, two)
    above = {path: path.stat().st_mtime_ns for path in (two / "files", two / "links", two / "special")}
    CHANGES[change](two)
    for path, mtime_ns in above.items():
        if change != "time by a nanosecond":
            os.utime(path, ns=(mtime_ns, mtime_ns))
    with pytest.raises(AssertionError):
        assert_same_tree(one, two)
