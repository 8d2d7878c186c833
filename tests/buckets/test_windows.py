"""Limits that are windows of the limits library: through the guard, beside buckets, in memory and on Redis."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abuseguard import Limit, Outcome, RequestFacts, Settings, StoreError
from abuseguard.buckets.connect import async_store_for, store_for
from abuseguard.buckets.memory import MemoryStore
from abuseguard.buckets.store import Adjustment, Demand
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.buckets.windows import WindowedStore
from abuseguard.clock import ManualClock, SystemClock
from abuseguard.errors import StoreTimeoutError
from abuseguard.guard import AsyncGuard, Guard
from abuseguard.rule import Rule
from abuseguard.testing import Blocking, StoreContract
from tests.redis_servers import RedisServer

SECOND_NS = 1_000_000_000
KINDS = ["fixed-window", "moving-window", "sliding-window-counter"]
REDIS = ["redis_url", "redis_cluster_url", "redis_sentinel_url"]


def request(peer="203.0.113.1"):
    return RequestFacts("GET", "/", peer=peer)


def window(rate, kind, **options):
    return Limit(rate, strategy=kind, **options)


class Asker:
    """Asks a store as a guard does: by limits and costs."""

    def __init__(self, store, *limits):
        self.store = store
        self.rules = [Rule(limit) for limit in limits]

    def demands(self, *costs):
        return [
            Demand(rule.name, rule.bucket.cost_ns(cost), rule.bucket.capacity_ns)
            for rule, cost in zip(self.rules, costs, strict=True)
        ]

    def take(self, account, *costs):
        return self.store.take(account, self.demands(*costs))

    def adjust(self, account, *amounts):
        self.store.adjust(
            account,
            [
                Adjustment(rule.name, rule.bucket.cost_ns(amount), rule.bucket.capacity_ns)
                for rule, amount in zip(self.rules, amounts, strict=True)
            ],
        )

    def remaining(self, account):
        # Of each by itself: a denial for one says nothing of the others.
        return [
            rule.bucket.remaining(self.store.take(account, [demand]).times_to_full_ns[0])
            for rule, demand in zip(self.rules, self.demands(*[0] * len(self.rules)), strict=True)
        ]

    def clear(self, account):
        self.store.clear(account, [rule.name for rule in self.rules])


class TestThroughTheGuardInMemory:
    @pytest.fixture
    def clock(self):
        return ManualClock(1_000_000 * 60 * SECOND_NS)

    def test_as_the_settings_say_it(self, clock):
        limits = ["3/minute strategy=fixed-window", Limit("1000/day", strategy="sliding-window-counter")]
        guard = Guard(Settings(limits=limits), clock=clock)
        clock.advance(seconds=15)
        decisions = [guard.decide(request()) for _ in range(4)]
        assert [decision.outcome for decision in decisions] == [Outcome.ALLOWED] * 3 + [Outcome.DENIED]
        assert guard.decide(request("203.0.113.2")).admitted
        fields = dict(guard.fields(decisions[0]))
        assert fields["RateLimit-Policy"] == '"3-per-minute";q=3;w=60, "1000-per-day";q=1000;w=86400'
        assert fields["RateLimit"] == '"3-per-minute";r=2;t=20, "1000-per-day";r=999;t=87'
        clock.advance(seconds=10)
        denied = guard.decide(request())
        assert (
            dict(guard.fields(denied))["RateLimit"] == '"3-per-minute";r=0;t=50'
        )  # the window began with its first hit
        assert [quota.limit for quota in denied.denied_by] == ["3-per-minute"]
        assert denied.retry_after_ns == 50 * SECOND_NS
        clock.advance(seconds=50)
        assert guard.decide(request()).admitted

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_on_an_event_loop(self, clock, kind):
        async def scenario():
            guard = AsyncGuard(Settings(limits=[window("3/minute", kind)]), clock=clock)
            assert [(await guard.decide(request())).admitted for _ in range(4)] == [True, True, True, False]
            clock.advance(seconds=121)
            assert (await guard.decide(request())).admitted
            await guard.clear("ip:203.0.113.1")
            assert [(await guard.decide(request())).admitted for _ in range(4)] == [True, True, True, False]
            await guard.close()

        asyncio.run(scenario())

    def test_limits_of_one_name_may_differ_by_plan(self, clock):
        rates = {"free": "1/day", "pro": "3/day"}
        by_plan = lambda facts: Limit(rates[facts.plan], name="daily", strategy="fixed-window")  # noqa: E731
        guard = Guard(Settings(limits=[by_plan], plan=lambda facts: facts.native), clock=clock)

        def ask(peer, plan):
            return guard.decide(RequestFacts("GET", "/", peer=peer, native=plan)).admitted

        assert [ask("203.0.113.1", "free") for _ in range(2)] == [True, False]
        assert [ask("203.0.113.2", "pro") for _ in range(4)] == [True, True, True, False]
        assert [ask("203.0.113.3", "free") for _ in range(2)] == [True, False]

    def test_a_route_may_have_a_window_where_the_settings_have_none(self, clock):
        guard = Guard(Settings(limits=["100/minute"]), clock=clock)
        login = [window("2/minute", "fixed-window", name="login")]
        assert [guard.decide(request(), login).admitted for _ in range(3)] == [True, True, False]
        clock.advance(seconds=59)  # a bucket would have gained a token
        assert not guard.decide(request(), login).admitted
        assert guard.decide(request()).admitted

    def test_no_request_is_delayed_for_a_window(self, clock):
        async def scenario():
            guard = AsyncGuard(Settings(limits=[window("1/second", "fixed-window")], max_delay_seconds=60), clock=clock)
            outcomes = [(await guard.decide(request(), may_delay=True)).outcome for _ in range(2)]
            assert outcomes == [Outcome.ALLOWED, Outcome.DENIED]

        asyncio.run(scenario())

    def test_a_cost_above_the_amount_is_never_met(self, clock):
        guard = Guard(Settings(limits=[window("3/minute", "moving-window", cost=4), "9/hour"]), clock=clock)
        decision = guard.decide(request())
        assert not decision.admitted
        assert decision.retry_after_ns is None

    def test_tokens_are_reserved_and_settled(self, clock):
        kinds = [kind for kind in KINDS if kind != "moving-window"]  # which is refused for tokens
        limits = [window("1000/hour", kind, unit="tokens", name=kind) for kind in kinds]
        guard = Guard(Settings(limits=limits, estimate=lambda facts: 600), clock=clock)
        first = guard.decide(request())
        assert first.admitted
        assert not guard.decide(request()).admitted
        guard.settle(first, 300)
        second = guard.decide(request())
        assert second.admitted
        guard.settle(second, 2_000)
        assert [quota.remaining for quota in guard.decide(request()).quotas] == [0, 0]
        assert guard.unsettled == 0

    def test_keeps_no_more_than_the_settings_say(self, clock):
        guard = Guard(Settings(limits=[window("3/day", "fixed-window")], max_keys=10), clock=clock)
        for number in range(100):
            guard.decide(request(f"203.0.113.{number}"))
        assert guard.decide(request("203.0.113.0")).quotas[0].remaining == 2  # forgotten


@pytest.fixture(params=["memory", *REDIS])
def url(request):
    return "memory://" if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture(params=["blocking", "asynchronous"])
def store(request, url):
    given = Settings(store=url, store_timeout_seconds=2)
    if request.param == "blocking":
        store = store_for(given, SystemClock())
    else:
        store = Blocking(async_store_for(given, SystemClock()))
    yield store
    store.close()


class TestOnEveryStore:
    @pytest.mark.parametrize("kind", KINDS)
    def test_takes_the_amount_and_no_more(self, store, kind):
        ask = Asker(store, window("3/minute", kind))
        assert [ask.take("alice", 1).allowed for _ in range(4)] == [True, True, True, False]
        assert ask.take("bob", 3).allowed
        assert ask.remaining("alice") == [0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_denial_costs_nothing_and_says_how_long_to_wait(self, store, kind):
        ask = Asker(store, window("10/hour", kind))
        assert ask.take("alice", 7).allowed
        for _ in range(5):
            reply = ask.take("alice", 4)
            assert not reply.allowed
            wait_ns = ask.rules[0].quota(reply.times_to_full_ns[0], ask.demands(4)[0].cost_ns).wait_ns
            # What a sliding window counter has in its current window does not go before that ends.
            assert 0 < wait_ns <= (2 if kind == "sliding-window-counter" else 1) * 3_601 * SECOND_NS
            if kind != "sliding-window-counter":
                assert wait_ns > 3_590 * SECOND_NS
        assert ask.take("alice", 3).allowed

    @pytest.mark.parametrize("kind", KINDS)
    def test_takes_windows_and_buckets_together_or_not_at_all(self, store, kind):
        ask = Asker(
            store, Limit("5/hour"), window("3/hour", kind, name="window"), Limit("9/hour"), window("7/day", kind)
        )
        assert ask.take("alice", 1, 1, 1, 1).allowed
        assert ask.remaining("alice") == [4, 2, 8, 6]
        for costs in [(5, 1, 1, 1), (1, 3, 1, 1), (1, 1, 9, 1), (1, 1, 1, 7), (6, 1, 1, 1), (1, 1, 1, 8)]:
            assert not ask.take("alice", *costs).allowed
        assert ask.remaining("alice") == [4, 2, 8, 6]
        assert ask.take("alice", 4, 2, 8, 6).allowed
        assert ask.remaining("alice") == [0, 0, 0, 0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_denial_names_those_in_the_way(self, store, kind):
        ask = Asker(store, window("3/hour", kind, name="tight"), window("9/hour", kind), Limit("9/hour", name="bucket"))
        ask.take("alice", 3, 3, 3)
        reply = ask.take("alice", 1, 1, 1)
        quotas = [
            rule.quota(time_to_full_ns, demand.cost_ns)
            for rule, demand, time_to_full_ns in zip(
                ask.rules, ask.demands(1, 1, 1), reply.times_to_full_ns, strict=True
            )
            if time_to_full_ns is not None
        ]
        assert [quota.limit for quota in quotas if quota.wait_ns != 0] == ["tight"]
        assert [quota.remaining for quota in quotas][:2] == [0, 6]

    @pytest.mark.parametrize("kind", KINDS)
    def test_corrections(self, store, kind):
        ask = Asker(store, window("10/hour", kind), Limit("10/hour", name="bucket"))
        assert ask.take("alice", 6, 6).allowed
        ask.adjust("alice", -4, -4)
        assert ask.remaining("alice") == [8, 8]
        ask.adjust("alice", 3, 3)
        assert ask.remaining("alice") == [5, 5]
        ask.adjust("alice", 0, 0)
        ask.adjust("alice", 20, 20)  # was used and cannot be refused
        assert ask.remaining("alice") == [0, 0]
        assert not ask.take("alice", 1, 0).allowed
        ask.adjust("alice", -15, -15)
        assert ask.remaining("alice") == [0, 0]  # still in debt
        ask.adjust("alice", -10, -10)
        assert ask.remaining("alice") == [10, 10]
        ask.adjust("alice", -10, -10)
        assert ask.remaining("alice") == [10, 10]  # no more than full
        assert ask.take("bob", 10, 10).allowed

    @pytest.mark.parametrize("kind", KINDS)
    def test_clears(self, store, kind):
        ask = Asker(store, window("3/hour", kind), Limit("3/hour", name="bucket"))
        assert ask.take("alice", 3, 3).allowed
        assert ask.take("bob", 3, 3).allowed
        ask.clear("alice")
        assert ask.remaining("alice") == [3, 3]
        assert ask.remaining("bob") == [0, 0]

    def test_limits_that_differ_only_in_their_kind_are_apart(self, store):
        ask = Asker(store, *(window("3/hour", kind, name="same") for kind in KINDS))
        assert ask.take("alice", 1, 2, 3).allowed
        assert ask.remaining("alice") == [2, 1, 0]

    def test_a_limit_may_have_a_key_of_its_own(self, store):
        rule = Rule(window("3/hour", "fixed-window", per="everyone"))
        demand = Demand(rule.name, rule.bucket.cost_ns(2), rule.bucket.capacity_ns, "everyone")
        assert store.take("alice", [demand]).allowed
        assert not store.take("bob", [demand]).allowed
        store.adjust("carol", [Adjustment(rule.name, -rule.bucket.cost_ns(1), rule.bucket.capacity_ns, "everyone")])
        assert store.take("bob", [demand]).allowed


def test_shared_limits_work_on_a_cluster_if_they_are_windows(redis_cluster_url):
    limits = [window("2/hour", "fixed-window", per="everyone"), "100/hour"]
    guard = Guard(Settings(limits=limits, store=redis_cluster_url, store_timeout_seconds=2))
    assert [guard.decide(request(f"203.0.113.{number}")).admitted for number in range(3)] == [True, True, False]
    guard.close()


class TestInMemory(StoreContract):
    """Where there are no windows, the contract holds as it does for the store of the buckets."""

    @pytest.fixture
    def store(self):
        self.clock = ManualClock()
        return WindowedStore(MemoryStore(clock=self.clock), lambda: WindowStorage(clock=self.clock))

    def pass_time(self, seconds):
        self.clock.advance(seconds=seconds)


def in_memory(clock, *limits):
    storage = WindowStorage(clock=clock)
    return Asker(WindowedStore(MemoryStore(clock=clock), lambda: storage, clock=clock), *limits)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from(["1/second", "3/7 second", "10/minute", "100/3 minute"]),
    steps=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90 * SECOND_NS)), max_size=25),
    cost=st.integers(1, 100),
)
def test_a_denied_cost_fits_after_the_wait_and_no_sooner(kind, rate, steps, cost):
    clock = ManualClock(1_000_003 * SECOND_NS)
    ask = in_memory(clock, window(rate, kind))
    rule = ask.rules[0]
    amount = rule.bucket.capacity
    for percent, pause_ns in steps:
        clock.advance(ns=pause_ns)
        ask.take("alice", max(1, percent * amount // 100))
    cost = max(1, cost * amount // 100)
    reply = ask.take("alice", cost)
    if reply.allowed:
        return
    wait_ns = rule.quota(reply.times_to_full_ns[0], rule.bucket.cost_ns(cost)).wait_ns
    if wait_ns > 20_000:
        clock.advance(ns=wait_ns - 20_000)
        assert not ask.take("alice", cost).allowed
        clock.advance(ns=20_000)
    else:
        clock.advance(ns=wait_ns)
    assert ask.take("alice", cost).allowed


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.tuples(*[st.integers(0, 8)] * 5), st.integers(0, 40 * SECOND_NS)), min_size=1, max_size=30
    )
)
def test_all_or_none(steps):
    clock = ManualClock(1_000_003 * SECOND_NS)
    limits = [window("7/minute", kind, name=kind) for kind in KINDS] + [Limit("7/minute"), Limit("20/hour")]
    ask = in_memory(clock, *limits)
    for costs, pause_ns in steps:
        clock.advance(ns=pause_ns)
        before = ask.remaining("alice")
        allowed = ask.take("alice", *costs).allowed
        assert allowed == all(cost <= left for cost, left in zip(costs, before, strict=True))
        taken = costs if allowed else [0] * len(costs)
        assert ask.remaining("alice") == [left - cost for left, cost in zip(before, taken, strict=True)]


@pytest.fixture
def hasty_threads():
    """Threads that give way to each other all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_eight_threads_share_windows_and_buckets_exactly():
    ask = in_memory(SystemClock(), *(window("500/day", kind, name=kind) for kind in KINDS), Limit("700/day"))
    barrier = threading.Barrier(8)

    def take():
        barrier.wait()
        return sum(ask.take("alice", 1, 1, 1, 1).allowed for _ in range(100))

    with ThreadPoolExecutor(8) as threads:
        assert sum(thread.result() for thread in [threads.submit(take) for _ in range(8)]) == 500
    assert ask.remaining("alice") == [0, 0, 0, 200]


class Meanwhile(MemoryStore):
    """A store of buckets during whose step something else happens."""

    def __init__(self, happens):
        super().__init__()
        self.happens = happens

    def take(self, account, demands):
        self.happens()
        return super().take(account, demands)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_taken_is_given_back_when_another_process_was_faster(redis_url, kind):
    limits = [window("9/hour", "fixed-window", name="a"), window("9/hour", "moving-window", name="b")]
    limits += [window("9/hour", "sliding-window-counter", name="c"), window("3/hour", kind, name="contested")]
    given = Settings(store=redis_url, store_timeout_seconds=2)
    elsewhere = Asker(store_for(given, SystemClock()), *limits)
    storage = elsewhere.store._connected().storage
    here = Asker(
        WindowedStore(Meanwhile(lambda: elsewhere.take("alice", 0, 0, 0, 3)), lambda: storage), *limits, Limit("9/hour")
    )
    reply = here.take("alice", 5, 5, 5, 2, 5)
    assert not reply.allowed
    assert here.remaining("alice") == [9, 9, 9, 0, 9]
    waits = [
        rule.quota(time_to_full_ns, demand.cost_ns).wait_ns
        for rule, demand, time_to_full_ns in zip(
            here.rules, here.demands(5, 5, 5, 2, 5), reply.times_to_full_ns, strict=True
        )
    ]
    assert [wait != 0 for wait in waits] == [False, False, False, True, False]
    elsewhere.adjust("alice", 0, 0, 0, -2)
    assert here.remaining("alice") == [9, 9, 9, 2, 9]  # the denial itself has left nothing behind
    elsewhere.store.close()


def test_in_memory_nothing_comes_in_between():
    limit = window("1/hour", "fixed-window")
    replies = {}

    def second():
        replies["second"] = ask.take("alice", 1, 1).allowed

    def happens():
        if not replies:
            replies["first"] = None
            thread.start()
            thread.join(0.1)  # time enough to come in between, were it let

    thread = threading.Thread(target=second)
    storage = WindowStorage()
    ask = Asker(WindowedStore(Meanwhile(happens), lambda: storage), limit, Limit("9/hour"))
    replies["first"] = ask.take("alice", 1, 1).allowed
    thread.join()
    assert replies == {"first": True, "second": False}


def test_a_storage_that_cannot_be_connected_to_is_tried_again_after_a_while():
    clock = ManualClock(1_000 * SECOND_NS)
    away = [StoreError("away")] * 3

    def connect():
        if away:
            raise away.pop()
        return WindowStorage(clock=clock)

    ask = Asker(WindowedStore(MemoryStore(clock=clock), connect, clock=clock), window("3/hour", "fixed-window"))
    for _ in range(3):
        with pytest.raises(StoreError, match="away"):
            ask.take("alice", 1)
    with pytest.raises(StoreError, match="left alone"):
        ask.take("alice", 1)
    clock.advance(seconds=2)
    assert ask.take("alice", 1).allowed


class TestOnRedis:
    def test_a_client_is_not_told_to_come_back_too_early(self, redis_server, redis_url):
        store = store_for(Settings(store=redis_url, store_timeout_seconds=2), SystemClock())
        ask = Asker(store, window("1/minute", "fixed-window"))
        ask.take("alice", 1)
        with contextlib.closing(redis_server.client()) as client:
            (key,) = client.keys()
            client.pexpire(key, 10_450)  # which Redis calls 10 s
        reply = ask.take("alice", 1)
        wait_ns = ask.rules[0].quota(reply.times_to_full_ns[0], ask.demands(1)[0].cost_ns).wait_ns
        assert 10.4 * SECOND_NS < wait_ns < 11 * SECOND_NS
        store.close()

    def test_keys_hide_the_account_and_vanish(self, redis_server, redis_url):
        given = Settings(store=redis_url, key_prefix="ours", secret="s3cret", store_timeout_seconds=2)
        store = store_for(given, SystemClock())
        ask = Asker(store, *(window("3/minute", kind, name=kind) for kind in KINDS), Limit("3/minute"))
        ask.take("alice@example.com", 1, 1, 1, 1)
        with contextlib.closing(redis_server.client()) as client:
            keys = client.keys()
            assert len(keys) == 4
            for key in keys:
                assert key.startswith(b"ours:")
                assert b"alice" not in key
                assert 0 < client.pttl(key) <= 120_000
        store.close()

    def test_concurrent_requests_do_not_exceed_a_window(self, redis_url):
        async def scenario():
            limits = [window("10/hour", kind, name=kind) for kind in KINDS]
            guard = AsyncGuard(Settings(limits=[*limits, "1000/hour"], store=redis_url, store_timeout_seconds=5))
            decisions = await asyncio.gather(*(guard.decide(request()) for _ in range(40)))
            assert {decision.outcome for decision in decisions} == {Outcome.ALLOWED, Outcome.DENIED}
            admitted = sum(decision.admitted for decision in decisions)
            assert 1 <= admitted <= 10
            # Nothing of those that lost a race is left behind.
            for _ in range(10 - admitted):
                assert (await guard.decide(request())).admitted
            assert not (await guard.decide(request())).admitted
            await guard.close()

        asyncio.run(scenario())

    def test_each_event_loop_has_its_connections(self, redis_url):
        given = Settings(limits=[window("2/hour", "fixed-window")], store=redis_url, store_timeout_seconds=2)
        guard = AsyncGuard(given)

        async def scenario():
            decision = await guard.decide(request())
            await guard.close()
            return decision.outcome

        assert [asyncio.run(scenario()) for _ in range(3)] == [Outcome.ALLOWED, Outcome.ALLOWED, Outcome.DENIED]

    def test_survives_a_server_that_has_forgotten_its_scripts(self, redis_server, redis_url):
        store = store_for(Settings(store=redis_url, store_timeout_seconds=2), SystemClock())
        ask = Asker(store, *(window("3/hour", kind, name=kind) for kind in KINDS), Limit("3/hour"))
        with contextlib.closing(redis_server.client()) as client:
            for _ in range(3):
                client.script_flush()
                assert ask.take("alice", 1, 1, 1, 1).allowed
            client.script_flush()
        assert not ask.take("alice", 1, 1, 1, 1).allowed
        store.close()


@pytest.mark.usefixtures("_redis_program")
class TestWhenRedisFails:
    def test_the_failure_policy_answers(self):
        limits = [window("3/hour", "fixed-window"), "100/hour"]
        with RedisServer() as server:
            guard = Guard(Settings(limits=limits, store=server.url, store_timeout_seconds=0.5, on_store_failure="deny"))
            assert guard.decide(request()).outcome is Outcome.ALLOWED
            server.kill()
            decision = guard.decide(request())
            assert decision.outcome is Outcome.DEGRADED
            assert not decision.admitted
            guard.close()

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_a_server_that_does_not_answer_is_asked_three_times_then_left_alone(self, asynchronous):
        clock = ManualClock(1_000 * SECOND_NS)
        with RedisServer() as server:
            given = Settings(store=server.url, store_timeout_seconds=0.1)
            store = Blocking(async_store_for(given, clock)) if asynchronous else store_for(given, clock)
            ask = Asker(store, window("3/hour", "sliding-window-counter"))
            assert ask.take("alice", 1).allowed
            server.stop_answering()
            for _ in range(3):
                with pytest.raises(StoreTimeoutError):
                    ask.take("alice", 1)
            with pytest.raises(StoreError, match="left alone"):
                ask.take("alice", 1)
            with pytest.raises(StoreError, match="left alone"):
                ask.adjust("alice", 1)
            with pytest.raises(StoreError, match="left alone"):
                ask.clear("alice")
            server.resume()
            clock.advance(seconds=2)
            assert ask.take("alice", 1).allowed
            assert ask.remaining("alice")[0] <= 1  # of those that were not answered, some may have been counted
            store.close()

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_a_value_of_another_type_is_a_store_error(self, redis_server, redis_url, asynchronous):
        given = Settings(store=redis_url, store_timeout_seconds=2)
        store = Blocking(async_store_for(given, SystemClock())) if asynchronous else store_for(given, SystemClock())
        ask = Asker(store, window("3/hour", "fixed-window"))
        assert ask.take("alice", 1).allowed
        with contextlib.closing(redis_server.client()) as client:
            (key,) = client.keys()
            client.delete(key)
            client.rpush(key, "something else")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            ask.take("alice", 1)
        store.close()

    def test_a_cluster_that_is_away_is_not_sought_by_every_request(self):
        clock = ManualClock(1_000 * SECOND_NS)
        given = Settings(store="redis+cluster://127.0.0.1:1", store_timeout_seconds=0.1)
        ask = Asker(store_for(given, clock), window("3/hour", "fixed-window"))
        for _ in range(3):
            with pytest.raises(StoreError, match="Cluster"):
                ask.take("alice", 1)
        with pytest.raises(StoreError, match="left alone"):
            ask.take("alice", 1)


def test_waits_are_by_the_clock_of_redis_on_redis(redis_url):
    store = store_for(Settings(store=redis_url, store_timeout_seconds=2), ManualClock())
    ask = Asker(store, *(window("2/second", kind, name=kind) for kind in KINDS))
    assert ask.take("alice", 2, 2, 2).allowed
    reply = ask.take("alice", 1, 1, 1)
    waits = [
        rule.quota(time_to_full_ns, demand.cost_ns).wait_ns
        for rule, demand, time_to_full_ns in zip(ask.rules, ask.demands(1, 1, 1), reply.times_to_full_ns, strict=True)
    ]
    assert all(wait > 0 for wait in waits)
    time.sleep(max(waits) / SECOND_NS)
    assert ask.take("alice", 1, 1, 1).allowed
    store.close()
