"""Every error a user of Enigma can meet: one tree, each with a stable code, an exit status and a retry verdict.

Rules. The message is one sentence that says what is wrong and what to do. A foreign exception is mapped where its
library lives (`raise ... from exc`) and never leaves that room. IntegrityError is never retried and never swallowed.
"Newer than this program" is FormatUnsupported, never corruption: a repair must not delete what it can't read.

    exit status   meaning
    0             done
    1             failed
    2             the command line or the configuration is wrong
    3             done, but some input could not be read
    4             stored with reduced redundancy
    10            there is no repository here
    11            locked by another process
    12            wrong passphrase
    130           interrupted
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INPUT_UNREADABLE = 3
EXIT_REDUCED_REDUNDANCY = 4
EXIT_NO_REPOSITORY = 10
EXIT_LOCKED = 11
EXIT_WRONG_PASSPHRASE = 12
EXIT_INTERRUPTED = 130


class EnigmaError(Exception):
    """Root of the tree. `code` is stable and appears in --json output; `retryable` says that trying again may help."""

    code = "failed"
    exit_status = EXIT_FAILED
    retryable = False


class UsageError(EnigmaError):
    """The command line asks for something that makes no sense."""

    code = "usage"
    exit_status = EXIT_USAGE


class ConfigError(EnigmaError):
    """The configuration file has an unknown key or a bad value; the message names file, key and line."""

    code = "config"
    exit_status = EXIT_USAGE


class RepositoryNotFound(EnigmaError):
    """No repository at the configured place; `enigma init` or `enigma recover` makes one."""

    code = "no-repository"
    exit_status = EXIT_NO_REPOSITORY


class RepositoryExists(EnigmaError):
    """init met a place that is not empty, or a provider that did not answer."""

    code = "repository-exists"


class Locked(EnigmaError):
    """Another process on this machine works with the same configuration directory."""

    code = "locked"
    exit_status = EXIT_LOCKED


class StateError(EnigmaError):
    """The place of the manifest and the lock can't be written."""

    code = "state"


class SnapshotNotFound(EnigmaError):
    """No snapshot matches, or the prefix is ambiguous."""

    code = "no-snapshot"


class SessionFenced(EnigmaError):
    """A garbage collection took this session for dead; what it stored is not to be trusted until verified."""

    code = "fenced"


class SourceError(EnigmaError):
    """A backup source can't be used at all (missing, unreadable root)."""

    code = "source"


class TargetError(EnigmaError):
    """A restore target can't be written."""

    code = "target"


class EngineFailed(EnigmaError):
    """A worker process died or a stage of the engine failed; the message names it."""

    code = "engine"


class KeyringError(EnigmaError):
    """A key file can't be read or written, or a key is missing."""

    code = "keyring"


class WrongPassphrase(KeyringError):
    """The passphrase (or the separate key file) opens no slot."""

    code = "wrong-passphrase"
    exit_status = EXIT_WRONG_PASSPHRASE


class WeakPassphrase(KeyringError):
    """The passphrase is too easy to guess and was not insisted on."""

    code = "weak-passphrase"
    exit_status = EXIT_USAGE


class KeyMissing(KeyringError):
    """Data is sealed under a key id that no keystore and no provider holds."""

    code = "key-missing"


class ProviderError(EnigmaError):
    """A provider refused or failed an operation for good."""

    code = "provider"


class ObjectMissing(ProviderError):
    """The provider answered, and does not have this object."""

    code = "object-missing"


class ObjectExists(ProviderError):
    """put(if_absent=True) met an object of that name."""

    code = "object-exists"


class AccessDenied(ProviderError):
    """The provider refused the credentials or the permission."""

    code = "access-denied"


class ProviderFull(ProviderError):
    """No space or quota left at the provider."""

    code = "provider-full"


class ProviderUnavailable(ProviderError):
    """The provider did not answer, or answered that it can't now."""

    code = "provider-unavailable"
    retryable = True


class IntegrityError(EnigmaError):
    """Stored bytes are not what was stored."""

    code = "integrity"


class ObjectCorrupt(IntegrityError):
    """A stored object fails its checksum, its tag, or its structure; the message names it."""

    code = "object-corrupt"


class ChunkMissing(IntegrityError):
    """A snapshot needs a chunk that no pack at hand holds."""

    code = "chunk-missing"


class ManifestCorrupt(IntegrityError):
    """The local database is damaged; `enigma recover` rebuilds it from the providers."""

    code = "manifest-corrupt"


class FormatUnsupported(EnigmaError):
    """Written by a newer Enigma, or by one with features this one lacks. Not corruption."""

    code = "format-unsupported"
