"""From what a person knows to a key: Argon2id with stored, bounded parameters."""

from __future__ import annotations

from dataclasses import dataclass

from enigma.errors import KeyringError, WeakPassphrase

SALT_BYTES = 32
KEY_BYTES = 32
MIB_IN_KIB = 1024

# What stored parameters may be: a forged slot must not cost an hour or all memory, nor next to nothing.
MEMORY_KIB = range(8 * MIB_IN_KIB, 1024 * MIB_IN_KIB + 1)
PASSES = range(1, 17)
LANES = range(1, 17)

MINIMUM_CHARACTERS = 8
COMMONEST = frozenset(
    [
        "password",
        "password1",
        "passw0rd",
        "12345678",
        "123456789",
        "1234567890",
        "qwertyui",
        "qwertyuiop",
        "iloveyou",
        "sunshine",
        "princess",
        "football",
        "baseball",
        "superman",
        "trustno1",
        "letmein1",
        "welcome1",
        "admin123",
        "abc12345",
        "11111111",
        "00000000",
        "changeme",
    ]
)


@dataclass(frozen=True, slots=True)
class KdfParams:
    """Argon2id's cost. The default is RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes."""

    memory_kib: int = 64 * MIB_IN_KIB
    passes: int = 3
    lanes: int = 4

    def check(self) -> None:
        """Raises KeyringError for parameters that no honest keystore has."""
        if self.memory_kib not in MEMORY_KIB or self.passes not in PASSES or self.lanes not in LANES:
            raise KeyringError(
                f"The keystore asks for Argon2id with {self.memory_kib} KiB, {self.passes} passes, {self.lanes} lanes, "
                "which is out of bounds; it was tampered with or is damaged."
            )


DEFAULT_KDF = KdfParams()


def derive(passphrase: bytes, salt: bytes, params: KdfParams) -> bytes:
    """32 bytes. Raises KeyringError for parameters out of bounds, before they cost anything."""
    params.check()
    from argon2.exceptions import HashingError
    from argon2.low_level import Type, hash_secret_raw

    try:
        return hash_secret_raw(
            passphrase,
            salt,
            time_cost=params.passes,
            memory_cost=params.memory_kib,
            parallelism=params.lanes,
            hash_len=KEY_BYTES,
            type=Type.ID,
        )
    except (HashingError, MemoryError) as exc:
        raise KeyringError(
            f"Argon2id needs {params.memory_kib // MIB_IN_KIB} MiB for this keystore, which this machine does not have now."
        ) from exc


def check_strength(passphrase: bytes, *, allow_weak: bool) -> None:
    """Refuse what is guessed first. Raises WeakPassphrase; an empty passphrase is never allowed."""
    text = passphrase.decode("utf-8", "replace")
    if not text:
        raise WeakPassphrase("The passphrase is empty; choose one of at least 8 characters.")
    if allow_weak:
        return
    if len(text) < MINIMUM_CHARACTERS or len(set(text)) < 4 or text.lower() in COMMONEST:
        raise WeakPassphrase(
            "The passphrase is too easy to guess; choose at least 8 characters that are not a common password, "
            "or insist with --allow-weak-passphrase."
        )
