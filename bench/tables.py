"""A table of results: printed as text, kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from enigma import __version__

Row = dict[str, Any]
LIBRARIES = ("cryptography", "zstandard", "pyfastcdc", "xxhash", "argon2-cffi", "pqcrypto", "apsw")


@dataclass(slots=True)
class Table:
    """Rows with the same keys, in the order of printing. `notes` say what the figures mean."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"== {self.name}: {self.title}"]
        if self.rows:
            lines += _columns([list(self.rows[0])] + [[_cell(value) for value in row.values()] for row in self.rows])
        return "\n".join(lines + [f"   {note}" for note in self.notes]) + "\n"

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, "rows": self.rows, "notes": self.notes}


def machine(work: Path) -> dict[str, Any]:
    """What the figures hang on."""
    versions = {name: _library_version(name) for name in LIBRARIES}
    programs = {name: _program_version(name) for name in ("restic", "borg")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_name(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "file_system": _file_system(work),
        "python": platform.python_version(),
        "enigma": __version__,
        "libraries": versions,
        "programs": {name: version for name, version in programs.items() if version},
    }


def machine_text(facts: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    programs = ", ".join(facts["programs"].values()) or "no peers"
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_bytes'] / 2**30:.0f} GiB, Linux {facts['kernel']}, "
        f"{facts['file_system']}\nEnigma {facts['enigma']}, Python {facts['python']}, {libraries}; {programs}\n"
    )


def save(path: Path, facts: dict[str, Any], tables: Iterable[Table]) -> None:
    record = {"machine": facts, "tables": {table.name: table.record() for table in tables}}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def figure(value: float) -> float:
    """Three digits that mean something; more would be noise."""
    return float(f"{value:.3g}") if abs(value) < 1000 else float(round(value))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return "-" if value is None else str(value)


def _columns(cells: list[list[str]]) -> list[str]:
    """Right-aligned, except the first column and a last one of words."""
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(place: Path) -> str:
    """The type of the mount that `place` lies on: the longest mount point above it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, point, this_kind, *_ = line.split()
        inside = os.path.realpath(place).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, this_kind
    return kind


def _library_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _program_version(name: str) -> str:
    try:
        done = subprocess.run([name, "version" if name == "restic" else "--version"], capture_output=True, check=False)
    except OSError:
        return ""
    return " ".join(done.stdout.decode("utf-8", "replace").split()[:2])
