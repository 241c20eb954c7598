"""From a [[providers]] entry to an open provider: one table of types, each factory imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enigma.config import ProviderConfig
from enigma.errors import ConfigError
from enigma.providers.base import Provider
from enigma.providers.retry import RetryProvider

LOCAL_DEADLINE_S = 2.0  # a folder that is away seldom comes back by waiting


def open_provider(settings: ProviderConfig, *, create: bool = False) -> Provider:
    """Open one provider; temporary errors are retried. With `create` a Local one's folder is made if it is missing.

    Raises ConfigError for a type that this version doesn't have, ProviderError if the place can't be used.
    """
    factory = FACTORIES.get(settings.type)
    if factory is None:
        raise ConfigError(
            f"Provider {settings.name} has type {settings.type}; this version supports {', '.join(FACTORIES)} only."
        )
    return factory(settings, create)


def _local(settings: ProviderConfig, create: bool) -> Provider:
    from enigma.providers.local import LocalProvider

    provider = LocalProvider(settings.name, Path(settings.bucket))
    if create:
        provider.make_root()
    return RetryProvider(provider, deadline_s=LOCAL_DEADLINE_S)


FACTORIES: dict[str, Callable[[ProviderConfig, bool], Provider]] = {"Local": _local}
