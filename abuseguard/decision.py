"""What the guard answers for one request."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from abuseguard.policy import Plan


class Outcome(enum.Enum):
    """How a decision came out. ``DEGRADED``: the store could not be asked, and the failure policy answered."""

    EXEMPT = "exempt"
    ALLOWED = "allowed"
    DELAYED = "delayed"
    DENIED = "denied"
    DEGRADED = "degraded"


class Quota(NamedTuple):
    """Where one limit stands for one account.

    limit: its name.
    capacity, remaining: what the bucket can hold, and what can be taken from it now.
    window_ns: how long an empty bucket takes to be full.
    full_in_ns: how long this one takes.
    wait_ns: how long until what was asked can be taken; 0: now; None: never, it is above capacity.
    """

    limit: str
    capacity: int
    remaining: int
    window_ns: int
    full_in_ns: int
    wait_ns: int | None


@dataclass(slots=True)
class Decision:
    """The answer to one request, and why.

    Args:
        outcome: how it came out.
        admitted: whether the request goes to the application. In ``mode="observe"`` every request does.
        account: the key of who asked.
        plan: what was asked: the limits and their costs.
        times_to_full_ns: what the store answered, a bucket each; empty if it was not asked.
        delay_ns: how long to hold the request back first; 0 but for ``DELAYED``.
    """

    outcome: Outcome
    admitted: bool
    account: str
    plan: Plan
    times_to_full_ns: Sequence[int | None] = ()
    delay_ns: int = 0

    @property
    def quotas(self) -> list[Quota]:
        """Where each limit that was asked stands, as far as the store said."""
        return [
            rule.quota(time_to_full_ns, demand.cost_ns if self._refused else 0)
            for rule, demand, time_to_full_ns in zip(
                self.plan.rules, self.plan.demands, self.times_to_full_ns, strict=False
            )
            if time_to_full_ns is not None
        ]

    @property
    def _refused(self) -> bool:
        return self.outcome is Outcome.DENIED

    @property
    def denied_by(self) -> list[Quota]:
        """The limits that stood in the way; empty unless denied."""
        return [quota for quota in self.quotas if quota.wait_ns != 0] if self._refused else []

    @property
    def retry_after_ns(self) -> int | None:
        """How long until the same request could be allowed; None: never, as its cost is above a capacity."""
        waits = [quota.wait_ns for quota in self.denied_by]
        return None if None in waits else max((wait for wait in waits if wait is not None), default=0)
