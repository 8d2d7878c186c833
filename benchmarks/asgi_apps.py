"""The same FastAPI application bare, guarded, and behind each peer; for rounds in this process, and for uvicorn.

Every limiter has the two limits of ``LIMITS``, which no run reaches, in memory, by client address, and sends the fields
that tell a client its limits, unless it is said that it cannot.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Any

from fastapi import Depends, FastAPI, Request, Response

from abuseguard import Settings
from abuseguard_fastapi import AbuseGuardMiddleware
from benchmarks.requests import CLIENT, PATH, asgi_scope

LIMITS = ("6000000/minute", "300000000/hour")
# Of two kinds, as throttled-py keeps two quotas of one kind for one route in the same place.
THROTTLED_QUOTAS = ((LIMITS[0], "gcra"), (LIMITS[1], "token_bucket"))
NAME_VARIABLE = "BENCHMARK_APP"

AsgiApp = Callable[[Any, Any, Any], Any]


def bare() -> FastAPI:
    app = FastAPI()

    @app.get(PATH)
    async def models() -> dict[str, str]:
        return {"status": "ok"}

    return app


def with_nothing() -> FastAPI:
    """A middleware that does nothing: what any costs."""

    class Nothing:
        def __init__(self, app: AsgiApp) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    app = bare()
    app.add_middleware(Nothing)
    return app


def with_abuseguard() -> FastAPI:
    app = bare()
    app.add_middleware(AbuseGuardMiddleware, settings=Settings(limits=LIMITS))
    return app


class LimitsMiddleware:
    """``limits.aio`` as plainly as it can be put in front of an application, with its cheapest strategy."""

    def __init__(self, app: AsgiApp) -> None:
        from limits import parse
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import FixedWindowRateLimiter

        self.app = app
        self.limiter = FixedWindowRateLimiter(MemoryStorage())
        self.items = [parse(limit) for limit in LIMITS]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = scope["client"][0]
        tightest = None
        for item in self.items:
            if not await self.limiter.hit(item, client):
                raise RuntimeError("the limits are meant never to be reached")
            stats = await self.limiter.get_window_stats(item, client)
            if tightest is None or stats.remaining < tightest[1].remaining:
                tightest = item, stats
        item, stats = tightest
        fields = [
            (b"x-ratelimit-limit", str(item.amount).encode()),
            (b"x-ratelimit-remaining", str(stats.remaining).encode()),
            (b"x-ratelimit-reset", str(int(stats.reset_time)).encode()),
        ]

        async def send_with_fields(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *fields]}
            await send(message)

        await self.app(scope, receive, send_with_fields)


def with_limits() -> FastAPI:
    app = bare()
    app.add_middleware(LimitsMiddleware)
    return app


def with_fastapi_limiter() -> FastAPI:
    """Has no fields. Its own example has one bucket for all clients; here each client has its own."""
    from fastapi_limiter.depends import RateLimiter

    from benchmarks.pyrate_buckets import client_limiter

    app = FastAPI()

    @app.get(PATH, dependencies=[Depends(RateLimiter(client_limiter()))])
    async def models() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _slowapi(default_limits: tuple[str, ...] = ()) -> Any:
    from slowapi import Limiter
    from slowapi.util import get_remote_address

    return Limiter(get_remote_address, default_limits=[*default_limits], headers_enabled=True, storage_uri="memory://")


def with_slowapi_decorator() -> FastAPI:
    limiter = _slowapi()
    app = FastAPI()
    app.state.limiter = limiter

    @app.get(PATH)
    @limiter.limit(";".join(LIMITS))
    async def models(request: Request, response: Response) -> dict[str, str]:
        return {"status": "ok"}

    return app


def with_slowapi_asgi() -> FastAPI:
    from slowapi.middleware import SlowAPIASGIMiddleware

    app = bare()
    app.state.limiter = _slowapi(LIMITS)
    app.add_middleware(SlowAPIASGIMiddleware)
    return app


def with_slowapi_base_http() -> FastAPI:
    from slowapi.middleware import SlowAPIMiddleware

    app = bare()
    app.state.limiter = _slowapi(LIMITS)
    app.add_middleware(SlowAPIMiddleware)
    return app


def with_throttled() -> FastAPI:
    from throttled.asyncio import MemoryStore
    from throttled.asyncio.contrib.fastapi import Limiter, RateLimitMiddleware, get_remote_address

    store = MemoryStore(options={"MAX_SIZE": 1_000_000})
    limiters = [
        Limiter(quota, store=store, using=kind, key_func=get_remote_address) for quota, kind in THROTTLED_QUOTAS
    ]
    app = FastAPI()

    @app.get(PATH)
    @limiters[0].limit()
    @limiters[1].limit()
    async def models(request: Request) -> dict[str, str]:
        return {"status": "ok"}

    app.add_middleware(RateLimitMiddleware)
    return app


def with_fastapi_guard() -> FastAPI:
    """Without its checks for attacks; has one limit only, and no fields."""
    from guard import PureASGISecurityMiddleware, SecurityConfig

    app = bare()
    app.add_middleware(
        PureASGISecurityMiddleware,
        config=SecurityConfig(
            enable_redis=False,
            enable_penetration_detection=False,
            enable_ip_banning=False,
            rate_limit=6_000_000,
            rate_limit_window=60,
            security_headers={"enabled": False},
        ),
    )
    return app


APPS: dict[str, Callable[[], FastAPI]] = {
    "no-op middleware": with_nothing,
    "fastapi-guard": with_fastapi_guard,
    "slowapi BaseHTTP": with_slowapi_base_http,
    "throttled-py": with_throttled,
    "slowapi ASGI": with_slowapi_asgi,
    "slowapi decorator": with_slowapi_decorator,
    "fastapi-limiter": with_fastapi_limiter,
    "limits.aio": with_limits,
    "bare": bare,
    "abuseguard": with_abuseguard,
}


def named_app() -> FastAPI:
    """The application that the environment names, for a server."""
    return APPS[os.environ[NAME_VARIABLE]]()


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    pass


async def serve(app: AsgiApp, requests: int, *, clients: Iterator[str] | None = None, turns: bool = True) -> None:
    """Serves requests without a server, one after the other.

    Args:
        app: the application.
        requests: how many.
        clients: whose they are; always the same one's by default.
        turns: whether the event loop has its turn between two of them, as it has under a server; some limiters leave
            work to it.
    """
    for client in islice(clients or repeat(CLIENT), requests):
        await app(asgi_scope(client), _receive, _send)
        if turns:
            await asyncio.sleep(0)


def served_by(run: Callable[[Any], object], app: AsgiApp, **options: Any) -> Callable[[int], object]:
    """What serves so many requests on the event loop of ``run``; the options are those of ``serve``."""
    return lambda requests: run(serve(app, requests, **options))


async def first_response(app: AsgiApp) -> tuple[int, dict[str, str]]:
    """Status and header fields of one response, to make sure that a contender does what it is measured for."""
    started: list[Any] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.append(message)

    await app(asgi_scope(), _receive, send)
    return started[0]["status"], {name.decode().lower(): value.decode() for name, value in started[0]["headers"]}
