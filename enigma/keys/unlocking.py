"""Opening a keystore beside other work: Argon2id takes a tenth of a second of which the interpreter needs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from enigma.errors import RepositoryNotFound
from enigma.keys.local import LocalKeystore


class Unlocking:
    """Begins at once on a thread of its own; calling it waits for the keystore, or raises what went wrong.

    Raises RepositoryNotFound, before anybody is asked for a passphrase, if there is no keystore at all.
    """

    def __init__(self, path: Path, passphrase: Callable[[], bytes], mlkem_key_path: Path | None) -> None:
        if not path.exists():
            raise RepositoryNotFound(
                f"There is no keystore at {path}; run `enigma init` for a new repository, "
                "or `enigma recover` to get an existing one back from its providers."
            )
        self._path = path
        self._passphrase = passphrase()
        self._mlkem_key_path = mlkem_key_path
        self._keystore: LocalKeystore | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._open, name="enigma-unlocking", daemon=True)
        self._thread.start()

    def __call__(self) -> LocalKeystore:
        self._thread.join()
        if self._keystore is None:
            raise self._error or AssertionError("the thread ended without an outcome")
        return self._keystore

    def _open(self) -> None:
        try:
            self._keystore = LocalKeystore.open(
                self._path, passphrase=self._passphrase, mlkem_key_path=self._mlkem_key_path
            )
        except Exception as exc:  # noqa: BLE001  it travels to whoever waits
            self._error = exc
