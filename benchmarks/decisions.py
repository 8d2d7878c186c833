"""One decision of each peer without a framework around it: two limits taken, and what their fields would need known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import Any

from benchmarks.asgi_apps import LIMITS, THROTTLED_QUOTAS
from benchmarks.requests import CLIENT

Decide = Callable[[], object]
AsyncDecide = Callable[[], Awaitable[object]]


def repeatedly(decide: Decide) -> Callable[[int], None]:
    """What decides on so many requests, one after the other."""

    def decide_on(requests: int) -> None:
        for _ in repeat(None, requests):
            decide()

    return decide_on


def repeatedly_in(run: Callable[[Any], object], decide: AsyncDecide, *, concurrent: int = 1) -> Callable[[int], None]:
    """The same on the event loop of ``run``, by so many tasks at a time."""

    async def decide_on(requests: int) -> None:
        for _ in repeat(None, requests):
            await decide()

    async def decide_concurrently(requests: int) -> None:
        # At least one each, so that a warm-up opens all connections.
        await asyncio.gather(*[decide_on(max(1, requests // concurrent)) for _ in range(concurrent)])

    return lambda requests: run(decide_on(requests) if concurrent == 1 else decide_concurrently(requests))


def limits(uri: str, **options: Any) -> Decide:
    from limits import parse
    from limits.storage import storage_from_string
    from limits.strategies import FixedWindowRateLimiter

    limiter = FixedWindowRateLimiter(storage_from_string(uri, **options))
    items = [parse(limit) for limit in LIMITS]

    def decide() -> None:
        for item in items:
            assert limiter.hit(item, CLIENT)
            limiter.get_window_stats(item, CLIENT)

    return decide


def async_limits(uri: str, **options: Any) -> AsyncDecide:
    from limits import parse
    from limits.aio.strategies import FixedWindowRateLimiter
    from limits.storage import storage_from_string

    limiter = FixedWindowRateLimiter(storage_from_string(uri, **options))
    items = [parse(limit) for limit in LIMITS]

    async def decide() -> None:
        for item in items:
            assert await limiter.hit(item, CLIENT)
            await limiter.get_window_stats(item, CLIENT)

    return decide


def throttled() -> Decide:
    from throttled import MemoryStore

    return _throttled(MemoryStore())


def throttled_redis(url: str) -> Decide:
    from throttled import RedisStore

    return _throttled(RedisStore(server=url))


def _throttled(store: Any) -> Decide:
    from throttled import Throttled

    limiters = [Throttled(quota=quota, using=kind, store=store) for quota, kind in THROTTLED_QUOTAS]

    def decide() -> None:
        for limiter in limiters:
            assert not limiter.limit(CLIENT).limited

    return decide


def async_throttled_redis(url: str) -> AsyncDecide:
    from throttled.asyncio import RedisStore, Throttled

    store = RedisStore(server=url)
    limiters = [Throttled(quota=quota, using=kind, store=store) for quota, kind in THROTTLED_QUOTAS]

    async def decide() -> None:
        for limiter in limiters:
            assert not (await limiter.limit(CLIENT)).limited

    return decide


def pyrate() -> Decide:
    from benchmarks.pyrate_buckets import client_limiter

    limiter = client_limiter()

    def decide() -> None:
        assert limiter.try_acquire(CLIENT, blocking=False)

    return decide
