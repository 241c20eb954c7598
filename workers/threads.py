"""The parent's own threads: placing packs, fetching ranges, reading streams. They wait for I/O, never for each other.

They are daemons: a crashed parent must not hang on an upload that never returns.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What became of one task: `error` is None or what it raised."""

    tag: Any
    result: Any
    error: BaseException | None


class Threads:
    """A fixed number of threads that run tasks; outcomes wait to be collected by the owner's thread."""

    def __init__(self, name: str, count: int, wake: Callable[[], None]) -> None:
        self._tasks: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._outcomes: deque[Outcome] = deque()
        self._wake = wake
        self._threads = [
            threading.Thread(target=self._run, name=f"enigma-{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tag: Any, task: Callable[[], Any]) -> None:
        self._tasks.put((tag, task))

    def collect(self) -> list[Outcome]:
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
        return outcomes

    def close(self, *, wait_s: float | None) -> None:
        """Tasks not yet begun are dropped; one that runs is waited for at most `wait_s` (None: until it ends)."""
        while not self._tasks.empty():
            self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(wait_s)

    def _run(self) -> None:
        while (item := self._tasks.get()) is not None:
            tag, task = item
            try:
                outcome = Outcome(tag, task(), None)
            except BaseException as exc:  # noqa: BLE001  an error is an item that travels to the owner
                outcome = Outcome(tag, None, exc)
            del task, item
            self._outcomes.append(outcome)
            self._wake()


class Immediate:
    """The same face without threads: a task is done when it is submitted. For work in the parent alone."""

    def __init__(self) -> None:
        self._outcomes: deque[Outcome] = deque()

    def submit(self, tag: Any, task: Callable[[], Any]) -> None:
        try:
            self._outcomes.append(Outcome(tag, task(), None))
        except Exception as exc:  # noqa: BLE001  as in Threads; an interrupt goes straight to the owner, whose thread this is
            self._outcomes.append(Outcome(tag, None, exc))

    def collect(self) -> list[Outcome]:
        outcomes = list(self._outcomes)
        self._outcomes.clear()
        return outcomes

    def close(self, *, wait_s: float | None) -> None:
        """Nothing runs."""
