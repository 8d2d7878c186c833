"""The same Flask application bare, guarded, and behind each peer, with the limits and rules of ``asgi_apps``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from abuseguard import Settings
from abuseguard_flask import AbuseGuard
from benchmarks.asgi_apps import LIMITS, THROTTLED_QUOTAS
from benchmarks.requests import PATH


def bare() -> Flask:
    app = Flask("bare")

    @app.get(PATH)
    def models() -> dict[str, str]:
        return {"status": "ok"}

    return app


def with_abuseguard() -> Flask:
    app = bare()
    AbuseGuard(app, settings=Settings(limits=LIMITS))
    return app


def with_flask_limiter() -> Flask:
    from flask_limiter import Limiter
    from flask_limiter.util import get_remote_address

    app = bare()
    Limiter(get_remote_address, app=app, default_limits=[*LIMITS], storage_uri="memory://", headers_enabled=True)
    return app


def with_throttled() -> Flask:
    from throttled import MemoryStore
    from throttled.contrib.flask import Limiter, get_remote_address

    store = MemoryStore(options={"MAX_SIZE": 1_000_000})
    app = Flask("throttled")
    limiters = [
        Limiter(quota, app=app, store=store, using=kind, key_func=get_remote_address)
        for quota, kind in THROTTLED_QUOTAS
    ]

    @app.get(PATH)
    @limiters[0].limit()
    @limiters[1].limit()
    def models() -> dict[str, str]:
        return {"status": "ok"}

    return app


APPS: dict[str, Callable[[], Any]] = {
    "throttled-py": with_throttled,
    "Flask-Limiter": with_flask_limiter,
    "bare": bare,
    "abuseguard": with_abuseguard,
}
