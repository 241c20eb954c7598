"""Table `chunkers`: cutting alone, content-defined and fixed, with the chunks it makes."""

from __future__ import annotations

import random
from functools import partial

from bench.measure import MIB, mapped, seconds_of
from bench.tables import Table, figure
from workers.chunking import Chunker, ChunkerSpec

SIZES_MIB = (4, 16, 64)
SEED = 0x5EED
SPECS = {
    "FastCDC, 1 MiB target": ChunkerSpec.fastcdc(1 * MIB, SEED),
    "FastCDC, 2 MiB target": ChunkerSpec.fastcdc(2 * MIB, SEED),
    "FastCDC, 4 MiB target": ChunkerSpec.fastcdc(4 * MIB, SEED),
    "fixed, 1 MiB": ChunkerSpec.fixed(1 * MIB),
    "fixed, 4 MiB": ChunkerSpec.fixed(4 * MIB),
}


def run(*, sizes_mib: tuple[int, ...] = SIZES_MIB, least_s: float = 0.2) -> Table:
    table = Table("chunkers", "MB/s on one core and chunks made, by size of the file (random data)")
    files = {size_mib: mapped(size_mib * MIB) for size_mib in sizes_mib}
    for size_mib, file in files.items():
        file[:] = random.Random(6).randbytes(size_mib * MIB)
    for name, spec in SPECS.items():
        row: dict[str, object] = {"chunker": name}
        for size_mib, file in files.items():
            chunker = Chunker(spec)
            took_s = seconds_of(partial(chunker.cuts, file, final=True), least_s=least_s)
            row[f"{size_mib} MiB MB/s"] = figure(size_mib * MIB / took_s / 1e6)
            row[f"{size_mib} MiB chunks"] = len(chunker.cuts(file, final=True))
        table.rows.append(row)
    table.notes.append("Fixed cutting reads no byte; its figure is only the cost of the call.")
    return table
