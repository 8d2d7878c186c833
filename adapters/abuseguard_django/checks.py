"""What ``manage.py check`` says of the settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from django import conf
from django.apps import AppConfig
from django.core import checks

from abuseguard import MissingExtraError, Settings, SettingsError, User
from abuseguard_django.settings import MIDDLEWARE, middleware_position, project_settings

_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"


@checks.register(checks.Tags.security)
def check_settings(app_configs: Sequence[AppConfig] | None = None, **_: object) -> list[checks.CheckMessage]:
    """Every setting that is wrong, what is missing for them, and a middleware that is out of its place."""
    errors = list(_wrong_settings(getattr(conf.settings, "ABUSEGUARD", None)))
    if errors:
        return errors
    try:
        settings = project_settings()
    except SettingsError as error:
        return [_wrong(error)]
    return [*_missing_libraries(settings), *_misplaced(settings)]


def _wrong_settings(given: object) -> Iterator[checks.CheckMessage]:
    """Each on its own, so that all are told at once."""
    if given is None or isinstance(given, Settings):
        return
    if not isinstance(given, Mapping):
        yield checks.Error(
            f"ABUSEGUARD: got {given!r}, expected a mapping of the fields of abuseguard.Settings, or a Settings.",
            id="abuseguard.E001",
        )
        return
    for name, value in given.items():
        try:
            Settings.from_mapping({name: value})
        except SettingsError as error:
            yield _wrong(error)


def _wrong(error: SettingsError) -> checks.CheckMessage:
    return checks.Error(f"ABUSEGUARD: {error}.", id="abuseguard.E002")


def _missing_libraries(settings: Settings) -> Iterator[checks.CheckMessage]:
    for library in ("redis", "valkey"):
        if settings.store.startswith(library) and importlib.util.find_spec(library) is None:
            yield checks.Error(f"ABUSEGUARD: store: {MissingExtraError(library, library)}.", id="abuseguard.E003")


def _misplaced(settings: Settings) -> Iterator[checks.CheckMessage]:
    ours = middleware_position(MIDDLEWARE)
    if ours is None:
        yield checks.Warning(
            "abuseguard limits nothing, as its middleware is missing.",
            hint=f"Add {MIDDLEWARE!r} to MIDDLEWARE.",
            id="abuseguard.W001",
        )
    elif isinstance(settings.account, User):
        authentication = middleware_position(_AUTHENTICATION)
        if authentication is not None and ours < authentication:
            yield checks.Warning(
                "abuseguard is to limit users, but they are not known yet when its middleware is reached: everyone is "
                "limited by address.",
                hint=f"In MIDDLEWARE, put {MIDDLEWARE!r} after {_AUTHENTICATION!r}.",
                id="abuseguard.W002",
            )
