"""Measuring: seconds, CPU seconds of a process with its children, peak memory of a process tree, medians."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_EVERY_S = 0.05
MADV_HUGEPAGE = 14
MIB = 1 << 20
ASIDE = "aside"
FEW_FILES = 2000
NORMAL_FILE_S = 0.0002
SETTLE_S = 330


class ProgramFailed(Exception):
    """A measured program did not end as it should; its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some repeats, with their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program. `cpu_s` and `peak_bytes` (PSS) include every process it started.

    `others_cpu_s` is what the rest of the machine was busy with meanwhile: other programs, and the kernel's threads.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    others_cpu_s: float


def seconds_of(action: Callable[[], object], *, least_s: float = 0.2, repeats: int = 3) -> float:
    """Median seconds of one call. Calls until `least_s` have passed, `repeats` times, after one call not counted."""
    action()
    samples = []
    for _ in range(repeats):
        calls, started_s = 0, time.perf_counter()
        while True:
            action()
            calls += 1
            took_s = time.perf_counter() - started_s
            if took_s >= least_s:
                break
        samples.append(took_s / calls)
    return statistics.median(samples)


def mapped(length_bytes: int) -> memoryview:
    """Page-aligned private memory, touched, so that no page fault is measured as something else."""
    memory = mmap.mmap(-1, max(length_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(MADV_HUGEPAGE)
    for at in range(0, length_bytes, mmap.PAGESIZE):
        memory[at] = 0
    return memoryview(memory)[:length_bytes]


def run_program(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path, good: Sequence[int] = (0,)
) -> tuple[Run, bytes]:
    """Run to its end; its standard output too. Raises ProgramFailed with the end of what it said."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_s, busy_s = time.perf_counter(), _busy_s()
        process = subprocess.Popen(words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        with peak_of(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s, busy_s = time.perf_counter() - started_s, _busy_s() - busy_s
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = out.read()
        if process.returncode not in good:
            complaint = (err.read() or said)[-1500:].decode("utf-8", "replace")
            raise ProgramFailed(f"{' '.join(words[:4])} ... ended with {process.returncode}:\n{complaint}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(wall_s, cpu_s, peak.peak_bytes, max(0.0, busy_s - cpu_s)), said


def told_noise(runs: Iterable[Run]) -> str:
    """For a table's notes: how far the machine was not ours alone."""
    some = list(runs)
    others_s, wall_s = sum(run.others_cpu_s for run in some), sum(run.wall_s for run in some)
    return f"noise: meanwhile others kept {others_s / wall_s:.2f} of {len(os.sched_getaffinity(0))} cores busy"


def _busy_s() -> float:
    """CPU seconds that all cores have been busy since boot."""
    user, nice, system, _idle, _iowait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    irq, softirq, steal = rest[:3]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


class Peak:
    """The largest sum seen of the proportional set sizes of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(map(pss_bytes, [self._pid, *descendants(self._pid)])))


@contextlib.contextmanager
def peak_of(pid: int) -> Iterator[Peak]:
    """Samples on a thread while the block runs. Sampling costs the measured program nothing but its page-table locks."""
    peak, stop = Peak(pid), threading.Event()

    def watch() -> None:
        peak.sample()
        while not stop.wait(SAMPLE_EVERY_S):
            peak.sample()

    thread = threading.Thread(target=watch, name="peak", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def descendants(pid: int) -> list[int]:
    """Children, and theirs, that live now."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:  # gone between two looks
        return found
    return found


def pss_bytes(pid: int) -> int:
    """Proportional set size: a page shared by n processes counts as an n-th in each. 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def passes(repeats: int) -> Iterator[bool]:
    """For each pass, whether it counts: all but a first one. With no repeats (a smoke test) the only pass counts."""
    yield repeats == 0
    for _ in range(repeats):
        yield True


def told_passes(repeats: int) -> str:
    """For a table's title."""
    return f"medians of {repeats} passes after one that is not counted" if repeats else "one pass: a smoke test"


def set_aside(folder: Path, work: Path, *, files: int) -> None:
    """Get rid of a folder: now if it holds few files, else at the end of the run, when `work` is cleaned.

    ext4 does not give an inode away for up to five minutes after its file was deleted, and looks at each such inode
    whenever a file is made: after the deletion of 60,000 files making one costs 0.75 ms instead of 0.04.
    """
    if files <= FEW_FILES:
        shutil.rmtree(folder, ignore_errors=True)
        return
    aside = work / ASIDE
    aside.mkdir(exist_ok=True)
    folder.rename(aside / uuid.uuid4().hex)


def settle(work: Path, *, files: int) -> float:
    """Wait until files can be made at their normal cost again, if many are to be made; the last cost seen, in seconds.

    Gives up when ext4 has surely forgotten what this run has deleted: others may be deleting all the time.
    """
    until_s = time.monotonic() + (SETTLE_S if files > FEW_FILES else 0)
    while True:
        cost_s = _file_cost_s(work / ASIDE / uuid.uuid4().hex)
        left_s = until_s - time.monotonic()
        if cost_s <= NORMAL_FILE_S or left_s <= 0:
            return cost_s
        time.sleep(min(left_s, 10))


def _file_cost_s(folder: Path) -> float:
    folder.mkdir(parents=True)
    started_s = time.perf_counter()
    for number in range(200):
        (folder / str(number)).touch()
    return (time.perf_counter() - started_s) / 200


def drop_writes() -> None:
    """Wait until what earlier runs wrote is on disk, so that its writing is not charged to the next one."""
    os.sync()
