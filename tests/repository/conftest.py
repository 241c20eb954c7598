"""A repository on a local provider, made the way `enigma init` makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enigma.config import Config, load, write_default
from enigma.keys.local import LocalKeystore
from enigma.repository.opening import create_repository, open_repository
from enigma.repository.repository import Repository

PASSPHRASE = b"correct horse battery"


def unlock(config: Config) -> Callable[[], LocalKeystore]:
    return lambda: LocalKeystore.open(config.keyfile_path, passphrase=PASSPHRASE)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_default(tmp_path / "config")
    loaded = load(tmp_path / "config")
    create_repository(loaded, lambda: PASSPHRASE)
    return loaded


@pytest.fixture
def opened(config: Config) -> Callable[..., Repository]:
    return lambda settle=True: open_repository(config, unlock(config), settle=settle)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for number in range(30):
        path = root / f"dir-{number % 3}" / f"file-{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content %d\n" % number * (number * 40 + 1))
    return root
