"""Flask-Limiter, as its users run it, with the token bucket by name."""

from __future__ import annotations

import time
from functools import partial

import pytest
from flask import Flask
from flask_limiter import Limiter
from limits.strategies import STRATEGIES

from abuseguard.buckets.strategy import TokenBucketRateLimiter
from abuseguard.clock import ManualClock


def application(storage_uri, **options):
    app = Flask("limited")
    limiter = Limiter(
        lambda: "alice",
        app=app,
        strategy="token-bucket",
        storage_uri=storage_uri,
        default_limits=["90/hour"],
        headers_enabled=True,
        **options,
    )

    @app.get("/")
    def index():
        return "hello"

    @app.get("/dear")
    @limiter.limit("100/day", cost=30)
    def dear():
        return "hello"

    @app.get("/free")
    @limiter.exempt
    def free():
        return "hello"

    return app.test_client(), limiter


@pytest.fixture(params=["memory", "abuseguard+memory", "redis"])
def limited(request):
    if request.param == "redis":
        client, limiter = application(request.getfixturevalue("redis_url"))
        yield client, limiter
        limiter.storage.get_connection().close()
    else:
        yield application(f"{request.param}://")


def test_takes_until_the_bucket_is_empty(limited):
    client, _ = limited
    responses = [client.get("/") for _ in range(91)]
    assert [response.status_code for response in responses] == [200] * 90 + [429]
    assert [response.headers["X-RateLimit-Remaining"] for response in responses[:3]] == ["89", "88", "87"]
    assert responses[-1].headers["X-RateLimit-Limit"] == "90"
    assert responses[-1].headers["X-RateLimit-Remaining"] == "0"
    # One token comes every 40 s, whereas a window would have to end first.
    assert 35 <= int(responses[-1].headers["Retry-After"]) <= 41
    assert client.get("/free").status_code == 200


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


def test_falls_back_to_memory_when_redis_is_away():
    client, limiter = application("redis://127.0.0.1:1", in_memory_fallback=["2/hour"])
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
    assert isinstance(limiter.limiter, TokenBucketRateLimiter)
