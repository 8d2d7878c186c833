"""A limit made ready for use: its bucket, which requests it is for, and what they cost it."""

from __future__ import annotations

from abuseguard._callback import Callback
from abuseguard.buckets.bucket import Bucket
from abuseguard.buckets.store import Demand
from abuseguard.buckets.window_name import WindowName
from abuseguard.decision import Quota
from abuseguard.facts import RequestFacts
from abuseguard.identity import short_key
from abuseguard.limit import Limit
from abuseguard.path_pattern import path_matcher

_MOST_COST = 10**12


class Rule:
    """What is needed of a ``Limit`` at run time, worked out once.

    Args:
        limit: the limit.
    """

    __slots__ = (
        "_cost",
        "_fixed_cost",
        "_key",
        "_methods",
        "_path",
        "_plans",
        "_when",
        "bucket",
        "constant",
        "limit",
        "name",
        "selective",
    )

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.bucket = Bucket.per(amount=limit.item.amount, period_seconds=limit.item.get_expiry(), capacity=limit.burst)
        #: What stores call it. A window's name tells them that it is one.
        self.name = limit.name
        if limit.strategy != "token-bucket":
            self.name = WindowName(limit, self.bucket.interval_ns)
        self._path = path_matcher(limit.routes)
        self._methods = frozenset(limit.methods)
        self._plans = frozenset(limit.plans)
        self._when = limit.when and Callback(f"limits: {self.name}: when", limit.when, False)
        self._cost = Callback(f"limits: {self.name}: cost", limit.cost, 1) if callable(limit.cost) else None
        self._fixed_cost = limit.cost if isinstance(limit.cost, int) else 1
        self._key = Callback(f"limits: {self.name}: per", limit.per, None) if callable(limit.per) else None
        #: Whether it is for some requests only.
        self.selective = bool(limit.routes or limit.methods or limit.plans or limit.when)
        #: Whether it asks the same of every request that it is for, but for who is asking.
        self.constant = limit.unit != "tokens" and self._cost is None and limit.per == "account"

    def applies(self, facts: RequestFacts) -> bool:
        """Whether the limit is for this request."""
        return (
            self.may_apply(facts)
            and (not self._plans or facts.plan in self._plans)
            and (self._when is None or bool(self._when(facts)))
        )

    def may_apply(self, facts: RequestFacts) -> bool:
        """Whether it is, as far as method and path tell: what is known before the body was read, and who is asking."""
        return (not self._methods or facts.method.upper() in self._methods) and (
            self._path is None or self._path(facts.path) is not None
        )

    def fixed_demand(self, extra_ns: int = 0) -> Demand:
        """The demand of a request with the limit's own constant cost, of the account that asks."""
        return self._demand(self._fixed_cost, extra_ns, None)

    def demand(self, facts: RequestFacts, tokens: int, extra_ns: int = 0) -> Demand | None:
        """The demand of this request; None if the limit turns out to have no key for it.

        Args:
            tokens: the LLM tokens to reserve, taken instead of the cost by a limit in tokens.
            extra_ns: how much further than its capacity the bucket may be emptied, for requests that will be delayed.
        """
        cost = tokens if self.limit.unit == "tokens" else self._cost_of(facts)
        key: str | None = None
        if self.limit.per != "account":
            key = self._key_of(facts)
            if key is None:
                return None
        return self._demand(cost, extra_ns, key)

    def _demand(self, cost: int, extra_ns: int, key: str | None) -> Demand:
        cost_ns = self.bucket.cost_ns(cost)
        capacity_ns = self.bucket.capacity_ns
        # What can never be granted is not granted late either.
        return Demand(self.name, cost_ns, capacity_ns + extra_ns if cost_ns <= capacity_ns else capacity_ns, key)

    def _cost_of(self, facts: RequestFacts) -> int:
        if self._cost is None:
            return self._fixed_cost
        cost = self._cost(facts)
        if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost <= _MOST_COST:
            self._cost.refuse(cost, f"a whole number from 0 to {_MOST_COST}")
            return 1
        return cost

    def _key_of(self, facts: RequestFacts) -> str | None:
        if self.limit.per == "everyone":
            return "everyone"
        if self._key is None:
            return f"ip:{facts.address}" if facts.address else None
        key = self._key(facts)
        return short_key(f"{self.name}:{key}") if key is not None and key != "" else None

    def quota(self, time_to_full_ns: int, cost_ns: int) -> Quota:
        """Where the bucket stands, and how long a cost that was not taken would have to wait."""
        bucket = self.bucket
        wait_ns = None if cost_ns > bucket.capacity_ns else max(0, time_to_full_ns + cost_ns - bucket.capacity_ns)
        return Quota(
            self.name,
            bucket.capacity,
            bucket.remaining(time_to_full_ns),
            bucket.capacity_ns,
            time_to_full_ns,
            wait_ns,
        )
