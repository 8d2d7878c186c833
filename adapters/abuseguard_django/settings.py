"""Settings from where Django projects keep theirs."""

from __future__ import annotations

from typing import Any

from django import conf
from django.utils.module_loading import import_string

from abuseguard import Settings

MIDDLEWARE = "abuseguard_django.middleware.AbuseGuardMiddleware"


def project_settings() -> Settings:
    """The project's ``ABUSEGUARD``: a mapping of the fields of ``Settings`` in any case, or a ``Settings``.

    Without it, the environment's.

    Raises:
        SettingsError: one of them is wrong.
    """
    given = getattr(conf.settings, "ABUSEGUARD", None)
    return Settings.from_environment() if given is None else Settings.from_mapping(given)


def middleware_position(wanted: str) -> int | None:
    """Where in ``MIDDLEWARE`` that class, or one that is made of it, stands first."""
    classes = [_imported(path) for path in (wanted, *conf.settings.MIDDLEWARE)]
    if isinstance(classes[0], type):
        for position, found in enumerate(classes[1:]):
            if isinstance(found, type) and issubclass(found, classes[0]):
                return position
    return None


def _imported(path: str) -> Any:
    try:
        return import_string(path)
    except (ImportError, RuntimeError):
        return None  # Django itself will say so, or the application that it belongs to is not installed
