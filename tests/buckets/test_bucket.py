"""The bucket's arithmetic against a naive bucket of fractional tokens."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import SettingsError
from abuseguard.buckets.bucket import Bucket

SECOND_NS = 1_000_000_000


class NaiveBucket:
    """Tokens in a bucket, counted in fractions, refilled as time passes: what the textbook says."""

    def __init__(self, capacity, tokens_per_ns):
        self.capacity = Fraction(capacity)
        self.tokens_per_ns = Fraction(tokens_per_ns)
        self.tokens = self.capacity

    def pass_time(self, ns):
        self.tokens = min(self.capacity, self.tokens + ns * self.tokens_per_ns)

    def take(self, cost):
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def wait_ns(self, cost):
        if cost > self.capacity:
            return None
        missing = cost - self.tokens
        return 0 if missing <= 0 else -(-missing // self.tokens_per_ns)


class TokensByInstant:
    """The bucket under test, as a store keeps it: the instant at which it is full, and nothing else."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.now_ns = 0
        self.full_at_ns = 0

    @property
    def time_to_full_ns(self):
        return max(0, self.full_at_ns - self.now_ns)

    def take(self, cost):
        if self.bucket.wait_ns(self.time_to_full_ns, cost) != 0:
            return False
        self.full_at_ns = self.now_ns + self.time_to_full_ns + self.bucket.cost_ns(cost)
        return True


BUCKETS = st.builds(
    lambda capacity, interval_ns: Bucket(capacity=capacity, interval_ns=interval_ns),
    st.integers(1, 50) | st.integers(1, 10**12),
    st.integers(1, 20) | st.integers(1, 86_400 * SECOND_NS),
)


@st.composite
def histories(draw):
    """A bucket, and pauses and costs that are of its own size."""
    bucket = draw(BUCKETS)
    pauses = st.integers(0, 3) | st.integers(0, 2 * bucket.interval_ns) | st.integers(0, 2 * bucket.capacity_ns)
    pauses |= st.integers(1, 5).map(lambda tokens: tokens * bucket.interval_ns)
    costs = st.integers(0, 3) | st.integers(0, bucket.capacity + 2)
    return bucket, draw(st.lists(st.tuples(pauses, costs), max_size=40))


@given(histories())
def test_equals_a_bucket_of_fractional_tokens(history):
    bucket, steps = history
    naive = NaiveBucket(bucket.capacity, Fraction(1, bucket.interval_ns))
    tested = TokensByInstant(bucket)
    for pause_ns, cost in steps:
        tested.now_ns += pause_ns
        naive.pass_time(pause_ns)
        assert bucket.remaining(tested.time_to_full_ns) == int(naive.tokens)
        assert bucket.wait_ns(tested.time_to_full_ns, cost) == naive.wait_ns(cost)
        assert tested.take(cost) == naive.take(cost)
    assert tested.time_to_full_ns == (naive.capacity - naive.tokens) * bucket.interval_ns


@given(histories())
def test_never_grants_more_than_it_holds_and_gains(history):
    bucket, steps = history
    tested = TokensByInstant(bucket)
    grants = []
    for pause_ns, cost in steps:
        tested.now_ns += pause_ns
        if tested.take(cost):
            grants.append((tested.now_ns, cost))
    for first, (start_ns, _) in enumerate(grants):
        granted = 0
        for now_ns, cost in grants[first:]:
            granted += cost
            assert granted <= bucket.capacity + Fraction(now_ns - start_ns, bucket.interval_ns)


@given(BUCKETS, st.data())
def test_waiting_as_long_as_told_is_enough_and_a_nanosecond_less_is_not(bucket, data):
    time_to_full_ns = data.draw(st.integers(0, 2 * bucket.capacity_ns), "time_to_full_ns")  # beyond: in debt
    cost = data.draw(st.integers(1, bucket.capacity), "cost")
    wait_ns = bucket.wait_ns(time_to_full_ns, cost)
    assert bucket.remaining(max(0, time_to_full_ns - wait_ns)) >= cost
    if wait_ns:
        assert bucket.remaining(time_to_full_ns - wait_ns + 1) < cost
    assert 0 <= bucket.remaining(time_to_full_ns) <= bucket.capacity


@given(
    amount=st.integers(1, 10**12),
    period_seconds=st.integers(1, 360 * 86_400),
    tokens=st.integers(1, 10**9),
)
def test_a_rate_is_never_exceeded_and_hardly_missed(amount, period_seconds, tokens):
    bucket = Bucket.per(amount=amount, period_seconds=period_seconds)
    exact_ns = Fraction(period_seconds * SECOND_NS, amount)
    assert exact_ns <= bucket.interval_ns < exact_ns + 1
    assert 0 <= bucket.cost_ns(tokens) - tokens * exact_ns < tokens


def test_ninety_an_hour_is_one_every_forty_seconds():
    tested = TokensByInstant(Bucket.per(amount=90, period_seconds=3600))
    assert all(tested.take(1) for _ in range(90))
    for _ in range(3):
        tested.now_ns += 40 * SECOND_NS - 1
        assert not tested.take(1)
        tested.now_ns += 1
        assert tested.take(1)
        assert not tested.take(1)


def test_never_is_told_apart_from_not_yet():
    bucket = Bucket(capacity=5, interval_ns=10)
    assert bucket.wait_ns(0, 5) == 0
    assert bucket.wait_ns(50, 5) == 50
    assert bucket.wait_ns(0, 6) is None
    assert bucket.wait_ns(70, 1) == 30  # in debt, which is not for ever


def test_nothing_can_always_be_taken_but_from_a_bucket_in_debt():
    bucket = Bucket(capacity=5, interval_ns=10)
    assert bucket.wait_ns(50, 0) == 0
    assert bucket.wait_ns(51, 0) == 1


@pytest.mark.parametrize("name", ["capacity", "interval_ns"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "5"])
def test_refuses_what_is_no_bucket(name, value):
    with pytest.raises(SettingsError, match=f"{name}: got .* expected a whole number of at least 1"):
        Bucket(**{"capacity": 5, "interval_ns": 10, name: value})
