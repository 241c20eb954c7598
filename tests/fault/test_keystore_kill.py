"""kill -9 at every change the keystore makes to the file system: one passphrase always opens it, and no key is lost.

A process of its own does each operation and kills itself instead of its k-th change, for every k. Writes through a file
object count too, and are torn: half of the bytes reach the file first.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enigma.errors import KeyringError, WrongPassphrase
from enigma.keys.kdf import KdfParams
from enigma.keys.local import LocalKeystore
from enigma.model.ids import RepositoryId

ROOT = Path(__file__).resolve().parents[2]
FAST = KdfParams(memory_kib=8192, passes=1, lanes=1)
OLD, NEW = b"my-secret", b"another secret"
ID = RepositoryId(bytes(range(16)))
CHANGES = ("open", "replace", "rename", "link", "unlink", "fsync", "fdatasync", "mkdir", "ftruncate")

DRIVER = """
import os, signal, sys
from pathlib import Path
import tests.fault.test_keystore_kill as here

at, seen = int(sys.argv[1]), 0

def die_if_due(tear=lambda: None):
    global seen
    seen += 1
    if seen == at:
        tear()
        os.kill(os.getpid(), signal.SIGKILL)

def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        if name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR):
            die_if_due()
        return real(*args, **kwargs)
    setattr(os, name, call)

class Torn:
    def __init__(self, file): self._file = file
    def __getattr__(self, name): return getattr(self._file, name)
    def __enter__(self): return self
    def __exit__(self, *exc_info): self._file.close()
    def write(self, data):
        die_if_due(lambda: (self._file.write(data[: len(data) // 2]), self._file.flush()))
        return self._file.write(data)

operation = here.prepare(sys.argv[2], Path(sys.argv[3]), split=sys.argv[4] == "split")
for name in here.CHANGES:
    counted(name)
real_fdopen = os.fdopen
os.fdopen = lambda *args, **kwargs: Torn(real_fdopen(*args, **kwargs))
operation()
"""


def key_file(folder: Path, split: bool) -> Path | None:
    return folder / "usb.mlkem" if split else None


def opened(folder: Path, split: bool, passphrase: bytes = OLD, name: str = "keys.enc") -> LocalKeystore:
    return LocalKeystore.open(folder / name, passphrase=passphrase, mlkem_key_path=key_file(folder, split))


def created(folder: Path, split: bool) -> LocalKeystore:
    return LocalKeystore.create(
        folder / "keys.enc", repository_id=ID, passphrase=OLD, mlkem_key_path=key_file(folder, split), kdf=FAST
    )


def provider_copies(folder: Path) -> dict[str, bytes]:
    return {f"keys/{file.name}": file.read_bytes() for file in (folder / "provider").iterdir()}


def recovered(folder: Path, split: bool) -> LocalKeystore:
    return LocalKeystore.recover(
        folder / "keys.enc", provider_copies(folder), passphrase=OLD, mlkem_key_path=key_file(folder, split)
    )


def prepare(name: str, folder: Path, *, split: bool) -> Any:
    """The operation to be killed; what comes before its first change is done here."""
    if name == "create":
        return lambda: created(folder, split)
    if name == "recover":
        return lambda: recovered(folder, split)
    keystore = opened(folder, split)
    if name == "rotate":
        return keystore.rotate
    if name == "add":
        return lambda: keystore.add_objects(provider_copies(folder))
    return lambda: keystore.change_passphrase(NEW, old=OLD, kdf=FAST)


def killed_at_each_step(name: str, tmp_path: Path, split: bool, made: bool = True) -> Iterator[tuple[Path, bool]]:
    """(folder, killed) for steps 1, 2, 3 ..., each from a keystore of two keys; the last one was not killed."""
    for step in range(1, 60):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        if made:
            seed(folder, split)
        words = [sys.executable, "-c", DRIVER, str(step), name, str(folder), "split" if split else "whole"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        yield folder, done.returncode != 0
        if done.returncode == 0:
            assert step > 5, "the operation was killed at hardly any step: does the driver still see its changes?"
            return
    raise AssertionError("never ran to its end")


def seed(folder: Path, split: bool) -> None:
    """A keystore of two keys, and at the provider a third one that another machine made."""
    with created(folder, split) as keystore:
        keystore.rotate()
        objects = keystore.objects()
    elsewhere = folder / "elsewhere"
    with LocalKeystore.recover(elsewhere, objects, passphrase=OLD, mlkem_key_path=key_file(folder, split)) as other:
        other.rotate()
        objects = other.objects()
    (folder / "provider").mkdir()
    for key, data in objects.items():
        (folder / "provider" / key.removeprefix("keys/")).write_bytes(data)


def keys_of(keystore: LocalKeystore) -> dict[bytes, bytes]:
    with keystore:
        return {key_id: keystore.data_key(key_id) for key_id in keystore.key_ids()}


def assert_old_copy_opens(folder: Path, split: bool) -> None:
    if (folder / "keys.enc.old").exists():
        assert keys_of(opened(folder, split, OLD, "keys.enc.old"))


def assert_private(folder: Path) -> None:
    for file in folder.iterdir():
        assert file.is_dir() or stat.S_IMODE(file.stat().st_mode) == 0o600, file


splits = pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])


@splits
def test_passphrase_change_killed_at_any_step_opens_with_exactly_one_of_the_two(tmp_path: Path, split: bool) -> None:
    outcomes = set()
    for folder, _ in killed_at_each_step("change", tmp_path, split):
        opening = []
        for passphrase in (OLD, NEW):
            try:
                opening.append((passphrase, keys_of(opened(folder, split, passphrase))))
            except WrongPassphrase:
                continue
        assert len(opening) == 1, folder
        [(passphrase, keys)] = opening
        assert len(keys) == 2
        outcomes.add(passphrase)
        assert_old_copy_opens(folder, split)
        assert_private(folder)
        if passphrase == OLD:  # what the killed run left is not in the way
            with opened(folder, split) as keystore:
                keystore.change_passphrase(NEW, old=OLD, kdf=FAST)
        assert keys_of(opened(folder, split, NEW)) == keys
    assert outcomes == {OLD, NEW}


@splits
def test_rotation_killed_at_any_step_keeps_every_key(tmp_path: Path, split: bool) -> None:
    counts = set()
    for folder, _ in killed_at_each_step("rotate", tmp_path, split):
        before = keys_of(opened(folder, split, name="elsewhere"))
        keys = keys_of(opened(folder, split))
        counts.add(len(keys))
        assert sum(keys.get(key_id) == key for key_id, key in before.items()) == 2  # the third was never here
        assert_old_copy_opens(folder, split)
        assert_private(folder)
        with opened(folder, split) as keystore:
            assert keystore.rotate() not in keys
    assert counts == {2, 3}


def test_taking_in_a_foreign_key_killed_at_any_step_loses_none_and_is_run_again(tmp_path: Path) -> None:
    for folder, _ in killed_at_each_step("add", tmp_path, False):
        assert len(keys_of(opened(folder, False))) in (2, 3)
        assert_old_copy_opens(folder, False)
        with opened(folder, False) as keystore:
            keystore.add_objects(provider_copies(folder))
        assert keys_of(opened(folder, False)) == keys_of(opened(folder, False, name="elsewhere"))


@splits
def test_recovery_over_an_existing_file_killed_at_any_step_leaves_it_opening(tmp_path: Path, split: bool) -> None:
    for folder, _ in killed_at_each_step("recover", tmp_path, split):
        assert len(keys_of(opened(folder, split))) in (2, 3)
        assert_old_copy_opens(folder, split)
        recovered(folder, split).close()
        assert keys_of(opened(folder, split)) == keys_of(opened(folder, split, name="elsewhere"))


@splits
def test_creation_killed_at_any_step_leaves_a_whole_keystore_or_none(tmp_path: Path, split: bool) -> None:
    for folder, killed in killed_at_each_step("create", tmp_path, split, made=False):
        if (folder / "keys.enc").exists():
            assert len(keys_of(opened(folder, split))) == 1
            continue
        assert killed
        if split and (folder / "usb.mlkem").exists():
            with pytest.raises(KeyringError, match="Move it away"):
                created(folder, split)
            (folder / "usb.mlkem").unlink()
        created(folder, split).close()
        assert len(keys_of(opened(folder, split))) == 1


def test_a_disk_that_stores_other_bytes_than_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is read back and opened before it replaces the one that is known to be good."""
    created(tmp_path, False).close()
    good = (tmp_path / "keys.enc").read_bytes()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        new = tmp_path / "keys.enc.new"
        if stat.S_ISREG(os.fstat(fd).st_mode):  # once: the folder is synced too, and a bit flipped twice is whole again
            data = bytearray(new.read_bytes())
            data[-40] ^= 1
            new.write_bytes(data)

    with opened(tmp_path, False) as keystore, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(KeyringError):
            keystore.rotate()
    assert (tmp_path / "keys.enc").read_bytes() == good
    assert len(keys_of(opened(tmp_path, False))) == 1
