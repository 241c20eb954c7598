"""A repository stored by any released version stays readable for ever."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden import make
from tests.trees import is_root, takes_xattrs
from workers.objects import FORMAT_VERSION

VERSIONS = sorted(path for path in make.HERE.iterdir() if path.is_dir() and path.name.startswith("v"))


def test_every_version_up_to_this_one_is_kept() -> None:
    assert [path.name for path in VERSIONS] == [f"v{number}" for number in range(1, FORMAT_VERSION + 1)]
    for path in VERSIONS:
        assert (path / "expected.json").is_file()


def comparable(entries: list[dict[str, Any]], target: Path) -> list[dict[str, Any]]:
    """Without what this user may not set, and what this file system does not have."""
    without_mode, without_xattrs = 0 if is_root() else 0o6000, not takes_xattrs(target)
    return [
        entry | {"mode": entry["mode"] & ~without_mode} | ({"xattrs": None} if without_xattrs else {})
        for entry in entries
    ]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_it_recovers_verifies_and_restores(version: Path, tmp_path: Path) -> None:
    """With nothing but what the provider holds and the passphrase."""
    shutil.copytree(version / "store", tmp_path / "store")
    config = tmp_path / "config"
    config.mkdir()
    (config / "enigma.toml").write_text(
        f'[enigma.chunk_strategy.Cdc]\ntarget_size = 65536\n[[providers]]\nname = "any"\ntype = "Local"\n'
        f'bucket = "{tmp_path / "store"}"\n'
    )
    make.run(config, "recover")
    assert "no problem" in make.run(config, "verify", "--read-data")
    for snapshot in json.loads((version / "expected.json").read_text()):
        target = tmp_path / snapshot["id"]
        make.run(config, "restore", snapshot["id"], str(target))
        assert comparable(make.listing(target), target) == comparable(snapshot["entries"], target)
    after = make.run(config, "backup", "--json", str(target))
    assert json.loads(after.splitlines()[-1])["snapshot"]["complete"]
    assert os.listdir(tmp_path / "store" / "snapshots").__len__() == 3
