"""slowapi, as its users run it, with the token bucket by name."""

from __future__ import annotations

import asyncio
import time
import warnings
from functools import partial

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from limits.strategies import STRATEGIES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # slowapi's, of asyncio
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.middleware import SlowAPIASGIMiddleware

from abuseguard.buckets.strategy import TokenBucketRateLimiter
from abuseguard.clock import ManualClock

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:slowapi")


class Client:
    """Asks the application as a server would, one request after the other."""

    def __init__(self, app):
        self.transport = httpx.ASGITransport(app)

    def get(self, path):
        async def request():
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.get(path)

        return asyncio.run(request())


def application(storage_uri):
    limiter = Limiter(
        key_func=lambda: "alice",
        strategy="token-bucket",
        storage_uri=storage_uri,
        default_limits=["90/hour"],
        headers_enabled=True,
    )
    app = FastAPI()
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIASGIMiddleware)

    @app.get("/")
    async def index():
        return "hello"

    @app.get("/dear")
    @limiter.limit("100/day", cost=30)
    async def dear(request: Request, response: Response):
        return "hello"

    return Client(app), limiter


@pytest.fixture(params=["memory", "abuseguard+memory", "redis"])
def limited(request):
    if request.param == "redis":
        client, limiter = application(request.getfixturevalue("redis_url"))
        yield client, limiter
        limiter._storage.get_connection().close()
    else:
        yield application(f"{request.param}://")


def test_takes_until_the_bucket_is_empty(limited):
    client, _ = limited
    responses = [client.get("/") for _ in range(91)]
    assert [response.status_code for response in responses] == [200] * 90 + [429]
    assert [response.headers["X-RateLimit-Remaining"] for response in responses[:3]] == ["89", "88", "87"]
    assert responses[-1].headers["X-RateLimit-Remaining"] == "0"
    assert 35 <= int(responses[-1].headers["Retry-After"]) <= 41


def test_a_denial_costs_nothing(limited):
    client, _ = limited
    assert [client.get("/dear").status_code for _ in range(10)] == [200] * 3 + [429] * 7
    assert client.get("/dear").headers["X-RateLimit-Remaining"] == "10"


def test_its_own_reset_empties_no_bucket(limited):
    client, limiter = limited
    assert [client.get("/dear").status_code for _ in range(4)] == [200] * 3 + [429]
    limiter.reset()
    assert [client.get("/dear").status_code for _ in range(4)] == [200] * 3 + [429]


def test_ninety_an_hour_is_one_every_forty_seconds(monkeypatch):
    clock = ManualClock(time.time_ns())
    monkeypatch.setitem(STRATEGIES, "token-bucket", partial(TokenBucketRateLimiter, clock=clock))
    client, _ = application("memory://")
    for _ in range(90):
        assert client.get("/").status_code == 200
    clock.advance(seconds=39.9)
    assert client.get("/").status_code == 429
    clock.advance(seconds=0.1)
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]
    clock.advance(seconds=80)
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
