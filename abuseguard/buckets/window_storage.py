"""A bounded storage in memory for the windows of the ``limits`` library.

``limits``' own memory storage looks at every key after a hit, and keeps as many as come. This one gives the same
answers at O(1) a request, for a bounded number of keys. Importing this module makes it known to ``limits`` under the
scheme ``abuseguard+memory``.
"""

from __future__ import annotations

import threading
from math import floor
from typing import Any

from limits.storage.base import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from abuseguard.buckets._window_table import Record, WindowTable
from abuseguard.buckets.memory import DEFAULT_MAX_KEYS, MemoryStore
from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock, SystemClock


class _Counter(Record):
    """A fixed window: what was counted since it began."""

    __slots__ = ("count",)

    def __init__(self, count: int, expires_ns: int) -> None:
        self.count = count
        self.expires_ns = expires_ns


class _Log(Record):
    """A moving window: runs of hits at one instant, oldest first. A hit that costs 10,000 is one run.

    A list that is cut when half of it is past, since a deque takes 600 bytes even for one run.
    """

    __slots__ = ("count", "past", "runs")

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []
        self.past = 0
        self.count = 0

    def trim(self, oldest_ns: int) -> None:
        """Forgets the runs before ``oldest_ns``."""
        runs, past = self.runs, self.past
        while past < len(runs) and runs[past][0] < oldest_ns:
            self.count -= runs[past][1]
            past += 1
        if 2 * past >= len(runs):
            del runs[:past]
            past = 0
        self.past = past

    def newest(self, amount: int, since_ns: int) -> tuple[int, int] | None:
        """Of the newest ``amount`` after ``since_ns``, when the oldest came, and how many they are; None if none."""
        first, count = self.past, self.count
        if count and self.runs[first][0] <= since_ns:
            count -= self.runs[first][1]
            first += 1
        if not count:
            return None
        if count <= amount:
            return self.runs[first][0], count
        count, position = 0, len(self.runs)
        while count < amount:
            position -= 1
            count += self.runs[position][1]
        return self.runs[position][0], amount


class _Counters(Record):
    """A sliding window counter: the counts of the window ``number`` and of the one before."""

    __slots__ = ("current", "number", "previous")

    def __init__(self, number: int) -> None:
        self.number = number
        self.previous = 0
        self.current = 0


class WindowStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Keeps fixed windows, moving windows and sliding window counters in memory, safe for any number of threads.

    Args:
        uri, wrap_exceptions: as in every storage of ``limits``.
        max_keys: the most windows kept of each strategy, at least 1; expired ones are forgotten first, then the least
            recently used.
        clock: where the time comes from.

    Raises:
        SettingsError: ``max_keys`` is not a whole number of at least 1.

    >>> from limits import parse
    >>> from limits.strategies import FixedWindowRateLimiter
    >>> limiter = FixedWindowRateLimiter(WindowStorage())
    >>> [limiter.hit(parse("2/minute"), "alice") for _ in range(3)]
    [True, True, False]
    """

    STORAGE_SCHEME = ["abuseguard+memory"]  # noqa: RUF012 - declared by `limits`, whose metaclass reads it

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        max_keys: int = DEFAULT_MAX_KEYS,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self.clock: Clock = clock or SystemClock()
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._latest_ns = 0
        self._counters: WindowTable[_Counter] = WindowTable(max_keys)
        self._logs: WindowTable[_Log] = WindowTable(max_keys)
        self._sliding: WindowTable[_Counters] = WindowTable(max_keys)
        #: For the strategy ``token-bucket`` on this storage.
        self.buckets = MemoryStore(max_keys=max_keys, clock=self.clock)

    @property
    def size(self) -> int:
        """Windows kept now. Not a length: Flask-Limiter takes a storage that is false for none."""
        return len(self._counters) + len(self._logs) + len(self._sliding)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def _now_ns(self) -> int:
        # A clock set back neither opens a window again nor closes one early: time stands still until it catches up.
        self._latest_ns = max(self._latest_ns, self.clock.now_ns())
        return self._latest_ns

    def _timestamp(self, at_ns: int, now_ns: int) -> float:
        """An instant of the clock as seconds since 1970, which is what ``limits`` gives out."""
        return (self.clock.epoch_ns() + at_ns - now_ns) / NANOSECONDS_PER_SECOND

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            now_ns = self._now_ns()
            expires_ns = now_ns + round(expiry * NANOSECONDS_PER_SECOND)
            counter = self._counters.find(key, now_ns)
            if counter is None:
                self._counters.add(key, _Counter(amount, expires_ns), now_ns)
                return amount
            counter.count += amount
            if counter.count == amount:
                counter.expires_ns = expires_ns
            return counter.count

    def get(self, key: str) -> int:
        with self._lock:
            counter = self._counters.find(key, self._now_ns())
            return 0 if counter is None else counter.count

    def get_expiry(self, key: str) -> float:
        with self._lock:
            now_ns = self._now_ns()
            counter = self._counters.find(key, now_ns)
            return self._timestamp(now_ns if counter is None else counter.expires_ns, now_ns)

    def clear(self, key: str) -> None:
        with self._lock:
            self._counters.forget(key)
            self._logs.forget(key)

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        with self._lock:
            count = self.size
            self._counters.clear()
            self._logs.clear()
            self._sliding.clear()
            self.buckets = MemoryStore(max_keys=self._max_keys, clock=self.clock)
            return count

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if amount > limit:
            return False
        with self._lock:
            now_ns = self._now_ns()
            period_ns = expiry * NANOSECONDS_PER_SECOND
            log = self._logs.find(key, now_ns)
            is_new = log is None
            if log is None:
                log = _Log()
            log.trim(now_ns - period_ns)
            if log.count + amount > limit:
                return False
            if amount > 0:
                if log.runs and log.runs[-1][0] == now_ns:
                    log.runs[-1] = (now_ns, log.runs[-1][1] + amount)
                else:
                    log.runs.append((now_ns, amount))
                log.count += amount
                # A hit still counts in the very instant in which it leaves the window.
                log.expires_ns = now_ns + period_ns + 1
                if is_new:
                    self._logs.add(key, log, now_ns)
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._lock:
            now_ns = self._now_ns()
            since_ns = now_ns - expiry * NANOSECONDS_PER_SECOND
            log = self._logs.find(key, now_ns)
            start_ns, count = now_ns, 0
            if log is not None:
                log.trim(since_ns)
                start_ns, count = log.newest(limit, since_ns) or (now_ns, 0)
            return self._timestamp(start_ns, now_ns), count

    def release_entries(self, key: str, amount: int) -> None:
        """Takes ``amount`` back out of a moving window, newest first; not part of ``limits``' protocol."""
        with self._lock:
            log = self._logs.find(key, self._now_ns())
            while log is not None and log.past < len(log.runs) and amount > 0:
                at_ns, run = log.runs.pop()
                log.count -= min(run, amount)
                if run > amount:
                    log.runs.append((at_ns, run - amount))
                amount -= run

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        if amount > limit:
            return False
        with self._lock:
            now_ns = self._now_ns()
            previous, previous_seconds, current, _ = self._sliding_window(key, expiry, now_ns)
            if floor(previous * previous_seconds / expiry + current) + amount > limit:
                return False
            counters = self._counters_of(key, expiry, now_ns)
            if counters is None:
                counters = _Counters(now_ns // (expiry * NANOSECONDS_PER_SECOND))
                counters.expires_ns = (counters.number + 2) * expiry * NANOSECONDS_PER_SECOND
                self._sliding.add(key, counters, now_ns)
            counters.current += amount
            return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        with self._lock:
            return self._sliding_window(key, expiry, self._now_ns())

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        with self._lock:
            self._sliding.forget(key)

    def _counters_of(self, key: str, expiry: int, now_ns: int) -> _Counters | None:
        """The counters of a key, moved on to the window of now."""
        counters = self._sliding.find(key, now_ns)
        if counters is not None:
            number = now_ns // (expiry * NANOSECONDS_PER_SECOND)
            if number > counters.number:  # by one: a window later they would have expired
                counters.previous = counters.current
                counters.current = 0
                counters.number = number
                counters.expires_ns = (number + 2) * expiry * NANOSECONDS_PER_SECOND
        return counters

    def _sliding_window(self, key: str, expiry: int, now_ns: int) -> tuple[int, float, int, float]:
        counters = self._counters_of(key, expiry, now_ns)
        # The very expressions of `limits`, so that what is rounded there is rounded here.
        now = now_ns / NANOSECONDS_PER_SECOND
        previous, current = (counters.previous, counters.current) if counters is not None else (0, 0)
        previous_seconds = (1 - (((now - expiry) / expiry) % 1)) * expiry if previous else 0.0
        return previous, previous_seconds, current, (1 - ((now / expiry) % 1)) * expiry + expiry
