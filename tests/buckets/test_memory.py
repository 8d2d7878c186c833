"""The store in memory: right as a plain dictionary is, bounded, and forgetful only of what matters least."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from abuseguard import RequestFacts, Settings, SettingsError
from abuseguard.buckets._table import Table
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.buckets.store import Adjustment, Demand
from abuseguard.clock import ManualClock
from abuseguard.errors import StoreFullError
from abuseguard.guard import Guard

SECOND_NS = 1_000_000_000
TICK_NS = 2**30  # to which the order of forgetting is exact


def spend(store, account, *, seconds, of=100, bucket="limit"):
    """Takes what a bucket that fills in ``of`` seconds gains in so many."""
    return store.take(account, [Demand(bucket, seconds * SECOND_NS, of * SECOND_NS)])


def time_to_full_ns(store, account, bucket="limit"):
    return store.take(account, [Demand(bucket, 0, 10**18)]).times_to_full_ns[0]


@pytest.fixture
def clock():
    return ManualClock(1_000 * SECOND_NS)


class PlainDictionary:
    """The contract in its plainest form: one dictionary that forgets nothing, two passes, no thought of speed."""

    def __init__(self):
        self.full_at_ns = {}
        self.now_ns = 0

    def time_to_full_ns(self, bucket, owner):
        return max(0, self.full_at_ns.get((bucket, owner), 0) - self.now_ns)

    def take(self, account, demands):
        times = [self.time_to_full_ns(demand.bucket, demand.key or account) for demand in demands]
        if any(time + demand.cost_ns > demand.capacity_ns for time, demand in zip(times, demands, strict=True)):
            return False, times
        times = [time + demand.cost_ns for time, demand in zip(times, demands, strict=True)]
        for time, demand in zip(times, demands, strict=True):
            self.full_at_ns[demand.bucket, demand.key or account] = self.now_ns + time
        return True, times

    def adjust(self, account, adjustments):
        for bucket, delta_ns, _, key in adjustments:
            owner = key or account
            self.full_at_ns[bucket, owner] = self.now_ns + self.time_to_full_ns(bucket, owner) + delta_ns

    def clear(self, account, buckets):
        for bucket in buckets:
            self.full_at_ns.pop((bucket, account), None)


BUCKETS = ["minute", "hour", "day"]
CAPACITIES_NS = {"minute": 60 * SECOND_NS, "hour": 3_600 * SECOND_NS, "day": 86_400 * SECOND_NS}
ACCOUNTS = st.sampled_from(["alice", "bob", "carol", "dave"])


def parts(kind, shares):
    """Demands or adjustments of some of the buckets, each at most once, as shares of their capacities."""
    return st.lists(
        st.tuples(st.sampled_from(BUCKETS), shares, st.none() | st.sampled_from(["everyone", "alice"])),
        min_size=1,
        max_size=3,
        unique_by=lambda part: part[0],
    ).map(
        lambda given: [
            kind(bucket, CAPACITIES_NS[bucket] * share // 60, CAPACITIES_NS[bucket], key)
            for bucket, share, key in given
        ]
    )


class AgainstADictionary(RuleBasedStateMachine):
    """Any history of calls gives what a plain dictionary gives, as long as there is room."""

    @initialize()
    def start(self):
        self.clock = ManualClock(10 * SECOND_NS)
        self.store = MemoryStore(clock=self.clock)
        self.naive = PlainDictionary()
        self.naive.now_ns = self.clock.now_ns()

    @rule(
        ns=st.integers(0, 5) | st.integers(0, 90 * SECOND_NS) | st.sampled_from([SECOND_NS, TICK_NS, 3_600 * SECOND_NS])
    )
    def pass_time(self, ns):
        self.clock.advance(ns=ns)

    @rule(seconds=st.integers(1, 100))
    def set_clock_back(self, seconds):
        self.clock.advance(seconds=-seconds)

    def look_at_clock(self):
        # A store knows of no time at which nobody asked it.
        self.naive.now_ns = max(self.naive.now_ns, self.clock.now_ns())

    @rule(account=ACCOUNTS, demands=parts(Demand, st.integers(0, 60) | st.integers(0, 3) | st.just(61)))
    def take(self, account, demands):
        self.look_at_clock()
        reply = self.store.take(account, demands)
        assert (reply.allowed, list(reply.times_to_full_ns)) == self.naive.take(account, demands)
        assert not reply.degraded

    @rule(account=ACCOUNTS, adjustments=parts(Adjustment, st.integers(-70, 130)))
    def adjust(self, account, adjustments):
        self.look_at_clock()
        self.store.adjust(account, adjustments)
        self.naive.adjust(account, adjustments)

    @rule(account=ACCOUNTS, buckets=st.lists(st.sampled_from(BUCKETS), unique=True))
    def clear(self, account, buckets):
        self.store.clear(account, buckets)
        self.naive.clear(account, buckets)

    @invariant()
    def keeps_what_is_not_full(self):
        for bucket, owner in self.naive.full_at_ns:
            self.look_at_clock()
            reply = self.store.take(owner, [Demand(bucket, 0, 10**18)])
            assert reply.times_to_full_ns == [self.naive.time_to_full_ns(bucket, owner)]
        assert self.store.size <= len(self.naive.full_at_ns) + len(BUCKETS) * 5


AgainstADictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAgainstADictionary = AgainstADictionary.TestCase


class TestAllOrNone:
    def test_a_denial_by_any_bucket_takes_from_none(self, clock):
        store = MemoryStore(clock=clock)
        demands = [Demand(bucket, 10, 25) for bucket in "abc"]
        assert store.take("alice", demands).times_to_full_ns == [10, 10, 10]
        for position in range(3):
            tighter = [demand._replace(cost_ns=16 if at == position else 10) for at, demand in enumerate(demands)]
            reply = store.take("alice", tighter)
            assert not reply.allowed
            assert reply.times_to_full_ns == [10, 10, 10]
        assert store.take("alice", demands).times_to_full_ns == [20, 20, 20]

    def test_a_denial_of_a_new_account_leaves_its_buckets_full(self, clock):
        store = MemoryStore(clock=clock)
        assert not store.take("alice", [Demand("a", 10, 25), Demand("b", 26, 25)]).allowed
        assert time_to_full_ns(store, "alice", "a") == 0
        assert store.take("alice", [Demand("a", 25, 25)]).allowed

    def test_no_room_for_one_bucket_takes_from_none(self, clock):
        store = MemoryStore(max_keys=1, clock=clock)
        store.take("bob", [Demand("b", 100, 100)])
        store.take("alice", [Demand("a", 10, 25)])
        with pytest.raises(StoreFullError):
            store.take("alice", [Demand("a", 10, 25), Demand("b", 100, 100)])
        assert time_to_full_ns(store, "alice", "a") == 10

    def test_one_bucket_asked_twice_pays_twice(self, clock):
        store = MemoryStore(clock=clock)
        assert store.take("alice", [Demand("a", 10, 25), Demand("a", 10, 25)]).allowed
        assert time_to_full_ns(store, "alice", "a") == 20
        assert not store.take("alice", [Demand("a", 3, 25), Demand("a", 3, 25)]).allowed
        assert time_to_full_ns(store, "alice", "a") == 20


class TestAdjust:
    def test_into_debt_and_back(self, clock):
        store = MemoryStore(clock=clock)
        adjust = lambda seconds: store.adjust("alice", [Adjustment("limit", seconds * SECOND_NS, 100 * SECOND_NS)])  # noqa: E731
        assert spend(store, "alice", seconds=60).allowed
        adjust(200)
        assert time_to_full_ns(store, "alice") == 260 * SECOND_NS
        assert not spend(store, "alice", seconds=0).allowed  # nothing, even, of a bucket in debt
        clock.advance(seconds=160)
        assert spend(store, "alice", seconds=0).allowed
        assert not spend(store, "alice", seconds=1).allowed
        adjust(-30)
        assert spend(store, "alice", seconds=30).allowed
        adjust(-500)
        assert time_to_full_ns(store, "alice") == 0
        assert spend(store, "alice", seconds=100).allowed
        assert not spend(store, "alice", seconds=1).allowed  # what was given back beyond full is not hoarded

    def test_charges_an_account_not_seen_before(self, clock):
        store = MemoryStore(clock=clock)
        store.adjust("alice", [Adjustment("limit", 150 * SECOND_NS, 100 * SECOND_NS)])
        assert time_to_full_ns(store, "alice") == 150 * SECOND_NS
        store.adjust("bob", [Adjustment("limit", -SECOND_NS, 100 * SECOND_NS)])
        assert store.size == 1  # a full bucket needs no keeping


class TestForgetting:
    def test_the_full_first_then_the_soonest_full(self, clock):
        store = MemoryStore(max_keys=3, clock=clock)
        for account, seconds in [("carol", 30), ("alice", 90), ("bob", 60)]:
            assert spend(store, account, seconds=seconds).allowed
        clock.advance(seconds=32)  # Carol's is full
        assert spend(store, "dave", seconds=40).allowed
        assert [time_to_full_ns(store, account) // SECOND_NS for account in ("alice", "bob", "dave")] == [58, 28, 40]
        assert spend(store, "erin", seconds=40).allowed
        left = [time_to_full_ns(store, account) // SECOND_NS for account in ("alice", "bob", "dave", "erin")]
        assert left == [58, 0, 40, 40]

    def test_goes_by_how_full_a_bucket_is_now_not_by_how_it_was_when_it_came(self, clock):
        store = MemoryStore(max_keys=2, clock=clock)
        spend(store, "alice", seconds=5)
        spend(store, "bob", seconds=20)
        spend(store, "alice", seconds=60)
        assert spend(store, "carol", seconds=5).allowed
        assert [time_to_full_ns(store, account) // SECOND_NS for account in ("alice", "bob", "carol")] == [65, 0, 5]

    def test_never_a_bucket_in_debt(self, clock):
        store = MemoryStore(max_keys=2, clock=clock)
        for account in ("alice", "bob"):
            spend(store, account, seconds=100)
            store.adjust(account, [Adjustment("limit", 50 * SECOND_NS, 100 * SECOND_NS)])
        with pytest.raises(StoreFullError, match="all 2 buckets"):
            spend(store, "carol", seconds=1)
        with pytest.raises(StoreFullError):
            store.adjust("carol", [Adjustment("limit", SECOND_NS, 100 * SECOND_NS)])
        assert [time_to_full_ns(store, account) for account in ("alice", "bob")] == [150 * SECOND_NS] * 2
        assert spend(store, "alice", seconds=1).allowed is False  # those that are there are served as ever
        clock.advance(seconds=151 + 2)
        assert spend(store, "carol", seconds=1).allowed

    def test_a_bucket_used_up_does_not_give_way_to_a_new_one(self, clock):
        store = MemoryStore(max_keys=10, clock=clock)
        for number in range(10):
            spend(store, f"exhausted-{number}", seconds=100)
        for number in range(20):
            with pytest.raises(StoreFullError):
                spend(store, f"new-{number}", seconds=1)
        assert not any(spend(store, f"exhausted-{number}", seconds=1).allowed for number in range(10))

    def test_a_flood_of_new_keys_is_bounded_and_pushes_out_nobody_in_debt(self, clock):
        store = MemoryStore(max_keys=1_000, clock=clock)
        for number in range(50):
            spend(store, f"debtor-{number}", seconds=100)
            store.adjust(f"debtor-{number}", [Adjustment("limit", 900 * SECOND_NS, 100 * SECOND_NS)])
        for number in range(10_000):
            spend(store, f"flood-{number}", seconds=1)
            clock.advance(ns=SECOND_NS // 1_000)
            assert store.size <= 1_000
        assert all(time_to_full_ns(store, f"debtor-{number}") > 900 * SECOND_NS for number in range(50))
        table = store._tables["limit"]
        assert sum(map(len, table._wheel.values())) == len(table)
        assert sorted(table._ticks) == sorted(table._wheel)

    def test_what_is_full_goes_though_there_is_room(self, clock):
        store = MemoryStore(clock=clock)
        for number in range(10_000):
            spend(store, f"account-{number}", seconds=1)
            clock.advance(seconds=0.1)
        assert store.size < 100  # those of the last seconds

    def test_what_is_full_goes_twice_as_fast_as_others_come(self, clock):
        store = MemoryStore(clock=clock)
        for number in range(1_000):
            spend(store, f"idle-{number}", seconds=1)
        clock.advance(seconds=5)
        for number in range(600):
            spend(store, f"new-{number}", seconds=50)
        assert store.size == 600

    def test_a_bucket_that_was_emptied_further_stays_after_it_would_have_been_full(self, clock):
        store = MemoryStore(clock=clock)
        spend(store, "alice", seconds=5)
        spend(store, "alice", seconds=60)
        clock.advance(seconds=10)
        for number in range(10):
            spend(store, f"new-{number}", seconds=50)
        assert time_to_full_ns(store, "alice") == 55 * SECOND_NS

    def test_limits_do_not_crowd_each_other_out(self, clock):
        store = MemoryStore(max_keys=2, clock=clock)
        for account in ("alice", "bob"):
            spend(store, account, seconds=100, bucket="a")
        assert spend(store, "carol", seconds=1, bucket="b").allowed
        assert store.size == 3

    def test_memory_stays_flat_once_the_bound_is_reached(self, clock):
        def bytes_kept(store):
            table = store._tables["limit"]
            return sys.getsizeof(table) + sys.getsizeof(table._wheel) + sum(map(sys.getsizeof, table._wheel.values()))

        store = MemoryStore(max_keys=500, clock=clock)
        randomness = random.Random(7)
        sizes = []
        for number in range(20_000):
            spend(store, f"account-{number}", seconds=randomness.randint(1, 40))
            clock.advance(ns=randomness.randint(0, SECOND_NS // 10))
            if number % 1_000 == 999:
                sizes.append(bytes_kept(store))
        assert max(sizes[3:]) <= 2 * min(sizes[3:])


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100), st.integers(0, 5 * SECOND_NS)), max_size=80),
    max_keys=st.integers(1, 6),
)
def test_a_table_forgets_only_what_its_rules_let_it(steps, max_keys):
    """What is forgotten was full, or could have granted the very cost that took its place; and never too early."""
    capacity_ns = 100 * SECOND_NS
    table, now_ns = Table(max_keys), 0
    for number, percent, pause_ns in steps:
        now_ns += pause_ns
        cost_ns = percent * capacity_ns // 100
        key = f"account-{number}"
        before = dict(table)
        if key in table:
            table[key] = max(table[key], now_ns) + cost_ns
            continue
        try:
            table.admit(key, now_ns + cost_ns, now_ns, capacity_ns - cost_ns)
        except StoreFullError:
            assert len(before) == max_keys
            assert key not in table
            # All but what was full was kept, and is too empty to be replaced, to the exactness of a tick.
            assert all(full_at_ns - now_ns > capacity_ns - cost_ns - TICK_NS for full_at_ns in table.values())
            gone = {owner: at for owner, at in before.items() if owner not in table}
            assert all(full_at_ns <= now_ns for full_at_ns in gone.values())
            continue
        assert len(table) <= max_keys
        gone = {owner: at for owner, at in before.items() if owner not in table}
        not_full = [full_at_ns for full_at_ns in gone.values() if full_at_ns > now_ns]
        assert len(not_full) <= 1
        if not_full:
            assert len(before) - len(gone) + 1 == max_keys  # there was no other room
            assert not_full[0] - now_ns <= capacity_ns - cost_ns
            assert all(not_full[0] < full_at_ns + TICK_NS for owner, full_at_ns in table.items() if owner != key)


class TestClock:
    def test_set_back_it_neither_grants_nor_locks_out(self, clock):
        store = MemoryStore(clock=clock)
        assert spend(store, "alice", seconds=100).allowed
        clock.advance(seconds=-500)
        assert not spend(store, "alice", seconds=1).allowed
        assert time_to_full_ns(store, "alice") == 100 * SECOND_NS
        clock.advance(seconds=500 + 10)
        assert spend(store, "alice", seconds=10).allowed
        assert not spend(store, "alice", seconds=1).allowed

    def test_set_back_after_a_correction_it_locks_nobody_out(self, clock):
        store = MemoryStore(clock=clock)
        clock.advance(seconds=700)
        store.adjust("alice", [Adjustment("limit", 10 * SECOND_NS, 100 * SECOND_NS)])
        clock.advance(seconds=-500)
        assert time_to_full_ns(store, "alice") == 10 * SECOND_NS

    def test_set_back_it_charges_as_if_it_stood_still(self, clock):
        store = MemoryStore(clock=clock)
        spend(store, "alice", seconds=10)
        clock.advance(seconds=-500)
        store.adjust("alice", [Adjustment("limit", 10 * SECOND_NS, 100 * SECOND_NS)])
        store.adjust("bob", [Adjustment("limit", 10 * SECOND_NS, 100 * SECOND_NS)])
        assert time_to_full_ns(store, "alice") == 20 * SECOND_NS
        assert time_to_full_ns(store, "bob") == 10 * SECOND_NS


@pytest.fixture
def hasty_threads():
    """Threads that give way to each other all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_eight_threads_lose_no_token(clock):
    store = MemoryStore(clock=clock)
    demands = [Demand("a", 1, 10_000), Demand("b", 1, 6_000), Demand("c", 1, 10_000)]
    barrier = threading.Barrier(8)

    def take():
        barrier.wait()
        return sum(store.take("alice", demands).allowed for _ in range(1_000))

    with ThreadPoolExecutor(8) as threads:
        assert sum(thread.result() for thread in [threads.submit(take) for _ in range(8)]) == 6_000
    assert [time_to_full_ns(store, "alice", bucket) for bucket in "abc"] == [6_000] * 3


def test_threads_and_event_loops_share_one_store(clock):
    store = MemoryStore(clock=clock)
    shared = AsyncMemoryStore(store)

    async def takes():
        replies = await asyncio.gather(*(shared.take("alice", [Demand("a", 1, 1_000)]) for _ in range(200)))
        await shared.adjust("alice", [Adjustment("a", -1, 1_000)])
        return sum(reply.allowed for reply in replies)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda _: asyncio.run(takes()), range(4))) == 800
    assert time_to_full_ns(store, "alice", "a") == 796
    asyncio.run(shared.clear("alice", ["a"]))
    assert time_to_full_ns(store, "alice", "a") == 0


def test_clear_fills_the_account_s_own_buckets(clock):
    store = MemoryStore(clock=clock)
    for account in ("alice", "bob"):
        spend(store, account, seconds=100)
    store.clear("alice", ["limit", "unknown"])
    store.clear("nobody", ["limit"])
    assert time_to_full_ns(store, "alice") == 0
    assert time_to_full_ns(store, "bob") == 100 * SECOND_NS
    assert spend(store, "alice", seconds=100).allowed


def test_close_keeps_nothing(clock):
    store = MemoryStore(clock=clock)
    spend(store, "alice", seconds=1)
    store.close()
    assert store.size == 0


def test_an_empty_store_is_taken_for_one(clock):
    store = MemoryStore(clock=clock)
    Guard(Settings(limits=["3/minute"]), store=store).decide(RequestFacts("GET", "/", peer="203.0.113.1"))
    assert store.size == 1


@pytest.mark.parametrize("max_keys", [0, -1, 1.0, True, None, "many"])
def test_refuses_a_bound_that_is_none(max_keys):
    with pytest.raises(SettingsError, match="max_keys"):
        MemoryStore(max_keys=max_keys)
