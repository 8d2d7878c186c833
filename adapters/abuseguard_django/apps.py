"""The application that has ``manage.py check`` look at the settings."""

from __future__ import annotations

from django.apps import AppConfig


class AbuseGuardConfig(AppConfig):
    """Has no models; put ``"abuseguard_django"`` into ``INSTALLED_APPS`` for the system checks."""

    name = "abuseguard_django"
    verbose_name = "abuseguard"

    def ready(self) -> None:
        from abuseguard_django import checks  # noqa: F401 - importing registers them
