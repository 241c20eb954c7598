"""Everything a command shows: results, notes, warnings, errors and progress, for a person, a log or a program.

    what       terminal or log                      --json
    result     a line on stdout                     {"type": "result", ...} on stdout
    note       a line on stdout; not with --quiet   nothing
    progress   a bar on a terminal's stderr,        {"type": "progress", ...} on stdout once a second;
               nothing in a log or with --quiet     not with --quiet
    warning    "warning: ..." on stderr             {"type": "warning", ...} on stderr
    trace      a line on stderr                     {"type": "trace", ...} on stderr
    error      "enigma: ..." on stderr              {"type": "error", ...} on stderr

Names in a backup are data of strangers: on a terminal, control characters are shown escaped, never sent.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from enigma.clock import boot_ns

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")

_BAR_INTERVAL_NS = 100_000_000  # ten pictures a second look alive and cost nothing
_JSON_INTERVAL_NS = 1_000_000_000
_SPEED_WINDOW_NS = 10_000_000_000  # long enough to be steady, short enough to show a stalled provider


class OutputClosed(Exception):
    """Who read the output is gone. Not an OSError, so that no room takes it for a broken pipe of its own."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long operation has come. Totals are None while unknown; `new_bytes` is what was not stored before."""

    files: int = 0
    length_bytes: int = 0
    new_bytes: int = 0
    error_count: int = 0
    total_files: int | None = None
    total_bytes: int | None = None
    current: str = ""


@dataclass(slots=True)
class ProgressBar:
    """Turns Progress records into pictures at a bounded rate. Call `update` as often as you like, from one thread."""

    output: Output
    verb: str
    clock_ns: Callable[[], int]
    interval_ns: int
    state: Progress = Progress()
    _samples: list[tuple[int, int]] = field(default_factory=list)
    _shown_ns: int | None = None

    def update(self, state: Progress) -> None:
        """Remember where we are, and show it if the last picture is old enough."""
        now_ns = self.clock_ns()
        self.state = state
        if self._shown_ns is None or now_ns - self._shown_ns >= self.interval_ns:
            self._shown_ns = now_ns
            self._note_sample(now_ns)
            self.output.show_progress(self)

    def advance(self, **changes: Any) -> None:
        """`update` with some fields of the last state replaced."""
        self.update(replace(self.state, **changes))

    def speed(self) -> float:
        """Bytes per second over the last ten seconds or so; 0.0 before two samples."""
        if len(self._samples) < 2:
            return 0.0
        (first_ns, first_bytes), (last_ns, last_bytes) = self._samples[0], self._samples[-1]
        return (last_bytes - first_bytes) * 1e9 / max(1, last_ns - first_ns)

    def eta_s(self) -> float | None:
        """Seconds left at the present speed; None if the total or the speed is not known."""
        speed = self.speed()
        if self.state.total_bytes is None or speed <= 0:
            return None
        return max(0, self.state.total_bytes - self.state.length_bytes) / speed

    def line(self, width: int) -> str:
        """One line of at most `width` characters, the current name cut to what room is left."""
        state = self.state
        parts = [self.verb, _of(f"{state.files:,}", state.total_files and f"{state.total_files:,}") + " files"]
        parts.append(_of(format_bytes(state.length_bytes), state.total_bytes and format_bytes(state.total_bytes)))
        if state.new_bytes:
            parts.append(f"{format_bytes(state.new_bytes)} new")
        parts.append(f"{format_bytes(int(self.speed()))}/s")
        if (eta_s := self.eta_s()) is not None:
            parts.append(f"{format_duration(eta_s)} left")
        if state.error_count:
            parts.append(f"{state.error_count} errors")
        head = "  ".join(parts)
        room = width - len(head) - 2
        return (f"{head}  {printable(state.current)[-room:]}" if room >= 8 else head)[:width]

    def record(self) -> dict[str, Any]:
        """The same as `line`, for a program."""
        state = self.state
        return {
            "verb": self.verb,
            "files": state.files,
            "bytes": state.length_bytes,
            "new_bytes": state.new_bytes,
            "errors": state.error_count,
            "total_files": state.total_files,
            "total_bytes": state.total_bytes,
            "bytes_per_second": int(self.speed()),
            "eta_s": self.eta_s(),
        }

    def _note_sample(self, now_ns: int) -> None:
        self._samples.append((now_ns, self.state.length_bytes))
        while len(self._samples) > 2 and now_ns - self._samples[1][0] >= _SPEED_WINDOW_NS:
            del self._samples[0]


@dataclass(slots=True)
class Output:
    """The two streams of a run and how to write to them. The one owner of what is on the terminal's last line."""

    json: bool = False
    quiet: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    clock_ns: Callable[[], int] = boot_ns
    _bar_shown: bool = False

    def result(self, text: str, record: Mapping[str, Any]) -> None:
        """What the user asked for: `text` for a person, `record` for a program."""
        if self.json:
            self._json(self.stdout, "result", record)
        else:
            self._line(self.stdout, text)

    def name(self, name: bytes) -> str:
        """A stored name for a line of its own: on a terminal a line feed in it is shown, and does not break the line."""
        text = path_text(name)
        return text.replace("\n", "\\n") if self.stdout.isatty() else text

    def note(self, text: str) -> None:
        """What happens on the way and what it came to; a person may not want it, a program never does."""
        if not self.json and not self.quiet:
            self._line(self.stdout, text)

    def warn(self, text: str, **fields: Any) -> None:
        """Something is not as it should be, and the work goes on."""
        if self.json:
            self._json(self.stderr, "warning", {"message": text, **fields})
        else:
            self._line(self.stderr, f"warning: {text}")

    def text(self, text: str) -> None:
        """Help: as it stands, whatever the form of other output."""
        _write(self.stdout, text)

    def flush(self) -> None:
        """Hand everything to the reader. Raises OutputClosed if there is none."""
        _flush(self.stdout)

    def trace(self, text: str) -> None:
        """What only somebody who looks for a fault wants to read."""
        if self.json:
            self._json(self.stderr, "trace", {"message": text})
        else:
            self._line(self.stderr, text)

    def error(self, text: str, *, code: str, exit_status: int) -> None:
        """Why the command ends without having done its work. Only the frame calls this."""
        if self.json:
            self._json(self.stderr, "error", {"code": code, "exit_status": exit_status, "message": text})
        else:
            self._line(self.stderr, f"enigma: {text}")

    @contextmanager
    def progress(self, verb: str) -> Iterator[ProgressBar]:
        """A bar for one long operation, gone from the terminal when the block ends."""
        interval_ns = _JSON_INTERVAL_NS if self.json else _BAR_INTERVAL_NS
        try:
            yield ProgressBar(self, verb, self.clock_ns, interval_ns)
        finally:
            self._clear_bar()

    def show_progress(self, bar: ProgressBar) -> None:
        """Draw the bar where this run shows bars; ProgressBar decides when."""
        if self.quiet:
            return
        if self.json:
            self._json(self.stdout, "progress", bar.record())
            _flush(self.stdout)
        elif self.stderr.isatty():
            self._clear_bar()
            _write(self.stderr, bar.line(_terminal_width(self.stderr)))
            _flush(self.stderr)
            self._bar_shown = True

    def _clear_bar(self) -> None:
        if self._bar_shown:
            _write(self.stderr, "\r\x1b[K")
            _flush(self.stderr)
            self._bar_shown = False

    def _line(self, stream: TextIO, text: str) -> None:
        self._clear_bar()
        _write(stream, (printable(text) if stream.isatty() else text) + "\n")

    def _json(self, stream: TextIO, kind: str, record: Mapping[str, Any]) -> None:
        import json

        self._clear_bar()
        _write(stream, json.dumps({"type": kind, **record}) + "\n")


def path_text(name: bytes) -> str:
    """A stored name as text that `os.fsencode` turns back into the same bytes."""
    return os.fsdecode(name)


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal, and every undecodable byte, written as an escape."""
    return _CONTROL.sub(_escaped, text).encode("utf-8", "backslashreplace").decode("utf-8")


def format_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _BINARY_UNITS:
        value /= 1024
        if value < 1023.95 or unit == _BINARY_UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """4000 -> "1:06:40", 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _of(done: str, total: str | int | None) -> str:
    return f"{done} of {total}" if total else done


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def _terminal_width(stream: TextIO) -> int:
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns - 1)
    except OSError:
        return 79


def _write(stream: TextIO, text: str) -> None:
    """Undecodable names leave as the bytes they were; what the locale has no letter for leaves as an escape."""
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
    except BrokenPipeError as exc:
        raise OutputClosed from exc


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError as exc:
        raise OutputClosed from exc
