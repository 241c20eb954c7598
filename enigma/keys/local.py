"""The local keystore: one file, opened by the passphrase (and, if split off, an ML-KEM key file). FORMAT.md, "Keys".

    +---------+---------+-----------+--------+-------+----------+---------+-------+-------------------------------+
    | magic 8 | version | Argon2id  | file   | salt  | reserved | nonce   | AES-256-GCM of the JSON keystore, tag |
    |         | 2       | m, t, p   | id 16  | 32    |          | 12      | (everything before is its AAD)        |
    +---------+---------+-----------+--------+-------+----------+---------+---------------------------------------+

The JSON holds the repository id, the slot, the data keys (each still wrapped by the master key) and which one is
current. The file shares its salt with the slot, so one Argon2id run opens both.

The file is never written in place: the new one is written beside it, synced, read back and opened, and renamed over the
old one, which stays as `.old`. Whenever the power goes, one of the two opens.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from enigma.clock import wall_ns
from enigma.errors import EnigmaError, FormatUnsupported, KeyMissing, KeyringError, WrongPassphrase
from enigma.keys.base import KeyInfo
from enigma.keys.kdf import DEFAULT_KDF, KEY_BYTES, SALT_BYTES, KdfParams, check_strength
from enigma.keys.slots import (
    MlKemPair,
    Opened,
    is_whole,
    make_data_key,
    make_slot,
    open_data_key,
    open_slot,
    public_of,
    read_slot,
)
from enigma.model.ids import KeyId, RepositoryId
from workers.errors import SealBroken
from workers.objects import CHECKSUM_BYTES, checksum
from workers.sealing import NONCE_BYTES, Cipher, random_nonce

MAGIC = b"\x89ENIKEY\n"
VERSION = 1
ENVELOPE = struct.Struct("<8sHIHH6x32s")
FILE_LIMIT_BYTES = 16 << 20
SLOT_PREFIX = "keys/slot-"
DATA_PREFIX = "keys/data-"
MLKEM_MAGIC = b"\x89ENIKEM\n"


class LocalKeystore:
    """An opened keystore. A context manager; what it holds is wiped on close as far as Python allows."""

    def __init__(self, path: Path, repository_id: RepositoryId, opened: Opened, *, split: bool) -> None:
        self.repository_id = repository_id
        self._path = path
        self._opened = opened
        self._split = split
        self._slot_id = b""
        self._slot = b""
        self._stored_keys: dict[KeyId, bytes] = {}
        self._keys: dict[KeyId, tuple[bytearray, int]] = {}
        self._unread: dict[str, bytes] = {}  # data keys that a newer version wrote: kept, though not understood
        self._current: KeyId | None = None

    # ---- making and opening

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        repository_id: RepositoryId,
        passphrase: bytes,
        mlkem_key_path: Path | None = None,
        kdf: KdfParams = DEFAULT_KDF,
        allow_weak: bool = False,
        now_ns: int | None = None,
    ) -> LocalKeystore:
        """A new keystore with one data key. Raises WeakPassphrase, and KeyringError if a file is in the way."""
        check_strength(passphrase, allow_weak=allow_weak)
        if path.exists():
            raise KeyringError(f"There is a keystore at {path} already; move it away first.")
        created_ns = wall_ns() if now_ns is None else now_ns
        pair = MlKemPair.random()
        if mlkem_key_path is not None:
            _write_mlkem(mlkem_key_path, pair)
        slot_id, slot, opened = make_slot(
            repository_id,
            KeyId.random(),
            secrets.token_bytes(KEY_BYTES),
            passphrase,
            pair,
            kdf=kdf,
            salt=secrets.token_bytes(SALT_BYTES),
            split=mlkem_key_path is not None,
            now_ns=created_ns,
        )
        keystore = cls(path, repository_id, opened, split=mlkem_key_path is not None)
        keystore._slot_id, keystore._slot = slot_id, slot
        keystore._add_key(created_ns)
        keystore._write()
        return keystore

    @classmethod
    def open(cls, path: Path, *, passphrase: bytes, mlkem_key_path: Path | None = None) -> LocalKeystore:
        """Raises WrongPassphrase, KeyMissing without the separate key file, KeyringError for a damaged file.

        A passphrase change that was cut short leaves `.old`; the file itself is complete in either case.
        """
        data = _read_file(path)
        slot, content = _open_file(data, passphrase, mlkem_key_path, path)
        keystore = cls(path, _repository_id(content), slot, split=not read_slot(_b64(content, "slot"))[1].mlkem_secret)
        keystore._load(content)
        return keystore

    @classmethod
    def recover(
        cls, path: Path, objects: Mapping[str, bytes], *, passphrase: bytes, mlkem_key_path: Path | None = None
    ) -> LocalKeystore:
        """Rebuild the file from the copies at the providers: the newest slot that opens and unwraps a data key.

        Another repository's slot, a damaged or a forged one stops nothing.

        Raises WrongPassphrase if no slot opens, KeyringError if there is no usable slot or key at all.
        """
        secret = _read_mlkem(mlkem_key_path) if mlkem_key_path is not None else None
        keys = {key: data for key, data in objects.items() if key.startswith(DATA_PREFIX)}
        failures: list[EnigmaError] = []
        for slot in _slots(objects, failures):
            try:
                opened = open_slot(slot, passphrase, secret)
            except (KeyringError, FormatUnsupported) as exc:
                failures.append(exc)
                continue
            header, body = read_slot(slot)
            keystore = cls(path, RepositoryId(header.repository_id), opened, split=not body.mlkem_secret)
            keystore._slot_id, keystore._slot = header.object_id, slot
            keystore._take_keys(keys)
            if keystore._keys:
                keystore._current = max(keystore._keys, key=lambda key_id: (keystore._keys[key_id][1], key_id))
                keystore._write()
                return keystore
            failures.append(
                KeyringError("The providers hold no data key that this keystore opens; nothing can be read.")
            )
        failures.append(KeyringError("The providers hold no key slot; this is no repository, or it was emptied."))
        raise min(failures, key=_tells_most)

    # ---- keys

    @property
    def current(self) -> KeyId:
        if self._current is None:
            raise KeyMissing("The keystore holds no data key.")
        return self._current

    def data_key(self, key_id: bytes) -> bytes:
        found = self._keys.get(KeyId(key_id)) if len(key_id) == KeyId.length_bytes else None
        if found is None:
            raise KeyMissing(
                f"Data key {key_id.hex()} is in no keystore at hand, and no provider has a sound keys/data-{key_id.hex()}."
            )
        return bytes(found[0])

    def key_ids(self) -> tuple[KeyId, ...]:
        return tuple(self._keys)

    def info(self) -> tuple[KeyInfo, ...]:
        """Oldest first."""
        self._check_open()
        by_age = sorted(self._keys, key=lambda key_id: self._keys[key_id][1])
        return tuple(KeyInfo(key_id, self._keys[key_id][1], key_id == self._current) for key_id in by_age)

    def rotate(self, now_ns: int | None = None) -> KeyId:
        self._check_open()
        with self._unchanged_on_failure():
            self._add_key(wall_ns() if now_ns is None else now_ns)
            self._write()
        return self.current

    def add_objects(self, objects: Mapping[str, bytes]) -> None:
        """Take in data keys that another machine made under the same master key; one that is here is never replaced.

        What is damaged is left out; what only a newer version understands is kept for it.
        """
        self._check_open()
        held = self.objects()
        new = {name: data for name, data in objects.items() if name not in held}
        before = len(self._keys) + len(self._unread)
        with self._unchanged_on_failure():
            self._take_keys(new)
            if len(self._keys) + len(self._unread) != before:
                self._write()

    def objects(self) -> dict[str, bytes]:
        stored = {f"{DATA_PREFIX}{key_id}": data for key_id, data in self._stored_keys.items()}
        return {f"{SLOT_PREFIX}{self._slot_id.hex()}": self._slot} | stored | self._unread

    def replaces(self, slot: bytes) -> bool:
        """Whether a stored slot is an older one of the same master key: what a passphrase change that was cut short left."""
        try:
            header, body = read_slot(slot)
        except (KeyringError, FormatUnsupported):
            return False
        ours = read_slot(self._slot)[1]
        same_way_in = header.key_id == self._opened.master_id and not body.label
        return same_way_in and header.object_id != self._slot_id and body.created_ns < ours.created_ns

    def change_passphrase(
        self,
        new: bytes,
        *,
        old: bytes,
        allow_weak: bool = False,
        kdf: KdfParams = DEFAULT_KDF,
        now_ns: int | None = None,
    ) -> tuple[str, ...]:
        """A new slot for the same master key, in the file at once; return the object keys that are obsolete now.

        Raises WrongPassphrase if `old` is not the present one, WeakPassphrase.
        """
        self._check_open()
        check_strength(new, allow_weak=allow_weak)
        _, body = read_slot(self._slot)
        open_slot(self._slot, old, self._opened.mlkem_secret if not body.mlkem_secret else None)
        pair = MlKemPair(public_of(self._opened.mlkem_secret), self._opened.mlkem_secret)
        obsolete = f"{SLOT_PREFIX}{self._slot_id.hex()}"
        with self._unchanged_on_failure():
            self._slot_id, self._slot, self._opened = make_slot(
                self.repository_id,
                self._opened.master_id,
                self._opened.master,
                new,
                pair,
                kdf=kdf,
                salt=secrets.token_bytes(SALT_BYTES),
                split=self._split,
                now_ns=wall_ns() if now_ns is None else now_ns,
            )
            self._write()
        return (obsolete,)

    def close(self) -> None:
        """Overwrite the data keys and let go of the rest. Copies that Python made are beyond reach; FORMAT.md says so."""
        for key, _ in self._keys.values():
            key[:] = bytes(len(key))
        self._keys = {}
        self._opened = Opened(self._opened.master_id, b"", b"", b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalKeystore({self.repository_id!r}, {len(self._keys)} keys)"

    def _check_open(self) -> None:
        if not self._opened.master:
            raise KeyringError("The keystore is closed.")

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """What could not be written is not believed either: memory must never be ahead of the file."""
        before = (self._slot_id, self._slot, self._opened, dict(self._stored_keys), dict(self._keys), self._current)
        unread = dict(self._unread)
        try:
            yield
        except BaseException:
            self._slot_id, self._slot, self._opened, self._stored_keys, self._keys, self._current = before
            self._unread = unread
            raise

    # ---- the file

    def _add_key(self, created_ns: int) -> None:
        key_id, key = KeyId.random(), secrets.token_bytes(KEY_BYTES)
        master = self._opened
        self._stored_keys[key_id] = make_data_key(
            self.repository_id, key_id, key, master.master_id, master.master, created_ns
        )
        self._keys[key_id] = (bytearray(key), created_ns)
        self._current = key_id

    def _take_keys(self, objects: Mapping[str, bytes]) -> None:
        for name, data in sorted(objects.items()):
            try:
                key_id, key, created_ns = open_data_key(data, self._opened.master_id, self._opened.master)
                if name.removeprefix(DATA_PREFIX) == str(key_id):
                    self._stored_keys[key_id] = data
                    self._keys[key_id] = (bytearray(key), created_ns)
            except FormatUnsupported:
                self._unread[name] = data
            except KeyringError:  # one damaged copy must not hide the others
                continue

    def _load(self, content: dict[str, Any]) -> None:
        self._slot = _b64(content, "slot")
        self._slot_id = read_slot(self._slot)[0].object_id
        stored = content.get("data_keys")
        if not isinstance(stored, dict):
            raise KeyringError(f"The keystore {self._path} lists no data keys; it is damaged.")
        self._take_keys({f"{DATA_PREFIX}{name}": _b64(stored, name) for name in stored})
        current = str(content.get("current"))
        self._current = next((key_id for key_id in self._keys if str(key_id) == current), None)
        if self._current is None:
            raise KeyringError(f"The keystore {self._path} lacks its current data key; it is damaged.")

    def _write(self) -> None:
        """Replace the file by one that was read back; the one before stays as `.old`."""
        data = self._encoded()
        new = self._path.with_name(self._path.name + ".new")
        _write_file(new, data)
        if _read_file(new) != data:
            raise KeyringError(f"The keystore written to {new} does not read back; the disk may be failing.")
        try:
            if self._path.exists():
                _keep_old(self._path)
            os.replace(new, self._path)
            _sync_folder(self._path.parent)
        except OSError as exc:
            raise KeyringError(f"Can't replace the keystore {self._path}: {exc.strerror}.") from exc

    def _encoded(self) -> bytes:
        _, body = read_slot(self._slot)
        head = ENVELOPE.pack(MAGIC, VERSION, body.memory_kib, body.passes, body.lanes, body.salt)
        content = {
            "repository": str(self.repository_id),
            "slot": base64.b64encode(self._slot).decode(),
            "data_keys": {
                key.removeprefix(DATA_PREFIX): base64.b64encode(data).decode()
                for key, data in self.objects().items()
                if key.startswith(DATA_PREFIX)
            },
            "current": str(self.current),
        }
        nonce = random_nonce()
        sealed = Cipher(self._opened.file_key).seal(json.dumps(content).encode(), nonce=nonce, aad=head)
        return head + nonce + sealed


def _open_file(
    data: bytes, passphrase: bytes, mlkem_key_path: Path | None, path: Path
) -> tuple[Opened, dict[str, Any]]:
    from enigma.keys.kdf import derive
    from enigma.keys.slots import file_key_of

    salt, kdf = _envelope(data, path)
    known = derive(passphrase, salt, kdf)
    content = _unsealed(data, file_key_of(known, salt), path)
    secret = _read_mlkem(mlkem_key_path) if mlkem_key_path is not None else None
    return open_slot(_b64(content, "slot"), passphrase, secret, known=known), content


def _tells_most(failure: EnigmaError) -> int:
    """A missing key file says more than a wrong passphrase, and that more than a slot that can't be read."""
    ranks: dict[type[EnigmaError], int] = {KeyMissing: 0, WrongPassphrase: 1, FormatUnsupported: 2}
    return ranks.get(type(failure), len(ranks))


def _slots(objects: Mapping[str, bytes], failures: list[EnigmaError]) -> list[bytes]:
    """Slots that can be read, newest first."""
    found: list[tuple[int, bytes]] = []
    for key, data in objects.items():
        if key.startswith(SLOT_PREFIX):
            try:
                header, body = read_slot(data)
            except (KeyringError, FormatUnsupported) as exc:
                failures.append(exc)
                continue
            if key.removeprefix(SLOT_PREFIX) == header.object_id.hex():
                found.append((body.created_ns, data))
    return [data for _, data in sorted(found, reverse=True)]


def best_copy(copies: Sequence[bytes]) -> bytes:
    """Of several copies of one stored key object, one that is undamaged, if there is any."""
    return next((data for data in copies if is_whole(data)), copies[0])


def _envelope(data: bytes, path: Path) -> tuple[bytes, KdfParams]:
    if len(data) < ENVELOPE.size + NONCE_BYTES or data[: len(MAGIC)] != MAGIC:
        raise KeyringError(f"{path} is no Enigma keystore, or it is damaged; {path}.old or `enigma recover` may help.")
    _, version, memory_kib, passes, lanes, salt = ENVELOPE.unpack_from(data)
    if version != VERSION:
        raise FormatUnsupported(f"The keystore {path} has version {version}, which needs a newer Enigma.")
    kdf = KdfParams(memory_kib, passes, lanes)
    kdf.check()
    return salt, kdf


def _unsealed(data: bytes, file_key: bytes, path: Path) -> dict[str, Any]:
    """The JSON of a keystore file. A wrong passphrase and a flipped bit look the same to AES-GCM."""
    head, rest = data[: ENVELOPE.size], data[ENVELOPE.size :]
    try:
        plain = Cipher(file_key).open(rest[NONCE_BYTES:], nonce=rest[:NONCE_BYTES], aad=head)
    except SealBroken as exc:
        raise WrongPassphrase(f"The passphrase does not open the keystore {path} (or the file is damaged).") from exc
    try:
        content = json.loads(plain)
    except ValueError as exc:
        raise KeyringError(f"The keystore {path} holds no JSON; it is damaged.") from exc
    if not isinstance(content, dict):
        raise KeyringError(f"The keystore {path} holds no keystore; it is damaged.")
    return content


def _repository_id(content: Mapping[str, Any]) -> RepositoryId:
    try:
        return RepositoryId.from_hex(str(content.get("repository")))
    except ValueError as exc:
        raise KeyringError("The keystore names no repository; it is damaged.") from exc


def _b64(content: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(content[name], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as exc:
        raise KeyringError(f"The keystore's entry {name!r} is damaged.") from exc


def _write_mlkem(path: Path, pair: MlKemPair) -> None:
    """The separate key file: written once, never replaced."""
    if path.exists():
        raise KeyringError(f"There is an ML-KEM key at {path} already; it may open another repository. Move it away.")
    head = MLKEM_MAGIC + pair.pair_id + pair.secret
    _write_file(path, head + checksum(head))


def _read_mlkem(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise KeyMissing(
            f"The separate ML-KEM key file {path} is not there; plug it in or correct `mlkem_key_path`."
        ) from exc
    except OSError as exc:
        raise KeyringError(f"Can't read the ML-KEM key file {path}: {exc.strerror}.") from exc
    if data[:8] != MLKEM_MAGIC or checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:
        raise KeyringError(f"{path} is no ML-KEM key file of Enigma, or it is damaged.")
    return data[24:-CHECKSUM_BYTES]


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise KeyringError(f"{path} is far too large to be a keystore.")
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise KeyringError(f"There is no keystore at {path}; `enigma recover` rebuilds it from the providers.") from exc
    except OSError as exc:
        raise KeyringError(f"Can't read the keystore {path}: {exc.strerror}.") from exc


def _write_file(path: Path, data: bytes) -> None:
    """A file of mode 0600 that survives a power cut. Raises KeyringError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # whatever lies there, a link or another's mode, has no part in this
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as exc:
        raise KeyringError(f"Can't write {path}: {exc.strerror}.") from exc


def _keep_old(path: Path) -> None:
    """Keep the present file as `.old`, without a moment in which it has no name."""
    old = path.with_name(path.name + ".old")
    old.unlink(missing_ok=True)
    try:
        os.link(path, old)
    except OSError:  # a file system without hard links
        _write_file(old, _read_file(path))


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
