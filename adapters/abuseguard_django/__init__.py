"""abuseguard for Django: its middleware in ``MIDDLEWARE``, its settings as ``ABUSEGUARD = {...}``, and decorators."""

from __future__ import annotations

from abuseguard_django.decorators import exempt, limit

__all__ = ["exempt", "limit"]
