"""What became of the requests: counts and latencies, in all and by account."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_ACCOUNTS = 100_000
OTHER_ACCOUNTS = "(other accounts)"
_BINS_PER_E = 25  # bins 4 % wide


class Latencies:
    """Quantiles of durations from counts in bins 4 % wide, so that any number of them takes little memory.

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 101):
    ...     latencies.add(milliseconds / 1000)
    >>> round(latencies.quantile_seconds(0.5), 3)
    0.05
    """

    __slots__ = ("_bins",)

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self._bins[round(math.log(max(seconds, 1e-9)) * _BINS_PER_E)] += 1

    def merge(self, other: Latencies) -> None:
        """Counts all of another's durations."""
        self._bins.update(other._bins)

    def quantile_seconds(self, share: float) -> float | None:
        """The duration that this share of all does not exceed, to 2 %; None if there are none."""
        rank = share * self._bins.total()
        for position in sorted(self._bins):
            rank -= self._bins[position]
            if rank <= 0:
                return math.exp(position / _BINS_PER_E)
        return None


@dataclass(slots=True, kw_only=True)
class Count:
    """What became of some requests.

    accounts: how many accounts they came from.
    requests: all of them; the following four add up to it.
    allowed: the guard let them through and the application answered.
    denied: the guard refused them (429).
    degraded: they were decided by the failure policy, as the store could not be asked.
    failed: the application answered with a server error (5xx).
    streamed: allowed ones that were answered as a stream.
    tokens: input and output tokens used, as the answers say.
    """

    accounts: int = 0
    requests: int = 0
    allowed: int = 0
    denied: int = 0
    degraded: int = 0
    failed: int = 0
    streamed: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def merge(self, other: Count) -> None:
        """Adds another's figures to these."""
        self.accounts += other.accounts
        self.requests += other.requests
        self.allowed += other.allowed
        self.denied += other.denied
        self.degraded += other.degraded
        self.failed += other.failed
        self.streamed += other.streamed
        self.tokens += other.tokens
        self.latencies.merge(other.latencies)

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures by name, latencies in milliseconds."""
        figures: dict[str, float | int | None] = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "latencies"
        }
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            seconds = self.latencies.quantile_seconds(share)
            figures[name] = None if seconds is None else round(seconds * 1000, 3)
        return figures


class Tally:
    """Counts by account, for up to 100,000 accounts; what comes from later ones is counted as one."""

    def __init__(self) -> None:
        self.accounts: dict[str, Count] = {}
        self.first_ts: float | None = None
        self.last_ts: float | None = None
        self.total = Count()

    def add(
        self, account: str, *, ts: float, status: int, degraded: bool, streamed: bool, tokens: int, seconds: float
    ) -> None:
        """Counts one request.

        Args:
            account: who asked.
            ts: when, in seconds of the log.
            status: of the answer.
            degraded: decided by the failure policy.
            streamed: answered as a stream.
            tokens: input and output tokens used.
            seconds: from sending the request to the end of the answer.
        """
        if account not in self.accounts:
            if len(self.accounts) >= MAX_ACCOUNTS:
                account = OTHER_ACCOUNTS
            self.accounts.setdefault(account, Count(accounts=1))
            self.total.accounts = len(self.accounts)
        self.first_ts = ts if self.first_ts is None else min(ts, self.first_ts)
        self.last_ts = ts if self.last_ts is None else max(ts, self.last_ts)
        for count in (self.total, self.accounts[account]):
            count.requests += 1
            if degraded:
                count.degraded += 1
            elif status == 429:
                count.denied += 1
            elif status >= 500:
                count.failed += 1
            else:
                count.allowed += 1
                count.streamed += streamed
            count.tokens += tokens
            count.latencies.add(seconds)

    def by(self, kind: Callable[[str], str], kinds: Iterable[str] = ()) -> dict[str, Count]:
        """The counts, added up by a kind of accounts.

        Args:
            kind: tells the kind of an account.
            kinds: which come first, in this order.
        """
        groups: dict[str, Count] = {name: Count() for name in kinds}
        for account, count in self.accounts.items():
            groups.setdefault(kind(account), Count()).merge(count)
        return {name: count for name, count in groups.items() if count.requests}
