"""The guard: settings, a store and a clock at work together, for callers that block and for those that do not."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, Outcome, RequestFacts, Settings, SettingsError, StoreError
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.clock import ManualClock
from abuseguard.errors import StoreFullError, StoreTimeoutError
from abuseguard.facts import PlainHeaders
from abuseguard.guard import AsyncGuard, Guard
from abuseguard.headers import Answer
from tests.identifiers import shown

SECOND_NS = 10**9


class UnreliableStore:
    """Buckets in memory that cannot be reached while ``error`` is set."""

    def __init__(self, clock):
        self.buckets = MemoryStore(clock=clock)
        self.error = None
        self.calls = 0

    def _reach(self):
        self.calls += 1
        if self.error is not None:
            raise self.error

    def take(self, account, demands):
        self._reach()
        return self.buckets.take(account, demands)

    def adjust(self, account, adjustments):
        self._reach()
        self.buckets.adjust(account, adjustments)

    def clear(self, account, buckets):
        self._reach()
        self.buckets.clear(account, buckets)

    def close(self):
        self.buckets.close()


class Blocking:
    """A guard for event loops, driven by a caller that blocks, so that both are held to the same."""

    def __init__(self, guard, loop):
        self._guard = guard
        self._loop = loop

    def __getattr__(self, name):
        value = getattr(self._guard, name)
        if name not in ("decide", "decide_limits", "decide_message", "settle", "refund", "clear", "close"):
            return value

        async def call(*arguments, **options):
            return await value(*arguments, **options)

        return lambda *arguments, **options: self._loop.run_until_complete(call(*arguments, **options))


@pytest.fixture
def clock():
    return ManualClock(now_ns=10**18)


class AtOnce(Blocking):
    """A guard for event loops that is asked for decisions as the shell does whose buckets are in memory."""

    def decide(self, facts, limits=()):
        if limits:
            return self.__getattr__("decide")(facts, limits)
        decision = self._guard.decide_at_once(facts)
        assert decision is not None
        return decision


@pytest.fixture(params=["blocking", "event loop", "at once"])
def make(request, clock):
    """Makes a guard of any kind."""
    loop = asyncio.new_event_loop()

    def guard(*limits, store=None, **settings):
        settings = Settings(limits=limits, **settings)
        if request.param == "blocking":
            return Guard(settings, clock=clock, store=store)
        kind = Blocking if request.param == "event loop" else AtOnce
        return kind(AsyncGuard(settings, clock=clock, store=store and AsyncMemoryStore(store)), loop)

    yield guard
    loop.close()


@pytest.fixture
def store(clock):
    return UnreliableStore(clock)


def facts(path="/", peer="192.0.2.1", headers=(), **further):
    return RequestFacts(further.pop("method", "GET"), path, PlainHeaders(headers), peer, **further)


def outcomes(guard, count, **further):
    return [guard.decide(facts(**further)).outcome.value for _ in range(count)]


class TestDeciding:
    def test_the_burst_then_the_rate(self, make, clock):
        guard = make("60/minute burst=3")
        assert outcomes(guard, 5) == ["allowed"] * 3 + ["denied"] * 2
        clock.advance(ns=SECOND_NS - 1)
        assert outcomes(guard, 1) == ["denied"]
        clock.advance(ns=1)
        assert outcomes(guard, 2) == ["allowed", "denied"]

    def test_ninety_an_hour_is_one_every_forty_seconds(self, make, clock):
        guard = make("90/hour burst=1")
        allowed = 0
        for _ in range(3600):
            allowed += guard.decide(facts()).admitted
            clock.advance(seconds=1)
        assert allowed == 90

    def test_accounts_do_not_share(self, make):
        guard = make("1/minute")
        assert outcomes(guard, 2) == ["allowed", "denied"]
        assert outcomes(guard, 2, peer="198.51.100.1") == ["allowed", "denied"]

    def test_all_limits_or_none(self, make, clock):
        guard = make("60/minute burst=1", "1000/hour")
        for _ in range(10):
            guard.decide(facts())
        clock.advance(seconds=1)
        decision = guard.decide(facts())
        # Of the ten only the first was let in; the others took nothing of the wider limit either.
        assert [quota.remaining for quota in decision.quotas] == [0, 998]

    def test_a_denial_costs_nothing(self, make, clock):
        guard = make(Limit("60/minute", burst=10, cost=lambda request: int(request.path[1:])))
        assert guard.decide(facts("/8")).admitted
        for _ in range(100):
            assert not guard.decide(facts("/5")).admitted
        assert guard.decide(facts("/2")).admitted

    def test_never_is_told_apart_from_not_yet(self, make):
        guard = make(Limit("60/minute", burst=10, cost=lambda request: int(request.path[1:])))
        guard.decide(facts("/10"))
        not_yet, never = guard.decide(facts("/10")), guard.decide(facts("/11"))
        assert (not_yet.outcome, not_yet.retry_after_ns) == (Outcome.DENIED, 10 * SECOND_NS)
        assert (never.outcome, never.retry_after_ns) == (Outcome.DENIED, None)
        headers = dict(guard.answer(facts(), never).headers)
        assert "Retry-After" not in headers
        assert "Retry-After" in dict(guard.answer(facts(), not_yet).headers)

    def test_a_cost_of_zero_passes_unless_there_is_debt(self, make):
        guard = make(Limit("60/minute", burst=1, cost=0))
        assert outcomes(guard, 100) == ["allowed"] * 100

    def test_a_clock_that_runs_backwards_grants_nothing(self, make, clock):
        guard = make("60/minute burst=1")
        assert outcomes(guard, 1) == ["allowed"]
        clock.advance(seconds=-3600)
        assert outcomes(guard, 2) == ["denied", "denied"]
        clock.advance(seconds=3601)
        assert outcomes(guard, 2) == ["allowed", "denied"]

    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=40))
    def test_never_more_than_a_bucket_holds_and_gains(self, steps):
        clock = ManualClock()
        guard = Guard(
            Settings(limits=[Limit("60/minute", burst=10, cost=lambda request: int(request.path[1:]))]), clock=clock
        )
        # An independent token bucket, in whole tokens as the clock moves in whole seconds.
        tokens = 10
        for seconds, cost in steps:
            clock.advance(seconds=seconds)
            tokens = min(10, tokens + seconds)
            decision = guard.decide(facts(f"/{cost}"))
            assert decision.admitted == (cost <= tokens)
            tokens -= cost * decision.admitted
            assert [quota.remaining for quota in decision.quotas] == [tokens]

    def test_threads_together_take_no_more_than_there_is(self):
        guard = Guard(Settings(limits=["100/day"]))
        with ThreadPoolExecutor(8) as pool:
            admitted = sum(pool.map(lambda _: guard.decide(facts()).admitted, range(400)))
        assert admitted == 100
        assert guard.outcomes[Outcome.ALLOWED] == 100

    def test_tasks_together_take_no_more_than_there_is(self):
        async def run():
            guard = AsyncGuard(Settings(limits=["100/day"]))
            decisions = await asyncio.gather(*(guard.decide(facts()) for _ in range(400)))
            return sum(decision.admitted for decision in decisions)

        assert asyncio.run(run()) == 100

    def test_one_guard_serves_several_event_loops(self):
        guard = AsyncGuard(Settings(limits=["100/day"]))
        admitted = []

        def run():
            async def decide():
                return [(await guard.decide(facts())).admitted for _ in range(50)]

            admitted.extend(asyncio.run(decide()))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(admitted) == 100

    def test_routes_own_limits(self, make):
        guard = make("10/minute")
        own = [Limit("1/minute", name="own")]
        assert guard.decide_limits(facts(), own).admitted
        assert not guard.decide_limits(facts(), own).admitted
        # In one step with the others, or not at all.
        for _ in range(3):
            assert not guard.decide(facts(), own).admitted
        assert [quota.remaining for quota in guard.decide(facts()).quotas] == [9]

    def test_clearing_an_account(self, make):
        guard = make("1/minute", "5/hour")
        assert outcomes(guard, 2) == ["allowed", "denied"]
        guard.clear("ip:192.0.2.1")
        decision = guard.decide(facts())
        assert decision.admitted
        assert [quota.remaining for quota in decision.quotas] == [0, 4]

    def test_a_store_that_is_given_is_used_even_if_it_is_false(self):
        class Empty(UnreliableStore):
            def __bool__(self):
                return False

        empty = Empty(ManualClock())
        Guard(Settings(limits=["5/minute"]), store=empty).decide(facts())
        assert empty.calls == 1

    def test_settings_that_are_none(self):
        for wrong in (None, "5/minute", {"limits": []}):
            with pytest.raises((AttributeError, TypeError, SettingsError)):
                Guard(wrong)

    def test_closing(self, make):
        make("1/minute").close()

    def test_only_what_needs_no_waiting_is_decided_at_once(self, clock):
        class Remote:
            """Buckets that have to be waited for."""

            def __init__(self):
                self.inner = AsyncMemoryStore(MemoryStore(clock=clock))

            async def take(self, account, demands):
                return await self.inner.take(account, demands)

        guard = AsyncGuard(Settings(limits=["1/minute"]), clock=clock, store=Remote())
        assert guard.decide_at_once(facts()) is None
        assert guard.outcomes[Outcome.ALLOWED] == 0
        assert asyncio.run(self.decided(guard)) == ["allowed", "denied"]

    @staticmethod
    async def decided(guard):
        return [(await guard.decide(facts())).outcome.value for _ in range(2)]


class TestMessages:
    def test_are_counted_by_their_own_limits(self, clock):
        async def run():
            guard = AsyncGuard(Settings(limits=["1/minute", "2/minute unit=messages"]), clock=clock)
            request = facts(method="WEBSOCKET")
            handshake = await guard.decide(request)
            messages = [(await guard.decide_message(request)).outcome.value for _ in range(3)]
            return handshake.outcome.value, messages

        assert asyncio.run(run()) == ("allowed", ["allowed", "allowed", "denied"])


class TestDelaying:
    def guard(self, clock, **settings):
        return AsyncGuard(Settings(limits=["60/minute burst=1"], **settings), clock=clock)

    def test_holds_back_what_would_be_allowed_soon(self, clock):
        async def run():
            guard = self.guard(clock, max_delay_seconds=2)
            decisions = [await guard.decide(facts(), may_delay=True) for _ in range(4)]
            return [(decision.outcome.value, decision.admitted, decision.delay_ns) for decision in decisions]

        assert asyncio.run(run()) == [
            ("allowed", True, 0),
            ("delayed", True, SECOND_NS),
            ("delayed", True, 2 * SECOND_NS),
            ("denied", False, 0),
        ]

    def test_only_for_callers_that_can_wait(self, clock):
        async def run():
            guard = self.guard(clock, max_delay_seconds=2)
            return [(await guard.decide(facts())).outcome.value for _ in range(2)]

        assert asyncio.run(run()) == ["allowed", "denied"]

    def test_not_by_default(self, clock):
        async def run():
            guard = self.guard(clock)
            return [(await guard.decide(facts(), may_delay=True)).outcome.value for _ in range(2)]

        assert asyncio.run(run()) == ["allowed", "denied"]

    def test_not_for_what_can_never_be_granted(self, clock):
        async def run():
            limit = Limit("60/minute", burst=1, cost=2)
            guard = AsyncGuard(Settings(limits=[limit], max_delay_seconds=60), clock=clock)
            return await guard.decide(facts(), may_delay=True)

        decision = asyncio.run(run())
        assert (decision.outcome, decision.retry_after_ns) == (Outcome.DENIED, None)

    def test_what_is_given_back_can_be_taken_by_the_next(self, clock):
        async def run():
            guard = self.guard(clock, max_delay_seconds=1)
            await guard.decide(facts(), may_delay=True)
            delayed = await guard.decide(facts(), may_delay=True)
            await guard.refund(delayed)
            return await guard.decide(facts(), may_delay=True)

        assert asyncio.run(run()).outcome is Outcome.DELAYED


class TestObserving:
    def test_decides_everything_and_enforces_nothing(self, make):
        guard = make("1/minute", mode="observe")
        decisions = [guard.decide(facts()) for _ in range(3)]
        assert [decision.outcome.value for decision in decisions] == ["allowed", "denied", "denied"]
        assert all(decision.admitted for decision in decisions)
        assert guard.outcomes[Outcome.DENIED] == 2

    def test_says_nothing_to_clients(self, make):
        guard = make("1/minute", mode="observe", headers="both")
        decision = guard.decide(facts())
        assert guard.fields(decision) == []
        assert guard.encoded_fields(decision) == []
        assert make("1/minute", headers="both").fields(decision) != []

    def test_charges_what_was_denied_no_tokens(self, make):
        guard = make(Limit("100/minute", unit="tokens"), mode="observe", estimate=lambda request: 80)
        first, second = guard.decide(facts()), guard.decide(facts())
        assert second.outcome is Outcome.DENIED
        guard.settle(second, 500)
        guard.settle(first, 20)
        assert [quota.remaining for quota in guard.decide(facts()).quotas] == [0]

    def test_a_failing_store_denies_nobody(self, make, store):
        store.error = StoreError("away")
        guard = make("1/minute", mode="observe", on_store_failure="deny", store=store)
        decision = guard.decide(facts())
        assert (decision.outcome, decision.admitted) == (Outcome.DEGRADED, True)


class TestTokens:
    LIMIT = Limit("1000/hour", unit="tokens", name="tokens")

    def remaining(self, guard):
        return guard.decide(facts("/none")).quotas[0].remaining

    def make(self, make, **further):
        return make(
            self.LIMIT, estimate=lambda request: int(request.path[1:]) if request.path != "/none" else None, **further
        )

    def test_are_reserved_and_settled(self, make):
        guard = self.make(make)
        decision = guard.decide(facts("/400"))
        assert decision.plan.tokens == 400
        assert self.remaining(guard) == 600
        guard.settle(decision, 150)
        assert self.remaining(guard) == 850

    def test_more_than_reserved_is_a_debt(self, make, clock):
        guard = self.make(make)
        guard.settle(guard.decide(facts("/400")), 1500)
        denied = guard.decide(facts("/1"))
        assert not denied.admitted
        # 501 tokens have to come in, one every 3.6 s.
        assert denied.retry_after_ns == 501 * 3_600_000_000
        clock.advance(ns=501 * 3_600_000_000)
        assert guard.decide(facts("/1")).admitted

    def test_requests_at_once_cannot_overspend(self, make):
        guard = self.make(make)
        decisions = [guard.decide(facts("/400")) for _ in range(5)]
        assert [decision.admitted for decision in decisions] == [True, True, False, False, False]

    def test_exactly_as_estimated_asks_the_store_nothing(self, make, store):
        guard = self.make(make, store=store)
        decision = guard.decide(facts("/400"))
        before = store.calls
        guard.settle(decision, 400)
        assert store.calls == before

    def test_a_refund_gives_everything_back(self, make):
        guard = self.make(make)
        guard.refund(guard.decide(facts("/400")))
        assert self.remaining(guard) == 1000

    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 600)), max_size=15))
    def test_the_sum_is_that_of_what_was_used(self, exchanges):
        guard = Guard(
            Settings(limits=[self.LIMIT], estimate=lambda request: int(request.path[1:])), clock=ManualClock()
        )
        used = 0
        for estimate, tokens in exchanges:
            decision = guard.decide(facts(f"/{estimate}"))
            assert decision.admitted == (used + estimate <= 1000)
            if decision.admitted:
                guard.settle(decision, tokens)
                used += tokens
        assert guard.decide(facts("/0")).admitted == (used <= 1000)
        if used <= 1000:
            assert guard.decide(facts("/0")).quotas[0].remaining == 1000 - used

    @pytest.mark.parametrize("step", ["settle", "refund"])
    def test_a_store_that_takes_no_correction_is_counted(self, make, store, step, caplog):
        guard = self.make(make, store=store)
        decision = guard.decide(facts("/400"))
        store.error = StoreTimeoutError("50 ms")
        for _ in range(3):
            guard.settle(decision, 100) if step == "settle" else guard.refund(decision)
        assert guard.unsettled == 3
        assert len(caplog.records) == 1
        assert "could not be corrected: 50 ms" in caplog.text


class TestStoreFailure:
    def test_allow(self, make, store):
        store.error = StoreError("away")
        guard = make("1/minute", store=store, on_store_failure="allow")
        decisions = [guard.decide(facts()) for _ in range(3)]
        assert all(decision.outcome is Outcome.DEGRADED and decision.admitted for decision in decisions)

    def test_allow_is_the_default(self, make, store):
        store.error = StoreError("away")
        assert make("1/minute", store=store).decide(facts()).admitted

    def test_deny(self, make, store):
        store.error = StoreError("away")
        guard = make("1/minute", store=store, on_store_failure="deny")
        decision = guard.decide(facts())
        assert (decision.outcome, decision.admitted) == (Outcome.DEGRADED, False)
        answer = guard.answer(facts(), decision)
        assert answer.status == 503
        assert json.loads(answer.body)["type"].endswith("#temporary-reduced-capacity")
        assert dict(answer.headers)["Retry-After"] == "1"

    @pytest.mark.parametrize(("workers", "admitted"), [(1, 8), (2, 4), (4, 2), (8, 1), (100, 1)])
    def test_local_divides_the_limit_by_the_workers(self, make, store, workers, admitted):
        store.error = StoreError("away")
        guard = make("8/minute", store=store, on_store_failure="local", workers=workers)
        decisions = [guard.decide(facts()) for _ in range(10)]
        assert sum(decision.admitted for decision in decisions) == admitted
        assert {decision.outcome for decision in decisions} == {Outcome.DEGRADED}
        # All of them together allow what the store would.
        assert admitted * workers == 8 or workers > 8

    def test_local_divides_the_rate_as_well(self, make, store, clock):
        store.error = StoreError("away")
        guard = make("60/minute burst=2", store=store, on_store_failure="local", workers=2)
        admitted = 0
        for _ in range(120):
            admitted += guard.decide(facts()).admitted
            clock.advance(seconds=1)
        assert admitted == 60

    def test_local_knows_what_is_never_allowed(self, make, store):
        store.error = StoreError("away")
        guard = make("8/minute cost=9", store=store, on_store_failure="local", workers=2)
        assert not guard.decide(facts()).admitted

    def test_nothing_is_told_to_clients_that_is_not_known(self, make, store):
        store.error = StoreError("away")
        guard = make("8/minute", store=store, headers="both")
        assert guard.fields(guard.decide(facts())) == []

    def test_an_outage_and_its_end_are_logged_once(self, make, store, caplog):
        guard = make("100/minute", store=store)
        guard.decide(facts())
        for _ in range(2):
            store.error = StoreError("connection refused")
            outcomes(guard, 10)
            store.error = None
            assert outcomes(guard, 10) == ["allowed"] * 10
        levels = [record.levelno for record in caplog.records]
        assert levels == [logging.ERROR, logging.WARNING] * 2
        failed, back = (record.getMessage() for record in caplog.records[:2])
        assert "connection refused" in failed
        assert "'allow'" in failed
        assert "is back" in back

    def test_what_needs_no_store_is_answered_as_ever(self, make, store):
        store.error = StoreError("away")
        guard = make("1/minute", store=store, exempt_paths="/healthz", on_store_failure="deny")
        assert guard.decide(facts("/healthz")).outcome is Outcome.EXEMPT
        assert store.calls == 0

    def test_tokens_are_charged_once_it_is_back(self, make, store):
        guard = make(Limit("1000/hour", unit="tokens"), store=store, estimate=lambda request: 100)
        store.error = StoreError("away")
        decision = guard.decide(facts())
        store.error = None
        guard.settle(decision, 300)
        # Nothing was reserved: all that was used is charged, and then the reservation of this request.
        assert guard.decide(facts()).quotas[0].remaining == 600

    def test_an_adjustment_is_not_the_store_coming_back(self, make, store, caplog):
        guard = make("1/minute", store=store)
        store.error = StoreError("away")
        guard.decide(facts())
        caplog.clear()
        outcomes(guard, 5)
        assert not caplog.records

    def test_clearing_says_so(self, make, store):
        store.error = StoreError("away")
        with pytest.raises(StoreError):
            make("1/minute", store=store).clear("alice")

    def test_other_errors_of_a_store_are_its_own_faults(self, make, store):
        # A store promises to raise StoreError and nothing else.
        store.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            make("1/minute", store=store).decide(facts())

    def test_a_full_store_answers_new_accounts_by_the_policy(self, make, caplog):
        guard = make("1/hour", max_keys=2, on_store_failure="deny")
        assert outcomes(guard, 1, peer="192.0.2.1") == outcomes(guard, 1, peer="192.0.2.2") == ["allowed"]
        for number in range(3, 50):
            decision = guard.decide(facts(peer=f"192.0.2.{number}"))
            assert (decision.outcome, decision.admitted) == (Outcome.DEGRADED, False)
            assert outcomes(guard, 1, peer="192.0.2.1") == ["denied"]
        # Neither an outage nor its end, however often known and new accounts take turns.
        (record,) = caplog.records
        assert "all 2 buckets of this limit are in debt" in record.getMessage()

    def test_a_full_store_of_a_users_own(self, make, store, caplog):
        store.error = StoreFullError("all 5 are in debt")
        guard = make("1/minute", store=store)
        assert outcomes(guard, 3) == ["degraded"] * 3
        assert len(caplog.records) == 1


class TestOutcomes:
    def test_every_decision_is_counted(self, make, store):
        guard = make("2/minute", store=store, exempt_paths="/healthz")
        outcomes(guard, 3)
        outcomes(guard, 4, path="/healthz")
        store.error = StoreError("away")
        outcomes(guard, 5)
        assert guard.outcomes == {
            Outcome.EXEMPT: 4,
            Outcome.ALLOWED: 2,
            Outcome.DELAYED: 0,
            Outcome.DENIED: 1,
            Outcome.DEGRADED: 5,
        }


class TestObserver:
    def test_is_told_of_every_decision(self, make):
        seen = []
        guard = make(
            "1/minute", exempt_paths="/healthz", observer=lambda request, decision: seen.append((request, decision))
        )
        requests = [facts(), facts(), facts("/healthz")]
        decisions = [guard.decide(request) for request in requests]
        assert len(seen) == 3
        for (request, decision), expected_request, expected in zip(seen, requests, decisions, strict=True):
            assert request is expected_request
            assert decision is expected
        assert seen[0][0].account == "ip:192.0.2.1"

    def test_is_told_of_routes_own_limits(self, make):
        seen = []
        guard = make(observer=lambda request, decision: seen.append(decision.outcome.value))
        for _ in range(2):
            guard.decide_limits(facts(), [Limit("1/minute")])
        assert seen == ["allowed", "denied"]

    def test_that_fails_does_no_harm(self, make, caplog):
        def observer(request, decision):
            raise RuntimeError("metrics are down")

        guard = make("1/minute", observer=observer)
        assert outcomes(guard, 3) == ["allowed", "denied", "denied"]
        assert len(caplog.records) == 1
        assert "observer raised" in caplog.text

    def test_what_it_returns_means_nothing(self, make):
        assert outcomes(make("1/minute", observer=lambda request, decision: False), 1) == ["allowed"]


class TestAnswer:
    def denied(self, make, **settings):
        guard = make("1/minute", **settings)
        guard.decide(facts())
        return guard, guard.decide(facts())

    def test_tells_the_limits_and_when_to_come_back(self, make):
        guard, decision = self.denied(make, retry_after_jitter=0)
        answer = guard.answer(facts(), decision)
        assert answer.status == 429
        assert dict(answer.headers) == {
            "Content-Type": "application/problem+json",
            "Retry-After": "60",
            "RateLimit-Policy": '"1-per-minute";q=1;w=60',
            "RateLimit": '"1-per-minute";r=0;t=60',
        }

    def test_in_the_dialect_of_the_settings(self, make):
        guard, decision = self.denied(make, headers="none")
        assert [name for name, _ in guard.answer(facts(), decision).headers] == ["Content-Type", "Retry-After"]

    def test_the_users_own(self, make):
        def response(request, decision, default):
            return Answer(
                status=418, headers=[*default.headers, ("X-Path", request.path)], body=decision.account.encode()
            )

        guard, decision = self.denied(make, response=response)
        answer = guard.answer(facts("/tea"), decision)
        assert (answer.status, answer.body) == (418, b"ip:192.0.2.1")
        assert ("X-Path", "/tea") in answer.headers
        assert "Retry-After" in dict(answer.headers)

    def test_none_from_it_is_the_default(self, make, caplog):
        guard, decision = self.denied(make, response=lambda *_: None)
        assert guard.answer(facts(), decision).status == 429
        assert not caplog.records

    @pytest.mark.parametrize(
        "given",
        [
            *[5, "text", b"bytes", (429, {}, b""), object(), {"status": 429}, True],
            *[Answer(status="429"), Answer(status=429, headers=[("X-A", "b\r\n")]), Answer(status=429, body="text")],
        ],
        ids=shown,
    )
    def test_what_no_server_can_send_is_the_default(self, make, given, caplog):
        guard, decision = self.denied(make, response=lambda *_: given)
        assert guard.answer(facts(), decision).status == 429
        assert "the function given as response returned" in caplog.text

    def test_a_fault_in_it_is_the_default(self, make, caplog):
        guard, decision = self.denied(make, response=lambda: Answer(status=418))
        assert guard.answer(facts(), decision).status == 429
        assert "response raised" in caplog.text


class Broken:
    """Raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError(name)


class BrokenUser(RequestFacts):
    __slots__ = ()

    def user(self):
        raise RuntimeError("no database")


class TestBrokenFacts:
    SETTINGS = {  # noqa: RUF012 - never changed
        "trusted_proxies": ["10.0.0.0/8"],
        "exempt_paths": ["/healthz"],
        "exempt_networks": ["192.0.2.0/24"],
        "account": "user",
        "plan": "header:x-plan",
    }

    @pytest.mark.parametrize(
        "request_facts",
        [
            RequestFacts("GET", "/", None, "10.0.0.1"),
            RequestFacts("GET", "/", Broken(), "10.0.0.1"),
            RequestFacts("GET", None, PlainHeaders(), "198.51.100.1"),
            RequestFacts("GET", 5, PlainHeaders(), "198.51.100.1"),
            RequestFacts("GET", b"/", PlainHeaders(), "198.51.100.1"),
            RequestFacts(None, "/", PlainHeaders(), "198.51.100.1"),
            RequestFacts("GET", "/", PlainHeaders(), 5),
            RequestFacts("GET", "/", PlainHeaders(), ["198.51.100.1"]),
            RequestFacts("GET", "/", PlainHeaders(), Broken()),
            RequestFacts("GET", "/", PlainHeaders([("x-forwarded-for", "\ud800\0")]), "10.0.0.1"),
            RequestFacts("GET", "/", PlainHeaders(), "198.51.100.1", body=5),
            RequestFacts("GET", "/", PlainHeaders(), "198.51.100.1", content_length="many"),
            BrokenUser("GET", "/", PlainHeaders(), "198.51.100.1"),
        ],
        ids=range(13),
    )
    def test_never_raise(self, make, request_facts, caplog):
        guard = make(
            Limit("1/minute", methods="GET", routes="/**"),
            Limit("1000/minute", unit="tokens"),
            Limit("1/minute", unit="messages"),
            **self.SETTINGS,
        )
        for _ in range(3):
            guard.decide(request_facts)
            guard.decide(request_facts, [Limit("1/minute")])
            decision = guard.decide_limits(request_facts, [Limit("1/minute", name="own", methods="GET")])
            guard.fields(decision)
            guard.answer(request_facts, decision)
            guard.settle(decision, 5)
            guard.refund(decision)
            if hasattr(guard, "decide_message"):
                guard.decide_message(request_facts)
        assert len(caplog.records) <= 2

    def test_are_let_through_and_reported_once(self, make, caplog):
        guard = make(Limit("1/minute", routes="/**"))
        decisions = [guard.decide(RequestFacts("GET", None, peer="192.0.2.1")) for _ in range(100)]
        assert all(decision.admitted for decision in decisions)
        assert guard.outcomes[Outcome.EXEMPT] == 100
        (record,) = caplog.records
        assert "could not be read and is let through" in record.getMessage()
        assert record.exc_info

    def test_what_they_hold_is_not_logged(self, make, caplog):
        secret = RequestFacts(
            "POST", None, PlainHeaders([("authorization", "Bearer sk-secret")]), "192.0.2.1", body=b"secret prompt"
        )
        make(Limit("1/minute", routes="/**")).decide(secret)
        assert "secret" not in caplog.text
        assert caplog.records

    def test_limits_that_are_none(self, make, caplog):
        guard = make("1/minute")
        for wrong in (["5/minute"], [None], 5):
            assert guard.decide_limits(facts(), wrong).admitted
            assert guard.decide(facts(), wrong).admitted
        assert caplog.records
