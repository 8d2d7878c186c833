"""abuseguard for Flask: ``AbuseGuard(app, settings=...)``, or ``init_app`` where a factory makes the application."""

from __future__ import annotations

from abuseguard_flask.extension import AbuseGuard

__all__ = ["AbuseGuard"]
