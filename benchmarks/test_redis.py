"""What a decision on Redis takes, with two limits, beside the same script called by redis-py with nothing around it."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import redis
import redis.asyncio

from abuseguard import Limit, Outcome, RequestFacts, Settings
from abuseguard.buckets.redis import TAKE, RedisCommands
from abuseguard.guard import AsyncGuard, Guard
from benchmarks import decisions
from benchmarks.asgi_apps import LIMITS
from benchmarks.decisions import repeatedly, repeatedly_in
from benchmarks.requests import CLIENT, PATH
from benchmarks.rounds import CPU_TIMER, WALL_TIMER, RequestTimer, play
from tests.redis_servers import RedisServer

_CONCURRENT = 32
_CONCURRENT_TIMER = RequestTimer(time.perf_counter, 10 * _CONCURRENT)
_TARGET_OF_BARE = 1.25
# As in test_fastapi.py.
_REFERENCE_BARE_CONCURRENT_MICROSECONDS = 46
_TARGET_CONCURRENT_MICROSECONDS = 15


@pytest.fixture(scope="module")
def redis_url():
    with RedisServer() as server:
        yield server.url


def _settings(url, *limits):
    # A timeout that a busy machine does not reach: a decision that fails is not what is measured.
    return Settings(limits=limits or LIMITS, store=url, store_timeout_seconds=5)


def _facts():
    return RequestFacts("GET", PATH, peer=CLIENT)


def _bare_arguments(guard):
    """What a guard's store says to Redis for one request, for ``evalsha``."""
    facts = _facts()
    commands = RedisCommands("bare", b"")
    return commands.take([commands.step(CLIENT, guard.policy.plan(facts).demands)])[1:]


@contextmanager
def _all_answered(guard):
    """Makes sure that what was measured were decisions of the store, and all the same."""
    yield
    assert {outcome for outcome, count in guard.outcomes.items() if count} == {Outcome.ALLOWED}


async def _async_contenders(url, guard):
    client = redis.asyncio.Redis.from_url(url)
    await client.script_load(TAKE.text)
    arguments = _bare_arguments(guard)
    return {
        "limits.aio": decisions.async_limits(f"async+{url}", implementation="redispy"),
        "throttled-py": decisions.async_throttled_redis(url),
        "bare EVALSHA": lambda: client.evalsha(*arguments),
        "abuseguard": lambda: guard.decide(_facts()),
    }


@pytest.mark.benchmark(group="Redis", timer=WALL_TIMER)
def test_async_decisions_one_after_the_other(benchmark, speed_table, run, redis_url):
    guard = AsyncGuard(_settings(redis_url))
    contenders = run(_async_contenders(redis_url, guard))

    with _all_answered(guard):
        played = play(
            benchmark,
            {name: repeatedly_in(run, decide) for name, decide in contenders.items()},
            timer=WALL_TIMER,
            rounds=100,
        )

    peers = ("bare EVALSHA", "throttled-py", "limits.aio")
    speed_table.add(
        "Redis, asyncio: a decision",
        played.took("abuseguard"),
        peers={name: played.took(name) for name in peers},
        unit="µs",
    )
    speed_table.add(
        "Redis, asyncio: of one bare EVALSHA",
        played.ratio("abuseguard", "bare EVALSHA"),
        peers={name: played.ratio(name, "bare EVALSHA") for name in peers[1:]},
        target=_TARGET_OF_BARE,
    )


@pytest.mark.benchmark(group="Redis", timer=_CONCURRENT_TIMER)
def test_async_decisions_concurrently(benchmark, speed_table, run, redis_url):
    guard = AsyncGuard(_settings(redis_url))
    contenders = run(_async_contenders(redis_url, guard))

    with _all_answered(guard):
        played = play(
            benchmark,
            {name: repeatedly_in(run, decide, concurrent=_CONCURRENT) for name, decide in contenders.items()},
            timer=_CONCURRENT_TIMER,
            rounds=40,
        )

    speed_table.add(
        f"Redis, asyncio, {_CONCURRENT} concurrent: a decision",
        played.took("abuseguard"),
        peers={name: played.took(name) for name in ("bare EVALSHA", "throttled-py", "limits.aio")},
        unit="µs",
        target=_TARGET_CONCURRENT_MICROSECONDS,
    )
    speed_table.add(
        f"Redis, asyncio, {_CONCURRENT} concurrent: of one bare EVALSHA",
        played.ratio("abuseguard", "bare EVALSHA"),
        peers={name: played.ratio(name, "bare EVALSHA") for name in ("throttled-py", "limits.aio")},
        target=_TARGET_CONCURRENT_MICROSECONDS / _REFERENCE_BARE_CONCURRENT_MICROSECONDS,
    )


@pytest.mark.benchmark(group="Redis", timer=CPU_TIMER)
def test_denied_accounts_cost_no_round_trip(benchmark, speed_table, run, redis_url):
    allowing = AsyncGuard(Settings(limits=LIMITS))
    in_memory = AsyncGuard(Settings(limits=[Limit("1/hour"), Limit("2/hour")]))
    on_redis = AsyncGuard(_settings(redis_url, Limit("1/hour"), Limit("2/hour")))
    guards = {"memory, denied": in_memory, "memory, allowed": allowing, "Redis, denied": on_redis}
    contenders = {
        name: repeatedly_in(run, lambda guard=guard: guard.decide(_facts())) for name, guard in guards.items()
    }
    contenders["memory, denied"](1)
    contenders["Redis, denied"](2)

    played = play(benchmark, contenders, timer=CPU_TIMER)

    assert on_redis.outcomes[Outcome.ALLOWED] == 1
    assert on_redis.outcomes[Outcome.DEGRADED] == 0
    speed_table.add(
        "Redis, account known to be denied: a decision",
        played.took("Redis, denied"),
        peers={name: played.took(name) for name in ("memory, allowed", "memory, denied")},
        unit="µs",
    )
    speed_table.add(
        "Redis, account known to be denied: of one allowed in memory",
        played.ratio("Redis, denied", "memory, allowed"),
        target=1,
    )


@pytest.mark.benchmark(group="Redis", timer=WALL_TIMER)
def test_blocking_decisions(benchmark, speed_table, redis_url):
    guard = Guard(_settings(redis_url))
    client = redis.Redis.from_url(redis_url)
    client.script_load(TAKE.text)
    arguments = _bare_arguments(guard)
    contenders = {
        "limits": decisions.limits(redis_url),
        "throttled-py": decisions.throttled_redis(redis_url),
        "bare EVALSHA": lambda: client.evalsha(*arguments),
        "abuseguard": lambda: guard.decide(_facts()),
    }

    with _all_answered(guard):
        played = play(
            benchmark,
            {name: repeatedly(decide) for name, decide in contenders.items()},
            timer=WALL_TIMER,
            rounds=100,
        )

    peers = ("bare EVALSHA", "throttled-py", "limits")
    speed_table.add(
        "Redis, blocking: a decision",
        played.took("abuseguard"),
        peers={name: played.took(name) for name in peers},
        unit="µs",
    )
    speed_table.add(
        "Redis, blocking: of one bare EVALSHA",
        played.ratio("abuseguard", "bare EVALSHA"),
        peers={name: played.ratio(name, "bare EVALSHA") for name in peers[1:]},
        target=_TARGET_OF_BARE,
    )
