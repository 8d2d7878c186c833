"""The buckets of one limit: a bounded table that forgets full buckets first and never one in debt."""

from __future__ import annotations

import heapq

from abuseguard.errors import StoreFullError

# A tick of the wheel, as a shift: 2**30 ns, about 1.07 s. Eviction order is exact to one tick.
_TICK_SHIFT = 30
# Keys looked at for each new key. Two, so that the wheel drains faster than it can be filled.
_SWEEP_PER_ADMISSION = 2
# Stale entries put back before the best one seen is taken: bounds the work of a single admission.
_EVICTION_ATTEMPTS = 64


class Table(dict[str, int]):
    """key -> the instant at which its bucket is full, for at most ``max_keys`` keys.

    A dictionary, so that a hit costs no more than one; only new keys go through ``admit``.

    Every key is also filed in a *wheel*, under the tick of the instant it had when it was filed. Taking tokens does
    not move it: the wheel is corrected only when its entry comes up, so a hit costs one dictionary write and each
    entry is looked at no more often than its bucket was emptied (a lazy timing wheel: Varghese and Lauck, 1987).
    The earliest tick holds what is, or will soonest be, full: the order in which forgetting loses least.
    """

    __slots__ = ("_ticks", "_wheel", "max_keys")

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self.max_keys = max_keys
        self._wheel: dict[int, list[str]] = {}
        self._ticks: list[int] = []

    def admit(self, key: str, full_at_ns: int, now_ns: int, worth_keeping_ns: int) -> None:
        """Adds a key that is not in the table.

        Args:
            worth_keeping_ns: a bucket that needs longer than this to be full is in debt, and is not evicted.

        Raises:
            StoreFullError: the table is full of such buckets; the key was not added.
        """
        self._forget_full(now_ns)
        if len(self) >= self.max_keys:
            self._evict(now_ns, worth_keeping_ns)
        self[key] = full_at_ns
        self._file(key, full_at_ns)

    def _file(self, key: str, full_at_ns: int) -> None:
        tick = full_at_ns >> _TICK_SHIFT
        entries = self._wheel.get(tick)
        if entries is None:
            self._wheel[tick] = [key]
            heapq.heappush(self._ticks, tick)
        else:
            entries.append(key)

    def _next(self) -> tuple[int, str]:
        """Takes the earliest entry out of the wheel: the tick it was filed under, and its key."""
        tick = self._ticks[0]
        entries = self._wheel[tick]
        key = entries.pop()
        if not entries:
            del self._wheel[tick]
            heapq.heappop(self._ticks)
        return tick, key

    def _forget_full(self, now_ns: int) -> None:
        """Looks at the next few entries that should be full by now: drops the full ones, files the others anew."""
        now_tick = now_ns >> _TICK_SHIFT
        for _ in range(_SWEEP_PER_ADMISSION):
            if not self._ticks or self._ticks[0] >= now_tick:
                return
            _, key = self._next()
            full_at_ns = self[key]
            if full_at_ns <= now_ns:
                del self[key]
            else:
                self._file(key, full_at_ns)

    def _evict(self, now_ns: int, worth_keeping_ns: int) -> None:
        """Drops the bucket that is soonest full. Entries whose bucket was emptied since they were filed go back."""
        soonest_key, soonest_ns = "", -1
        for _ in range(_EVICTION_ATTEMPTS):
            if not self._ticks:
                break
            tick, key = self._next()
            full_at_ns = self[key]
            if soonest_ns < 0 or full_at_ns < soonest_ns:
                if soonest_ns >= 0:
                    self._file(soonest_key, soonest_ns)
                soonest_key, soonest_ns = key, full_at_ns
            else:
                self._file(key, full_at_ns)
            if soonest_ns >> _TICK_SHIFT <= tick:
                break
        if soonest_ns - now_ns > worth_keeping_ns:
            self._file(soonest_key, soonest_ns)
            raise StoreFullError(f"all {self.max_keys} buckets of this limit are in debt")
        del self[soonest_key]
