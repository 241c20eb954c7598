"""Worker processes: how they start, how they are spoken to, how their death is noticed, how they end.

A worker is a fresh interpreter with two inherited descriptors, its end of a packet socket pair and the ring. The plan
with the keys is the first packet on the socket: keys appear neither in argv nor in the environment. Workers live in a
process group of their own, so Ctrl-C on a terminal reaches only the parent, which then ends them in order.

The kernel closes a dead worker's end of its socket, so death is an event on the same selector as every answer:
noticed at once, reported with the exit code, never a hang.

Shutdown, in this order:
1. close every socket: an idle worker reads the end and exits, a busy one exits at its next word
2. wait for each a short while, then kill it: what it holds was never reported as stored
3. reap it, so that no process is left behind
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from workers.errors import StageFailed, WorkerDied
from workers.labour import Labour
from workers.messages import MESSAGE_LIMIT_BYTES, Failed, decode, encode
from workers.plan import EnginePlan
from workers.ring import Ring
from workers.sealer import Depot

EXIT_WAIT_S = 2.0
INHERITED_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR", "HOME")
# Freed memory stays with the process: giving it back and faulting it in again costs more than the compression itself.
MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",
}


class Crew(Protocol):
    """Whoever does the jobs: worker processes, or the parent itself."""

    size: int

    def send(self, worker: int, message: Any) -> None:
        """Never blocks."""

    def receive(self, timeout_s: float | None) -> Iterator[tuple[int, Any]]:
        """(worker, message) of what has arrived; waits at most `timeout_s` (None: until something happens)."""

    def wake(self) -> None:
        """End a `receive` that waits. May be called from any thread."""

    def close(self) -> None: ...


class _Link:
    """One worker as the parent sees it: its process, its socket, and what could not be sent yet."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        self.process = process
        self.socket = link
        self.outbox: deque[bytes] = deque()

    def push(self) -> None:
        """Send what the socket takes now."""
        while self.outbox:
            try:
                self.socket.send(self.outbox[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # it is dead; the selector says so next
            self.outbox.popleft()


class WorkerPool:
    """A Crew of processes, and `wake` for the parent's own threads."""

    def __init__(self, plan: EnginePlan, ring: Ring) -> None:
        self.size = plan.workers
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, None)
        packet = pickle.dumps(plan, 5)
        try:
            for number in range(plan.workers):
                self._links.append(self._start(number, ring, packet))
        except BaseException:
            self.close()
            raise

    def pids(self) -> list[int]:
        return [link.process.pid for link in self._links]

    def wake(self) -> None:
        """End a `receive` that waits. May be called from any thread."""
        with self._wake_lock:
            if self._wake_fd >= 0:  # a thread may end after the pool has
                os.eventfd_write(self._wake_fd, 1)

    def send(self, worker: int, message: Any) -> None:
        link = self._links[worker]
        link.outbox.append(encode(message))
        self._push(worker, link)

    def receive(self, timeout_s: float | None) -> Iterator[tuple[int, Any]]:
        for key, mask in self._selector.select(timeout_s):
            if key.data is None:
                os.eventfd_read(self._wake_fd)
                continue
            link = self._links[key.data]
            if mask & selectors.EVENT_WRITE:
                self._push(key.data, link)
            if mask & selectors.EVENT_READ:
                yield key.data, self._read(link)

    def close(self) -> None:
        for link in self._links:
            link.socket.close()
        for link in self._links:
            _end(link.process)
        self._links = []
        self._selector.close()
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1

    def _start(self, number: int, ring: Ring, plan_packet: bytes) -> _Link:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                _command(theirs.fileno(), ring.fileno),
                pass_fds=(theirs.fileno(), ring.fileno),
                stdin=subprocess.DEVNULL,
                env=_environment(),
                process_group=0,
            )
        link = _Link(process, ours)
        self._selector.register(ours, selectors.EVENT_READ, number)
        link.outbox.append(plan_packet)
        link.push()
        return link

    def _push(self, worker: int, link: _Link) -> None:
        link.push()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.outbox else 0)
        self._selector.modify(link.socket, events, worker)

    def _read(self, link: _Link) -> Any:
        packet = _receive(link.socket)
        if not packet:
            raise WorkerDied(link.process.pid, link.process.wait())
        message = decode(packet)
        if isinstance(message, Failed):
            raise StageFailed(message.message, message.traceback)
        return message


class InlineCrew:
    """A Crew of one that works in the parent process: for small jobs, where starting a process costs more."""

    size = 1

    def __init__(self, plan: EnginePlan, depot: Depot, ask: Callable[[bytes], bytes], ring: Ring) -> None:
        self._arrived: deque[Any] = deque()
        self._labour = Labour(plan, _InlinePort(depot, ask, ring, self._arrived))

    def wake(self) -> None:
        """Nothing ever waits here."""

    def send(self, worker: int, message: Any) -> None:
        self._labour.handle(message)

    def receive(self, timeout_s: float | None) -> Iterator[tuple[int, Any]]:
        while self._arrived:
            yield 0, self._arrived.popleft()

    def close(self) -> None:
        self._labour.close()


class _InlinePort:
    """The parent, seen from a job that the parent does itself."""

    def __init__(self, depot: Depot, ask: Callable[[bytes], bytes], ring: Ring, arrived: deque[Any]) -> None:
        self.lend = depot.lend
        self.full = depot.full
        self.ask = ask
        self.slot = ring.slot
        self.send = arrived.append


def _receive(link: socket.socket) -> bytes:
    """The next packet, empty at the end. A worker that died with jobs unread resets the link: that error comes before
    its last words, which may say why it died.
    """
    for _ in range(2):
        try:
            return link.recv(MESSAGE_LIMIT_BYTES)
        except ConnectionResetError:
            continue
    return b""


def _command(link_fileno: int, ring_fileno: int) -> list[str]:
    home = str(Path(__file__).resolve().parent.parent)
    start = f"import sys; sys.path.insert(0, {home!r}); from workers.worker import main; main(*map(int, sys.argv[1:]))"
    return [sys.executable, "-P", "-c", start, str(link_fileno), str(ring_fileno)]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
    return kept | MALLOC_SETTINGS


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(EXIT_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
