"""The main of a worker process: one socket to the parent, one mapping of the ring, one job at a time.

A worker keeps no state that matters: whatever it holds when it dies was never reported as stored. It ends when its
socket does, so a killed parent leaves no worker behind.
"""

from __future__ import annotations

import gc
import pickle
import signal
import socket
import sys
import traceback
from collections import deque
from typing import Any

from workers.errors import EngineClosed
from workers.labour import Labour
from workers.messages import (
    MESSAGE_LIMIT_BYTES,
    Ask,
    Failed,
    Grant,
    PackFull,
    Verdict,
    Want,
    decode,
    encode,
)
from workers.plan import EnginePlan
from workers.ring import Ring

GC_THRESHOLD = 200_000  # what a job makes is gone when it ends; nothing of it is a cycle
PLAN_LIMIT_BYTES = 1 << 17


class SocketPort:
    """The parent, seen from a worker process. Jobs that arrive while an answer is awaited are kept for later."""

    def __init__(self, link: socket.socket, ring: Ring) -> None:
        self._link = link
        self._ring = ring
        self._later: deque[Any] = deque()

    def next_job(self) -> Any:
        return self._later.popleft() if self._later else self._receive()

    def send(self, message: Any) -> None:
        self._link.send(encode(message))

    def ask(self, chunk_ids: bytes) -> bytes:
        self.send(Ask(chunk_ids))
        bits: bytes = self._await(Verdict).bits
        return bits

    def lend(self) -> tuple[int, memoryview]:
        self.send(Want())
        slot = self._await(Grant).slot
        return slot, self._ring.slot(slot)

    def full(self, slot: int, pack_id: bytes, length_bytes: int, records_bytes: int) -> None:
        self.send(PackFull(slot, pack_id, length_bytes, records_bytes))

    def slot(self, number: int) -> memoryview:
        return self._ring.slot(number)

    def _await(self, kind: type) -> Any:
        while True:
            message = self._receive()
            if isinstance(message, kind):
                return message
            self._later.append(message)

    def _receive(self) -> Any:
        packet = self._link.recv(MESSAGE_LIMIT_BYTES)
        if not packet:
            raise EngineClosed("the parent process is gone")
        return decode(packet)


def main(link_fileno: int, ring_fileno: int) -> None:
    """Serve until the parent closes the link. Exit code 0 then, 1 after a failure that was reported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = socket.socket(fileno=link_fileno)
    packet = link.recv(PLAN_LIMIT_BYTES)
    if not packet:
        return  # the parent was gone before it had said anything
    plan: EnginePlan = pickle.loads(packet)  # noqa: S301  the parent is this program
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    with link, Ring(plan, ring_fileno) as ring:
        try:
            _serve(plan, SocketPort(link, ring))
        except (EngineClosed, BrokenPipeError, ConnectionResetError):
            return
        except Exception as exc:  # noqa: BLE001  the border of the process: everything is reported, nothing is swallowed
            _report(link, exc)
            sys.exit(1)


def _serve(plan: EnginePlan, port: SocketPort) -> None:
    labour = Labour(plan, port)
    try:
        while True:
            labour.handle(port.next_job())
    finally:
        labour.close()


def _report(link: socket.socket, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))[-MESSAGE_LIMIT_BYTES // 4 :]
    try:
        link.send(encode(Failed(f"{type(error).__name__}: {error}"[:1000], text)))
    except OSError:
        return
