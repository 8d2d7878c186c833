"""The token bucket, as limits' users meet it: by its name, on limits' own storages, blocking and not."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import time

import limits
import limits.aio.storage
import limits.aio.strategies
import pytest
from limits.errors import StorageError
from limits.storage import MemcachedStorage, MemoryStorage, storage_from_string
from limits.strategies import STRATEGIES

from abuseguard import SettingsError
from abuseguard.buckets.async_window_storage import AsyncWindowStorage
from abuseguard.buckets.memory import MemoryStore
from abuseguard.buckets.strategy import AsyncTokenBucketRateLimiter, TokenBucketRateLimiter
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.clock import ManualClock
from abuseguard.errors import StoreFullError

REDIS = ["redis_url", "redis_cluster_url", "redis_sentinel_url", "valkey"]
MEMORY = ["memory", "abuseguard+memory"]

MINUTE = limits.parse("3/minute")


def url_of(request, name):
    if name in MEMORY:
        return f"{name}://"
    if name == "valkey":  # the client of that name; the server speaks the same protocol
        import valkey  # noqa: F401

        return request.getfixturevalue("redis_url").replace("redis://", "valkey://")
    return request.getfixturevalue(name)


@pytest.fixture(params=MEMORY + REDIS)
def storage(request):
    storage = storage_from_string(url_of(request, request.param))
    yield storage
    if request.param in MEMORY:
        return
    storage.get_connection().close()
    if hasattr(storage, "sentinel"):
        for client in (storage.storage_slave, *storage.sentinel.sentinels):
            client.close()


@contextlib.asynccontextmanager
async def connected(url):
    storage = storage_from_string(f"async+{url}", **({} if "memory" in url else {"implementation": "redispy"}))
    yield storage
    if "memory" not in url:
        bridge = storage.bridge
        clients = [bridge.get_connection()]
        if hasattr(bridge, "sentinel"):
            clients += [bridge.storage_replica, *bridge.sentinel.sentinels]
        for client in clients:
            await client.aclose()


@pytest.fixture(params=MEMORY + REDIS)
def url(request):
    return url_of(request, request.param)


def test_limits_knows_it_by_name():
    assert STRATEGIES["token-bucket"] is TokenBucketRateLimiter
    assert limits.aio.strategies.STRATEGIES["token-bucket"] is AsyncTokenBucketRateLimiter


class TestOnEveryStorage:
    def test_takes_until_the_bucket_is_empty(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        assert [limiter.hit(MINUTE, "alice") for _ in range(4)] == [True, True, True, False]
        assert limiter.hit(MINUTE, "bob")

    def test_a_denial_costs_nothing(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.parse("3/hour")
        assert limiter.hit(item, "alice", cost=2)
        assert not any(limiter.hit(item, "alice", cost=2) for _ in range(5))
        assert limiter.hit(item, "alice")

    def test_a_cost_above_the_amount_is_never_met(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        assert not limiter.hit(MINUTE, "alice", cost=4)
        assert not limiter.test(MINUTE, "alice", cost=4)
        assert limiter.hit(MINUTE, "alice", cost=3)

    def test_asking_takes_nothing(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.parse("3/hour")
        assert all(limiter.test(item, "alice", cost=3) for _ in range(5))
        limiter.hit(item, "alice")
        assert limiter.test(item, "alice", cost=2)
        assert not limiter.test(item, "alice", cost=3)
        assert limiter.hit(item, "alice", cost=0)
        assert limiter.get_window_stats(item, "alice").remaining == 2

    def test_says_what_remains_and_when_the_next_token_comes(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.parse("90/hour")
        before = time.time()
        reset_time, remaining = limiter.get_window_stats(item, "alice")
        assert remaining == 90
        assert before <= reset_time <= time.time()
        limiter.hit(item, "alice", cost=90)
        reset_time, remaining = limiter.get_window_stats(item, "alice")
        assert remaining == 0
        assert before + 38 < reset_time <= time.time() + 40

    def test_clears_one_bucket(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        for account in ("alice", "bob"):
            assert limiter.hit(MINUTE, account, cost=3)
        limiter.clear(MINUTE, "alice")
        limiter.clear(MINUTE, "nobody")
        assert limiter.test(MINUTE, "alice", cost=3)
        assert not limiter.test(MINUTE, "bob")

    def test_a_reset_of_the_storage_resets_the_buckets(self, storage):
        limiters = [STRATEGIES["token-bucket"](storage) for _ in range(2)]
        assert limiters[0].hit(MINUTE, "alice", cost=3)
        storage.reset()
        assert limiters[0].hit(MINUTE, "alice", cost=2)
        assert not limiters[1].hit(MINUTE, "alice", cost=2)

    def test_identifiers_and_namespaces_have_buckets_of_their_own(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        other = limits.RateLimitItemPerMinute(3, 1, namespace="other")
        assert limiter.hit(MINUTE, "alice", "/chat", cost=3)
        assert limiter.hit(MINUTE, "alice", "/embed", cost=3)
        assert limiter.hit(other, "alice", "/chat", cost=3)
        assert not limiter.hit(other, "alice", "/chat")

    def test_an_item_of_other_strategies_is_not_taken_for_a_bucket(self, storage):
        item = limits.parse("3/minute")
        for name in ("moving-window", "sliding-window-counter", "fixed-window", "token-bucket"):
            assert STRATEGIES[name](storage).hit(item, name, cost=3)
        for name in ("moving-window", "sliding-window-counter", "fixed-window", "token-bucket"):
            assert not STRATEGIES[name](storage).hit(item, name)
        on_one_key = [STRATEGIES[name](storage) for name in ("token-bucket", "moving-window")]
        assert [limiter.hit(item, "alice", cost=3) for limiter in on_one_key] == [True, True]

    def test_nothing_is_granted_of_nothing(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.RateLimitItemPerMinute(0)
        assert not limiter.hit(item, "alice")
        assert not limiter.test(item, "alice", cost=0)
        assert limiter.get_window_stats(item, "alice").remaining == 0
        limiter.clear(item, "alice")

    def test_refuses_a_cost_below_nothing(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        with pytest.raises(SettingsError, match="cost: got -1"):
            limiter.hit(MINUTE, "alice", cost=-1)

    def test_answers_the_same_on_an_event_loop(self, url):
        async def scenario():
            async with connected(url) as storage:
                limiter = limits.aio.strategies.STRATEGIES["token-bucket"](storage)
                item = limits.parse("90/hour")
                assert await limiter.hit(item, "alice", cost=88)
                assert not await limiter.hit(item, "alice", cost=91)
                assert not await limiter.hit(item, "alice", cost=3)
                assert [await limiter.test(item, "alice", cost=cost) for cost in (2, 3)] == [True, False]
                assert await limiter.hit(item, "alice", cost=2)
                reset_time, remaining = await limiter.get_window_stats(item, "alice")
                assert remaining == 0
                assert time.time() + 37 < reset_time <= time.time() + 40
                assert await limiter.hit(item, "bob")
                await limiter.clear(item, "alice")
                assert await limiter.hit(item, "alice", cost=90)
                await storage.reset()
                assert await limiter.test(item, "alice", cost=90)
                nothing = limits.RateLimitItemPerMinute(0)
                assert not await limiter.hit(nothing, "alice")
                assert (await limiter.get_window_stats(nothing, "alice")).remaining == 0
                await limiter.clear(nothing, "alice")

        asyncio.run(scenario())


@pytest.mark.parametrize("storage_class", [MemoryStorage, WindowStorage])
class TestInMemory:
    def test_ninety_an_hour_is_one_every_forty_seconds(self, storage_class):
        clock = ManualClock()
        limiter = (
            TokenBucketRateLimiter(storage_class(), clock=clock)
            if storage_class is MemoryStorage
            else (TokenBucketRateLimiter(storage_class(clock=clock)))
        )
        item = limits.parse("90/hour")
        assert limiter.hit(item, "alice", cost=90)
        clock.advance(seconds=40, ns=-1)
        assert not limiter.hit(item, "alice")
        assert limiter.get_window_stats(item, "alice") == (40, 0)
        clock.advance(ns=1)
        assert limiter.hit(item, "alice")
        assert not limiter.hit(item, "alice")
        clock.advance(seconds=3_599)
        assert limiter.get_window_stats(item, "alice") == (3_640, 89)
        clock.advance(seconds=1)
        assert limiter.get_window_stats(item, "alice") == (3_640, 90)

    def test_limiters_on_one_storage_share_their_buckets(self, storage_class):
        storage = storage_class()
        assert TokenBucketRateLimiter(storage).hit(MINUTE, "alice", cost=3)
        assert not TokenBucketRateLimiter(storage).hit(MINUTE, "alice")
        assert TokenBucketRateLimiter(storage_class()).hit(MINUTE, "alice")

    def test_one_rate_crowds_out_no_other(self, storage_class, monkeypatch):
        monkeypatch.setattr(
            "abuseguard.buckets.strategy.MemoryStore", lambda clock: MemoryStore(max_keys=2, clock=clock)
        )
        storage = storage_class() if storage_class is MemoryStorage else storage_class(max_keys=2)
        limiter = TokenBucketRateLimiter(storage)
        for account in ("alice", "bob"):
            assert limiter.hit(limits.parse("2/day"), account, cost=2)
        assert limiter.hit(limits.parse("2/second"), "carol", cost=2)

    def test_a_store_of_empty_buckets_takes_no_further_client(self, storage_class, monkeypatch):
        monkeypatch.setattr(
            "abuseguard.buckets.strategy.MemoryStore", lambda clock: MemoryStore(max_keys=2, clock=clock)
        )
        options = {} if storage_class is MemoryStorage else {"max_keys": 2}
        for wrap, error in [(False, StoreFullError), (True, StorageError)]:
            limiter = TokenBucketRateLimiter(storage_class(wrap_exceptions=wrap, **options))
            for account in ("alice", "bob"):
                assert limiter.hit(limits.parse("2/day"), account, cost=2)
            with pytest.raises(error):
                limiter.hit(limits.parse("2/day"), "carol")


def test_the_storage_of_limits_can_still_be_pickled():
    storage = MemoryStorage()
    limiter = TokenBucketRateLimiter(storage)
    limiter.hit(MINUTE, "alice", cost=3)
    copy = pickle.loads(pickle.dumps(storage))
    assert TokenBucketRateLimiter(copy).hit(MINUTE, "alice")
    assert not limiter.hit(MINUTE, "alice")


def test_the_memory_storages_of_limits_and_ours_have_twins_on_the_event_loop():
    async def scenario():
        clock = ManualClock()
        for storage, options in [
            (limits.aio.storage.MemoryStorage(), {"clock": clock}),
            (AsyncWindowStorage(clock=clock), {}),
        ]:
            limiter = AsyncTokenBucketRateLimiter(storage, **options)
            assert await limiter.hit(MINUTE, "alice", cost=3)
            clock.advance(seconds=20, ns=-1)
            assert not await limiter.hit(MINUTE, "alice")
            clock.advance(ns=1)
            assert await limiter.hit(MINUTE, "alice")

    asyncio.run(scenario())


class TestOnRedis:
    @pytest.fixture
    def storage(self, redis_url):
        storage = storage_from_string(redis_url)
        yield storage
        storage.get_connection().close()

    def test_ninety_an_hour_is_one_every_forty_seconds(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.parse("90/hour")
        assert limiter.hit(item, "alice", cost=90)
        self.pass_time(storage, seconds=38)
        assert not limiter.hit(item, "alice")
        self.pass_time(storage, seconds=2)
        assert limiter.hit(item, "alice")
        assert not limiter.hit(item, "alice")

    def pass_time(self, storage, *, seconds):
        """Moves the instants at which buckets are full, since Redis's own clock cannot be moved."""
        client = storage.get_connection()
        for key in client.scan_iter("*"):
            client.set(key, int(client.get(key)) - seconds * 10**9, keepttl=True)

    def test_keys_vanish_when_their_bucket_is_full(self, storage):
        limiter = STRATEGIES["token-bucket"](storage)
        item = limits.parse("90/hour")
        limiter.hit(item, "alice", cost=3)
        (key,) = storage.get_connection().keys()
        assert key.startswith(b"LIMITS:token-bucket:")
        assert 118_000 < storage.get_connection().pttl(key) <= 120_000

    def test_survives_a_server_that_has_forgotten_its_scripts(self, storage, redis_url):
        limiter = STRATEGIES["token-bucket"](storage)
        assert limiter.hit(MINUTE, "alice", cost=2)
        storage.get_connection().script_flush()
        assert limiter.hit(MINUTE, "alice")
        assert not limiter.hit(MINUTE, "alice")

        async def scenario():
            async with connected(redis_url) as asynchronous:
                limiter = AsyncTokenBucketRateLimiter(asynchronous)
                storage.get_connection().script_flush()
                assert not await limiter.hit(MINUTE, "alice")

        asyncio.run(scenario())

    def test_raises_what_the_storage_raises(self, storage, redis_url):
        broken = redis_url.replace("redis://", "redis://nobody:wrong@")
        with pytest.raises(storage.base_exceptions):
            STRATEGIES["token-bucket"](storage_from_string(broken)).hit(MINUTE, "bob")
        with pytest.raises(StorageError):
            STRATEGIES["token-bucket"](storage_from_string(broken, wrap_exceptions=True)).hit(MINUTE, "bob")

        async def scenario():
            async with connected(broken) as asynchronous:
                limiter = AsyncTokenBucketRateLimiter(asynchronous)
                with pytest.raises(asynchronous.base_exceptions):
                    await limiter.hit(MINUTE, "bob")
                asynchronous.wrap_exceptions = True
                with pytest.raises(StorageError):
                    await limiter.hit(MINUTE, "bob")

        asyncio.run(scenario())


def test_refuses_other_storages_as_limits_does():
    class Elsewhere(MemcachedStorage):
        STORAGE_SCHEME = None

        def __init__(self):
            """Connects to nothing: only its class is looked at."""

    with pytest.raises(NotImplementedError, match=r"TokenBucketRateLimiter is not implemented for .*Elsewhere"):
        TokenBucketRateLimiter(Elsewhere())

    class AsynchronousElsewhere(limits.aio.storage.MemcachedStorage):
        STORAGE_SCHEME = None

        def __init__(self):
            """The same."""

    with pytest.raises(NotImplementedError, match="AsyncTokenBucketRateLimiter is not implemented"):
        AsyncTokenBucketRateLimiter(AsynchronousElsewhere())
