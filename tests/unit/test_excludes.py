"""What a backup leaves out is what git would ignore, what is too large, and what calls itself a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.errors import UsageError
from enigma.model.entries import Kind
from enigma.snapshots.excludes import CACHEDIR_SIGNATURE, Excludes, parse_size
from enigma.snapshots.walk import walk


def rules(*patterns: str, file: Path | None = None, larger_than: str | None = None, caches: bool = False) -> Excludes:
    return Excludes.from_options(
        patterns=patterns, pattern_file=str(file) if file else None, larger_than=larger_than, caches=caches
    )


def make(root: Path, *names: str | bytes) -> None:
    """Files of one byte, and directories where the name ends with a slash."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not path.endswith(b"/"):
            with open(path, "wb") as file:
                file.write(b"x")


def kept(root: Path, excludes: Excludes) -> set[bytes]:
    """Paths of all but the root."""
    return {found.path for found in walk([os.fsencode(root)], excludes, on_error=never)} - {b""}


def never(path: bytes, error: OSError) -> None:
    raise AssertionError(path) from error


def keeps_file(excludes: Excludes, path: bytes) -> bool:
    return excludes.keeps(0, path, os.lstat("/dev/null"), Kind.FILE)


def test_without_rules_nothing_is_asked() -> None:
    assert rules().keeps_all
    assert rules("", "# a comment", "  ").keeps_all
    assert not rules("x").keeps_all
    assert not rules(larger_than="1").keeps_all


@pytest.mark.parametrize(
    ("patterns", "names", "wanted"),
    [
        (["*.tmp"], ["a.tmp", "b/c.tmp", "b/d"], {b"b", b"b/d"}),
        (["/a"], ["a", "b/a"], {b"b", b"b/a"}),
        (["a/"], ["a/x", "b/a"], {b"b", b"b/a"}),
        (["b/a"], ["b/a", "c/b/a"], {b"b", b"c", b"c/b", b"c/b/a"}),
        (["**/b/a"], ["b/a", "c/b/a"], {b"b", b"c", b"c/b"}),
        (["b/**"], ["b/a", "b/c/d"], {b"b"}),
        (["a/**/z"], ["a/z", "a/b/c/z", "z"], {b"a", b"a/b", b"a/b/c", b"z"}),
        (["*", "!*/", "!*.py"], ["a.py", "a.txt", "b/c/d.py", "b/e.txt"], {b"a.py", b"b", b"b/c", b"b/c/d.py"}),
        (["*.log", "!keep.log"], ["a.log", "keep.log", "b/keep.log"], {b"keep.log", b"b", b"b/keep.log"}),
        (["b", "!b/a"], ["b/a"], set()),  # what is below a directory that is left out can't be taken back in
        (["b", "!/a/"], ["a/b/c"], {b"a"}),  # ... and `!/a/` speaks of a, not of what is in it
        (["[a-c]x", "?y"], ["bx", "dx", "zy", "zzy"], {b"dx", b"zzy"}),
        (["\\!a", "\\#b"], ["!a", "#b", "a", "b"], {b"a", b"b"}),
    ],
)
def test_patterns_mean_what_they_mean_to_git(
    tmp_path: Path, patterns: list[str], names: list[str], wanted: set[bytes]
) -> None:
    make(tmp_path, *names)
    assert kept(tmp_path, rules(*patterns)) == wanted


NAMES = st.sampled_from(["a", "b", "ab", "a.b", "b\n", "a\nb", ".a"])
TREES = st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)
PIECES = st.sampled_from(["a", "b", "ab", "*", "?", "[ab]", "[!a]", "a*", "*b", ".*", "a.b", "**"])
PATTERNS = st.tuples(
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(PIECES, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "/"]),
).map("".join)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@settings(max_examples=60)
@given(TREES, st.lists(PATTERNS, min_size=1, max_size=5))
def test_files_kept_are_those_that_git_does_not_ignore(names: set[str], patterns: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "tree")
        root.mkdir()
        for name in names:
            if not any(name.startswith(other + "/") or other.startswith(name + "/") for other in names):
                make(root, name)
        files = {path for path in kept(root, rules(*patterns)) if os.path.isfile(os.fsencode(root) + b"/" + path)}
        assert files == not_ignored_by_git(root, patterns)


def not_ignored_by_git(root: Path, patterns: Iterable[str]) -> set[bytes]:
    git_dir, pattern_file = root.parent / "git", root.parent / "patterns"
    pattern_file.write_text("".join(pattern + "\n" for pattern in patterns), encoding="utf-8")
    subprocess.run(["git", "init", "-q", "--bare", git_dir], check=True)
    listing = ["ls-files", "--others", "-z", f"--exclude-from={pattern_file}"]
    done = subprocess.run(
        ["git", f"--git-dir={git_dir}", f"--work-tree={root}", *listing], cwd=root, check=True, capture_output=True
    )
    return set(done.stdout.split(b"\0")) - {b""}


def test_patterns_see_names_that_are_no_utf8_and_names_with_line_feeds() -> None:
    excludes = rules("*.tmp", "x/?.o")
    assert not keeps_file(excludes, b"\xff\xfe.tmp")
    assert not keeps_file(excludes, b"a\nb/c\n.tmp")
    assert not keeps_file(excludes, b"x/\xff.o")
    assert keeps_file(excludes, b"a.tmp\n")
    assert not keeps_file(rules("a\nb"), b"a\nb")
    assert not keeps_file(rules(os.fsdecode(b"\xff")), b"\xff")


def test_patterns_are_relative_to_the_source() -> None:
    excludes = rules("/a")
    level = excludes.top(b"home/ann")
    info = os.lstat("/dev/null")
    assert not excludes.keeps(level, b"home/ann/a", info, Kind.FILE)
    assert excludes.keeps(level, b"home/ann/b/a", info, Kind.FILE)


@pytest.mark.parametrize("pattern", ["a\\", "!", "[z-a]", "[[:alpha:]]x", "/", "[a"])
def test_a_bad_pattern_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules("fine", pattern)
    assert repr(pattern) in str(caught.value)


def test_an_exclude_file_is_read_as_git_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "patterns"
    file.write_bytes(b"\xef\xbb\xbfa\r\n# comment\n\n\xff\nc\x0cd\n!keep.o\n")
    excludes = rules("*.o", file=file)
    assert [keeps_file(excludes, name) for name in (b"a", b"\xff", b"c\x0cd", b"c", b"d", b"# comment")] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert not keeps_file(excludes, b"keep.o")  # the command line comes last


def test_an_exclude_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    for file in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match=str(file)):
            rules(file=file)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("500", 500),
        ("500K", 512_000),
        ("20m", 20 << 20),
        ("1.5G", 3 << 29),
        ("2TiB", 2 << 40),
        ("3kb", 3072),
        ("10B", 10),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1e3", "nan", "9" * 400, "\u0663", "1 2"])
def test_a_bad_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_only_files_are_too_large(tmp_path: Path) -> None:
    make(tmp_path, "small", "directory/")
    (tmp_path / "exact").write_bytes(bytes(1024))
    (tmp_path / "large").write_bytes(bytes(1025))
    (tmp_path / "link").symlink_to("y" * 2000)
    assert kept(tmp_path, rules(larger_than="1K")) == {b"small", b"directory", b"exact", b"link"}


def test_a_cache_keeps_only_its_mark(tmp_path: Path) -> None:
    make(tmp_path, "cache/a", "cache/b/c", "other/a", "false/a")
    (tmp_path / "cache/CACHEDIR.TAG").write_bytes(CACHEDIR_SIGNATURE + b"\n# more")
    (tmp_path / "false/CACHEDIR.TAG").write_bytes(CACHEDIR_SIGNATURE[:-1])
    real = {b"other", b"other/a", b"false", b"false/a", b"false/CACHEDIR.TAG", b"cache", b"cache/CACHEDIR.TAG"}
    assert kept(tmp_path, rules(caches=True)) == real
    assert kept(tmp_path, rules()) == real | {b"cache/a", b"cache/b", b"cache/b/c"}


def test_a_mark_that_is_a_fifo_or_a_link_stops_nothing(tmp_path: Path) -> None:
    make(tmp_path, "fifo/a", "link/a")
    os.mkfifo(tmp_path / "fifo/CACHEDIR.TAG")
    tag = tmp_path / "tag"
    tag.write_bytes(CACHEDIR_SIGNATURE)
    (tmp_path / "link/CACHEDIR.TAG").symlink_to(tag)
    assert {b"fifo/a", b"link/a"} <= kept(tmp_path, rules(caches=True))
