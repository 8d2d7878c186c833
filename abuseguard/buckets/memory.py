"""Buckets in this process's memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from abuseguard.buckets._table import Table
from abuseguard.buckets.store import Adjustment, Demand, Reply, Store
from abuseguard.clock import Clock, SystemClock
from abuseguard.errors import SettingsError, StoreFullError

DEFAULT_MAX_KEYS = 1_000_000


class MemoryStore:
    """Keeps buckets in a bounded table, safe for any number of threads and event loops.

    A request costs O(1), whatever the number of keys: nothing sweeps the table. Measured on CPython 3.11 at a
    million keys of 16 characters: about 160 bytes a key, and no more once the bound is reached.

    Args:
        max_keys: the most keys kept for each limit, at least 1. Full buckets are forgotten first, which loses
            nothing, then those soonest full; a bucket in debt never is.
        clock: where the time comes from.

    Raises:
        SettingsError: ``max_keys`` is not a whole number of at least 1.
        StoreFullError: at run time, when every bucket kept is in debt and a new key comes.

    >>> store = MemoryStore()
    >>> store.take("alice", [Demand("per-minute", cost_ns=60, capacity_ns=100)])
    Reply(allowed=True, times_to_full_ns=[60], degraded=False)
    """

    __slots__ = ("_latest_ns", "_lock", "_now_ns", "_tables")

    def __init__(self, *, max_keys: int = DEFAULT_MAX_KEYS, clock: Clock | None = None) -> None:
        if isinstance(max_keys, bool) or not isinstance(max_keys, int) or max_keys < 1:
            raise SettingsError("max_keys", max_keys, "a whole number of at least 1")
        self._now_ns = (clock or SystemClock()).now_ns
        self._latest_ns = self._now_ns()
        self._lock = threading.Lock()
        self._tables = _Tables(max_keys)

    @property
    def size(self) -> int:
        """Buckets kept now, over all limits. Not a length: an empty store would be false, and pass for none given."""
        with self._lock:
            return sum(map(len, self._tables.values()))

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        tables = self._tables
        times_to_full_ns: list[int] = []
        # Half the price of `with`, which looks up and calls two methods of the lock the slow way.
        self._lock.acquire()
        try:
            # A clock set back must neither grant nor lock out: time stands still until it has caught up.
            now_ns = self._now_ns()
            if now_ns < self._latest_ns:
                now_ns = self._latest_ns
            else:
                self._latest_ns = now_ns
            for bucket, cost_ns, capacity_ns, key in demands:
                table = tables[bucket]
                owner = key or account
                full_at_ns = table.get(owner)
                if full_at_ns is None or full_at_ns <= now_ns:
                    time_to_full_ns = cost_ns
                else:
                    time_to_full_ns = full_at_ns - now_ns + cost_ns
                if time_to_full_ns > capacity_ns:
                    self._undo(account, demands, len(times_to_full_ns))
                    return Reply(False, self._times_to_full_ns(account, demands, now_ns))
                if full_at_ns is not None:
                    table[owner] = now_ns + time_to_full_ns
                elif cost_ns:
                    try:
                        table.admit(owner, now_ns + cost_ns, now_ns, capacity_ns - cost_ns)
                    except StoreFullError:
                        self._undo(account, demands, len(times_to_full_ns))
                        raise
                times_to_full_ns.append(time_to_full_ns)
        finally:
            self._lock.release()
        return Reply(True, times_to_full_ns)

    def _undo(self, account: str, demands: Sequence[Demand], taken: int) -> None:
        """Gives back what the first demands of a step took, before one of them could not be met."""
        for bucket, cost_ns, _, key in demands[:taken]:
            if cost_ns:
                self._tables[bucket][key or account] -= cost_ns

    def _times_to_full_ns(self, account: str, demands: Sequence[Demand], now_ns: int) -> list[int]:
        tables = self._tables
        return [max(0, tables[bucket].get(key or account, 0) - now_ns) for bucket, _, _, key in demands]

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        with self._lock:
            now_ns = self._latest_ns = max(self._now_ns(), self._latest_ns)
            for bucket, delta_ns, capacity_ns, key in adjustments:
                table = self._tables[bucket]
                owner = key or account
                full_at_ns = table.get(owner)
                if full_at_ns is not None:
                    table[owner] = max(full_at_ns, now_ns) + delta_ns
                elif delta_ns > 0:
                    table.admit(owner, now_ns + delta_ns, now_ns, capacity_ns)

    def clear(self, account: str, buckets: Sequence[str]) -> None:
        with self._lock:
            for bucket in buckets:
                table = self._tables[bucket]
                if account in table:
                    # Set full rather than deleted: the wheel still has an entry for it, which will drop it.
                    table[account] = 0

    def close(self) -> None:
        with self._lock:
            self._tables.clear()


class _Tables(dict[str, Table]):
    """The tables by the name of their limit, made when first asked for."""

    __slots__ = ("_max_keys",)

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self._max_keys = max_keys

    def __missing__(self, bucket: str) -> Table:
        table = self[bucket] = Table(self._max_keys)
        return table


class AsyncMemoryStore:
    """A store in memory for callers on an event loop: it never waits for anything, so it is called as it is."""

    __slots__ = ("store",)

    def __init__(self, store: Store) -> None:
        self.store = store

    async def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        return self.store.take(account, demands)

    async def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        self.store.adjust(account, adjustments)

    async def clear(self, account: str, buckets: Sequence[str]) -> None:
        self.store.clear(account, buckets)

    async def close(self) -> None:
        self.store.close()
