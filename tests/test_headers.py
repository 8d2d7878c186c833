"""A decision as HTTP: fields that a client can parse and trust, and the answer to what is denied."""

from __future__ import annotations

import json

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, Outcome, RequestFacts, Settings
from abuseguard.buckets.store import Reply
from abuseguard.clock import ManualClock
from abuseguard.decision import Decision
from abuseguard.headers import Answer, LimitFields, denial
from abuseguard.policy import Policy

SECOND_NS = 10**9
# RFC 9651, section 3.3.1: an integer has at most 15 digits.
LARGEST_INTEGER = 999_999_999_999_999


def decide(limits, times_to_full_ns, *, allowed=True, degraded=False, **settings):
    """The decision of a policy on a store's reply, with times that a store can answer."""
    policy = Policy(Settings(limits=limits, **settings))
    plan = policy.plan(RequestFacts("GET", "/", peer="192.0.2.1"))
    return policy.interpret("ip:192.0.2.1", plan, Reply(allowed, times_to_full_ns, degraded))


def fields_of(decision, dialect="draft-10", clock=None):
    fields = LimitFields(dialect, clock or ManualClock())
    written = fields.write(decision)
    encoded = fields.write_encoded(decision)
    assert [(name.lower().encode(), value.encode()) for name, value in written] == encoded
    assert len({name for name, _ in written}) == len(written)
    return dict(written)


def structured(value):
    """A field's value as a parser of structured fields has it: parameters by the names of limits."""
    items = http_sf.parse(value.encode(), tltype="list")
    assert all(type(item) is str for item, _ in items)
    parsed = dict(items)
    assert len(parsed) == len(items)
    return parsed


def retry_after_of(answer):
    return next((int(value) for name, value in answer.headers if name == "Retry-After"), None)


RATES = st.builds(
    "{} per {} {}".format,
    st.integers(1, 10**6),
    st.integers(1, 50),
    st.sampled_from(["second", "minute", "hour", "day"]),
)


@st.composite
def limits_and_times(draw):
    """One to four limits with, for each, how long its bucket takes to be full."""
    limits, times = [], []
    for number in range(draw(st.integers(1, 4))):
        cost = draw(st.integers(0, 200))
        limit = Limit(draw(RATES), name=f"limit-{number}", burst=draw(st.integers(1, 150)), cost=cost)
        fills_ns = -(-limit.item.get_expiry() * SECOND_NS // limit.item.amount) * limit.burst
        # From full to deep in debt, as a settlement of tokens can leave it.
        times.append(draw(st.one_of(st.none(), st.integers(0, fills_ns), st.integers(0, 20 * fills_ns))))
        limits.append(limit)
    return limits, times


class TestDraft10:
    def test_states_quota_and_window_remaining_and_time(self):
        limits = [Limit("600/minute", burst=50), Limit("200000/hour", unit="tokens", name="llm")]
        fields = fields_of(decide(limits, [3 * SECOND_NS // 10, 0]))
        assert fields == {
            "RateLimit-Policy": '"600-per-minute";q=50;w=5, "llm";q=200000;w=3600;qu="tokens"',
            "RateLimit": '"600-per-minute";r=47;t=1, "llm";r=200000;t=0',
        }

    @given(limits_and_times())
    def test_of_what_is_allowed_is_well_formed_and_true(self, case):
        limits, times = case
        decision = decide(limits, times)
        fields = fields_of(decision)
        policies = structured(fields["RateLimit-Policy"])
        assert list(policies) == [limit.name for limit in limits]
        states = structured(fields["RateLimit"]) if "RateLimit" in fields else {}
        assert list(states) == [limit.name for limit, time in zip(limits, times, strict=True) if time is not None]
        for limit, time_to_full_ns in zip(limits, times, strict=True):
            q, w = (policies[limit.name][name] for name in "qw")
            assert type(q) is type(w) is int
            assert q == limit.burst
            assert 1 <= w <= LARGEST_INTEGER
            if time_to_full_ns is None:
                continue
            r, t = (states[limit.name][name] for name in "rt")
            assert type(r) is type(t) is int
            assert 0 <= r <= q
            assert 0 <= t <= LARGEST_INTEGER
            # After t seconds, and not a second before, the bucket is full.
            assert (t - 1) * SECOND_NS < time_to_full_ns <= t * SECOND_NS
            interval_ns = -(-limit.item.get_expiry() * SECOND_NS // limit.item.amount)
            fills_ns = q * interval_ns
            # What it says remains can be taken; one more cannot.
            assert r == 0 or time_to_full_ns + r * interval_ns <= fills_ns
            assert time_to_full_ns + (r + 1) * interval_ns > fills_ns

    @given(limits_and_times(), st.floats(0, 10), st.floats(0, 1))
    def test_of_what_is_denied_agrees_with_retry_after(self, case, jitter, luck):
        limits, times = case
        decision = decide(limits, times, allowed=False)
        if not decision.denied_by:
            return
        fields = fields_of(decision)
        assert list(structured(fields["RateLimit-Policy"])) == [limit.name for limit in limits]
        states = structured(fields["RateLimit"])
        assert list(states) == [quota.limit for quota in decision.denied_by]
        retry_after = retry_after_of(denial(decision, jitter=jitter, uniform=lambda: luck))
        for quota in decision.denied_by:
            r, t = (states[quota.limit][name] for name in "rt")
            assert 0 <= r <= quota.capacity
            assert type(t) is int
            assert t >= 0
            if quota.wait_ns is None:
                assert retry_after is None
            else:
                assert t * SECOND_NS >= quota.wait_ns
                assert retry_after is None or retry_after >= t

    def test_the_greatest_limits_there_are(self):
        limits = [Limit("1/100 years", name="slow"), Limit("1000000000/second", name="fast", burst=10**12)]
        fields = fields_of(decide(limits, [0, 0]))
        policies = structured(fields["RateLimit-Policy"])
        assert policies["slow"]["w"] == 100 * 360 * 86_400
        assert policies["fast"] == {"q": 10**12, "w": 1000}
        assert structured(fields["RateLimit"])["fast"]["r"] == 10**12

    def test_of_never_says_when_the_bucket_is_full(self):
        decision = decide([Limit("60/minute", burst=2, cost=3)], [SECOND_NS], allowed=False)
        assert fields_of(decision)["RateLimit"] == '"60-per-minute";r=1;t=1'

    def test_only_of_what_stands_in_the_way(self):
        decision = decide(["60/minute", "60/hour"], [60 * SECOND_NS, 0], allowed=False)
        assert fields_of(decision)["RateLimit"] == '"60-per-minute";r=0;t=1'

    def test_of_what_the_store_left_open_nothing_is_said(self):
        decision = decide(["60/minute", "60/hour"], [None, SECOND_NS])
        assert fields_of(decision)["RateLimit"] == '"60-per-hour";r=59;t=1'
        assert "RateLimit" not in fields_of(decide(["60/minute"], [None]))

    @pytest.mark.parametrize("dialect", ["draft-10", "legacy", "both", "none"])
    def test_where_the_store_was_not_asked_nothing_is_said(self, dialect):
        assert fields_of(decide(["60/minute"], (), degraded=True), dialect) == {}
        assert fields_of(decide([], ()), dialect) == {}


class TestLegacy:
    CLOCK = ManualClock(now_ns=1_000_000 * SECOND_NS + 1)

    def test_is_of_the_tightest_limit(self):
        decision = decide(["60/minute", Limit("100/hour")], [30 * SECOND_NS, 36 * SECOND_NS])
        assert fields_of(decision, "legacy", self.CLOCK) == {
            "X-RateLimit-Limit": "60",
            "X-RateLimit-Remaining": "30",
            "X-RateLimit-Reset": "1000031",
        }

    def test_of_a_denial_tells_when_to_come_back(self):
        decision = decide(["60/minute", Limit("100/hour")], [60 * SECOND_NS, 0], allowed=False)
        assert fields_of(decision, "legacy", self.CLOCK) == {
            "X-RateLimit-Limit": "60",
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": "1000002",
        }

    @given(limits_and_times(), st.booleans())
    def test_is_three_numbers(self, case, allowed):
        decision = decide(*case, allowed=allowed)
        fields = fields_of(decision, "legacy", self.CLOCK)
        if not decision.quotas:
            assert fields == {}
            return
        numbers = {name: int(value) for name, value in fields.items()}
        assert 0 <= numbers["X-RateLimit-Remaining"] <= numbers["X-RateLimit-Limit"]
        assert numbers["X-RateLimit-Reset"] >= 1_000_000


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        ("draft-10", ["RateLimit-Policy", "RateLimit"]),
        ("legacy", ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]),
        ("both", ["RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]),
        ("none", []),
    ],
)
def test_dialects(dialect, names):
    assert list(fields_of(decide(["60/minute"], [SECOND_NS]), dialect)) == names


class TestDenial:
    """Problem details of RFC 9457, of the types that draft-ietf-httpapi-ratelimit-headers-10 registers."""

    def problem(self, answer):
        headers = dict(answer.headers)
        assert headers["Content-Type"] == "application/problem+json"
        document = json.loads(answer.body)
        assert document["status"] == answer.status
        assert isinstance(document["type"], str)
        assert isinstance(document["title"], str)
        return document

    def test_of_a_quota_that_is_used_up(self):
        answer = denial(decide(["60/minute", "5/hour"], [0, 3600 * SECOND_NS], allowed=False), jitter=0)
        assert answer.status == 429
        assert self.problem(answer) == {
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Request cannot be satisfied as assigned quota has been exceeded",
            "status": 429,
            "detail": 'The limit "5-per-hour" is used up.',
            "violated-policies": ["5-per-hour"],
        }
        assert retry_after_of(answer) == 720

    def test_of_several_quotas(self):
        decision = decide(["60/minute", "5/hour"], [60 * SECOND_NS, 3600 * SECOND_NS], allowed=False)
        problem = self.problem(denial(decision, jitter=0))
        assert problem["violated-policies"] == ["60-per-minute", "5-per-hour"]
        assert problem["detail"] == 'The limit "60-per-minute", "5-per-hour" is used up.'

    def test_of_what_is_above_capacity_asks_nobody_to_come_back(self):
        decision = decide([Limit("60/minute", cost=61), "5/hour"], [0, 3600 * SECOND_NS], allowed=False)
        answer = denial(decision, jitter=0)
        assert answer.status == 429
        assert retry_after_of(answer) is None
        problem = self.problem(answer)
        assert problem["detail"] == 'This request needs more than the limit "60-per-minute" can ever grant.'
        assert problem["violated-policies"] == ["60-per-minute", "5-per-hour"]

    def test_while_the_store_is_away(self):
        answer = denial(decide(["60/minute"], (), allowed=False, degraded=True), jitter=0)
        assert answer.status == 503
        assert self.problem(answer) == {
            "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "title": "Request cannot be satisfied due to temporary server capacity constraints",
            "status": 503,
        }
        assert retry_after_of(answer) == 1

    def test_without_an_address(self):
        policy = Policy(Settings(limits=["60/minute"], missing_address="deny"))
        answer = denial(policy.without_store("ip:none", policy.plan(RequestFacts("GET", "/"))), jitter=0)
        assert answer.status == 403
        assert self.problem(answer)["type"] == "about:blank"
        assert retry_after_of(answer) is None

    @given(st.integers(1, 3600), st.floats(0, 10), st.floats(0, 1))
    def test_jitter_adds_no_more_than_its_share(self, wait_seconds, jitter, luck):
        limit = Limit("3600/hour", burst=1)
        decision = decide([limit], [wait_seconds * SECOND_NS], allowed=False)
        retry_after = retry_after_of(denial(decision, jitter=jitter, uniform=lambda: luck))
        assert wait_seconds <= retry_after <= wait_seconds * (1 + jitter) + 1

    def test_jitter_is_by_chance(self):
        decision = decide([Limit("1/day", burst=1)], [86_400 * SECOND_NS], allowed=False)
        waits = {retry_after_of(denial(decision, jitter=0.5)) for _ in range(50)}
        assert len(waits) > 10
        assert min(waits) >= 86_400
        assert max(waits) <= 86_400 * 1.5 + 1
        assert {retry_after_of(denial(decision, jitter=0)) for _ in range(5)} == {86_400}

    @given(st.integers(0, 90 * 365 * 86_400 * SECOND_NS), st.floats(0, 1))
    def test_is_never_too_early_however_long_the_wait(self, wait_ns, luck):
        decision = decide([Limit("1/day", burst=1)], [wait_ns], allowed=False)
        if decision.denied_by:
            retry_after = retry_after_of(denial(decision, jitter=0.1, uniform=lambda: luck))
            assert retry_after * SECOND_NS >= decision.retry_after_ns
            assert retry_after >= structured(fields_of(decision)["RateLimit"])["1-per-day"]["t"]

    def test_is_at_least_a_second(self):
        decision = decide([Limit("1000/second", burst=1)], [1], allowed=False)
        assert retry_after_of(denial(decision, jitter=0)) == 1

    def test_a_decision_that_was_not_denied_by_a_limit_names_none(self):
        plan = Policy(Settings()).exempted
        assert denial(Decision(Outcome.DENIED, False, "a", plan), jitter=0).status == 403


class TestAnswer:
    @pytest.mark.parametrize(
        "answer",
        [
            Answer(status=429),
            Answer(status=200, headers=[("X-A", "b c\tü"), ("x-a", "")], body=b"a"),
            Answer(status=599, headers=(("Retry-After", "5"),)),
        ],
    )
    def test_that_can_be_sent(self, answer):
        assert answer.is_sendable

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(status=None),
            Answer(status="429"),
            Answer(status=True),
            Answer(status=429.0),
            Answer(status=101),
            Answer(status=600),
            Answer(status=-1),
            Answer(status=429, body="text"),
            Answer(status=429, body=None),
            Answer(status=429, body=bytearray(b"a")),
            Answer(status=429, headers=None),
            Answer(status=429, headers=5),
            Answer(status=429, headers={"X-A": "b"}),
            Answer(status=429, headers=["X-A: b"]),
            Answer(status=429, headers=[("X-A",)]),
            Answer(status=429, headers=[("X-A", 5)]),
            Answer(status=429, headers=[(b"X-A", b"b")]),
            Answer(status=429, headers=[("X-A", None)]),
            Answer(status=429, headers=[("", "b")]),
            Answer(status=429, headers=[("X A", "b")]),
            Answer(status=429, headers=[("X-Ä", "b")]),
            Answer(status=429, headers=[("X-A", "b\r\nSet-Cookie: c")]),
            Answer(status=429, headers=[("X-A", "b\n")]),
            Answer(status=429, headers=[("X-A\n", "b")]),
            Answer(status=429, headers=[("X-A", "€")]),
            Answer(status=429, headers=[("X-A", "\0")]),
        ],
        ids=repr,
    )
    def test_that_cannot(self, answer):
        assert not answer.is_sendable
