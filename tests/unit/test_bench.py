"""The bench in miniature: every table runs, through the real programs, and its JSON has the fields that are promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import TABLES, main
from bench.limits import Amounts, Speeds
from bench.measure import FEW_FILES, MIB, ProgramFailed, Spread, passes, peak_of, run_program, set_aside, told_noise
from bench.tables import Table
from bench.trees import Sizes, make, make_changed, regular_files, text_of

# Some forty real runs in one fixture; a machine that is busy otherwise needs its time for them.
pytestmark = pytest.mark.timeout(300)

WALL = {"wall s", "min s", "max s", "CPU s"}
FIELDS = {
    "stages": {"stage", "1 MiB"},
    "chunkers": {"chunker", "1 MiB MB/s", "1 MiB chunks"},
    "pipeline": WALL | {"tree", "operation", "MB/s", "files/s", "peak MiB", "limit s", "efficiency"},
    "keys": {"operation", "ms"},
    "peers": WALL | {"tree", "operation", "program", "peak MiB", "stored MB", "times", "CPU times"},
    "targets": {
        "target",
        "first s",
        "min s",
        "max s",
        "MB/s",
        "changed s",
        "stored MB",
        "added MB",
        "dedup",
        "peak MiB",
    },
    "levels": WALL | {"tree", "level", "MB/s", "stored MB", "ratio"},
}
PYTHON_ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one quick run of everything that runs no peer."""
    place = tmp_path_factory.mktemp("bench")
    tables = [name for name in TABLES if name != "peers"]
    words = ["--quick", "--tree", "text", "--work", str(place / "work"), "--json", str(place / "out.json"), *tables]
    assert main(words) == 0
    loaded: dict[str, Any] = json.loads((place / "out.json").read_text(encoding="utf-8"))
    return loaded


def test_every_table_has_promised_fields() -> None:
    assert set(FIELDS) == set(TABLES)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "peers"])
def test_a_quick_run_fills_the_table(results: dict[str, Any], name: str) -> None:
    rows = results["tables"][name]["rows"]
    assert rows
    assert all(set(row) == FIELDS[name] for row in rows)
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert figures
    assert all(value > 0 for value in figures)


def test_the_results_say_what_they_hang_on(results: dict[str, Any]) -> None:
    facts = results["machine"]
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert {"cpu", "memory_bytes", "kernel", "file_system", "python", "enigma", "libraries", "programs"} <= set(facts)


def test_the_limit_of_every_tree_is_told_in_its_parts(results: dict[str, Any]) -> None:
    notes = "\n".join(results["tables"]["pipeline"]["notes"])
    for part in ("read", "cut", "SHA-256", "compress", "prove", "seal", "xxh3", "decompress", "write", "sink"):
        assert part in notes


def test_peers_take_part_where_they_are_installed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["--quick", "--tree", "text", "--work", str(tmp_path / "work"), "--json", str(out), "peers"]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    rows = record["tables"]["peers"]["rows"]
    assert all(set(row) == FIELDS["peers"] for row in rows)
    assert {row["program"] for row in rows} == {"enigma", *record["machine"]["programs"]}
    assert {row["times"] for row in rows if row["program"] == "enigma"} == {1.0}


def test_the_default_work_folder_is_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    before = set(root.glob(".bench-*"))
    assert main(["--quick", "keys"]) == 0
    assert set(root.glob(".bench-*")) == before
    assert "Argon2id" in capsys.readouterr().out


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "speed"]) == 2
    assert "choose from stages" in capsys.readouterr().err


def test_the_module_runs_as_a_program() -> None:
    words = [sys.executable, "-m", "bench", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    assert all(name in done.stdout for name in TABLES)


# ---- measuring


def test_cpu_seconds_include_children_of_children(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    run, _ = run_program([sys.executable, "-c", nest], env=PYTHON_ENV, cwd=tmp_path)
    assert run.cpu_s >= 0.3


def test_work_of_others_is_not_taken_for_the_programs_own(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 30: pass"
    with subprocess.Popen([sys.executable, "-c", burn]) as other:
        run, _ = run_program([sys.executable, "-c", "import time; time.sleep(0.5)"], env=PYTHON_ENV, cwd=tmp_path)
        other.kill()
    assert run.others_cpu_s > 0.2
    assert run.cpu_s < 0.2
    assert "cores busy" in told_noise([run])


def test_peak_memory_includes_children_and_counts_shared_pages_once(tmp_path: Path) -> None:
    code = f"import os, mmap\nm = mmap.mmap(-1, {64 * MIB})\nfor at in range(0, {64 * MIB}, 4096): m[at] = 1\n"
    code += "if not (child := os.fork()):\n s = sum(m[at] for at in range(0, len(m), 4096))\n"
    code += "import sys\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(2):
            process.stdout.readline()
        with peak_of(process.pid) as peak:
            peak.sample()
        process.stdin.close()
    assert 64 * MIB <= peak.peak_bytes < 110 * MIB


def test_a_program_that_fails_gives_no_figures(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="no such luck"):
        run_program([sys.executable, "-c", "raise SystemExit('no such luck')"], env=PYTHON_ENV, cwd=tmp_path)


def test_sampling_ends_with_its_block() -> None:
    with peak_of(os.getpid()):
        assert any(thread.name == "peak" for thread in threading.enumerate())
    assert not any(thread.name == "peak" for thread in threading.enumerate())


def test_the_first_pass_counts_only_when_it_is_the_only_one() -> None:
    assert list(passes(3)) == [False, True, True, True]
    assert list(passes(0)) == [True]


def test_a_spread_is_median_and_extremes() -> None:
    assert Spread.of([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)


def test_only_folders_of_few_files_are_deleted_at_once(tmp_path: Path) -> None:
    for name, files in (("few", FEW_FILES), ("many", FEW_FILES + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
        set_aside(tmp_path / name, tmp_path, files=files)
        assert not (tmp_path / name).exists()
    assert [path.read_text() for path in tmp_path.rglob("content")] == ["many"]


# ---- limits


def test_the_limit_is_the_slower_of_cpu_and_sink() -> None:
    speeds = Speeds(**dict.fromkeys(Speeds.__slots__, 1e-9))
    amounts = Amounts(content_bytes=10**9, new_bytes=10**9, packs_bytes=10**9, past_cache_bytes=10**9)
    limit = speeds.backup(amounts, sink_bytes_per_s=1e9, cores=2)
    assert limit.seconds == pytest.approx(3.5)
    assert speeds.backup(amounts, sink_bytes_per_s=1e8, cores=2).seconds == pytest.approx(10)
    assert speeds.restore(amounts, sink_bytes_per_s=1e9, cores=2).seconds == pytest.approx(2.5)
    assert speeds.restore(amounts, sink_bytes_per_s=1e8, cores=2).seconds == pytest.approx(10)


def test_known_chunks_cost_no_sealing() -> None:
    speeds = Speeds(**dict.fromkeys(Speeds.__slots__, 1e-9))
    limit = speeds.backup(Amounts(10**9, 0, 0, 0), sink_bytes_per_s=1e9, cores=1)
    assert limit.seconds == pytest.approx(3)
    assert {name for name, part_s in limit.cpu_parts.items() if part_s} == {"read", "cut", "SHA-256"}


# ---- trees and tables


@pytest.mark.parametrize("name", ["large", "text", "small", "mixed"])
def test_trees_are_the_same_each_time(tmp_path: Path, name: str) -> None:
    one, other = (make(name, tmp_path / place, Sizes.quick()) for place in ("a", "b"))
    contents = [[Path(path).read_bytes() for path in regular_files(tree.root)] for tree in (one, other)]
    assert contents[0] == contents[1]
    assert (one.files, one.length_bytes) == (len(contents[0]), sum(map(len, contents[0])))


def test_a_changed_tree_differs_in_some_files_only(tmp_path: Path) -> None:
    tree = make("small", tmp_path, Sizes.quick())
    changed = make_changed(tree, tmp_path / "changed")
    names = [os.path.relpath(path, tree.root) for path in regular_files(tree.root)]
    differ = [name for name in names if (tree.root / name).read_bytes() != (changed.root / name).read_bytes()]
    assert 0 < len(differ) < len(names)


def test_text_is_as_long_as_wanted() -> None:
    assert len(text_of(12_345, 1)) == 12_345


def test_a_table_prints_its_columns_and_notes() -> None:
    table = Table("t", "title", rows=[{"name": "a", "x": 0.123456, "y": None}], notes=["why"])
    assert table.text().splitlines() == ["== t: title", "name      x  y", "a     0.123  -", "   why"]
