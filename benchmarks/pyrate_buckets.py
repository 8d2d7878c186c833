"""A bucket for each client, for pyrate-limiter, which leaves it to its users how buckets are found."""

from __future__ import annotations

from pyrate_limiter import BucketFactory, Duration, Limiter, MonotonicClock, Rate, RateItem, StateBucket, TokenBucket

_RATES = (Rate(6_000_000, Duration.MINUTE), Rate(300_000_000, Duration.HOUR))


class ClientBuckets(BucketFactory):
    """The same rates for each client, in the cheapest algorithm with a state of constant size."""

    def __init__(self, *rates: Rate) -> None:
        self._rates = rates
        self._clock = MonotonicClock()
        self._buckets: dict[str, StateBucket] = {}

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, self._clock.now(), weight=weight)

    def get(self, item: RateItem) -> StateBucket:
        bucket = self._buckets.get(item.name)
        if bucket is None:
            bucket = self._buckets[item.name] = StateBucket([*self._rates], algorithm=TokenBucket())
        return bucket


def client_limiter(*rates: Rate) -> Limiter:
    return Limiter(ClientBuckets(*rates or _RATES))
