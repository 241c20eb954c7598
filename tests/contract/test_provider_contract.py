"""One suite for every provider and every wrapper: the promises of enigma/providers/base.py."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import shutil
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
from enigma.providers import local
from enigma.providers.base import Provider, fetch
from enigma.providers.fault import FaultProvider
from enigma.providers.local import STALE_AFTER_S, LocalProvider
from enigma.providers.memory import MemoryProvider
from enigma.providers.meter import MeterProvider
from enigma.providers.retry import RetryProvider

KEY = "packs/backup/ab/" + "ab" * 16


Wrap = Callable[[Provider], Provider]

BARE = ["memory", "local", "tmpfs"]
WRAPPERS: dict[str, Wrap] = {
    "retry": RetryProvider,
    "meter": MeterProvider,
    "fault": FaultProvider,
    "all": lambda inner: MeterProvider(RetryProvider(FaultProvider(inner))),
}
KINDS = BARE + [f"{wrapper} around {inner}" for wrapper in WRAPPERS for inner in ("memory", "local")]


@pytest.fixture(params=KINDS)
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provider]:
    wrapper, _, inner = request.param.rpartition(" around ")
    wrap: Wrap = WRAPPERS[wrapper] if wrapper else lambda bare: bare
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(shm_folder()) if inner == "tmpfs" else tmp_path
        bare = MemoryProvider(inner) if inner == "memory" else LocalProvider(inner, folder)
        yield undo.enter_context(wrap(bare))


@contextlib.contextmanager
def shm_folder() -> Iterator[Path]:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this machine has no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def put(provider: Provider, key: str, data: bytes, **options: bool) -> None:
    provider.put(key, memoryview(data), **options)


def keys(provider: Provider, prefix: str = "") -> list[str]:
    return sorted(info.key for info in provider.list(prefix))


def mapped(length_bytes: int, seed: int = 1) -> memoryview:
    """Page-aligned memory with random bytes, as a slot of the engine's ring is."""
    memory = mmap.mmap(-1, max(length_bytes, 1))
    memory[:length_bytes] = random.Random(seed).randbytes(length_bytes)
    return memoryview(memory)[:length_bytes]


def mapped_zeros(length_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, length_bytes))[:length_bytes]


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


@pytest.fixture(scope="module")
def large() -> memoryview:
    return mapped((40 << 20) + 12_345)


@pytest.mark.parametrize("start", [0, 1])
def test_a_pack_of_any_length_comes_back(provider: Provider, large: memoryview, start: int) -> None:
    provider.put(KEY, large[start:])
    into = mapped_zeros(len(large) - start)
    assert provider.head(KEY).length_bytes == len(large) - start
    assert provider.get(KEY, into) == len(large) - start
    assert into == large[start:]
    assert provider.get(KEY, into[: 3 << 20], offset=4097) == 3 << 20
    assert into[: 3 << 20] == large[start + 4097 :][: 3 << 20]


def test_put_leaves_the_memory_behind_its_data_alone(provider: Provider) -> None:
    """The last block is padded on its way to the disk, and what lies there belongs to the caller."""
    memory = mapped(2 << 20)
    before = bytes(memory)
    provider.put(KEY, memory[: (1 << 20) + 100])
    assert bytes(memory) == before
    assert fetch(provider, KEY) == before[: (1 << 20) + 100]


def test_read_only_memory_may_be_put(provider: Provider) -> None:
    data = mapped(2 << 20)
    provider.put(KEY, data.toreadonly())
    assert fetch(provider, KEY) == bytes(data)


def test_a_failed_call_keeps_no_memory_either(provider: Provider) -> None:
    memory = mmap.mmap(-1, 2 << 20)
    put(provider, KEY, b"held")
    held: list[Exception] = []
    for call in (
        lambda view: provider.put(KEY, view, if_absent=True),
        lambda view: provider.get("a/missing", view),
        lambda view: provider.get(KEY, view, offset=-1),
    ):
        with memoryview(memory) as view, pytest.raises(ProviderError) as caught:
            call(view)
        held.append(caught.value)
    memory.close()
    assert [type(error) for error in held] == [ObjectExists, ObjectMissing, ProviderError]


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
    for offset, length in [(0, 10), (5000, 100), (9990, 50), (9999, 1), (10_000, 5), (1 << 64, 5), (0, 0)]:
        into = bytearray(length)
        count = provider.get(KEY, memoryview(into), offset=offset)
        assert bytes(into[:count]) == data[offset : offset + length]
    with pytest.raises(ProviderError):
        provider.get(KEY, memoryview(bytearray(1)), offset=-1)


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


def test_a_listing_shows_no_unfinished_put(provider: Provider, large: memoryview) -> None:
    names = [f"packs/backup/{number:02x}/{number}" for number in range(4)]
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for name in names:
                provider.put(name, large[: 9 << 20])
        except BaseException as exc:  # noqa: BLE001
            errors.append(exc)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        for info in provider.list(""):
            assert info.length_bytes == 9 << 20
            assert info.key in names
    writer.join()
    assert errors == []
    assert keys(provider) == names


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


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        ".",
        "a/.",
        "a\0b",
        "a\nb",
        "a b",
        "ä",
        "\udc80",
        ".a",
        "tmp/a",
        "a" * 5000,
    ],
)
def test_strange_keys_are_refused(provider: Provider, key: str) -> None:
    with pytest.raises(ProviderError):
        put(provider, key, b"x")
    for refused in (provider.head, provider.delete, lambda name: provider.get(name, memoryview(bytearray(1)))):
        with pytest.raises(ProviderError):
            refused(key)
    assert keys(provider) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", "ä", "tmp/", "a\0"])
def test_prefixes_that_begin_no_key_are_refused(provider: Provider, prefix: str) -> None:
    with pytest.raises(ProviderError):
        keys(provider, prefix)


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
    whole = b"z" * (3 << 20)
    unfinished = tmp_path / "tmp"
    in_the_middle = 0
    for turn in range(60):
        if turn >= 8 and in_the_middle >= 2:
            break
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(turn)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (any(tmp_path.glob(f"k/{turn}-*")) and any(unfinished.glob("*"))):
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with LocalProvider("x", tmp_path) as provider:
            assert keys(provider, f"k/{turn}-")
            for key in keys(provider, f"k/{turn}-"):
                assert fetch(provider, key) == whole
        for left in unfinished.iterdir():
            in_the_middle += 1
            left.unlink()
    assert in_the_middle, "no kill came in the middle of a put"


@pytest.mark.parametrize("if_absent", [False, True])
def test_what_put_and_delete_reported_survives_a_power_cut(tmp_path: Path, large: memoryview, if_absent: bool) -> None:
    """A disk as it is the moment the calls return, mounted anew: what had not reached it is gone."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("making a disk needs mkfs.ext4")
    image, copy, disk = tmp_path / "image", tmp_path / "copy", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    disk.mkdir()
    with mounted(disk, "loop", image), LocalProvider("disk", disk) as provider:
        put(provider, "config/gone", b"x")
    with mounted(disk, "loop,commit=600", image), LocalProvider("disk", disk) as provider:
        provider.delete("config/gone")
        shutil.copyfile(image, copy)
    with mounted(disk, "loop", copy), LocalProvider("disk", disk) as provider:
        assert keys(provider) == []
    for key, data in (("config/small", large[:100]), ("packs/backup/00/large", large[: (5 << 20) + 77])):
        with mounted(disk, "loop,commit=600", image), LocalProvider("disk", disk) as provider:
            provider.put(key, data, if_absent=if_absent)
            shutil.copyfile(image, copy)
        with mounted(disk, "loop", copy), LocalProvider("disk", disk) as provider:
            assert fetch(provider, key) == data


def test_large_aligned_data_goes_past_the_page_cache(tmp_path: Path) -> None:
    def is_cached(path: Path) -> bool:
        with path.open("rb", buffering=0) as file:
            try:
                return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
            except BlockingIOError:
                return False

    data = mapped((4 << 20) + 5)
    provider = LocalProvider("local", tmp_path)
    provider.put("aligned", data)
    provider.put("unaligned", data[1:])
    if not is_cached(tmp_path / "unaligned"):
        pytest.skip("this file system does not say what is cached")
    fd = os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    os.pwrite(fd, data[:4096], 0)
    os.close(fd)
    if is_cached(tmp_path / "probe"):
        pytest.skip("this file system has no O_DIRECT, or caches what it writes")
    assert not is_cached(tmp_path / "aligned")


def test_a_file_system_without_o_direct_is_written_through_the_cache(tmp_path: Path) -> None:
    data = mapped((4 << 20) + 5)
    with mounted(tmp_path, "rw", kind="ramfs"):
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
            provider = LocalProvider("ram", folder)
            provider.put("first", data)
            provider.put("second", data)
            assert fetch(provider, "first") == fetch(provider, "second") == bytes(data)


def test_a_write_that_o_direct_refuses_goes_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself refuses here: with blocks taken to be one byte, unaligned memory is handed to O_DIRECT."""
    monkeypatch.setattr(local, "DIRECT_BLOCK_BYTES", 1)
    data = mapped((4 << 20) + 5)[1:]
    provider = LocalProvider("local", tmp_path)
    provider.put("first", data)
    provider.put("second", data)
    assert fetch(provider, "first") == fetch(provider, "second") == bytes(data)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=1m", kind="tmpfs"):
        provider = LocalProvider("small", tmp_path)
        put(provider, "fits", b"x" * 1000)
        for start in (0, 1):
            memory = mmap.mmap(-1, 4 << 20)
            with memoryview(memory) as view, view[start:] as data, pytest.raises(ProviderFull) as caught:
                provider.put("large", data)
            memory.close()  # refused while anything, the error included, still holds a piece of it
            assert "free some" in str(caught.value)
            assert keys(provider) == ["fits"]
            assert list((tmp_path / "tmp").iterdir()) == []


def test_a_put_cut_short_by_a_limit_leaves_nothing(tmp_path: Path) -> None:
    """Any failure after some bytes were written: here the kernel writes 2 MiB of 4, then refuses."""
    program = (
        "import mmap, resource, sys; from pathlib import Path\n"
        "from enigma.errors import ProviderError; from enigma.providers.local import LocalProvider\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))\n"
        "try: LocalProvider('x', Path(sys.argv[1])).put('k', memoryview(mmap.mmap(-1, 4 << 20)))\n"
        "except ProviderError as exc: print(type(exc).__name__)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path.cwd(), check=True
    )
    assert child.stdout == "ProviderError\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_a_read_only_folder_is_access_denied(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=1m", kind="tmpfs"):
        provider = LocalProvider("small", tmp_path)
        put(provider, "before", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(AccessDenied):
            put(provider, "after", b"x")
        with pytest.raises(AccessDenied):
            provider.delete("before")
        with LocalProvider("again", tmp_path) as again:
            assert fetch(again, "before") == b"x"


def test_the_loser_of_a_conditional_put_leaves_nothing(tmp_path: Path) -> None:
    provider = LocalProvider("local", tmp_path)
    put(provider, KEY, b"first", if_absent=True)
    with pytest.raises(ObjectExists):
        put(provider, KEY, b"second", if_absent=True)
    assert fetch(provider, KEY) == b"first"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert (tmp_path / KEY).stat().st_nlink == 1


def test_nobody_else_may_look_into_objects_and_folders(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    provider = LocalProvider("local", root)
    provider.make_root()
    put(provider, KEY, b"x")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
    assert (root / KEY).stat().st_mode & 0o777 == 0o600


def test_a_root_that_is_a_file_is_refused_when_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ProviderError):
            LocalProvider("local", root).make_root()


def test_what_killed_processes_left_is_removed_when_a_day_old(tmp_path: Path) -> None:
    put(LocalProvider("local", tmp_path), "a/1", b"x")
    old, fresh, foreign = (tmp_path / "tmp" / name for name in ("0" * 32, "1" * 32, "not ours"))
    for path in (old, fresh, foreign):
        path.write_bytes(b"half")
    a_day_ago_s = fresh.stat().st_mtime - STALE_AFTER_S
    os.utime(old, (a_day_ago_s - 60, a_day_ago_s - 60))
    os.utime(fresh, (a_day_ago_s + 60, a_day_ago_s + 60))
    os.utime(foreign, (0, 0))
    LocalProvider("local", tmp_path)
    assert sorted((tmp_path / "tmp").iterdir()) == [fresh, foreign]


def test_folders_removed_behind_its_back_are_made_again(tmp_path: Path) -> None:
    provider = LocalProvider("local", tmp_path)
    put(provider, "a/b/1", b"x")
    for folder in ("a", "tmp"):
        shutil.rmtree(tmp_path / folder)
    put(provider, "a/b/2", b"y")
    assert fetch(provider, "a/b/2") == b"y"


def test_a_listing_reads_only_the_folders_under_its_prefix(tmp_path: Path, scans: Scans) -> None:
    provider = LocalProvider("local", tmp_path)
    for key in ("packs/backup/00/1", "packs/backup/01/1", "packs/catalog/00/1", "index/backup/1"):
        put(provider, key, b"x")

    def folders_read(prefix: str) -> list[str]:
        with scans as paths:
            keys(provider, prefix)
        return sorted(os.path.relpath(path, tmp_path) for path in paths)

    assert folders_read("packs/backup/") == ["packs/backup", "packs/backup/00", "packs/backup/01"]
    assert folders_read("packs/backup/00") == ["packs/backup", "packs/backup/00"]
    assert folders_read("i") == [".", "index", "index/backup"]


def test_a_folder_that_is_away_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    provider = LocalProvider("usb", tmp_path / "not mounted")
    with pytest.raises(ProviderUnavailable, match="not mounted"):
        list(provider.list(""))
    with pytest.raises(ProviderUnavailable):
        put(provider, KEY, b"x")


def test_foreign_files_are_no_objects(tmp_path: Path) -> None:
    provider = LocalProvider("local", tmp_path)
    put(provider, "a/1", b"x")
    (tmp_path / "a" / "grüße").write_bytes(b"not ours")
    (tmp_path / "a" / ".nfs0001").write_bytes(b"not ours")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "1").write_bytes(b"not ours")
    (tmp_path / "a" / "link").symlink_to("1")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "a" / "pipe")
    assert keys(provider) == ["a/1"]
    for key in ("a", "a/link", "a/pipe", "a/1/below"):
        with pytest.raises(ObjectMissing):
            provider.head(key)
        with pytest.raises(ObjectMissing):
            provider.get(key, memoryview(bytearray(1)))


class Scans:
    """The folders read while it is entered, by the interpreter's audit trail, which can be joined but never left."""

    def __init__(self) -> None:
        self._paths: list[str] | None = None
        sys.addaudithook(self._note)

    def __enter__(self) -> list[str]:
        self._paths = []
        return self._paths

    def __exit__(self, *exc_info: object) -> None:
        self._paths = None

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.scandir" and self._paths is not None:
            self._paths.append(str(arguments[0]))


@pytest.fixture(scope="module")
def scans() -> Scans:
    return Scans()


@contextlib.contextmanager
def mounted(folder: Path, options: str, source: str | Path = "none", *, kind: str = "auto") -> Iterator[None]:
    """A file system over `folder`; skips where mounting is not allowed."""
    command = ["mount", "-t", kind, "-o", options, str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this file system can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
