"""The seam between what is decided and where it is kept: what a store is asked, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Demand(NamedTuple):
    """One bucket's part of a step, in durations, so that a store needs no rates.

    bucket: the name of the limit, the same for all accounts.
    cost_ns: how much later the bucket will be full if the step is taken; 0 asks only whether it is in debt.
    capacity_ns: how far ahead of now "full" may lie; what would go beyond is denied.
    key: whose bucket it is, if not the account's that takes the step.
    """

    bucket: str
    cost_ns: int
    capacity_ns: int
    key: str | None = None


@dataclass(slots=True)
class Reply:
    """What the store did: all of the demands, or none.

    allowed: whether all demands were taken. If not, nothing was.
    times_to_full_ns: for each demand, in order, nanoseconds until that bucket is full: after the step if it was
        taken, as it stands if not; None where the store does not know without asking further.
    degraded: the store could not be asked, and a policy answered in its place.
    """

    allowed: bool
    times_to_full_ns: Sequence[int | None]
    degraded: bool = False


class Adjustment(NamedTuple):
    """A correction of one bucket after the fact, which cannot be refused.

    delta_ns: positive charges more, into debt if it must; negative gives back, up to full.
    capacity_ns, key: as in ``Demand``.
    """

    bucket: str
    delta_ns: int
    capacity_ns: int
    key: str | None = None


class Store(Protocol):
    """Keeps buckets for callers that may block. Every method is safe to call from any thread.

    A store raises ``StoreError`` when it cannot answer, and nothing else.
    """

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        """Takes all demands in one atomic step, or none of them. A denial changes nothing."""

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        """Corrects buckets by what was observed."""

    def clear(self, account: str, buckets: Sequence[str]) -> None:
        """Forgets these buckets of this account: they are full again."""

    def close(self) -> None:
        """Gives back connections. A closed store is not used again."""


class AsyncStore(Protocol):
    """Keeps buckets for callers on an event loop; the same promises as ``Store``."""

    async def take(self, account: str, demands: Sequence[Demand]) -> Reply: ...

    async def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None: ...

    async def clear(self, account: str, buckets: Sequence[str]) -> None: ...

    async def close(self) -> None: ...
