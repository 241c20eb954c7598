"""The house's rules that import-linter can't hold: one home per library, one clock, no grab-bag modules."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("enigma", "workers")

# Library -> the rooms that may import it.
HOMES = {
    "apsw": ("enigma/manifest",),
    "argon2": ("enigma/keys",),
    "azure": ("enigma/providers", "enigma/keys"),
    "boto3": ("enigma/providers", "enigma/keys"),
    "botocore": ("enigma/providers", "enigma/keys"),
    "cryptography": ("workers", "enigma/keys"),
    "docopt": ("enigma/cli",),
    "falcon": ("enigma/gateway",),
    "google": ("enigma/providers", "enigma/keys"),
    "pathspec": ("enigma/snapshots",),
    "pqcrypto": ("enigma/keys",),
    "pyfastcdc": ("workers",),
    "pysyncobj": ("enigma/raft",),
    "waitress": ("enigma/gateway",),
    "zstandard": ("workers",),
}
GRAB_BAGS = {"utils", "util", "common", "helpers", "helper", "misc"}

# The engine has no part in the protocol's time; it only stamps and measures its own work.
CLOCK_HOMES = ("enigma/clock.py", "workers")
WALL_CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.clock_gettime",
    "time.clock_gettime_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}

# The engine hands a bounded environment to its own child processes.
ENVIRONMENT_HOMES = ("enigma/cli", "enigma/config.py", "workers")
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}

# The engine's own processes speak pickle with each other, over pipes that nobody else can reach.
UNPICKLING_HOMES = ("workers",)
UNPICKLING = {"pickle.load", "pickle.loads", "marshal.loads", "shelve.open"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def in_home(place: str, homes: tuple[str, ...]) -> bool:
    return any(place == home or place.startswith(home + "/") for home in homes)


def imported_libraries(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def dotted_names(tree: ast.AST) -> Iterator[str]:
    """Every `a.b` that is used, as its last two parts, and every `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(place: str, text: str) -> list[str]:
    """What is wrong with the module at `place` ("enigma/cli/list.py")."""
    tree = ast.parse(text)
    names = set(dotted_names(tree))
    found = [
        f"{library} belongs in {' and '.join(HOMES[library])}"
        for library in sorted(set(imported_libraries(tree)))
        if library in HOMES and not in_home(place, HOMES[library])
    ]
    if not in_home(place, CLOCK_HOMES):
        found += [f"{name}: take the time from enigma.clock" for name in sorted(names & WALL_CLOCKS)]
    if not in_home(place, ENVIRONMENT_HOMES):
        found += [
            f"{name}: only the command line and the configuration read it" for name in sorted(names & ENVIRONMENT)
        ]
    if not in_home(place, UNPICKLING_HOMES):
        found += [f"{name}: data from outside is never unpickled" for name in sorted(names & UNPICKLING)]
    if Path(place).stem in GRAB_BAGS:
        found.append("a module is named after what it owns")
    if not (ast.get_docstring(tree) or place.endswith("__init__.py")):
        found.append("a module's first line says what it owns")
    return found


def test_every_module_keeps_the_rules_of_the_house() -> None:
    found = {
        place: wrong
        for path in sources()
        if (wrong := faults(place := str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("enigma/cli/list.py", '"""."""\nimport apsw'),
        ("enigma/manifest_too/x.py", '"""."""\nimport apsw'),
        ("enigma/snapshots/walk.py", '"""."""\ndef f():\n    from zstandard import ZstdCompressor'),
        ("enigma/snapshots/walk.py", '"""."""\nimport time\nf = time.time'),
        ("enigma/snapshots/walk.py", '"""."""\nfrom time import time_ns'),
        ("enigma/snapshots/walk.py", '"""."""\nimport datetime\nx = datetime.datetime.now()'),
        ("enigma/keys/local.py", '"""."""\nimport os\nx = os.environ["HOME"]'),
        ("enigma/repository/packs.py", '"""."""\nimport pickle\npickle.loads(b"")'),
        ("enigma/repository/utils.py", '"""."""'),
        ("workers/helpers.py", '"""."""'),
        ("enigma/repository/packs.py", "x = 1"),
    ],
)
def test_a_broken_rule_is_seen(place: str, text: str) -> None:
    assert len(faults(place, text)) == 1


def test_every_folder_with_modules_is_a_package_and_so_is_installed() -> None:
    folders = {path.parent for path in sources()}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_every_imported_library_is_declared_in_setup_cfg() -> None:
    imported = {name for path in sources() for name in imported_libraries(ast.parse(path.read_text(encoding="utf-8")))}
    distributions = metadata.packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    undeclared = {name for name in foreign if not declared() & {normal(dist) for dist in distributions.get(name, [])}}
    assert undeclared == set()


def declared() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [text for extra, text in setup["options.extras_require"].items() if extra != "dev"]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).split("\n")
    return {normal(re.split(r"[^\w.-]", line.strip())[0]) for line in lines if line.strip()}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
