"""The bounded storage gives the answers of limits' own, and keeps no more than it was told to."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import limits
import limits.aio.strategies
import limits.storage.memory
import limits.strategies
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits.storage import storage_from_string

from abuseguard import SettingsError
from abuseguard.buckets._window_table import Record, WindowTable
from abuseguard.buckets.async_window_storage import AsyncWindowStorage
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.clock import ManualClock

SECOND_NS = 1_000_000_000
# Instants that a float of seconds holds exactly, so that no difference is one of rounding the time.
STEP_NS = SECOND_NS // 512

KINDS = ["fixed-window", "moving-window", "sliding-window-counter"]
ITEMS = [limits.parse(rate) for rate in ("3/2 second", "7/3 second", "10/minute", "100/4 second")]


def strategy(kind, storage):
    return limits.strategies.STRATEGIES[kind](storage)


class UnsweptTimer:
    """In place of the thread in which limits' storage looks at all its keys: what it finds depends on when it runs."""

    def is_alive(self):
        return True


@pytest.fixture(scope="module")
def on_one_clock():
    """limits' own storage and ours, on one clock set by hand."""
    clock = ManualClock()
    hand_set = SimpleNamespace(time=lambda: clock.now_ns() / SECOND_NS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.storage.memory, "time", hand_set)
        patch.setattr(limits.strategies, "time", hand_set)

        def pair():
            clock.set_ns(1_000 * SECOND_NS)
            theirs = limits.storage.MemoryStorage()
            theirs.timer.cancel()
            theirs.timer.join()
            theirs.timer = UnsweptTimer()
            return clock, theirs, WindowStorage(clock=clock)

        yield pair


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 3 * 512) | st.sampled_from([512, 2 * 512, 3 * 512, 60 * 512])),
        st.tuples(
            st.sampled_from(["hit", "hit", "hit", "test", "stats"]),
            st.sampled_from(KINDS),
            st.integers(0, len(ITEMS) - 1),
            st.sampled_from(["alice", "bob"]),
            st.integers(0, 12),
        ),
        st.tuples(st.just("clear"), st.sampled_from(KINDS), st.integers(0, len(ITEMS) - 1), st.just("alice")),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_equals_the_storage_of_limits(on_one_clock, steps):
    clock, theirs, ours = on_one_clock()
    limiters = {kind: (strategy(kind, theirs), strategy(kind, ours)) for kind in KINDS}
    for name, *arguments in steps:
        if name == "pass":
            clock.advance(ns=arguments[0] * STEP_NS)
            continue
        kind, item, account, *cost = arguments
        answers = []
        for limiter in limiters[kind]:
            if name == "stats":
                answers.append(limiter.get_window_stats(ITEMS[item], account))
            elif name == "clear":
                answers.append(limiter.clear(ITEMS[item], account))
            else:
                answers.append(getattr(limiter, name)(ITEMS[item], account, cost=cost[0]))
        if name == "stats" and kind == "moving-window" and answers[0].remaining == ITEMS[item].amount:
            # Of a window that is empty, limits' own gives the time of a hit long past, until its thread has run.
            answers = [answer.remaining for answer in answers]
        assert answers[0] == answers[1], (name, arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds_into_the_window", [0, 0.5])
def test_equals_the_storage_of_limits_at_the_edges_of_a_window(on_one_clock, kind, seconds_into_the_window):
    clock, theirs, ours = on_one_clock()
    clock.advance(seconds=seconds_into_the_window)
    item = ITEMS[0]  # 3 in 2 s
    for cost, steps in [(3, 0), (1, 1023), (1, 1), (1, 1), (2, 512), (1, 512)]:
        clock.advance(ns=steps * STEP_NS)
        limiters = [strategy(kind, storage) for storage in (theirs, ours)]
        stats = [limiter.get_window_stats(item, "alice") for limiter in limiters]
        assert stats[0].remaining == stats[1].remaining
        assert limiters[0].hit(item, "alice", cost=cost) == limiters[1].hit(item, "alice", cost=cost)


def test_a_counter_that_was_counted_down_to_nothing_begins_anew_as_in_limits(on_one_clock):
    clock, theirs, ours = on_one_clock()
    for amount, seconds in [(5, 1), (-3, 1), (-2, 1), (4, 58), (1, 1), (1, 60), (0, 1)]:
        assert theirs.incr("key", 60, amount) == ours.incr("key", 60, amount)
        assert theirs.get_expiry("key") == ours.get_expiry("key")
        clock.advance(seconds=seconds)
        assert theirs.get("key") == ours.get("key")


def test_a_moving_window_is_asked_for_its_newest_hits():
    clock = ManualClock(1_000 * SECOND_NS)
    storage = WindowStorage(clock=clock)
    for _ in range(5):
        storage.acquire_entry("key", 10, 60, 2)
        clock.advance(seconds=1)
    assert storage.get_moving_window("key", 10, 60) == (1_000, 10)
    assert storage.get_moving_window("key", 4, 60) == (1_003, 4)
    assert storage.get_moving_window("key", 3, 60) == (1_003, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_allows_the_amount_and_no_more_until_the_window_has_passed(kind):
    clock = ManualClock(1_000_000 * SECOND_NS)
    limiter = strategy(kind, WindowStorage(clock=clock))
    item = limits.parse("3/minute")
    assert [limiter.hit(item, "alice") for _ in range(4)] == [True, True, True, False]
    assert limiter.hit(item, "bob")
    assert limiter.get_window_stats(item, "alice").remaining == 0
    clock.advance(seconds=121)
    assert limiter.get_window_stats(item, "alice").remaining == 3
    assert [limiter.hit(item, "alice") for _ in range(4)] == [True, True, True, False]


class ClockSinceStart(ManualClock):
    """Counts from the start of the machine, as clocks do that never run backwards."""

    def epoch_ns(self):
        return 1_700_000_000 * SECOND_NS + self.now_ns()


def test_reset_times_are_times_of_day():
    clock = ClockSinceStart(1_000_000 * SECOND_NS)
    storage = WindowStorage(clock=clock)
    fixed, moving = strategy("fixed-window", storage), strategy("moving-window", storage)
    item = limits.parse("3/minute")
    for limiter in (fixed, moving):
        limiter.hit(item, "alice")
    clock.advance(seconds=20)
    for limiter in (fixed, moving):
        assert limiter.get_window_stats(item, "alice").reset_time == 1_700_000_000 + 1_000_000 + 60


def test_a_large_cost_in_a_moving_window_is_one_entry():
    storage = WindowStorage(clock=ManualClock())
    limiter = strategy("moving-window", storage)
    item = limits.parse("100000/hour")
    limiter.hit(item, "alice")
    before = sys.getsizeof(storage._logs.find(item.key_for("alice"), 0).runs)
    assert limiter.hit(item, "alice", cost=99_999)
    log = storage._logs.find(item.key_for("alice"), 0)
    assert len(log.runs) == 1
    assert sys.getsizeof(log.runs) == before
    assert not limiter.test(item, "alice")


def test_a_moving_window_keeps_no_hits_long_past():
    clock = ManualClock()
    storage = WindowStorage(clock=clock)
    for _ in range(1_000):
        assert storage.acquire_entry("key", 10, 10)
        clock.advance(seconds=1.5)
    assert len(storage._logs.find("key", clock.now_ns()).runs) <= 20


def test_takes_back_from_a_moving_window_the_newest_first():
    clock = ManualClock()
    storage = WindowStorage(clock=clock)
    limiter = strategy("moving-window", storage)
    item = limits.parse("10/minute")
    limiter.hit(item, "alice", cost=4)
    clock.advance(seconds=30)
    limiter.hit(item, "alice", cost=6)
    storage.release_entries(item.key_for("alice"), 7)
    assert limiter.get_window_stats(item, "alice") == (60, 7)
    storage.release_entries(item.key_for("alice"), 100)
    assert limiter.get_window_stats(item, "alice").remaining == 10
    storage.release_entries(item.key_for("nobody"), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_new_keys_grows_nothing(kind):
    clock = ManualClock(1_000 * SECOND_NS)
    storage = WindowStorage(max_keys=100, clock=clock)
    limiter = strategy(kind, storage)
    item = limits.parse("2/hour")
    for number in range(1_000):
        limiter.hit(item, f"account-{number}")
        clock.advance(ns=SECOND_NS)
    assert storage.size == 100
    for table in (storage._counters, storage._logs, storage._sliding):
        assert sum(map(len, table._slots.values())) == len(table)
        assert len(table._slot_times_ns) == len(table._slots) < 1_100


@pytest.mark.parametrize("kind", KINDS)
def test_forgets_the_expired_before_the_unused(kind):
    clock = ManualClock(1_000_000 * SECOND_NS)
    storage = WindowStorage(max_keys=10, clock=clock)
    limiter = strategy(kind, storage)
    day, second = limits.parse("1/day"), limits.parse("1/second")
    limiter.hit(day, "alice")
    for number in range(9):
        limiter.hit(second, f"flood-{number}")  # all used after Alice
    clock.advance(seconds=3)
    for number in range(9):
        limiter.hit(second, f"second-flood-{number}")
    assert not limiter.hit(day, "alice")


@pytest.mark.parametrize("kind", KINDS)
def test_forgets_the_least_recently_used_of_those_that_still_count(kind):
    storage = WindowStorage(max_keys=3, clock=ManualClock(1_000_000 * SECOND_NS))
    limiter = strategy(kind, storage)
    item = limits.parse("1/day")
    for account in ("alice", "bob", "carol"):
        limiter.hit(item, account)
    assert not limiter.hit(item, "alice")  # a denial is use as well
    limiter.hit(item, "dave")
    assert [limiter.test(item, account) for account in ("alice", "bob", "carol", "dave")] == [False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_set_back_opens_no_window(kind):
    clock = ManualClock(1_000_000 * SECOND_NS)
    limiter = strategy(kind, WindowStorage(clock=clock))
    item = limits.parse("1/minute")
    assert limiter.hit(item, "alice")
    clock.advance(seconds=-3600)
    assert not limiter.hit(item, "alice")
    clock.advance(seconds=3600 + 121)
    assert limiter.hit(item, "alice")


@pytest.fixture
def hasty_threads():
    """Threads that give way to each other all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_take_the_amount_between_them(kind):
    limiter = strategy(kind, WindowStorage())
    item = limits.parse("1000/day")
    barrier = threading.Barrier(8)

    def hits():
        barrier.wait()
        return sum(limiter.hit(item, "alice") for _ in range(250))

    with ThreadPoolExecutor(8) as threads:
        assert sum(thread.result() for thread in [threads.submit(hits) for _ in range(8)]) == 1_000


def test_starts_no_thread():
    before = threading.active_count()
    limiter = strategy("fixed-window", WindowStorage())
    limiter.hit(limits.parse("1/second"), "alice")
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets_everything(kind):
    storage = WindowStorage(clock=ManualClock(1_000 * SECOND_NS))
    limiter = strategy(kind, storage)
    item = limits.parse("1/day")
    limiter.hit(item, "alice")
    assert storage.reset() == 1
    assert storage.size == 0
    assert limiter.hit(item, "alice")


@pytest.mark.parametrize("max_keys", [0, -1, 1.5, "many", True])
def test_refuses_a_bound_that_is_none(max_keys):
    with pytest.raises(SettingsError, match="max_keys"):
        WindowStorage(max_keys=max_keys)


def test_limits_finds_it_by_its_scheme():
    clock = ManualClock()
    storage = storage_from_string("abuseguard+memory://", max_keys=7, clock=clock)
    assert type(storage) is WindowStorage
    assert storage.clock is clock
    assert storage.check()
    storage = storage_from_string("async+abuseguard+memory://", max_keys=7, clock=clock)
    assert type(storage) is AsyncWindowStorage
    assert storage.clock is clock


@pytest.mark.parametrize("kind", KINDS)
def test_the_asynchronous_twin_answers_the_same(kind):
    clock = ManualClock(1_000_000 * SECOND_NS)
    storage = AsyncWindowStorage(clock=clock)
    limiter = limits.aio.strategies.STRATEGIES[kind](storage)
    blocking = strategy(kind, storage.storage)
    item = limits.parse("3/minute")

    async def scenario():
        assert await storage.check()
        assert [await limiter.hit(item, "alice", cost=2), await limiter.hit(item, "alice", cost=2)] == [True, False]
        assert await limiter.test(item, "alice") is (kind != "fixed-window")  # which counts what it denied
        stats = await limiter.get_window_stats(item, "alice")
        assert stats.remaining == blocking.get_window_stats(item, "alice").remaining == (kind != "fixed-window")
        await limiter.clear(item, "alice")
        assert await limiter.hit(item, "alice", cost=3)
        assert await storage.reset() == 1
        assert await limiter.test(item, "alice", cost=3)

    asyncio.run(scenario())


def test_the_asynchronous_twin_misses_no_method():
    assert not inspect.isabstract(AsyncWindowStorage)
    assert AsyncWindowStorage().base_exceptions is WindowStorage().base_exceptions


class Thing(Record):
    __slots__ = ()

    def __init__(self, expires_ns):
        self.expires_ns = expires_ns


class TestWindowTable:
    def test_a_record_that_was_prolonged_is_not_forgotten_when_its_slot_is_due(self):
        table = WindowTable(2)
        prolonged = Thing(10)
        table.add("a", prolonged, 0)
        prolonged.expires_ns = 1_000
        table.add("b", Thing(2_000), 500)
        assert table.find("a", 999) is prolonged
        table.add("c", Thing(2_000), 1_000)  # the expired makes room, though the other was used before it
        assert table.find("b", 1_001) is not None
        assert table.find("a", 1_001) is None

    @given(
        steps=st.lists(
            st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 5_000), st.integers(0, 2_000)),
            max_size=80,
        ),
        max_keys=st.integers(1, 5),
    )
    def test_never_holds_more_than_its_bound_and_finds_only_what_counts(self, steps, max_keys):
        table, expiries, now_ns = WindowTable(max_keys), {}, 0
        for key, period_ns, pause_ns in steps:
            now_ns += pause_ns
            record = table.find(key, now_ns)
            if record is None:
                record = Thing(now_ns + period_ns)
                table.add(key, record, now_ns)
            else:
                assert now_ns < record.expires_ns == expiries[key]
                record.expires_ns = max(record.expires_ns, now_ns + period_ns)
            expiries[key] = record.expires_ns
            assert len(table) <= max_keys
            assert sum(map(len, table._slots.values())) == len(table)
            assert table.find(key, now_ns) is record
