"""What a type checker makes of the parts that others build on; checked by mypy, never run for what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import assert_type

from abuseguard.buckets.bucket import Bucket
from abuseguard.buckets.store import AsyncStore, Demand, Reply, Store
from abuseguard.clock import Clock, ManualClock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abuseguard.buckets.store import Adjustment

CLOCKS: list[Clock] = [SystemClock(), ManualClock()]

BUCKET = Bucket.per(amount=90, period_seconds=3600, capacity=5)
assert_type(BUCKET, Bucket)
assert_type(BUCKET.remaining(0), int)


class NothingKept:
    """A store of somebody else's, by its shape alone."""

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        raise NotImplementedError

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None: ...

    def clear(self, account: str, buckets: Sequence[str]) -> None: ...

    def close(self) -> None: ...


STORE: Store = NothingKept()
NOT_ASYNC: AsyncStore = NothingKept()  # type: ignore[assignment]


def positional() -> None:
    Bucket(5, 1)  # type: ignore[call-arg]
