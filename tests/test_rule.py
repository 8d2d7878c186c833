"""A limit at run time: whom it is for, what it asks, where its bucket stands."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, RequestFacts
from abuseguard.rule import Rule
from tests.identifiers import shown
from tests.test_path_pattern import naive

SECOND_NS = 10**9


def facts(method="GET", path="/", **further):
    return RequestFacts(method, path, **further)


def applies(request, **fields):
    return Rule(Limit("5/minute", **fields)).applies(request)


def raising(request):
    raise RuntimeError("no")


class TestApplies:
    def test_to_everything_by_default(self):
        assert applies(facts("ANY", "/any"))

    @given(st.lists(st.text("/a*b", max_size=5).map("/".__add__), min_size=1, max_size=3), st.text("/ab", max_size=7))
    def test_to_paths(self, routes, path):
        assert applies(facts(path=path), routes=routes) == any(naive(route, path) for route in routes)

    @pytest.mark.parametrize(
        ("methods", "method", "expected"),
        [
            ("GET", "GET", True),
            ("get", "GET", True),
            ("GET", "POST", False),
            (["GET", "POST"], "POST", True),
            ("GET", "HEAD", False),
            # Some frameworks serve "get /" as a GET: it must not be a way around the limit.
            ("GET", "get", True),
            ("POST", "WEBSOCKET", False),
            ("WEBSOCKET", "WEBSOCKET", True),
        ],
    )
    def test_to_methods(self, methods, method, expected):
        assert applies(facts(method), methods=methods) is expected

    @pytest.mark.parametrize(
        ("plans", "plan", "expected"),
        [("free", "free", True), ("free", "pro", False), ("free", None, False), (["free", "pro"], "pro", True)],
    )
    def test_to_plans(self, plans, plan, expected):
        assert applies(facts(plan=plan), plans=plans) is expected

    @pytest.mark.parametrize(
        ("result", "expected"), [(True, True), (False, False), (None, False), ("x", True), (0, False)]
    )
    def test_when_a_function_says_so(self, result, expected):
        assert applies(facts(), when=lambda request: result) is expected

    def test_not_when_the_function_fails(self, caplog):
        assert applies(facts(), name="mine", when=raising) is False
        assert "limits: mine: when raised" in caplog.text

    def test_only_where_all_conditions_hold(self):
        rule = Rule(
            Limit("5/minute", routes="/a", methods="POST", plans="free", when=lambda request: request.peer == "p")
        )
        right = {"method": "POST", "path": "/a", "plan": "free", "peer": "p"}
        assert rule.applies(facts(**right))
        for name in right:
            assert not rule.applies(facts(**{**right, name: "other"}))

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, False),
            ({"routes": "/a"}, True),
            ({"methods": "GET"}, True),
            ({"plans": "free"}, True),
            ({"when": raising}, True),
            ({"cost": 2, "per": "address"}, False),
        ],
    )
    def test_is_known_to_be_selective(self, fields, expected):
        assert Rule(Limit("5/minute", **fields)).selective is expected


class TestCost:
    def cost_of(self, cost, request=None):
        rule = Rule(Limit("60/minute", cost=cost))
        return rule.demand(request or facts(), tokens=0).cost_ns / SECOND_NS

    @pytest.mark.parametrize("cost", [0, 1, 7, 60, 61, 10**12])
    def test_a_constant(self, cost):
        assert self.cost_of(cost) == cost

    @pytest.mark.parametrize("cost", [0, 1, 7, 60, 61, 10**12])
    def test_a_function(self, cost):
        assert self.cost_of(lambda request: cost) == cost

    def test_of_the_request(self):
        assert self.cost_of(lambda request: len(request.path), facts(path="/abc")) == 4

    @pytest.mark.parametrize(
        "result",
        [None, -1, 1.0, 2.5, math.nan, math.inf, "2", True, False, [], object(), 10**12 + 1, 10**5000],
        ids=lambda result: "huge" if isinstance(result, int) and result > 1 else shown(result),
    )
    def test_what_is_no_cost_counts_as_one(self, result, caplog):
        assert self.cost_of(lambda request: result) == 1
        assert "limits: 60-per-minute: cost returned" in caplog.text

    def test_a_function_that_fails_counts_as_one(self, caplog):
        assert self.cost_of(raising) == 1
        assert "limits: 60-per-minute: cost raised" in caplog.text

    def test_tokens_are_counted_by_the_estimate(self):
        rule = Rule(Limit("60/minute", unit="tokens", cost=7))
        assert rule.demand(facts(), tokens=3).cost_ns == 3 * SECOND_NS
        assert rule.demand(facts(), tokens=0).cost_ns == 0


class TestKey:
    def key_of(self, per, request):
        demand = Rule(Limit("5/minute", name="mine", per=per)).demand(request, tokens=0)
        return "no demand" if demand is None else demand.key

    def test_of_an_account_is_left_to_the_store(self):
        assert self.key_of("account", facts(account="alice")) is None

    def test_of_an_address(self):
        assert self.key_of("address", facts(account="alice", address="192.0.2.1")) == "ip:192.0.2.1"

    def test_of_no_address_is_no_demand(self):
        assert self.key_of("address", facts(account="alice")) == "no demand"

    def test_of_everyone(self):
        assert self.key_of("everyone", facts(account="alice")) == self.key_of("everyone", facts(account="bob"))

    @pytest.mark.parametrize(
        ("result", "key"),
        [
            ("acme", "mine:acme"),
            (7, "mine:7"),
            (0, "mine:0"),
            ("alice", "mine:alice"),
            (None, "no demand"),
            ("", "no demand"),
        ],
    )
    def test_of_a_function(self, result, key):
        assert self.key_of(lambda request: result, facts(account="alice")) == key

    def test_of_a_function_that_fails_is_no_demand(self, caplog):
        assert self.key_of(raising, facts(account="alice")) == "no demand"
        assert "limits: mine: per raised" in caplog.text

    def test_of_a_function_is_short(self):
        assert len(self.key_of(lambda request: "x" * 1_000_000, facts())) <= 128

    def test_of_a_function_is_no_account(self):
        # An organisation called like an account must not share its bucket.
        assert self.key_of(lambda request: "alice", facts(account="bob")) != "alice"


class TestDemand:
    def test_names_the_limit_and_its_durations(self):
        demand = Rule(Limit("90/hour", burst=5, name="mine")).fixed_demand()
        assert demand == ("mine", 40 * SECOND_NS, 200 * SECOND_NS, None)

    @given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**7))
    def test_capacity_and_cost_are_in_the_same_measure(self, amount, burst, cost):
        rule = Rule(Limit(f"{amount}/minute", burst=burst, cost=cost))
        demand = rule.fixed_demand()
        assert demand.cost_ns * burst == demand.capacity_ns * cost
        assert rule.demand(facts(), tokens=0) == demand

    def test_a_delay_lets_a_bucket_be_emptied_further(self):
        rule = Rule(Limit("60/minute", burst=2))
        assert rule.fixed_demand(extra_ns=SECOND_NS).capacity_ns == 3 * SECOND_NS

    @pytest.mark.parametrize("cost", [3, lambda request: 3])
    def test_what_can_never_be_granted_is_not_granted_late_either(self, cost):
        rule = Rule(Limit("60/minute", burst=2, cost=cost))
        demand = rule.demand(facts(), tokens=0, extra_ns=60 * SECOND_NS)
        assert demand.cost_ns > demand.capacity_ns

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, True),
            ({"cost": 5}, True),
            ({"routes": "/a"}, True),
            ({"unit": "tokens"}, False),
            ({"per": "address"}, False),
            ({"per": "everyone"}, False),
            ({"per": raising}, False),
            ({"cost": raising}, False),
        ],
    )
    def test_is_known_to_be_the_same_for_every_request(self, fields, expected):
        assert Rule(Limit("5/minute", **fields)).constant is expected


class TestQuota:
    def test_of_a_full_bucket(self):
        quota = Rule(Limit("60/minute", burst=10, name="mine")).quota(0, SECOND_NS)
        assert quota == ("mine", 10, 10, 10 * SECOND_NS, 0, 0)

    @given(st.integers(1, 1000), st.integers(1, 100), st.integers(0, 10**13), st.integers(0, 200))
    def test_agrees_with_the_bucket(self, amount, burst, time_to_full_ns, cost):
        rule = Rule(Limit(f"{amount}/minute", burst=burst))
        quota = rule.quota(time_to_full_ns, rule.bucket.cost_ns(cost))
        assert quota.remaining == rule.bucket.remaining(time_to_full_ns)
        assert quota.wait_ns == rule.bucket.wait_ns(time_to_full_ns, cost)
        assert (quota.wait_ns is None) == (cost > burst)
        if quota.wait_ns is not None:
            can_be_taken = time_to_full_ns + rule.bucket.cost_ns(cost) <= quota.window_ns
            assert (quota.wait_ns == 0) == can_be_taken
