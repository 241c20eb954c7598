"""Slots and data keys as stored objects, and the hybrid that opens a slot. FORMAT.md, "Keys".

passphrase --Argon2id(salt)--> 32 bytes --+
                                          +--HKDF "enigma-hybrid-v1"--> key-encryption key --opens--> master key
ML-KEM-768 decapsulation ------> 32 bytes --+                                                          |
     ^                                                                                             wraps data keys
     secret key: in the slot, sealed under the passphrase; or in a file of its own, and not here
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from enigma.errors import FormatUnsupported, KeyMissing, KeyringError, WrongPassphrase
from enigma.keys.kdf import KEY_BYTES, SALT_BYTES, KdfParams, derive
from enigma.model.ids import KeyId, ObjectId, RepositoryId
from workers.errors import FormatNewer, SealBroken
from workers.objects import CHECKSUM_BYTES, HEADER_BYTES, Header, ObjectType, checksum, padme
from workers.sealing import NONCE_BYTES, Cipher, random_nonce

HYBRID_INFO = b"enigma-hybrid-v1"
SECRET_INFO = b"enigma-mlkem-secret-v1"
FILE_INFO = b"enigma-keystore-file-v1"
MLKEM_CIPHERTEXT_BYTES = 1088
BODY_LIMIT_BYTES = 64 << 10
KIND_HYBRID = "passphrase+mlkem768"

B = TypeVar("B", bound=msgspec.Struct)


class SlotBody(msgspec.Struct, frozen=True, kw_only=True):
    """The clear body of a slot object. What is sealed in it is bound to the object's header.

    mlkem_secret   nonce and sealed ML-KEM secret key; empty where it is kept in a file of its own
    mlkem_id       the first 16 bytes of SHA-256 of the ML-KEM public key: which file belongs to this slot
    master         nonce and sealed master key
    """

    kind: str
    memory_kib: int
    passes: int
    lanes: int
    salt: bytes
    mlkem_id: bytes
    mlkem_ciphertext: bytes
    mlkem_secret: bytes
    master: bytes
    created_ns: int
    label: str = ""


class DataKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """The clear body of a data-key object: nonce and data key sealed under the master key."""

    sealed: bytes
    created_ns: int


@dataclass(frozen=True, slots=True)
class MlKemPair:
    """One ML-KEM-768 key pair."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"MlKemPair({self.pair_id.hex()[:8]})"

    @classmethod
    def random(cls) -> MlKemPair:
        from pqcrypto.kem import ml_kem_768

        public, secret = ml_kem_768.keygen()
        return cls(bytes(public), bytes(secret))

    @property
    def pair_id(self) -> bytes:
        return hashlib.sha256(self.public).digest()[:16]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a passphrase opened: the master key, its id, and the key of the local keystore file."""

    master_id: KeyId
    master: bytes
    file_key: bytes
    mlkem_secret: bytes

    def __repr__(self) -> str:
        return f"Opened(master_id={self.master_id!r})"


def make_slot(  # noqa: PLR0913  what a slot binds together
    repository_id: RepositoryId,
    master_id: KeyId,
    master: bytes,
    passphrase: bytes,
    pair: MlKemPair,
    *,
    kdf: KdfParams,
    salt: bytes,
    split: bool,
    now_ns: int,
) -> tuple[ObjectId, bytes, Opened]:
    """(slot id, stored bytes, what it opens). With `split` the ML-KEM secret key is not in the slot."""
    from pqcrypto.kem import ml_kem_768

    header = Header(ObjectType.SLOT, repository_id, ObjectId.random(), master_id)
    head = header.encode()
    known = derive(passphrase, salt, kdf)
    ciphertext, shared = ml_kem_768.encaps(pair.public)
    body = SlotBody(
        kind=KIND_HYBRID,
        memory_kib=kdf.memory_kib,
        passes=kdf.passes,
        lanes=kdf.lanes,
        salt=salt,
        mlkem_id=pair.pair_id,
        mlkem_ciphertext=bytes(ciphertext),
        mlkem_secret=b"" if split else _seal(_expand(known, salt, SECRET_INFO), pair.secret, head + b"mlkem"),
        master=_seal(_expand(known + bytes(shared), salt, HYBRID_INFO), master, head + b"master" + _time(now_ns)),
        created_ns=now_ns,
    )
    opened = Opened(master_id, master, _expand(known, salt, FILE_INFO), pair.secret)
    return ObjectId(header.object_id), _stored(header, msgspec.msgpack.encode(body)), opened


def file_key_of(known: bytes, salt: bytes) -> bytes:
    """The key of the local keystore file, from the passphrase's Argon2id output."""
    return _expand(known, salt, FILE_INFO)


def open_slot(data: bytes, passphrase: bytes, mlkem_secret: bytes | None, *, known: bytes | None = None) -> Opened:
    """Open a slot; `mlkem_secret` is the one of a separate key file, where there is one.

    `known` is the Argon2id output for this slot's salt, if it was computed already.

    Raises WrongPassphrase, KeyMissing if the slot needs a key file, KeyringError or FormatUnsupported for bad bytes.
    """
    header, body = read_slot(data)
    if known is None:
        known = derive(passphrase, body.salt, KdfParams(body.memory_kib, body.passes, body.lanes))
    head = header.encode()
    if body.mlkem_secret:
        mlkem_secret = _open(_expand(known, body.salt, SECRET_INFO), body.mlkem_secret, head + b"mlkem")
    if mlkem_secret is None:
        raise KeyMissing(
            "This repository needs its separate ML-KEM key file as well as the passphrase; set `mlkem_key_path` to it."
        )
    if hashlib.sha256(public_of(mlkem_secret)).digest()[:16] != body.mlkem_id:
        raise KeyMissing(
            "The ML-KEM key file belongs to another slot or repository; set `mlkem_key_path` to the right one."
        )
    shared = _decapsulate(mlkem_secret, body.mlkem_ciphertext)
    aad = head + b"master" + _time(body.created_ns)
    master = _open(_expand(known + shared, body.salt, HYBRID_INFO), body.master, aad)
    if len(master) != KEY_BYTES:
        raise KeyringError("A slot holds a master key of the wrong length; it is damaged.")
    return Opened(KeyId(header.key_id), master, _expand(known, body.salt, FILE_INFO), mlkem_secret)


def read_slot(data: bytes) -> tuple[Header, SlotBody]:
    """Raises KeyringError for anything that is no slot, before it costs memory or time."""
    header, raw = _read(data, ObjectType.SLOT)
    body = _decode(raw, SlotBody)
    if body.kind != KIND_HYBRID:
        raise FormatUnsupported(f"A slot of kind {body.kind!r} needs a newer Enigma.")
    if len(body.salt) != SALT_BYTES or len(body.mlkem_ciphertext) != MLKEM_CIPHERTEXT_BYTES:
        raise KeyringError("A slot has fields of the wrong length; it is damaged.")
    KdfParams(body.memory_kib, body.passes, body.lanes).check()
    if abs(body.created_ns) >= 1 << 62:
        raise KeyringError("A slot is dated out of all bounds; it is damaged.")
    return header, body


def make_data_key(
    repository_id: RepositoryId, key_id: KeyId, data_key: bytes, master_id: KeyId, master: bytes, now_ns: int
) -> bytes:
    """The stored object of one data key; its id is the key's id."""
    header = Header(ObjectType.DATA_KEY, repository_id, key_id, master_id)
    body = DataKeyBody(sealed=_seal(master, data_key, header.encode() + b"data" + _time(now_ns)), created_ns=now_ns)
    return _stored(header, msgspec.msgpack.encode(body))


def open_data_key(data: bytes, master_id: KeyId, master: bytes) -> tuple[KeyId, bytes, int]:
    """(key id, data key, when it was made). Raises KeyringError if it is damaged or wrapped by another master key."""
    header, raw = _read(data, ObjectType.DATA_KEY)
    body = _decode(raw, DataKeyBody)
    if abs(body.created_ns) >= 1 << 62:
        raise KeyringError(f"Data key {header.object_id.hex()} is dated out of all bounds; it is damaged.")
    if header.key_id != master_id:
        raise KeyringError(f"Data key {header.object_id.hex()} is wrapped by another master key.")
    try:
        data_key = _open(master, body.sealed, header.encode() + b"data" + _time(body.created_ns))
    except WrongPassphrase as exc:
        raise KeyringError(f"Data key {header.object_id.hex()} does not open; it is damaged.") from exc
    if len(data_key) != KEY_BYTES:
        raise KeyringError(f"Data key {header.object_id.hex()} has the wrong length; it is damaged.")
    return KeyId(header.object_id), data_key, body.created_ns


def public_of(secret: bytes) -> bytes:
    """FIPS 203 keeps the public key inside the secret one: after 1,152 bytes, 1,184 long."""
    return secret[1152 : 1152 + 1184]


def is_whole(data: bytes) -> bool:
    """Whether a copy of a slot or data key is undamaged, as far as its checksum tells without any key."""
    return len(data) > HEADER_BYTES + CHECKSUM_BYTES and checksum(data[:-CHECKSUM_BYTES]) == data[-CHECKSUM_BYTES:]


def _time(created_ns: int) -> bytes:
    """Bound into what is sealed: a provider that could date a key could make a retired one current again."""
    return created_ns.to_bytes(8, "little", signed=True)


def _stored(header: Header, body: bytes) -> bytes:
    """header | body length | body | zeros to a Padme size | checksum"""
    plain = len(body).to_bytes(4, "little") + body
    plain += bytes(padme(len(plain)) - len(plain))
    head = header.encode()
    return head + plain + checksum(head, plain)


def _read(data: bytes, kind: ObjectType) -> tuple[Header, bytes]:
    try:
        header = Header.decode(data)
    except FormatNewer as exc:
        raise FormatUnsupported(f"A key object can't be read: {exc}.") from exc
    except SealBroken as exc:
        raise KeyringError(f"A key object {exc}.") from exc
    if header.object_type is not kind or not is_whole(data):
        raise KeyringError("A key object fails its checksum; it is damaged.")
    length_bytes = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + 4], "little")
    body = data[HEADER_BYTES + 4 : HEADER_BYTES + 4 + length_bytes]
    if len(body) != length_bytes or length_bytes > BODY_LIMIT_BYTES:
        raise KeyringError("A key object has a body of the wrong length; it is damaged.")
    return header, body


def _decode(raw: bytes, kind: type[B]) -> B:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, MemoryError, UnicodeDecodeError) as exc:
        raise KeyringError(f"A key object holds no valid {kind.__name__}; it is damaged.") from exc


def _expand(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def _seal(key: bytes, plain: bytes, aad: bytes) -> bytes:
    nonce = random_nonce()
    return nonce + Cipher(key).seal(plain, nonce=nonce, aad=aad)


def _open(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    try:
        return Cipher(key).open(sealed[NONCE_BYTES:], nonce=sealed[:NONCE_BYTES].ljust(NONCE_BYTES, b"\0"), aad=aad)
    except SealBroken as exc:
        raise WrongPassphrase("The passphrase (or the separate key file) does not open this keystore.") from exc


def _decapsulate(secret: bytes, ciphertext: bytes) -> bytes:
    from pqcrypto.kem import ml_kem_768

    try:
        return bytes(ml_kem_768.decaps(secret, ciphertext))
    except ValueError as exc:
        raise KeyringError("The ML-KEM key is damaged.") from exc
