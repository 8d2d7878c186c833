"""Accounts known to be denied: answered again without asking the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cachetools import TLRUCache

from abuseguard.buckets.store import Demand, Reply
from abuseguard.clock import Clock

_MAX_KEYS = 65_536


class DeniedKeys:
    """Remembers which buckets denied what, each until the time at which the same cost could be taken.

    A shared bucket can only be emptier than remembered, unless tokens were given back to it elsewhere; so an answer
    from here is never too generous, and at most as late as the wait that the client was told.

    Args:
        clock: where the time comes from.
        max_keys: the most buckets remembered; the least recently used give way.
    """

    __slots__ = ("_full_at_ns", "_lock", "_now_ns")

    def __init__(self, clock: Clock, *, max_keys: int = _MAX_KEYS) -> None:
        self._now_ns = clock.now_ns
        self._lock = threading.Lock()
        # (bucket, key) -> when it is full, and when the cost that was denied can be taken
        self._full_at_ns: TLRUCache[tuple[str, str], tuple[int, int]] = TLRUCache(
            max_keys, ttu=lambda _, times, __: times[1], timer=clock.now_ns
        )

    def answer(self, account: str, demands: Sequence[Demand]) -> Reply | None:
        """The denial of these demands, if it is known; None if the store has to be asked."""
        if not self._full_at_ns.currsize:
            return None
        with self._lock:
            now_ns = self._now_ns()
            times_to_full_ns: list[int | None] = []
            allowed = True
            for bucket, cost_ns, capacity_ns, key in demands:
                known = self._full_at_ns.get((bucket, key or account))
                if known is None or known[0] - now_ns + cost_ns <= capacity_ns:
                    times_to_full_ns.append(None)
                else:
                    times_to_full_ns.append(known[0] - now_ns)
                    allowed = False
        return None if allowed else Reply(False, times_to_full_ns)

    def note(self, account: str, demands: Sequence[Demand], reply: Reply) -> None:
        """Remembers a denial of the store."""
        with self._lock:
            now_ns = self._now_ns()
            for (bucket, cost_ns, capacity_ns, key), time_to_full_ns in zip(
                demands, reply.times_to_full_ns, strict=True
            ):
                if time_to_full_ns is None or cost_ns > capacity_ns:
                    continue
                wait_ns = time_to_full_ns + cost_ns - capacity_ns
                if wait_ns > 0:
                    self._full_at_ns[bucket, key or account] = (now_ns + time_to_full_ns, now_ns + wait_ns)

    def forget(self, account: str, buckets: Sequence[tuple[str, str | None]]) -> None:
        """Forgets what may have changed for the better."""
        if self._full_at_ns.currsize:
            with self._lock:
                for bucket, key in buckets:
                    self._full_at_ns.pop((bucket, key or account), None)
