"""For those who write stores: the contract, as tests that any store can run.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            yield MyStore(...)

A store for event loops runs the same tests through ``Blocking``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from abuseguard.buckets.store import Adjustment, AsyncStore, Demand, Reply, Store

Result = TypeVar("Result")

SECOND_NS = 1_000_000_000
# How far a store's clock may move between two calls of a test that lets no time pass.
_SLACK_NS = 2 * SECOND_NS


class Blocking:
    """An asynchronous store as one that blocks, on an event loop in a thread of its own.

    Args:
        store: the asynchronous store.
    """

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        return self._wait(self._store.take(account, demands))

    def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        self._wait(self._store.adjust(account, adjustments))

    def clear(self, account: str, buckets: Sequence[str]) -> None:
        self._wait(self._store.clear(account, buckets))

    def close(self) -> None:
        self._wait(self._store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)


class StoreContract:
    """What every store promises. Subclass it, with a pytest fixture ``store`` that gives an empty store.

    Override ``pass_time`` where the store's clock can be set.
    """

    def pass_time(self, seconds: float) -> None:
        """Lets the store's time pass."""
        time.sleep(seconds)

    def test_takes_until_the_bucket_is_empty(self, store: Store) -> None:
        demand = Demand("limit", 100 * SECOND_NS, 300 * SECOND_NS)
        assert [store.take("alice", [demand]).allowed for _ in range(4)] == [True, True, True, False]

    def test_says_how_long_each_bucket_takes_to_be_full(self, store: Store) -> None:
        demands = [Demand("a", 100 * SECOND_NS, 300 * SECOND_NS), Demand("b", 7 * SECOND_NS, 900 * SECOND_NS)]
        store.take("alice", demands)
        reply = store.take("alice", demands)
        _assert_close(reply, [200 * SECOND_NS, 14 * SECOND_NS])

    def test_a_bucket_never_seen_is_full(self, store: Store) -> None:
        assert store.take("alice", [Demand("limit", 0, SECOND_NS)]) == Reply(True, [0])

    def test_takes_all_or_none(self, store: Store) -> None:
        wide, narrow = (
            Demand("wide", 100 * SECOND_NS, 900 * SECOND_NS),
            Demand("narrow", SECOND_NS * 100, SECOND_NS * 100),
        )
        assert store.take("alice", [wide, narrow]).allowed
        for demands in ([wide, narrow], [narrow, wide]):
            assert not store.take("alice", demands).allowed
        _assert_close(store.take("alice", [wide]), [200 * SECOND_NS])

    def test_a_denial_costs_nothing(self, store: Store) -> None:
        store.take("alice", [Demand("limit", 100 * SECOND_NS, 300 * SECOND_NS)])
        for _ in range(10):
            assert not store.take("alice", [Demand("limit", 250 * SECOND_NS, 300 * SECOND_NS)]).allowed
        _assert_close(store.take("alice", [Demand("limit", 200 * SECOND_NS, 300 * SECOND_NS)]), [300 * SECOND_NS])

    def test_a_denial_says_how_the_buckets_in_the_way_stand(self, store: Store) -> None:
        demand = Demand("limit", 100 * SECOND_NS, 100 * SECOND_NS)
        store.take("alice", [demand])
        for _ in range(2):  # the second may be answered from memory
            reply = store.take("alice", [demand])
            assert not reply.allowed
            _assert_close(reply, [100 * SECOND_NS])

    def test_denies_a_cost_above_capacity_for_ever(self, store: Store) -> None:
        assert store.take("alice", [Demand("limit", 301 * SECOND_NS, 300 * SECOND_NS)]) == Reply(False, [0])

    def test_refills_with_time(self, store: Store) -> None:
        demand = Demand("limit", SECOND_NS // 5, SECOND_NS // 5)
        assert store.take("alice", [demand]).allowed
        assert not store.take("alice", [demand]).allowed
        self.pass_time(0.25)
        assert store.take("alice", [demand]).allowed

    def test_accounts_have_buckets_of_their_own(self, store: Store) -> None:
        demand = Demand("limit", SECOND_NS, SECOND_NS)
        assert store.take("alice", [demand]).allowed
        assert store.take("bob", [demand]).allowed

    def test_limits_have_buckets_of_their_own(self, store: Store) -> None:
        assert store.take("alice", [Demand("a", 100 * SECOND_NS, 100 * SECOND_NS)]).allowed
        assert store.take("alice", [Demand("b", 100 * SECOND_NS, 100 * SECOND_NS)]).allowed

    def test_a_demand_can_name_another_key_than_the_account(self, store: Store) -> None:
        shared = Demand("limit", 100 * SECOND_NS, 100 * SECOND_NS, "everyone")
        assert store.take("alice", [shared]).allowed
        assert not store.take("bob", [shared]).allowed
        assert store.take("everyone", [Demand("other", 100 * SECOND_NS, 100 * SECOND_NS)]).allowed

    def test_an_adjustment_charges_into_debt(self, store: Store) -> None:
        capacity_ns = 100 * SECOND_NS
        store.take("alice", [Demand("limit", 50 * SECOND_NS, capacity_ns)])
        store.adjust("alice", [Adjustment("limit", 250 * SECOND_NS, capacity_ns)])
        reply = store.take("alice", [Demand("limit", 0, capacity_ns)])
        assert not reply.allowed
        _assert_close(reply, [300 * SECOND_NS])

    def test_an_adjustment_gives_back_up_to_full(self, store: Store) -> None:
        capacity_ns = 100 * SECOND_NS
        store.take("alice", [Demand("limit", 80 * SECOND_NS, capacity_ns)])
        store.adjust("alice", [Adjustment("limit", -30 * SECOND_NS, capacity_ns)])
        _assert_close(store.take("alice", [Demand("limit", 10 * SECOND_NS, capacity_ns)]), [60 * SECOND_NS])
        store.adjust("alice", [Adjustment("limit", -900 * SECOND_NS, capacity_ns)])
        _assert_close(store.take("alice", [Demand("limit", 100 * SECOND_NS, capacity_ns)]), [100 * SECOND_NS])

    def test_what_is_given_back_ends_a_denial(self, store: Store) -> None:
        demand = Demand("limit", 100 * SECOND_NS, 100 * SECOND_NS)
        store.take("alice", [demand])
        assert not store.take("alice", [demand]).allowed
        store.adjust("alice", [Adjustment("limit", -100 * SECOND_NS, 100 * SECOND_NS)])
        assert store.take("alice", [demand]).allowed

    def test_an_adjustment_of_a_bucket_never_seen_charges_it(self, store: Store) -> None:
        store.adjust("alice", [Adjustment("limit", 50 * SECOND_NS, 100 * SECOND_NS)])
        _assert_close(store.take("alice", [Demand("limit", 0, 100 * SECOND_NS)]), [50 * SECOND_NS])

    def test_clearing_makes_buckets_full(self, store: Store) -> None:
        demands = [Demand("a", 100 * SECOND_NS, 100 * SECOND_NS), Demand("b", 100 * SECOND_NS, 100 * SECOND_NS)]
        store.take("alice", demands)
        assert not store.take("alice", demands).allowed
        store.clear("alice", ["a", "b"])
        assert store.take("alice", demands).allowed

    def test_keys_may_be_any_text(self, store: Store) -> None:
        demand = Demand("limit", 100 * SECOND_NS, 100 * SECOND_NS)
        for account in ("{}", "a:b", "a b\r\n", "ü", "\ud800", "x" * 10_000, "*", "ip:2001:db8::/64"):
            assert store.take(account, [demand]).allowed
            assert not store.take(account, [demand]).allowed

    def test_long_periods_are_exact(self, store: Store) -> None:
        year_ns = 365 * 86_400 * SECOND_NS
        demand = Demand("limit", year_ns // 1000, year_ns)
        for _ in range(3):
            store.take("alice", [demand])
        _assert_close(store.take("alice", [Demand("limit", 0, year_ns)]), [3 * (year_ns // 1000)])

    def test_costs_of_single_nanoseconds_count(self, store: Store) -> None:
        # A bucket whose state were kept in coarser units would lose these, and never be empty.
        capacity_ns = 1000 * SECOND_NS
        store.take("alice", [Demand("limit", capacity_ns // 2, capacity_ns)])
        before = store.take("alice", [Demand("limit", 0, capacity_ns)]).times_to_full_ns[0] or 0
        for _ in range(50):
            store.take("alice", [Demand("limit", 999_999_937, capacity_ns)])
        after = store.take("alice", [Demand("limit", 0, capacity_ns)]).times_to_full_ns[0] or 0
        assert abs(after - before - 50 * 999_999_937) < _SLACK_NS

    def test_threads_together_take_no_more_than_there_is(self, store: Store) -> None:
        demands = [Demand("a", 10 * SECOND_NS, 1000 * SECOND_NS), Demand("b", 10 * SECOND_NS, 5000 * SECOND_NS)]
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: store.take("alice", demands), range(160)))
        assert sum(reply.allowed for reply in replies) == 100
        _assert_close(store.take("alice", [Demand("b", 0, 5000 * SECOND_NS)]), [1000 * SECOND_NS])


def _assert_close(reply: Reply, expected_ns: Sequence[int]) -> None:
    """A store on a real clock has refilled a little since."""
    assert len(reply.times_to_full_ns) == len(expected_ns)
    for time_to_full_ns, expected in zip(reply.times_to_full_ns, expected_ns, strict=True):
        assert time_to_full_ns is not None
        assert expected - _SLACK_NS <= time_to_full_ns <= expected
