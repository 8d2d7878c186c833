"""Settings from where operators keep them: a mapping, the environment, a TOML file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abuseguard.errors import SettingsError
from abuseguard.identity import imported
from abuseguard.settings import Settings, setting_names

PREFIX = "ABUSEGUARD_"

# Settings that are functions; from text they are imported.
_FUNCTIONS = ("exempt", "response", "estimate", "observer")
_SEQUENCES = ("trusted_proxies", "exempt_paths", "exempt_accounts", "exempt_networks")
_WHOLE_NUMBERS = ("max_keys", "ipv6_prefix", "workers", "default_output_tokens", "max_body_bytes")
_NUMBERS = ("store_timeout_seconds", "retry_after_jitter", "max_delay_seconds")


def settings_from_mapping(values: Mapping[str, Any]) -> Settings:
    """See ``Settings.from_mapping``."""
    if isinstance(values, Settings):
        return values
    if not isinstance(values, Mapping):
        raise SettingsError("settings", values, "a mapping of the names of settings to their values")
    known = setting_names()
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = key.lower() if isinstance(key, str) else key
        if name not in known:
            raise SettingsError(str(key), value, f"one of the settings {', '.join(known)}")
        if name in given:
            raise SettingsError(str(key), value, "each setting once")
        given[name] = value
    for name in _FUNCTIONS:
        if isinstance(given.get(name), str):
            given[name] = imported(name, given[name])
    if isinstance(given.get("limits"), (str, Mapping)):
        given["limits"] = [given["limits"]]
    if "limits" in given and isinstance(given["limits"], (list, tuple)):
        given["limits"] = [_limit(position, limit) for position, limit in enumerate(given["limits"])]
    return Settings(**given)


def _limit(position: int, limit: Any) -> Any:
    """A limit whose functions are given by name."""
    if isinstance(limit, str) and re.fullmatch(r"[\w.]+:\w+", limit):
        return imported(f"limits[{position}]", limit)
    if isinstance(limit, Mapping):
        resolved = dict(limit)
        for name in ("when", "per", "cost"):
            value = resolved.get(name)
            if isinstance(value, str) and ":" in value:
                resolved[name] = imported(f"limits[{position}].{name}", value)
        return resolved
    return limit


def settings_from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """See ``Settings.from_environment``."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for key, text in environ.items():
        if key.startswith(PREFIX):
            name = key[len(PREFIX) :].lower()
            try:
                values[name] = _parsed(name, text)
            except SettingsError as error:
                raise SettingsError(key, error.value, error.allowed) from None
    try:
        return settings_from_mapping(values)
    except SettingsError as error:
        raise SettingsError(PREFIX + error.field.upper().partition(".")[0], error.value, error.allowed) from error


def _parsed(name: str, text: str) -> Any:
    """The value that a variable's text stands for."""
    if name == "limits":
        return [limit.strip() for limit in re.split(r"[;\n]", text) if limit.strip()]
    if name == "store_options":
        raise SettingsError(name, text, "no such variable: give client options in the URI or in code")
    if name == "trusted_proxies" and text.strip().isdecimal():
        return int(text)
    if name in _SEQUENCES:
        return [item.strip() for item in re.split(r"[;,\n]", text) if item.strip()]
    if name in _WHOLE_NUMBERS:
        try:
            return int(text)
        except ValueError:
            raise SettingsError(name, text, "a whole number") from None
    if name in _NUMBERS:
        try:
            return float(text)
        except ValueError:
            raise SettingsError(name, text, "a number") from None
    return text


def settings_from_toml(path: str | os.PathLike[str]) -> Settings:
    """See ``Settings.from_toml``."""
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:  # what is no path, no file, no text, no TOML
        raise SettingsError("settings file", path, f"a readable TOML file ({error})") from error
    tool = document.get("tool")
    if isinstance(document.get("abuseguard"), Mapping):
        document = document["abuseguard"]
    elif isinstance(tool, Mapping) and isinstance(tool.get("abuseguard"), Mapping):
        document = tool["abuseguard"]
    return settings_from_mapping(document)
