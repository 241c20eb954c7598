"""Encrypted, deduplicated backups spread over several clouds."""

__version__ = "0.1.0"
