"""The trees that are backed up: large incompressible files, text, many small files, and a changed second version.

Everything made is the same for the same sizes: random bytes come from seeded generators, text from the words and
habits of program sources. Real small files are taken from this machine's /usr where it has enough of them, because
nothing made up has their sizes, names, duplicates and links.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
REAL_PLACES = (Path("/usr/share"), Path("/usr/lib"))
SMALL_LIMIT_BYTES = 4 * MIB
PROSE = (
    "the of and to in is that for it as with are be by this not from or at which an if will can all one when the "
    "return value file buffer length offset error string index config number state read write open close result "
    "request version default option first next node table record message stream count data key name path size type"
)
WORDS = PROSE.split()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each tree."""

    large_files: int = 2
    large_file_bytes: int = 3072 * MIB
    text_bytes: int = 512 * MIB
    small_files: int = 66_000
    small_bytes: int = 1100 * MIB
    mixed_bytes: int = 1024 * MIB
    real: bool = True

    @classmethod
    def quick(cls) -> Sizes:
        """For smoke tests: every path, no meaning."""
        return cls(1, 3 * MIB, MIB, 60, MIB, 4 * MIB, real=False)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree on disk. `length_bytes` and `files` count regular files."""

    name: str
    root: Path
    length_bytes: int
    files: int

    @classmethod
    def at(cls, name: str, root: Path) -> Tree:
        sizes = [os.lstat(path).st_size for path in regular_files(root)]
        return cls(name, root, sum(sizes), len(sizes))


def make(name: str, place: Path, sizes: Sizes) -> Tree:
    """`large`, `text`, `small` or `mixed`, made below `place`, or found there from an earlier table of the same run."""
    root = place / name
    if not root.exists():
        root.mkdir(parents=True)
        makers = {"large": _make_large, "text": _make_text, "small": _make_small, "mixed": _make_mixed}
        makers[name](root, sizes)
    return Tree.at(name, root)


def make_changed(tree: Tree, root: Path, *, seed: int = 7) -> Tree:
    """A later version of a tree: in some files bytes were inserted, overwritten or appended; the rest is the same."""
    shutil.copytree(tree.root, root, symlinks=True)
    choose = random.Random(seed)
    for path in sorted(regular_files(root)):
        size_bytes = os.path.getsize(path)
        # Large files are changed more often, as those that grow are: logs, mailboxes, databases.
        if size_bytes and choose.random() < (0.5 if size_bytes > MIB else 0.05):
            _change(path, size_bytes, choose)
    return Tree.at(f"{tree.name} changed", root)


def regular_files(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def warm(root: Path) -> None:
    """Read everything below once, so that it lies in the page cache: one program leaves it there, another drops it."""
    room = memoryview(bytearray(MIB))
    for path in regular_files(root):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(room):
                pass


def text_of(length_bytes: int, seed: int) -> bytes:
    """Lines that compress about as program sources and prose do, three to four times."""
    choose = random.Random(seed)
    names = [f"{choose.choice(WORDS)}_{choose.choice(WORDS)}{choose.randrange(100)}" for _ in range(400)]
    lines, total_bytes = [], 0
    while total_bytes < length_bytes:
        words = choose.choices(WORDS, k=choose.randrange(3, 14)) + choose.choices(names, k=2)
        line = " " * choose.choice((0, 4, 8)) + " ".join(words) + f" = {choose.randrange(1 << 30):x};\n"
        lines.append(line)
        total_bytes += len(line)
    return "".join(lines).encode()[:length_bytes]


def _make_large(root: Path, sizes: Sizes) -> None:
    for number in range(sizes.large_files):
        choose = random.Random(1000 + number)
        with open(root / f"image-{number}.bin", "wb", buffering=0) as file:
            left_bytes = sizes.large_file_bytes
            while left_bytes:
                left_bytes -= file.write(choose.randbytes(min(left_bytes, 8 * MIB)))


def _make_text(root: Path, sizes: Sizes) -> None:
    """Files of 1 KiB to 16 MiB; each is put together from pages made once, shuffled, so that none repeats another."""
    choose = random.Random(2)
    pages = [text_of(4096, seed) for seed in range(4096 if sizes.text_bytes > 64 * MIB else 64)]
    left_bytes, number = sizes.text_bytes, 0
    while left_bytes > 0:
        length_bytes = min(left_bytes, int(1024 * 2 ** choose.uniform(0, 14)))
        folder = root / f"part-{number % 40:02}"
        folder.mkdir(exist_ok=True)
        (folder / f"notes-{number}.txt").write_bytes(_shuffled(pages, length_bytes, choose))
        left_bytes, number = left_bytes - length_bytes, number + 1


def _shuffled(pages: list[bytes], length_bytes: int, choose: random.Random) -> bytes:
    """Pieces of pages, cut anywhere."""
    pieces, total_bytes = [], 0
    while total_bytes < length_bytes:
        page, start = choose.choice(pages), choose.randrange(3000)
        pieces.append(page[start : start + choose.randrange(40, 1000)])
        total_bytes += len(pieces[-1])
    return b"".join(pieces)[:length_bytes]


def _make_small(root: Path, sizes: Sizes) -> None:
    left_files, left_bytes = sizes.small_files, sizes.small_bytes
    if sizes.real:
        left_files, left_bytes = _copy_real(root, left_files, left_bytes, range(SMALL_LIMIT_BYTES + 1))
    choose, number = random.Random(3), 0
    while left_files > 0 and left_bytes > 0:
        folder = root / "made" / f"{number % 300:03}"
        folder.mkdir(parents=True, exist_ok=True)
        length_bytes = min(left_bytes, int(2 ** choose.uniform(0, 17)))
        content = text_of(length_bytes, number) if number % 3 else choose.randbytes(length_bytes)
        (folder / f"{number}.dat").write_bytes(content)
        left_files, left_bytes, number = left_files - 1, left_bytes - length_bytes, number + 1


def _make_mixed(root: Path, sizes: Sizes) -> None:
    """Files larger than a chunk, where chunk sizes matter: this machine's, then made ones of text and noise."""
    left_bytes = sizes.mixed_bytes
    if sizes.real:
        _, left_bytes = _copy_real(root, 1 << 30, left_bytes, range(MIB, 1 << 30))
    choose, number = random.Random(8), 0
    while left_bytes > 0:
        length_bytes = min(left_bytes, int(MIB * 2 ** choose.uniform(0, 5)))
        content = choose.randbytes(length_bytes // 2) + text_of(length_bytes - length_bytes // 2, number)
        (root / f"made-{number}.dat").write_bytes(content)
        left_bytes, number = left_bytes - length_bytes, number + 1


def _copy_real(root: Path, left_files: int, left_bytes: int, lengths: range) -> tuple[int, int]:
    """Copy this machine's own files of these lengths, with their times, until there is enough; what is missing then."""
    for place in REAL_PLACES:
        for path in regular_files(place) if place.is_dir() else ():
            size_bytes = os.path.getsize(path)
            if size_bytes not in lengths or size_bytes > left_bytes or not os.access(path, os.R_OK):
                continue
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            left_files, left_bytes = left_files - 1, left_bytes - size_bytes
            if left_files <= 0:
                return 0, left_bytes
    return left_files, left_bytes


def _change(path: str, size_bytes: int, choose: random.Random) -> None:
    with open(path, "rb") as file:
        content = file.read()
    at = choose.randrange(size_bytes)
    new = choose.randbytes(choose.randrange(1, 200))
    match choose.randrange(3):
        case 0:
            content = content[:at] + new + content[at:]
        case 1:
            content = content[:at] + new + content[at + len(new) :]
        case _:
            content += new
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(content)
