"""The windows of the ``limits`` library, as far as a store needs them: read, hit, corrected, each on one key.

Blocking storages and those for event loops have the same methods, but that the latter's have to be waited for. So
what is done here is written once, as generators that yield whatever a storage returns and are sent the result of it:
``run`` sends it back as it is, ``run_async`` waits for it first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from limits.aio import storage as aio_storage
from limits.aio.strategies import STRATEGIES as AIO_STRATEGIES
from limits.strategies import STRATEGIES

from abuseguard.buckets.window_name import WindowName
from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock

if TYPE_CHECKING:
    from limits import RateLimitItem

Result = TypeVar("Result")
Steps = Generator[Any, Any, Result]

# A limit no window reaches, for corrections that must not be refused. Still exact as a number of Lua.
_UNREACHED = 10**15
# The least wait of a denial; times of day are only so exact as floating-point seconds.
_MICROSECOND_NS = 1_000


def run(steps: Steps[Result]) -> Result:
    """Takes the steps on a storage that blocks."""
    result = None
    try:
        while True:
            result = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def run_async(steps: Steps[Result]) -> Result:
    """Takes the steps on a storage for event loops."""
    try:
        waiting = steps.send(None)
        while True:
            try:
                result = await waiting
            except Exception as error:  # noqa: BLE001 - to be raised where a storage that blocks would raise it
                waiting = steps.throw(error)
            else:
                waiting = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


class Window:
    """One window of one owner.

    Args:
        storage: a ``WindowStorage`` or a Redis storage of ``limits``.
        strategy: limits' strategy on that storage.
        item: the rate.
        identifiers: the parts of the key.
        clock: tells the time of day by which the storage says when windows end.
    """

    def __init__(
        self, storage: Any, strategy: Any, item: RateLimitItem, identifiers: tuple[str, ...], clock: Clock
    ) -> None:
        self._storage = storage
        self._strategy = strategy
        self._item = item
        self._identifiers = identifiers
        self._clock = clock
        self._key = item.key_for(*identifiers)
        self._period_seconds = item.get_expiry()
        self.amount = item.amount

    def used(self) -> Steps[int]:
        """What counts against the amount now."""
        raise NotImplementedError

    def wait_ns(self, cost: int) -> Steps[int]:
        """How long until a cost that does not fit now will; at least 1 us."""
        raise NotImplementedError

    def hit(self, cost: int) -> Steps[bool]:
        """Counts a cost, if it fits; whether it did."""
        return bool((yield self._strategy.hit(self._item, *self._identifiers, cost=cost)))

    def charge(self, amount: int) -> Steps[None]:
        """Counts more, whether it fits or not."""
        raise NotImplementedError

    def give_back(self, amount: int) -> Steps[None]:
        """Counts less, down to nothing."""
        raise NotImplementedError

    def clear(self) -> Steps[None]:
        """Counts nothing any more."""
        yield self._strategy.clear(self._item, *self._identifiers)

    def _until_ns(self, timestamp: float) -> int:
        return _rounded_up_ns(timestamp - self._clock.epoch_ns() / NANOSECONDS_PER_SECOND)


class _FixedWindow(Window):
    # Redis tells whole seconds, rounded to the nearest.
    _rounding_ns = NANOSECONDS_PER_SECOND // 2

    def used(self) -> Steps[int]:
        return int((yield self._storage.get(self._key)))

    def wait_ns(self, cost: int) -> Steps[int]:
        timestamp = yield self._storage.get_expiry(self._key)
        return self._until_ns(timestamp) + (self._rounding_ns if _is_remote(self._storage) else 0)

    def hit(self, cost: int) -> Steps[bool]:
        if (yield from super().hit(cost)):
            return True
        yield from self.give_back(cost)  # limits' fixed window counts what it denies
        return False

    def charge(self, amount: int) -> Steps[None]:
        yield self._storage.incr(self._key, self._period_seconds, amount)

    def give_back(self, amount: int) -> Steps[None]:
        # Not below nothing: the window may have ended since, and the next one owes nothing.
        amount = min(amount, (yield self._storage.get(self._key)))
        if amount > 0:
            yield self._storage.incr(self._key, self._period_seconds, -amount)


class _MovingWindow(Window):
    def used(self) -> Steps[int]:
        _, count = yield self._storage.get_moving_window(self._key, self.amount, self._period_seconds)
        return int(count)

    def wait_ns(self, cost: int) -> Steps[int]:
        in_the_way = self.amount - cost + 1
        start, count = yield self._storage.get_moving_window(self._key, in_the_way, self._period_seconds)
        if count < in_the_way:
            return _MICROSECOND_NS
        # In the very instant in which a hit leaves the window, it still counts.
        return self._until_ns(start + self._period_seconds) + _MICROSECOND_NS

    def charge(self, amount: int) -> Steps[None]:
        _, count = yield self._storage.get_moving_window(self._key, _UNREACHED, self._period_seconds)
        # The limit is also how many hits Redis keeps, and leaves room for those that come in between.
        limit = count + amount + self.amount
        yield self._storage.acquire_entry(self._key, limit, self._period_seconds, amount)

    def give_back(self, amount: int) -> Steps[None]:
        if _is_remote(self._storage):
            # `limits` has no way to do this; its list has the newest hit first.
            bridge = getattr(self._storage, "bridge", self._storage)
            yield bridge.get_connection().ltrim(bridge.prefixed_key(self._key), amount, -1)
        else:
            yield self._storage.release_entries(self._key, amount)


class _SlidingWindowCounter(Window):
    # Redis tells whole milliseconds.
    _rounding_ns = 1_000_000

    def used(self) -> Steps[int]:
        period = self._period_seconds
        previous, previous_seconds, current, _ = yield self._storage.get_sliding_window(self._key, period)
        return int(previous * previous_seconds / period + current)

    def wait_ns(self, cost: int) -> Steps[int]:
        period = self._period_seconds
        previous, previous_seconds, current, current_seconds = yield self._storage.get_sliding_window(self._key, period)
        # What counts must fall below `room`: the previous window's share does so evenly until the current one ends,
        # then it becomes the previous one and its own share does.
        room = self.amount - cost + 1
        if current < room:
            seconds = previous_seconds - (room - current) * period / previous if previous else 0.0
        else:
            seconds = max(0.0, current_seconds - period) + period * (1 - room / current)
        return _rounded_up_ns(seconds) + (self._rounding_ns if _is_remote(self._storage) else _MICROSECOND_NS)

    def charge(self, amount: int) -> Steps[None]:
        yield self._storage.acquire_sliding_window_entry(self._key, _UNREACHED, self._period_seconds, amount)

    def give_back(self, amount: int) -> Steps[None]:
        # What was counted in a window that has ended since stays counted there.
        _, _, current, _ = yield self._storage.get_sliding_window(self._key, self._period_seconds)
        amount = min(amount, current)
        if amount > 0:
            yield self._storage.acquire_sliding_window_entry(self._key, _UNREACHED, self._period_seconds, -amount)


_KINDS: dict[str, type[Window]] = {
    "fixed-window": _FixedWindow,
    "moving-window": _MovingWindow,
    "sliding-window-counter": _SlidingWindowCounter,
}


class Windows:
    """All windows on one storage.

    Args:
        storage: a ``WindowStorage`` or a Redis storage of ``limits``, blocking or not.
        owner_key: what stands for an owner in keys.
    """

    def __init__(self, storage: Any, owner_key: Callable[[str], str]) -> None:
        self.storage = storage
        self._owner_key = owner_key
        self._clock: Clock = getattr(storage, "clock", None) or SystemClock()
        strategies: Any = AIO_STRATEGIES if isinstance(storage, aio_storage.Storage) else STRATEGIES
        self._strategies = {name: strategies[name](storage) for name in _KINDS}

    def window(self, name: WindowName, owner: str) -> Window:
        """The window of one owner."""
        strategy = name.limit.strategy
        # The strategy is in the key, lest a limit whose strategy is changed finds a value of another type there.
        identifiers = (self._owner_key(owner), strategy, str(name))
        return _KINDS[strategy](self.storage, self._strategies[strategy], name.limit.item, identifiers, self._clock)


def _is_remote(storage: Any) -> bool:
    return hasattr(storage, "get_connection") or hasattr(storage, "bridge")


def _rounded_up_ns(seconds: float) -> int:
    """Up to a microsecond, at least one: more is not exact, and less would be no wait."""
    return max(1, ceil(seconds * 1_000_000)) * _MICROSECOND_NS
