"""The token bucket as a strategy of the ``limits`` library, under the name ``token-bucket``.

Importing this module makes it known to ``limits``, and with that to everything that names a strategy of it:

    import abuseguard.buckets.strategy

    flask_limiter.Limiter(get_remote_address, app=app, strategy="token-bucket", default_limits=["90/hour"])
    slowapi.Limiter(key_func=get_remote_address, strategy="token-bucket")

A rate of ``limits`` has no burst: ``"90/hour"`` is a bucket of 90 that gains one every 40 s. A denial costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from limits.aio import storage as aio_storage
from limits.aio import strategies as aio_strategies
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import STRATEGIES, RateLimiter
from limits.util import WindowStats

from abuseguard.buckets.async_window_storage import AsyncWindowStorage
from abuseguard.buckets.bucket import Bucket
from abuseguard.buckets.memory import MemoryStore
from abuseguard.buckets.redis import TAKE, RedisCommands
from abuseguard.buckets.store import Demand, Reply
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock
from abuseguard.errors import SettingsError, StoreFullError

if TYPE_CHECKING:
    from limits import RateLimitItem

NAME = "token-bucket"
_RATES_REMEMBERED = 1024

# The keys of `limits` do not name the strategy: without a prefix, another strategy's key of the same item would be
# taken for a bucket.
_KEY_PREFIX = NAME + ":"
# Held in a table that `reset` of limits' memory storage empties, and that nothing else looks at.
_MARK = "abuseguard/token-bucket"

_memory_stores: WeakKeyDictionary[Any, MemoryStore] = WeakKeyDictionary()
_memory_stores_lock = threading.Lock()


class TokenBucketRateLimiter(RateLimiter):
    """Limits by token buckets of an item's amount, which refill evenly over its period.

    Args:
        storage: a memory or Redis storage of ``limits``, or a ``WindowStorage``.
        clock: where the time comes from. Default: the storage's own clock, else the machine's. Redis goes by its own
            time; in limits' memory storage the clock of the first limiter counts.

    Raises:
        NotImplementedError: it is any other storage.
        StoreFullError: at run time, in memory: a million clients have used up their buckets, and a new one comes.

    >>> from limits import parse
    >>> limiter = TokenBucketRateLimiter(WindowStorage())
    >>> [limiter.hit(parse("2/minute"), "alice") for _ in range(3)]
    [True, True, False]
    >>> limiter.get_window_stats(parse("2/minute"), "alice").remaining
    0
    """

    def __init__(self, storage: Any, *, clock: Clock | None = None) -> None:
        super().__init__(storage)
        self._clock: Clock = clock or getattr(storage, "clock", None) or SystemClock()
        if isinstance(storage, (MemoryStorage, WindowStorage)):
            self._take: Callable[[Demand], Reply] = _take_in_memory(storage, self._clock)
        elif isinstance(storage, RedisStorage):
            script = storage.get_connection().register_script(TAKE.text)
            self._take = lambda demand: RedisCommands.reply(
                script(keys=[storage.prefixed_key(_key(demand))], args=_arguments(demand))
            )
        else:
            raise NotImplementedError(_unsupported(self, storage))
        self._errors = _errors(storage)

    def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Takes ``cost`` tokens, or none.

        Returns:
            Whether they were taken.
        """
        demand = _demand(item, identifiers, cost)
        return demand is not None and self._ask(demand).allowed

    def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Whether ``cost`` tokens could be taken now."""
        demand = _demand(item, identifiers, cost)
        return demand is not None and _fits(demand, self._ask(demand._replace(cost_ns=0)))

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """When there will be a token more than now (seconds since 1970; now, if it is full), and how many there are."""
        demand = _demand(item, identifiers, 0)
        return _stats(item, self._clock, None if demand is None else self._ask(demand))

    def clear(self, item: RateLimitItem, *identifiers: str) -> None:
        """Makes the bucket full again."""
        demand = _demand(item, identifiers, 0)
        if demand is None:
            return
        if isinstance(self.storage, RedisStorage):
            self.storage.clear(_key(demand))
        else:
            _memory_store(self.storage, self._clock).clear(_key(demand), [demand.bucket])

    def _ask(self, demand: Demand) -> Reply:
        try:
            return self._take(demand)
        except self._errors as error:
            if self.storage.wrap_exceptions:
                raise StorageError(error) from error
            raise


class AsyncTokenBucketRateLimiter(aio_strategies.RateLimiter):
    """The same for ``limits.aio``, with the same arguments, answers and errors."""

    def __init__(self, storage: Any, *, clock: Clock | None = None) -> None:
        super().__init__(storage)
        self._clock: Clock = clock or getattr(storage, "clock", None) or SystemClock()
        if isinstance(storage, (aio_storage.MemoryStorage, AsyncWindowStorage)):
            take = _take_in_memory(storage, self._clock)

            async def take_at_once(demand: Demand) -> Reply:
                return take(demand)

            self._take: Callable[[Demand], Coroutine[Any, Any, Reply]] = take_at_once
        elif isinstance(storage, aio_storage.RedisStorage):
            bridge: Any = storage.bridge
            script = bridge.get_connection().register_script(TAKE.text)
            execute = getattr(script, "execute", script)  # coredis names the method that redis-py and valkey do not

            async def take_in_redis(demand: Demand) -> Reply:
                key = bridge.prefixed_key(_key(demand))
                return RedisCommands.reply(await execute(keys=[key], args=_arguments(demand)))

            self._take = take_in_redis
        else:
            raise NotImplementedError(_unsupported(self, storage))
        self._errors = _errors(storage)

    async def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Takes ``cost`` tokens, or none; see ``TokenBucketRateLimiter.hit``."""
        demand = _demand(item, identifiers, cost)
        return demand is not None and (await self._ask(demand)).allowed

    async def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Whether ``cost`` tokens could be taken now."""
        demand = _demand(item, identifiers, cost)
        return demand is not None and _fits(demand, await self._ask(demand._replace(cost_ns=0)))

    async def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """When there will be a token more, and how many there are; see ``TokenBucketRateLimiter``."""
        demand = _demand(item, identifiers, 0)
        return _stats(item, self._clock, None if demand is None else await self._ask(demand))

    async def clear(self, item: RateLimitItem, *identifiers: str) -> None:
        """Makes the bucket full again."""
        demand = _demand(item, identifiers, 0)
        if demand is None:
            return
        if isinstance(self.storage, aio_storage.RedisStorage):
            await self.storage.clear(_key(demand))
        else:
            _memory_store(self.storage, self._clock).clear(_key(demand), [demand.bucket])

    async def _ask(self, demand: Demand) -> Reply:
        try:
            return await self._take(demand)
        except self._errors as error:
            if self.storage.wrap_exceptions:
                raise StorageError(error) from error
            raise


@lru_cache(_RATES_REMEMBERED)
def _bucket(amount: int, period_seconds: int) -> Bucket:
    return Bucket.per(amount=amount, period_seconds=period_seconds)


def _demand(item: RateLimitItem, identifiers: tuple[str, ...], cost: int) -> Demand | None:
    """What is asked of a store; None if it can never be had.

    Raises:
        SettingsError: the cost is below 0.
    """
    if cost < 0:
        raise SettingsError("cost", cost, "a whole number of at least 0")
    if cost > item.amount or not item.amount:
        return None
    bucket = _bucket(item.amount, item.get_expiry())
    # In memory there is a table for each rate, since only among buckets of one rate can the fullest be told.
    return Demand(repr(item), cost * bucket.interval_ns, bucket.capacity_ns, item.key_for(*identifiers))


def _key(demand: Demand) -> str:
    return f"{_KEY_PREFIX}{demand.key}"


def _arguments(demand: Demand) -> tuple[int, int, int]:
    """What the script ``take`` is told: one step of one bucket."""
    return 1, demand.cost_ns, demand.capacity_ns


def _fits(demand: Demand, reply: Reply) -> bool:
    time_to_full_ns = reply.times_to_full_ns[0]
    return time_to_full_ns is not None and time_to_full_ns + demand.cost_ns <= demand.capacity_ns


def _stats(item: RateLimitItem, clock: Clock, reply: Reply | None) -> WindowStats:
    now_ns = clock.epoch_ns()
    if reply is None:
        return WindowStats(now_ns / NANOSECONDS_PER_SECOND, 0)
    bucket = _bucket(item.amount, item.get_expiry())
    time_to_full_ns = reply.times_to_full_ns[0] or 0
    remaining = bucket.remaining(time_to_full_ns)
    wait_ns = bucket.wait_ns(time_to_full_ns, remaining + 1) or 0
    return WindowStats((now_ns + wait_ns) / NANOSECONDS_PER_SECOND, remaining)


def _unsupported(limiter: object, storage: object) -> str:
    return f"{type(limiter).__name__} is not implemented for storage of type {type(storage)}"


def _errors(storage: Any) -> tuple[type[Exception], ...]:
    """What can go wrong with a storage, all of which it may be told to wrap."""
    errors = storage.base_exceptions
    return (*(errors if isinstance(errors, tuple) else (errors,)), StoreFullError)


def _take_in_memory(storage: Any, clock: Clock) -> Callable[[Demand], Reply]:
    return lambda demand: _memory_store(storage, clock).take(_key(demand), [demand._replace(key=None)])


def _memory_store(storage: Any, clock: Clock) -> MemoryStore:
    """The buckets that belong to a memory storage; others than before, once the storage has been reset."""
    if isinstance(storage, (WindowStorage, AsyncWindowStorage)):
        return storage.buckets
    expirations: dict[str, float] = storage.expirations
    if _MARK in expirations:
        store = _memory_stores.get(storage)
        if store is not None:
            return store
    with _memory_stores_lock:
        if _MARK not in expirations or storage not in _memory_stores:
            _memory_stores[storage] = MemoryStore(clock=clock)
            expirations[_MARK] = inf
        return _memory_stores[storage]


STRATEGIES[NAME] = TokenBucketRateLimiter  # type: ignore[assignment]
aio_strategies.STRATEGIES[NAME] = AsyncTokenBucketRateLimiter
