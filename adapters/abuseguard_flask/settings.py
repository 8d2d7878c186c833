"""Settings from where Flask applications keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from abuseguard import Settings

_KEY = "ABUSEGUARD"


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings in an application's configuration: ``ABUSEGUARD``, else all ``ABUSEGUARD_*``, else the environment.

    Raises:
        SettingsError: one of them is wrong.

    >>> settings_of({"ABUSEGUARD_LIMITS": ["5/minute"], "ABUSEGUARD_MODE": "observe"}).mode
    'observe'
    """
    whole = config.get(_KEY)
    if whole is not None:
        return Settings.from_mapping(whole)
    prefix = f"{_KEY}_"
    single = {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix)}
    return Settings.from_mapping(single) if single else Settings.from_environment()
