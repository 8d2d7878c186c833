"""Settings at work: what a request is asked for, and what the store's answer means. No store, no clock."""

from __future__ import annotations

import gc
import json
import math
import uuid
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import ApiKey, Header, Limit, Outcome, RequestFacts, Settings
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.facts import PlainHeaders
from abuseguard.identity import keyed_hash
from abuseguard.policy import Policy
from tests.identifiers import shown
from tests.test_path_pattern import naive

SECOND_NS = 10**9


def policy(*limits, **settings):
    return Policy(Settings(limits=limits, **settings))


def facts(method="GET", path="/", headers=(), peer="192.0.2.1", **further):
    return RequestFacts(method, path, PlainHeaders(headers), peer, **further)


def names(plan):
    return [rule.name for rule in plan.rules]


def raising(*_):
    raise RuntimeError("no")


class TestIdentify:
    def identify(self, request, **settings):
        policy(**settings).identify(request)
        return request

    def test_by_address(self):
        request = self.identify(facts())
        assert (request.address, request.account, request.plan) == ("192.0.2.1", "ip:192.0.2.1", None)

    def test_by_account_with_the_address_beside(self):
        request = self.identify(facts(headers=[("x-user", "42")]), account="header:x-user")
        assert (request.address, request.account) == ("192.0.2.1", "42")

    def test_by_address_where_there_is_no_account(self):
        request = self.identify(facts(), account="header:x-user")
        assert request.account == "ip:192.0.2.1"

    def test_an_account_is_not_taken_for_an_address(self):
        request = self.identify(facts(headers=[("x-user", "ip:198.51.100.7")]), account="header:x-user")
        assert request.account != "ip:198.51.100.7"

    @pytest.mark.parametrize(
        ("value", "account"),
        [
            ("alice", "alice"),
            (42, "42"),
            (b"alice", "alice"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (None, "ip:192.0.2.1"),
            ("", "ip:192.0.2.1"),
            (["a", "list"], "ip:192.0.2.1"),
            ({"a": "mapping"}, "ip:192.0.2.1"),
            (math.nan, "ip:192.0.2.1"),
            (True, "ip:192.0.2.1"),
        ],
    )
    def test_by_a_function(self, value, account):
        assert self.identify(facts(), account=lambda request: value).account == account

    def test_a_key_of_a_megabyte_is_not_kept(self):
        assert len(self.identify(facts(), account=lambda request: "x" * 2**20).account) < 64

    def test_by_address_where_the_function_fails(self, caplog):
        assert self.identify(facts(), account=raising).account == "ip:192.0.2.1"
        assert "account raised" in caplog.text

    def test_api_keys_are_hashed_with_the_secret_of_the_settings(self):
        request = self.identify(facts(headers=[("authorization", "Bearer sk-1")]), account=ApiKey(), secret="s3cret")
        assert request.account == keyed_hash("sk-1", b"s3cret")

    def test_ipv6_clients_by_their_network(self):
        one, other = (self.identify(facts(peer=f"2001:db8:1:2::{host}")).account for host in ("1", "ffff"))
        assert one == other == "ip:2001:db8:1:2::/64"
        assert self.identify(facts(peer="2001:db8:1:2::1"), ipv6_prefix=128).account == "ip:2001:db8:1:2::1"

    def test_behind_trusted_proxies(self):
        forwarded = [("x-forwarded-for", "203.0.113.66, 198.51.100.7")]
        trusting = {"trusted_proxies": ["192.0.2.0/24"]}
        assert self.identify(facts(headers=forwarded), **trusting).address == "198.51.100.7"
        assert self.identify(facts(headers=forwarded)).address == "192.0.2.1"
        assert self.identify(facts(headers=forwarded), trusted_proxies=2).address == "203.0.113.66"
        named = [("forwarded", "for=198.51.100.9"), *forwarded]
        request = self.identify(facts(headers=named), **trusting, forwarded_header="forwarded")
        assert request.address == "198.51.100.9"

    def test_peers_that_are_no_addresses_keep_the_servers_name(self):
        assert self.identify(facts(peer="testclient")).account == "ip:testclient"

    @pytest.mark.parametrize("trusted_proxies", [(), ["10.0.0.0/8"]])
    def test_peers_of_any_length_are_not_kept(self, trusted_proxies):
        # A server that believes any proxy passes on what clients wrote.
        class Peer(str):  # noqa: SLOT000 - slots could not be referred to weakly
            """Text of which one can see that nobody holds it."""

        peer = Peer("x" * 100_000)
        held = weakref.ref(peer)
        compiled = policy("5/minute", trusted_proxies=trusted_proxies)
        request = facts(peer=peer)
        compiled.plan(request)
        assert len(request.account) < 64
        assert request.account == "ip:" + request.address
        del peer, request
        gc.collect()
        assert held() is None

    def test_no_peer_is_no_address(self):
        for peer in (None, "", "unix:/run/app.sock"):
            assert self.identify(facts(peer=peer)).address is None

    def test_plans(self):
        request = facts(headers=[("x-plan", "pro")])
        assert self.identify(request, plan="header:x-plan").plan == "pro"
        assert self.identify(facts(), plan="header:x-plan").plan is None
        assert self.identify(facts(), plan=lambda request: "free").plan == "free"

    @pytest.mark.parametrize("plan", [5, ["pro"], object(), b"pro", True])
    def test_what_is_no_plan(self, plan):
        assert self.identify(facts(), plan=lambda request: plan).plan is None

    def test_a_plan_may_depend_on_the_account(self):
        plans = {"alice": "pro"}
        request = facts(headers=[("x-user", "alice")])
        settings = {"account": Header("x-user"), "plan": lambda request: plans.get(request.account)}
        assert self.identify(request, **settings).plan == "pro"

    def test_happens_once(self):
        calls = []
        request = facts()
        compiled = policy(account=lambda request: calls.append(request) or "alice")
        compiled.identify(request)
        compiled.identify(request)
        assert len(calls) == 1

    def test_a_caller_may_know_better(self):
        request = facts(account="from the log")
        assert self.identify(request, account=raising).account == "from the log"


class TestSelection:
    def test_all_limits_at_once(self):
        plan = policy("5/minute", "100/hour").plan(facts())
        assert names(plan) == ["5-per-minute", "100-per-hour"]
        assert [demand.bucket for demand in plan.demands] == names(plan)

    def test_no_limits(self):
        plan = policy().plan(facts())
        assert (plan.demands, plan.exempt, plan.refused) == ((), False, False)

    @given(
        st.lists(st.text("/a*b", max_size=4).map("/".__add__), max_size=3),
        st.sampled_from(["GET", "POST"]),
        st.sampled_from(["free", "pro", None]),
        st.text("/ab", max_size=6),
    )
    def test_only_those_that_are_for_the_request(self, routes, method, plan, path):
        limits = [
            Limit("1/minute", name="route", routes=routes),
            Limit("1/minute", name="method", methods="POST"),
            Limit("1/minute", name="plan", plans=["free"]),
            Limit("1/minute", name="when", when=lambda request: len(request.path) > 3),
        ]
        expected = [
            *["route" for _ in "x" if not routes or any(naive(route, path) for route in routes)],
            *["method" for _ in "x" if method == "POST"],
            *["plan" for _ in "x" if plan == "free"],
            *["when" for _ in "x" if len(path) > 3],
        ]
        compiled = policy(*limits, plan=lambda request: plan)
        assert names(compiled.plan(facts(method, path))) == expected

    def test_messages_are_no_requests(self):
        compiled = policy("5/minute", Limit("100/minute", unit="messages"))
        assert names(compiled.plan(facts())) == ["5-per-minute"]
        assert names(compiled.plan_message(facts())) == ["100-messages-per-minute"]
        assert compiled.limits_messages
        assert not policy("5/minute").limits_messages

    def test_a_limit_without_key_is_left_out(self):
        compiled = policy(Limit("5/minute", per=lambda request: None), "6/minute", Limit("7/minute", per="address"))
        request = facts(peer=None, account="alice")
        plan = compiled.plan(request)
        assert names(plan) == ["6-per-minute"]
        assert [demand.bucket for demand in plan.demands] == ["6-per-minute"]

    def test_limits_of_the_route_are_taken_in_the_same_step(self):
        limit = Limit("1/minute", name="route")
        compiled = policy("5/minute")
        assert names(compiled.plan(facts(), limits=[limit])) == ["5-per-minute", "route"]
        assert names(compiled.plan_limits(facts(), [limit])) == ["route"]
        assert list(compiled.plan_limits(facts(), [limit]).demands) == [Demand("route", 60 * SECOND_NS, 60 * SECOND_NS)]
        assert names(compiled.plan_limits(facts("GET"), [Limit("1/minute", methods="POST")])) == []

    def test_plans_of_requests_alike_are_made_once(self):
        compiled = policy("5/minute", Limit("6/minute", routes="/a"))
        assert compiled.plan(facts(path="/a")) is compiled.plan(facts(path="/a", peer="198.51.100.1"))
        assert compiled.plan(facts(path="/b")) is not compiled.plan(facts(path="/a"))


class TestDynamicLimits:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (None, []),
            ([], []),
            ("7/minute", ["7-per-minute"]),
            (Limit("7/minute"), ["7-per-minute"]),
            ({"rate": "7/minute", "name": "mine"}, ["mine"]),
            (["7/minute", Limit("8/hour")], ["7-per-minute", "8-per-hour"]),
            (("7/minute",), ["7-per-minute"]),
            (Limit("7/minute", methods="POST"), []),
            (Limit("7/minute", unit="tokens"), ["7-tokens-per-minute"]),
        ],
    )
    def test_what_a_function_gives_applies(self, given, expected, caplog):
        assert names(policy("5/minute", lambda request: given).plan(facts())) == ["5-per-minute", *expected]
        assert not caplog.records

    @pytest.mark.parametrize(
        "given",
        [
            *[5, True, math.nan, object(), "often", "5/minute brust=5", {"burst": 5}, {"7/minute"}, b"7/minute"],
            *[lambda request: "7/minute", raising, Limit("7/minute", unit="messages"), Limit, 10**5000],
        ],
        ids=lambda given: type(given).__name__,
    )
    def test_what_is_no_limit_is_left_out_and_reported(self, given, caplog):
        for answer in (given, [given, "8/minute"]):
            caplog.clear()
            compiled = policy("5/minute", lambda request, answer=answer: answer)
            expected = ["5-per-minute", *(["8-per-minute"] if isinstance(answer, list) else [])]
            assert names(compiled.plan(facts())) == expected
            assert "the function given as limits[1] returned" in caplog.text

    def test_a_function_that_fails_gives_none(self, caplog):
        assert names(policy("5/minute", raising).plan(facts())) == ["5-per-minute"]
        assert "limits[1] raised" in caplog.text

    def test_texts_are_read_once(self):
        compiled = policy(lambda request: "7/minute burst=3")
        assert compiled.plan(facts()) is compiled.plan(facts())
        (first,), (second,) = (compiled.plan(facts()).rules for _ in range(2))
        assert first.limit is second.limit

    def test_depend_on_who_is_asking(self):
        rates = {"free": "10/minute", "pro": "100/minute"}
        compiled = policy(lambda request: rates.get(request.plan), plan="header:x-plan")
        assert names(compiled.plan(facts(headers=[("x-plan", "free")]))) == ["10-per-minute"]
        assert names(compiled.plan(facts(headers=[("x-plan", "pro")]))) == ["100-per-minute"]
        assert names(compiled.plan(facts())) == []

    def test_a_name_counts_once(self):
        plan = policy(Limit("5/minute", name="a"), lambda request: [Limit("6/minute", name="a")]).plan(facts())
        assert [rule.limit.rate for rule in plan.rules] == ["5/minute"]


class TestExemptions:
    def is_exempt(self, request, **settings):
        plan = policy("5/minute", **settings).plan(request)
        assert bool(plan.demands) is not plan.exempt
        return plan.exempt

    def test_by_path(self):
        assert self.is_exempt(facts(path="/healthz"), exempt_paths="/healthz")
        assert not self.is_exempt(facts(path="/healthz/x"), exempt_paths="/healthz")

    def test_by_account(self):
        settings = {"account": "header:x-user", "exempt_accounts": ["root"]}
        assert self.is_exempt(facts(headers=[("x-user", "root")]), **settings)
        assert not self.is_exempt(facts(headers=[("x-user", "toor")]), **settings)
        assert not self.is_exempt(facts(), **settings)

    def test_an_address_as_an_account(self):
        settings = {"account": "header:x-user", "exempt_accounts": ["ip:192.0.2.1"]}
        assert self.is_exempt(facts(), **settings)
        assert not self.is_exempt(facts(peer="192.0.2.2", headers=[("x-user", "ip:192.0.2.1")]), **settings)

    def test_by_network(self):
        assert self.is_exempt(facts(), exempt_networks=["192.0.2.0/24"])
        assert not self.is_exempt(facts(peer="198.51.100.1"), exempt_networks=["192.0.2.0/24"])
        assert not self.is_exempt(facts(peer=None, account="a"), exempt_networks=["0.0.0.0/0", "::/0"])
        # A single host of a network that is one client.
        assert self.is_exempt(facts(peer="2001:db8::5"), exempt_networks=["2001:db8::5"])
        assert not self.is_exempt(facts(peer="2001:db8::6"), exempt_networks=["2001:db8::5"])

    def test_by_network_of_the_client_not_of_the_proxy(self):
        settings = {"exempt_networks": ["192.0.2.0/24"], "trusted_proxies": ["192.0.2.1"]}
        assert not self.is_exempt(facts(headers=[("x-forwarded-for", "198.51.100.7")]), **settings)
        assert self.is_exempt(facts(headers=[("x-forwarded-for", "192.0.2.9")]), **settings)

    @pytest.mark.parametrize(("answer", "expected"), [(True, True), (1, True), (False, False), (None, False)])
    def test_by_function(self, answer, expected):
        assert self.is_exempt(facts(), exempt=lambda request: answer) is expected

    def test_not_if_the_function_fails(self, caplog):
        assert not self.is_exempt(facts(), exempt=raising)
        assert "exempt raised" in caplog.text

    def test_hold_for_a_routes_own_limits_and_for_messages(self):
        compiled = policy(Limit("5/minute", unit="messages"), exempt_paths="/a")
        assert compiled.plan_limits(facts(path="/a"), [Limit("1/minute")]).exempt
        assert compiled.plan_message(facts(path="/a")).exempt
        assert not compiled.plan_message(facts(path="/b")).exempt


class TestMissingAddress:
    @pytest.mark.parametrize(
        ("missing_address", "exempt", "refused", "demands"),
        [("allow", True, False, 0), ("deny", False, True, 0), ("shared", False, False, 1)],
    )
    def test_policies(self, missing_address, exempt, refused, demands):
        plan = policy("5/minute", missing_address=missing_address).plan(facts(peer=None))
        assert (plan.exempt, plan.refused, len(plan.demands)) == (exempt, refused, demands)

    @pytest.mark.parametrize("missing_address", ["allow", "deny", "shared"])
    def test_an_account_needs_no_address(self, missing_address):
        compiled = policy("5/minute", missing_address=missing_address, account="header:x-user")
        plan = compiled.plan(facts(peer=None, headers=[("x-user", "42")]))
        assert len(plan.demands) == 1

    @pytest.mark.parametrize("missing_address", ["allow", "deny"])
    def test_once_let_in_nothing_else_stands_in_the_way(self, missing_address):
        compiled = policy(Limit("5/minute", unit="messages"), missing_address=missing_address)
        request = facts(peer=None)
        compiled.plan(request)
        assert compiled.plan_message(request).exempt
        assert compiled.plan_limits(request, [Limit("5/minute")]).exempt


class TestEstimate:
    LIMIT = Limit("1000/minute", unit="tokens")

    def test_from_the_body(self):
        body = json.dumps({"prompt": "abcdefgh", "max_tokens": 100}).encode()
        plan = policy(self.LIMIT).plan(facts("POST", body=body))
        assert plan.tokens == 102
        assert not plan.estimate.stands
        assert plan.demands[0].cost_ns == 102 * 60_000_000

    def test_of_an_open_answer(self):
        body = json.dumps({"prompt": "abcdefgh"}).encode()
        assert policy(self.LIMIT, default_output_tokens=50).plan(facts("POST", body=body)).tokens == 52

    def test_from_the_length_where_the_body_is_not_read(self):
        plan = policy(self.LIMIT, default_output_tokens=50).plan(facts("POST", content_length=400))
        assert plan.tokens == 150

    def test_of_what_is_no_call_of_a_model(self):
        for request in (facts(), facts("POST", body=b'{"name": "Ada"}'), facts("POST", body=b"")):
            plan = policy(self.LIMIT).plan(request)
            assert (plan.tokens, plan.estimate, plan.demands[0].cost_ns) == (0, None, 0)
            assert plan.meters_tokens

    @pytest.mark.parametrize("tokens", [0, 7, 10**12])
    def test_by_a_function(self, tokens):
        plan = policy(self.LIMIT, estimate=lambda request: tokens).plan(facts())
        assert plan.tokens == min(tokens, 10**9)  # a single exchange costs no more
        assert plan.estimate.stands  # nothing that is counted takes its place

    def test_by_a_function_that_knows_of_no_model(self):
        assert policy(self.LIMIT, estimate=lambda request: None).plan(facts()).estimate is None

    @pytest.mark.parametrize(
        "result",
        [-1, 1.5, math.nan, "5", True, [], object(), 10**12 + 1, 10**5000],
        ids=lambda result: "huge" if isinstance(result, int) and result > 1 else shown(result),
    )
    def test_by_a_function_that_gives_no_number(self, result, caplog):
        assert policy(self.LIMIT, estimate=lambda request: result).plan(facts()).estimate is None
        assert "estimate returned" in caplog.text

    def test_by_a_function_that_fails(self, caplog):
        assert policy(self.LIMIT, estimate=raising).plan(facts()).estimate is None
        assert "estimate raised" in caplog.text

    def test_is_not_asked_for_without_a_limit_in_tokens(self):
        plan = policy("5/minute", estimate=raising).plan(facts())
        assert plan.estimate is None
        assert not plan.meters_tokens

    def test_bodies_are_needed_where_tokens_may_be_limited(self):
        assert policy(self.LIMIT).limits_tokens
        assert policy(lambda request: None).limits_tokens
        assert not policy("5/minute").limits_tokens

    @pytest.mark.parametrize(
        ("method", "path", "settings", "expected"),
        [
            ("POST", "/v1/chat", {}, True),
            ("GET", "/v1/chat", {}, False),
            ("POST", "/upload", {}, False),
            ("POST", "/v1/chat", {"exempt_paths": "/v1/**"}, False),
        ],
    )
    def test_bodies_are_left_alone_where_no_limit_in_tokens_can_apply(self, method, path, settings, expected):
        limit = Limit("5/minute", unit="tokens", routes="/v1/**", methods="POST", plans="nobody")
        compiled = policy("5/minute", limit, **settings)
        assert compiled.may_limit_tokens(facts(method, path)) is expected
        assert policy(lambda request: None).may_limit_tokens(facts())


class TestInterpret:
    def test_taken(self):
        compiled = policy("60/minute")
        plan = compiled.plan(facts())
        assert plan.tokens == 0
        decision = compiled.interpret("alice", plan, Reply(True, [SECOND_NS]))
        assert (decision.outcome, decision.admitted, decision.account) == (Outcome.ALLOWED, True, "alice")
        assert [quota.remaining for quota in decision.quotas] == [59]
        assert decision.denied_by == []

    def test_what_was_taken_waits_for_nothing(self):
        compiled = policy("60/minute")
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(True, [60 * SECOND_NS]))
        assert [(quota.remaining, quota.wait_ns) for quota in decision.quotas] == [(0, 0)]

    @pytest.mark.parametrize(("mode", "admitted"), [("enforce", False), ("observe", True)])
    def test_denied(self, mode, admitted):
        compiled = policy("60/minute", "600/hour", mode=mode)
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(False, [60 * SECOND_NS, 0]))
        assert (decision.outcome, decision.admitted) == (Outcome.DENIED, admitted)
        assert [quota.limit for quota in decision.denied_by] == ["60-per-minute"]
        assert decision.retry_after_ns == SECOND_NS

    def test_never_is_told_apart_from_not_yet(self):
        compiled = policy(Limit("60/minute", cost=61), Limit("60/hour"))
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(False, [0, 3600 * SECOND_NS]))
        assert [(quota.limit, quota.wait_ns) for quota in decision.denied_by] == [
            ("60-per-minute", None),
            ("60-per-hour", 60 * SECOND_NS),
        ]
        assert decision.retry_after_ns is None

    def test_the_longest_wait_counts(self):
        compiled = policy("60/minute", "60/hour")
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(False, [60 * SECOND_NS, 3600 * SECOND_NS]))
        assert decision.retry_after_ns == 60 * SECOND_NS

    def test_buckets_of_which_the_store_did_not_say(self):
        compiled = policy("60/minute", "60/hour")
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(False, [None, 3600 * SECOND_NS]))
        assert [quota.limit for quota in decision.quotas] == ["60-per-hour"]

    @pytest.mark.parametrize(
        ("mode", "allowed", "admitted"),
        [("enforce", True, True), ("enforce", False, False), ("observe", True, True), ("observe", False, True)],
    )
    def test_degraded(self, mode, allowed, admitted):
        compiled = policy("60/minute", mode=mode)
        decision = compiled.interpret("alice", compiled.plan(facts()), Reply(allowed, (), degraded=True))
        assert (decision.outcome, decision.admitted) == (Outcome.DEGRADED, admitted)
        assert decision.quotas == []

    @pytest.mark.parametrize(("mode", "delay_ns"), [("enforce", SECOND_NS // 2), ("observe", 0)])
    def test_delayed(self, mode, delay_ns):
        compiled = policy(Limit("60/minute", burst=1), max_delay_seconds=1, mode=mode)
        plan = compiled.plan(facts(), may_delay=True)
        decision = compiled.interpret("alice", plan, Reply(True, [3 * SECOND_NS // 2]))
        assert (decision.outcome, decision.admitted, decision.delay_ns) == (Outcome.DELAYED, True, delay_ns)

    def test_not_delayed_while_there_is_enough(self):
        compiled = policy(Limit("60/minute", burst=1), max_delay_seconds=1)
        decision = compiled.interpret("alice", compiled.plan(facts(), may_delay=True), Reply(True, [SECOND_NS]))
        assert (decision.outcome, decision.delay_ns) == (Outcome.ALLOWED, 0)

    @pytest.mark.parametrize("chosen", [{}, {"methods": "GET"}, {"cost": lambda request: 1}, {"per": "address"}])
    def test_only_callers_that_can_wait_are_told_to(self, chosen):
        compiled = policy(Limit("60/minute", burst=1, **chosen), max_delay_seconds=1)
        assert compiled.plan(facts()).demands[0].capacity_ns == SECOND_NS
        assert compiled.plan(facts(), may_delay=True).demands[0].capacity_ns == 2 * SECOND_NS

    def test_delayed_by_a_nanosecond(self):
        compiled = policy(Limit("60/minute", burst=1), max_delay_seconds=1)
        decision = compiled.interpret("alice", compiled.plan(facts(), may_delay=True), Reply(True, [SECOND_NS + 1]))
        assert (decision.outcome, decision.delay_ns) == (Outcome.DELAYED, 1)

    @pytest.mark.parametrize(
        ("settings", "mode", "outcome", "admitted"),
        [
            ({"exempt_paths": "/"}, "enforce", Outcome.EXEMPT, True),
            ({"missing_address": "deny"}, "enforce", Outcome.DENIED, False),
            ({"missing_address": "deny"}, "observe", Outcome.DENIED, True),
            ({"missing_address": "allow"}, "enforce", Outcome.EXEMPT, True),
        ],
    )
    def test_without_store(self, settings, mode, outcome, admitted):
        compiled = policy("5/minute", mode=mode, **settings)
        plan = compiled.plan(facts(peer=None))
        decision = compiled.without_store("x", plan)
        assert (decision.outcome, decision.admitted) == (outcome, admitted)


class TestSettlement:
    """What is given back or charged once the tokens used are known: 60 tokens a minute, one a second."""

    LIMITS = ("5/minute", Limit("60/minute", unit="tokens", name="tokens", per="address"))

    def decision(self, reserved, outcome=Outcome.ALLOWED):
        compiled = policy(*self.LIMITS, estimate=lambda request: reserved)
        plan = compiled.plan(facts())
        reply = Reply(outcome is not Outcome.DENIED, [0, 0], degraded=outcome is Outcome.DEGRADED)
        return compiled, compiled.interpret("ip:192.0.2.1", plan, reply)

    @given(st.integers(0, 60), st.integers(0, 10_000))
    def test_is_the_difference(self, reserved, used):
        compiled, decision = self.decision(reserved)
        adjustments = compiled.settlement(decision, used)
        if used == reserved:
            assert adjustments == []
        else:
            # Of the limits in tokens only, and of the same bucket that was taken from.
            assert adjustments == [Adjustment("tokens", (used - reserved) * SECOND_NS, 60 * SECOND_NS, "ip:192.0.2.1")]

    def test_of_a_denial_is_nothing(self):
        compiled, decision = self.decision(10, Outcome.DENIED)
        assert compiled.settlement(decision, 50) == []

    def test_charges_all_where_nothing_could_be_reserved(self):
        compiled, decision = self.decision(10, Outcome.DEGRADED)
        assert [adjustment.delta_ns for adjustment in compiled.settlement(decision, 50)] == [50 * SECOND_NS]

    def test_a_refund_gives_everything_back(self):
        compiled, decision = self.decision(10)
        assert compiled.refund(decision) == [
            Adjustment("5-per-minute", -12 * SECOND_NS, 60 * SECOND_NS, None),
            Adjustment("tokens", -10 * SECOND_NS, 60 * SECOND_NS, "ip:192.0.2.1"),
        ]

    def test_a_refund_of_what_cost_nothing_is_nothing(self):
        compiled, decision = self.decision(0)
        assert [adjustment.bucket for adjustment in compiled.refund(decision)] == ["5-per-minute"]

    @pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.DEGRADED])
    def test_no_refund_of_what_was_not_taken(self, outcome):
        compiled, decision = self.decision(10, outcome)
        assert compiled.refund(decision) == []


class TestJoin:
    def both(self, first_reply, second_reply):
        compiled = policy("5/minute")
        request = facts()
        first = compiled.interpret("a", compiled.plan(request), first_reply)
        second = compiled.interpret(
            "a", compiled.plan_limits(request, [Limit("60/minute", name="route")]), second_reply
        )
        return compiled, first, second

    def test_tells_of_both(self):
        compiled, first, second = self.both(Reply(True, [12 * SECOND_NS]), Reply(True, [SECOND_NS]))
        joined = compiled.join(first, second)
        assert [(quota.limit, quota.remaining) for quota in joined.quotas] == [("5-per-minute", 4), ("route", 59)]
        assert [adjustment.bucket for adjustment in compiled.refund(joined)] == ["5-per-minute", "route"]

    def test_what_the_store_did_not_answer_has_nothing_to_tell(self):
        compiled, first, second = self.both(Reply(True, [12 * SECOND_NS]), Reply(True, (), degraded=True))
        assert compiled.join(first, second) is first
        assert compiled.join(second, first) is first


def test_bucket_names_are_those_of_all_limits():
    compiled = policy("5/minute", lambda request: None, Limit("9/minute", unit="messages"))
    assert compiled.bucket_names == ["5-per-minute", "9-messages-per-minute"]


def test_demands_name_the_limit_and_whose_bucket_it_is():
    compiled = policy(Limit("60/minute", name="mine"), Limit("60/minute", name="all", per="everyone", cost=2))
    assert list(compiled.plan(facts()).demands) == [
        Demand("mine", SECOND_NS, 60 * SECOND_NS),
        Demand("all", 2 * SECOND_NS, 60 * SECOND_NS, "everyone"),
    ]
