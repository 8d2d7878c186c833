"""The answer while the store has none."""

from __future__ import annotations

from collections.abc import Sequence

from abuseguard.buckets.memory import MemoryStore
from abuseguard.buckets.store import Demand, Reply
from abuseguard.clock import Clock
from abuseguard.errors import StoreError
from abuseguard.settings import FailurePolicy


class Fallback:
    """Answers for a store that failed, by the operator's policy.

    Args:
        policy: ``"allow"``, ``"deny"``, or ``"local"``: limit in this process's memory.
        workers: how many processes do the same, so that together they allow what one store would.
        max_keys, clock: of that memory.
    """

    __slots__ = ("_policy", "_store", "_workers")

    def __init__(self, policy: FailurePolicy, *, workers: int, max_keys: int, clock: Clock) -> None:
        self._policy = policy
        self._workers = workers
        self._store = MemoryStore(max_keys=max_keys, clock=clock) if policy == "local" else None

    def answer(self, account: str, demands: Sequence[Demand]) -> Reply:
        """The reply in the store's place, marked as degraded."""
        if self._store is None:
            return Reply(self._policy == "allow", (), degraded=True)
        # A cost that counts `workers` times is a rate and a burst divided by them. A bucket too small to be divided
        # still grants one request at a time.
        local = [
            Demand(bucket, cost_ns * self._workers, max(capacity_ns, cost_ns * self._workers), key)
            if cost_ns <= capacity_ns
            else Demand(bucket, cost_ns, capacity_ns, key)
            for bucket, cost_ns, capacity_ns, key in demands
        ]
        try:
            reply = self._store.take(account, local)
        except StoreError:
            return Reply(True, (), degraded=True)
        return Reply(reply.allowed, (), degraded=True)
