"""The least that Django can be asked about. Tests that need more say so with ``override_settings``."""

from __future__ import annotations

ALLOWED_HOSTS = ["*"]
SECRET_KEY = "not a secret"
ROOT_URLCONF = "tests.django_settings"
USE_TZ = True

urlpatterns: list[object] = []
