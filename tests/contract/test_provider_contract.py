"""One suite for every provider and every wrapper: the promises of enigma/providers/base.py."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enigma.errors import AccessDenied, ObjectExists, ObjectMissing, ProviderError, ProviderFull, ProviderUnavailable
from enigma.providers.base import Provider, fetch
from enigma.providers.fault import FaultProvider
from enigma.providers.local import LocalProvider
from enigma.providers.memory import MemoryProvider
from enigma.providers.meter import MeterProvider
from enigma.providers.retry import RetryProvider

KEY = "packs/backup/ab/" + "ab" * 16


def shm_folder() -> Iterator[Path]:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this machine has no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


KINDS = ["memory", "local", "tmpfs", "retry", "meter", "fault", "all wrappers"]


@pytest.fixture(params=KINDS)
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provider]:
    local = lambda: LocalProvider("local", tmp_path)  # noqa: E731
    made: dict[str, Callable[[], Provider]] = {
        "memory": lambda: MemoryProvider("memory"),
        "local": local,
        "retry": lambda: RetryProvider(local()),
        "meter": lambda: MeterProvider(local()),
        "fault": lambda: FaultProvider(local()),
        "all wrappers": lambda: MeterProvider(RetryProvider(FaultProvider(MemoryProvider("memory")))),
    }
    if request.param == "tmpfs":
        for folder in shm_folder():
            with LocalProvider("tmpfs", folder) as one:
                yield one
        return
    with made[request.param]() as one:
        yield one


def put(provider: Provider, key: str, data: bytes, **options: bool) -> None:
    provider.put(key, memoryview(data), **options)


def keys(provider: Provider, prefix: str = "") -> list[str]:
    return sorted(info.key for info in provider.list(prefix))


def mapped(length_bytes: int, seed: int = 1) -> memoryview:
    """Page-aligned memory with random bytes, as a slot of the engine's ring is."""
    memory = mmap.mmap(-1, max(length_bytes, 1))
    memory[:length_bytes] = random.Random(seed).randbytes(length_bytes)
    return memoryview(memory)[:length_bytes]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, (5 << 20) - 3, 9 << 20])
def test_what_was_put_is_got(provider: Provider, length: int) -> None:
    data = mapped(length, seed=length)
    provider.put(KEY, data)
    assert provider.head(KEY).length_bytes == length
    assert fetch(provider, KEY) == bytes(data)


@pytest.mark.parametrize("start", [1, 8, 513, 4096, 5000])
def test_any_view_may_be_put(provider: Provider, start: int) -> None:
    data = mapped(3 << 20)[start:-7]
    provider.put(KEY, data)
    assert fetch(provider, KEY) == bytes(data)


def test_put_reads_its_memory_only_during_the_call(provider: Provider) -> None:
    memory = mmap.mmap(-1, 2 << 20)
    memory[:] = b"x" * len(memory)
    view = memoryview(memory)
    provider.put(KEY, view)
    view[:] = b"y" * len(view)
    view.release()
    memory.close()
    assert set(fetch(provider, KEY)) == {ord("x")}


def test_ranges_are_exact_and_end_with_the_object(provider: Provider) -> None:
    data = random.Random(3).randbytes(10_000)
    put(provider, KEY, data)
    for offset, length in [(0, 10), (5000, 100), (9990, 50), (9999, 1), (10_000, 5), (99_999, 5), (0, 0)]:
        into = bytearray(length)
        count = provider.get(KEY, memoryview(into), offset=offset)
        assert bytes(into[:count]) == data[offset : offset + length]


def test_what_is_missing_is_said_to_be_missing(provider: Provider) -> None:
    with pytest.raises(ObjectMissing):
        provider.head(KEY)
    with pytest.raises(ObjectMissing):
        provider.get(KEY, memoryview(bytearray(3)))
    provider.delete(KEY)


def test_delete_removes_and_may_be_repeated(provider: Provider) -> None:
    put(provider, KEY, b"x")
    provider.delete(KEY)
    provider.delete(KEY)
    assert keys(provider) == []


def test_listing_is_by_prefix_and_complete(provider: Provider) -> None:
    names = ["a/1", "a/2", "ab/1", "b/c/d/e"]
    for name in names:
        put(provider, name, name.encode())
    assert keys(provider) == sorted(names)
    assert keys(provider, "a/") == ["a/1", "a/2"]
    assert keys(provider, "a") == ["a/1", "a/2", "ab/1"]
    assert keys(provider, "b/c") == ["b/c/d/e"]
    assert keys(provider, "nothing/") == []
    assert {info.length_bytes for info in provider.list("a/")} == {3}


def test_list_after_put_and_times_by_one_clock(provider: Provider) -> None:
    put(provider, "a/1", b"x")
    first = provider.head("a/1").modified_s
    put(provider, "a/2", b"x")
    assert provider.head("a/2").modified_s >= first
    assert keys(provider, "a/") == ["a/1", "a/2"]


def test_the_same_bytes_may_be_put_twice(provider: Provider) -> None:
    put(provider, KEY, b"same")
    put(provider, KEY, b"same")
    assert fetch(provider, KEY) == b"same"


def test_of_many_writers_if_absent_exactly_one_wins(provider: Provider) -> None:
    outcomes: list[int] = []
    barrier = threading.Barrier(16)

    def write(number: int) -> None:
        barrier.wait()
        try:
            put(provider, KEY, b"%d" % number, if_absent=True)
            outcomes.append(number)
        except ObjectExists:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert fetch(provider, KEY) == b"%d" % outcomes[0]


def test_all_verbs_at_once_from_many_threads(provider: Provider) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                key = f"t/{number}/{turn}"
                data = random.Random(number * turn).randbytes(2000 + turn)
                put(provider, key, data)
                assert fetch(provider, key) == data
                assert key in keys(provider, f"t/{number}/")
                if turn % 2:
                    provider.delete(key)
        except BaseException as exc:  # noqa: BLE001
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(keys(provider, "t/")) == 80


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\0b", "ä", "a" * 5000])
def test_strange_keys_are_refused(provider: Provider, key: str) -> None:
    with pytest.raises((ProviderError, ValueError)):
        put(provider, key, b"x")
    assert keys(provider) == []


def test_closing_twice_is_harmless(provider: Provider) -> None:
    provider.close()
    provider.close()


# ---- what only a folder can show


def test_a_killed_put_leaves_nothing_visible(tmp_path: Path) -> None:
    """A real process is killed in the middle of putting, again and again; what is listed is always whole."""
    program = (
        "import sys; from pathlib import Path; from enigma.providers.local import LocalProvider\n"
        "p = LocalProvider('x', Path(sys.argv[1])); data = memoryview(bytearray(b'z' * (3 << 20)))\n"
        "print('ready', flush=True)\n"
        "for n in range(10**6): p.put(f'k/{sys.argv[2]}-{n}', data)\n"
    )
    seen = 0
    for turn in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(turn)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 10
        while not any(tmp_path.glob(f"k/{turn}-*")) and time.monotonic() < deadline:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with LocalProvider("x", tmp_path) as provider:
            for info in provider.list("k/"):
                assert info.length_bytes == 3 << 20
                seen += 1
    assert seen >= 8


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with small_file_system(tmp_path, "size=1m"):
        provider = LocalProvider("small", tmp_path)
        put(provider, "fits", b"x" * 1000)
        with pytest.raises(ProviderFull):
            provider.put("large", mapped(4 << 20))
        assert keys(provider) == ["fits"]
        assert list((tmp_path / "tmp").iterdir()) == []


def test_a_read_only_folder_is_access_denied(tmp_path: Path) -> None:
    with small_file_system(tmp_path, "size=1m"):
        provider = LocalProvider("small", tmp_path)
        put(provider, "before", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(AccessDenied):
            put(provider, "after", b"x")
        assert fetch(provider, "before") == b"x"


def test_a_folder_that_is_away_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    provider = LocalProvider("usb", tmp_path / "not mounted")
    with pytest.raises(ProviderUnavailable, match="not mounted"):
        list(provider.list(""))
    with pytest.raises(ProviderUnavailable):
        put(provider, KEY, b"x")


def test_foreign_files_are_not_listed_as_unfinished_or_broken_keys(tmp_path: Path) -> None:
    provider = LocalProvider("local", tmp_path)
    put(provider, "a/1", b"x")
    (tmp_path / "a" / "grüße").write_bytes(b"not ours")
    assert "a/1" in keys(provider)


class small_file_system:  # noqa: N801  a with-block, read as one
    """A tmpfs mounted over a folder; skips where mounting is not allowed."""

    def __init__(self, folder: Path, options: str) -> None:
        self._folder = folder
        self._options = options

    def __enter__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        target = os.fsencode(self._folder)
        if libc.mount(b"none", target, b"tmpfs", 0, self._options.encode()) != 0:
            pytest.skip(f"mounting a tmpfs is not allowed here: {os.strerror(ctypes.get_errno())}")

    def __exit__(self, *exc_info: object) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)
