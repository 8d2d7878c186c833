"""The token bucket as arithmetic: no state, no clock, no I/O.

A bucket's whole state is one instant, the time at which it will be full again. A bucket that is full now or was
never seen needs no state at all, which is why an idle key can be dropped without losing anything. This is the
virtual-scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A), equal to a token bucket that
refills continuously: taking ``cost`` tokens moves the instant ``cost * interval_ns`` later, and may move it no
further than ``capacity * interval_ns`` from now.

So a store never needs to know rates: it is given durations (a ``Demand``), and answers with durations (how long
each bucket takes to be full), and everything else is worked out here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abuseguard.clock import NANOSECONDS_PER_SECOND
from abuseguard.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket of ``capacity`` tokens that gains one every ``interval_ns``.

    Args:
        capacity: the most tokens it holds, at least 1; also the largest cost it can ever grant.
        interval_ns: nanoseconds to gain one token, at least 1.

    >>> bucket = Bucket.per(amount=90, period_seconds=3600, capacity=5)   # "90/hour" with a burst of 5
    >>> bucket.interval_ns                                                # one token every 40 s
    40000000000
    >>> bucket.remaining(time_to_full_ns=60_000_000_000)                  # 1.5 tokens short of full: 3.5 left
    3
    """

    capacity: int
    interval_ns: int
    capacity_ns: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("capacity", "interval_ns"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(name, value, "a whole number of at least 1")
        object.__setattr__(self, "capacity_ns", self.capacity * self.interval_ns)

    @classmethod
    def per(cls, *, amount: int, period_seconds: int, capacity: int | None = None) -> Bucket:
        """The bucket that refills ``amount`` tokens every ``period_seconds``; its capacity is the amount by default.

        The interval is rounded up to whole nanoseconds, so the bucket never grants more than was asked for, and
        less by at most one nanosecond a token.
        """
        interval_ns = -(-period_seconds * NANOSECONDS_PER_SECOND // amount)
        return cls(capacity=amount if capacity is None else capacity, interval_ns=interval_ns)

    def cost_ns(self, cost: int) -> int:
        """How much later the bucket is full for taking ``cost`` tokens."""
        return cost * self.interval_ns

    def remaining(self, time_to_full_ns: int) -> int:
        """Whole tokens that can be taken now; 0 for a bucket in debt."""
        if time_to_full_ns >= self.capacity_ns:
            return 0
        return (self.capacity_ns - time_to_full_ns) // self.interval_ns

    def wait_ns(self, time_to_full_ns: int, cost: int) -> int | None:
        """Nanoseconds until ``cost`` tokens can be taken: 0 for now, None for never (a cost above capacity)."""
        cost_ns = cost * self.interval_ns
        if cost_ns > self.capacity_ns:
            return None
        return max(0, time_to_full_ns + cost_ns - self.capacity_ns)
