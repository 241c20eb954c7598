"""Write the stored repository of the present format version that every later version must go on reading.

Usage: python -m tests.golden.make [--force]

The directory tests/golden/v<version>/ gets `store/` (what a provider holds) and `expected.json` (what must come out).
An existing version is written again only with --force, and only before it was ever released.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import xxhash

from enigma.repository.catalog import LEAF_MASK
from workers.objects import FORMAT_VERSION

PASSPHRASE = "golden passphrase"
FIRST_PASSPHRASE = "the passphrase before it"
LEAF_ENDS = 3  # names that end a leaf of the catalog, so that there is a node above
HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    folder = HERE / f"v{FORMAT_VERSION}"
    if folder.exists() and "--force" not in arguments:
        sys.stderr.write(f"{folder} exists already; a released version is never written again.\n")
        return 1
    with tempfile.TemporaryDirectory() as work:
        expected = make(Path(work))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(work) / "store", folder / "store", ignore=shutil.ignore_patterns("tmp"))
        (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{folder} written\n")
    return 0


def make(work: Path) -> list[dict[str, object]]:
    """Two snapshots, compressed and raw, packs of both sets, nodes and leaves, a rotated key, a buried slot."""
    tree = work / "tree"
    fill(tree)
    config = work / "config"
    config.mkdir()
    (config / "enigma.toml").write_text(
        f'[enigma]\n[enigma.chunk_strategy.Cdc]\ntarget_size = 65536\n[[providers]]\nname = "local"\ntype = "Local"\n'
        f'bucket = "{work / "store"}"\n'
    )
    run(config, "init", passphrase=FIRST_PASSPHRASE)
    run(config, "backup", str(tree), "--tag", "first", passphrase=FIRST_PASSPHRASE)
    run(config, "key", "rotate", passphrase=FIRST_PASSPHRASE)
    (work / "passphrase").write_text(PASSPHRASE)
    run(config, "key", "passphrase", f"--new-passphrase-file={work / 'passphrase'}", passphrase=FIRST_PASSPHRASE)
    (tree / "text").write_text("a second version\n" * 500)
    (tree / "new").write_bytes(random.Random(9).randbytes(1000))
    run(config, "backup", str(tree), "--tag", "second")
    snapshots = [json.loads(line) for line in run(config, "list", "--json").splitlines()]
    (work / "first").mkdir()
    run(config, "restore", snapshots[0]["id"], str(work / "first"))
    return [
        {"id": snapshots[0]["id"], "entries": listing(work / "first")},
        {"id": snapshots[1]["id"], "entries": listing(tree)},
    ]


def fill(tree: Path) -> None:
    """A small tree with each kind of thing that needs no privilege."""
    source = random.Random(1)
    (tree / "dir" / "empty").mkdir(parents=True)
    (tree / "text").write_text("the same line again\n" * 2000)
    (tree / "random").write_bytes(source.randbytes(90_000))
    (tree / "zero").write_bytes(b"")
    with (tree / "sparse").open("wb") as file:
        file.truncate(300_000)
        file.seek(200_000)
        file.write(b"data")
    os.link(tree / "text", tree / "dir" / "same text")
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    Path(os.fsdecode(os.fsencode(tree) + b"/not utf-8 \xff")).write_bytes(b"name")
    (tree / "line\nbreak").write_bytes(b"name")
    (tree / "dir" / "private").write_bytes(b"private")
    (tree / "dir" / "private").chmod(0o4750)
    for name in leaf_ends():
        (tree / name).write_text(name)
    with contextlib.suppress(OSError):  # a file system may have none
        os.setxattr(tree / "text", "user.comment", b"\0\xff")
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789), follow_symlinks=False)


def leaf_ends() -> list[str]:
    """The first names by which a leaf of the catalog ends."""
    names = (f"end {number}" for number in itertools.count())
    return list(
        itertools.islice(
            (name for name in names if xxhash.xxh3_64_intdigest(name.encode()) & LEAF_MASK == 0), LEAF_ENDS
        )
    )


def listing(root: Path) -> list[dict[str, object]]:
    """What must come out: path, mode, size, time, attributes, and a hash of content or target."""
    return [described(path, root) for path in sorted(root.rglob("*"), key=os.fsencode)]


def described(path: Path, root: Path) -> dict[str, object]:
    info = path.lstat()
    found: dict[str, object] = {"path": os.fsencode(path.relative_to(root)).hex(), "mode": info.st_mode}
    if path.is_symlink():
        found["link"] = str(path.readlink())
    elif path.is_file():
        found |= {"size": info.st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        found["mtime_ns"] = info.st_mtime_ns
        found["links"] = info.st_nlink
        found["xattrs"] = {name: os.getxattr(path, name).hex() for name in xattrs_of(path)}
    return found


def xattrs_of(path: Path) -> list[str]:
    """User attributes; none where the file system has none."""
    try:
        return sorted(name for name in os.listxattr(path) if name.startswith("user."))
    except OSError:
        return []


def run(config: Path, *arguments: str, passphrase: str = PASSPHRASE) -> str:
    """What the program prints. Raises RuntimeError unless it ends with 0."""
    done = subprocess.run(
        [sys.executable, "-m", "enigma", "--config-dir", str(config), *arguments],
        env={**os.environ, "ENIGMA_PASSPHRASE": passphrase},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"enigma {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
