"""Table `keys`: what making and opening a local keystore costs, and its two parts alone."""

from __future__ import annotations

import os
from pathlib import Path

from bench.measure import seconds_of
from bench.tables import Table, figure
from enigma.keys.kdf import DEFAULT_KDF, SALT_BYTES, derive
from enigma.keys.local import LocalKeystore
from enigma.keys.slots import MlKemPair
from enigma.model.ids import RepositoryId

PASSPHRASE = b"slow copper lantern over nine harbours"


def run(work: Path, *, least_s: float = 0.2) -> Table:
    kdf = DEFAULT_KDF
    table = Table(
        "keys", f"Argon2id ({kdf.memory_kib // 1024} MiB, {kdf.passes} passes, {kdf.lanes} lanes) with ML-KEM"
    )
    place, salt, repository_id = work / "keys.enc", os.urandom(SALT_BYTES), RepositoryId.random()

    def create() -> None:
        place.unlink(missing_ok=True)
        LocalKeystore.create(place, repository_id=repository_id, passphrase=PASSPHRASE).close()

    actions = {
        "create a keystore": create,
        "open it": lambda: LocalKeystore.open(place, passphrase=PASSPHRASE).close(),
        "Argon2id alone": lambda: derive(PASSPHRASE, salt, kdf),
        "ML-KEM key pair alone": MlKemPair.random,
    }
    for name, action in actions.items():
        table.rows.append({"operation": name, "ms": figure(seconds_of(action, least_s=least_s) * 1000)})
    for leftover in work.glob("keys.enc*"):
        leftover.unlink()
    return table
