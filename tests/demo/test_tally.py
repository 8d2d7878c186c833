from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.demo import tally as tally_module
from abuseguard.demo.tally import OTHER_ACCOUNTS, Latencies, Tally

seconds = st.floats(1e-6, 100)


def add(tally, account="a", *, status=200, ts=0.0, degraded=False, streamed=False, tokens=0):
    tally.add(account, ts=ts, status=status, degraded=degraded, streamed=streamed, tokens=tokens, seconds=0.01)


@given(st.lists(seconds, min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_those_of_the_sorted_list_to_two_percent(durations, share):
    latencies = Latencies()
    for duration in durations:
        latencies.add(duration)
    exact = sorted(durations)[max(0, math.ceil(share * len(durations) - 1e-9) - 1)]
    assert latencies.quantile_seconds(share) == pytest.approx(exact, rel=0.0202)


@given(st.lists(seconds), st.lists(seconds))
def test_merged_latencies_are_those_of_both(left, right):
    both, one, other = Latencies(), Latencies(), Latencies()
    for durations, latencies in ((left, one), (right, other), (left + right, both)):
        for duration in durations:
            latencies.add(duration)
    one.merge(other)
    assert one.quantile_seconds(0.5) == both.quantile_seconds(0.5)


def test_no_latencies_have_no_quantiles_and_none_is_no_problem():
    latencies = Latencies()
    assert latencies.quantile_seconds(0.5) is None
    latencies.add(0.0)
    assert latencies.quantile_seconds(0.5) == pytest.approx(1e-9, rel=0.03)


def test_every_request_is_counted_once_by_what_became_of_it():
    tally = Tally()
    add(tally, status=200, tokens=10, streamed=True)
    add(tally, status=404)
    add(tally, status=429)
    add(tally, status=500)
    add(tally, "b", status=503, degraded=True)
    assert tally.total.as_dict() | {"p50_ms": None, "p99_ms": None} == {
        "accounts": 2,
        "requests": 5,
        "allowed": 2,
        "denied": 1,
        "degraded": 1,
        "failed": 1,
        "streamed": 1,
        "tokens": 10,
        "p50_ms": None,
        "p99_ms": None,
    }
    assert tally.accounts["b"].degraded == 1


def test_the_span_of_the_log_is_the_earliest_to_the_latest():
    tally = Tally()
    for ts in (5.0, 1.0, 3.0):
        add(tally, ts=ts)
    assert (tally.first_ts, tally.last_ts) == (1.0, 5.0)


def test_accounts_are_added_up_by_kind_in_the_order_asked_for():
    tally = Tally()
    for account in ("dog-1", "cat-1", "cat-2", "cat-2"):
        add(tally, account)
    groups = tally.by(lambda account: account.partition("-")[0], ["cat", "cow"])
    assert {name: (count.accounts, count.requests) for name, count in groups.items()} == {"cat": (2, 3), "dog": (1, 1)}
    assert list(groups) == ["cat", "dog"]


def test_accounts_beyond_the_bound_are_counted_as_one(monkeypatch):
    monkeypatch.setattr(tally_module, "MAX_ACCOUNTS", 3)
    tally = Tally()
    for number in range(10):
        add(tally, f"a-{number}")
    assert set(tally.accounts) == {"a-0", "a-1", "a-2", OTHER_ACCOUNTS}
    assert tally.accounts[OTHER_ACCOUNTS].requests == 7
    assert tally.total.requests == 10
