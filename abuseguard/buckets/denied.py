"""Accounts known to be denied: answered again without asking the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cachetools import TLRUCache

from abuseguard.buckets.store import Demand, Reply
from abuseguard.clock import Clock

_MAX_KEYS = 65_536
_NOTHING: dict[str, tuple[int, int]] = {}


class DeniedKeys:
    """Remembers which buckets denied what, each until the time at which the same cost could be taken.

    A shared bucket can only be emptier than remembered, unless tokens were given back to it elsewhere; so an answer
    from here is never too generous, and at most as late as the wait that the client was told.

    Args:
        clock: where the time comes from.
        max_keys: the most buckets remembered; the least recently used give way.
    """

    __slots__ = ("_any_noted", "_denied", "_lock", "_now_ns")

    def __init__(self, clock: Clock, *, max_keys: int = _MAX_KEYS) -> None:
        self._now_ns = clock.now_ns
        self._lock = threading.Lock()
        # Asking a TLRUCache for its size would first make it look for what has expired.
        self._any_noted = False
        # owner -> bucket -> when it is full, and when the cost that was denied can be taken
        self._denied: TLRUCache[str, dict[str, tuple[int, int]]] = TLRUCache(
            max_keys, ttu=_last_retry_ns, timer=clock.now_ns
        )

    def answer(self, account: str, demands: Sequence[Demand]) -> Reply | None:
        """The denial of these demands, if it is known; None if the store has to be asked."""
        if not self._any_noted:
            return None
        denied = self._denied
        times_to_full_ns: list[int | None] = []
        allowed = True
        with self._lock:
            now_ns = self._now_ns()
            known = denied.get(account, _NOTHING)
            for bucket, cost_ns, capacity_ns, key in demands:
                if key is None:
                    times = known.get(bucket)
                else:
                    times = denied.get(key, _NOTHING).get(bucket)
                # Past the time of the retry the bucket may be fuller than is known here.
                if times is None or now_ns >= times[1] or times[0] - now_ns + cost_ns <= capacity_ns:
                    times_to_full_ns.append(None)
                else:
                    times_to_full_ns.append(times[0] - now_ns)
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
                    owner = key or account
                    still = {
                        name: times for name, times in self._denied.get(owner, _NOTHING).items() if times[1] > now_ns
                    }
                    self._any_noted = True
                    self._denied[owner] = {**still, bucket: (now_ns + time_to_full_ns, now_ns + wait_ns)}

    def forget(self, account: str, buckets: Sequence[tuple[str, str | None]]) -> None:
        """Forgets what may have changed for the better."""
        if self._any_noted:
            with self._lock:
                for owner in {key or account for _, key in buckets}:
                    self._denied.pop(owner, None)


def _last_retry_ns(_: str, denied: dict[str, tuple[int, int]], __: float) -> float:
    return max(retry_at_ns for _, retry_at_ns in denied.values())
