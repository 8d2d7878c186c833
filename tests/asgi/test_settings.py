"""Every setting that decides about requests, through the middleware."""

from __future__ import annotations

import asyncio
import json
import math
from uuid import UUID

import pytest

from abuseguard import Header, Limit, Outcome
from abuseguard.clock import ManualClock, SystemClock
from abuseguard.headers import Answer
from tests.asgi.driver import get, guarded, hello, http_scope, post, send_request

pytestmark = pytest.mark.anyio


async def statuses(app, *paths, **further):
    return [(await get(app, path, **further)).status for path in paths]


class TestObserving:
    async def test_refuses_nothing_says_nothing_and_counts_everything(self):
        seen = []
        guard = guarded(
            hello,
            limits=["2/minute"],
            mode="observe",
            observer=lambda facts, decision: seen.append((facts.path, decision.outcome)),
        )
        for _ in range(5):
            response = await get(guard, "/x")
            assert response.status == 200
            assert response.start["headers"] == [(b"content-type", b"text/plain")]
        assert seen == [("/x", Outcome.ALLOWED)] * 2 + [("/x", Outcome.DENIED)] * 3
        assert guard.guard.outcomes[Outcome.ALLOWED] == 2
        assert guard.guard.outcomes[Outcome.DENIED] == 3

    async def test_holds_nothing_back(self):
        guard = guarded(hello, limits=["1/minute"], mode="observe", max_delay_seconds=60)
        for _ in range(3):
            assert (await get(guard)).status == 200
        assert guard.guard.outcomes[Outcome.DELAYED] == 1
        assert guard.guard.outcomes[Outcome.DENIED] == 1


class TestExemptions:
    async def test_paths(self):
        guard = guarded(hello, limits=["1/minute"], exempt_paths=["/healthz", "/static/**"])
        assert await statuses(guard, *["/healthz", "/static/a/b.js"] * 3) == [200] * 6
        assert await statuses(guard, "/healthz/x", "/healthzz") == [200, 429]

    async def test_exempt_responses_tell_no_limit(self):
        response = await get(guarded(hello, limits=["1/minute"], exempt_paths=["/"]))
        assert response.start["headers"] == [(b"content-type", b"text/plain")]

    async def test_accounts(self):
        guard = guarded(hello, limits=["1/minute"], account="header:x-user", exempt_accounts=["root"])
        assert await statuses(guard, "/", "/", headers=[("x-user", "root")]) == [200, 200]
        assert await statuses(guard, "/", "/", headers=[("x-user", "toor")]) == [200, 429]

    async def test_networks_behind_a_proxy(self):
        guard = guarded(
            hello,
            limits=["1/minute"],
            account="header:x-user",
            exempt_networks=["198.51.100.0/24"],
            trusted_proxies=["10.0.0.0/8"],
        )
        inside = [("x-user", "a"), ("x-forwarded-for", "198.51.100.7")]
        assert await statuses(guard, "/", "/", headers=inside, client=("10.0.0.1", 1)) == [200, 200]
        outside = [("x-user", "a"), ("x-forwarded-for", "198.51.100.7, 192.0.2.1")]
        assert await statuses(guard, "/", "/", headers=outside, client=("10.0.0.1", 1)) == [200, 429]

    async def test_a_function(self):
        guard = guarded(hello, limits=["1/minute"], exempt=lambda facts: facts.headers.first("x-internal") == "1")
        assert await statuses(guard, "/", "/", headers=[("x-internal", "1")]) == [200, 200]
        assert await statuses(guard, "/", "/") == [200, 429]


class TestWhichRequests:
    async def test_route_patterns(self):
        guard = guarded(hello, limits=[Limit("1/minute", routes=["/v1/**", "/users/*/posts"])])
        assert await statuses(guard, "/v1/a", "/users/7/posts", "/users/7/8/posts", "/v2", "/v1/a/b") == [
            200,
            429,
            200,
            200,
            429,
        ]

    async def test_methods(self):
        guard = guarded(hello, limits=[Limit("1/minute", methods=["post"])])
        assert [(await post(guard)).status for _ in range(2)] == [200, 429]
        assert await statuses(guard, "/", "/") == [200, 200]

    async def test_plans(self):
        guard = guarded(
            hello,
            limits=[Limit("1/minute", plans="free"), Limit("2/minute", plans=["pro", "team"])],
            account="header:x-user",
            plan="header:x-plan",
        )

        async def of(plan):
            return await statuses(guard, "/", "/", "/", headers=[("x-user", plan), ("x-plan", plan)])

        assert await of("free") == [200, 429, 429]
        assert await of("pro") == [200, 200, 429]
        assert await of("other") == [200, 200, 200]

    async def test_any_condition(self):
        guard = guarded(hello, limits=[Limit("1/minute", when=lambda facts: facts.path.endswith(".csv"))])
        assert await statuses(guard, "/a.csv", "/b.csv", "/c.txt", "/d.txt") == [200, 429, 200, 200]

    async def test_dynamic_limits(self):
        def of_account(facts):
            return {"small": "1/minute", "large": [Limit("2/minute"), "100/hour"], "none": None}[facts.account]

        guard = guarded(hello, limits=[of_account], account="header:x-user")

        async def of(account):
            return await statuses(guard, "/", "/", "/", headers=[("x-user", account)])

        assert await of("small") == [200, 429, 429]
        assert await of("large") == [200, 200, 429]
        assert await of("none") == [200, 200, 200]

    async def test_several_limits_are_taken_together_or_not_at_all(self):
        guard = guarded(hello, limits=[Limit("5/minute", name="all"), Limit("1/minute", name="a", routes=["/a"])])
        assert await statuses(guard, "/a", "/a", "/a", "/a") == [200, 429, 429, 429]
        assert (await get(guard, "/b")).structured("ratelimit")["all"]["r"] == 3


class TestWhoseBucket:
    async def test_addresses_and_everyone(self):
        guard = guarded(
            hello,
            limits=[Limit("1/minute", per="address", name="address"), Limit("3/minute", per="everyone", name="all")],
            account="header:x-user",
        )

        async def ask(user, address):
            response = await get(guard, headers=[("x-user", user)], client=(address, 1))
            return response.status if response.status == 200 else response.problem["violated-policies"]

        assert await ask("a", "192.0.2.1") == 200
        assert await ask("b", "192.0.2.1") == ["address"]
        assert await ask("b", "192.0.2.2") == 200
        assert await ask("c", "192.0.2.3") == 200
        assert await ask("d", "192.0.2.4") == ["all"]

    async def test_ipv6_clients_by_their_network(self):
        guard = guarded(hello, limits=["1/minute"])
        assert await statuses(guard, "/", client=("2001:db8:0:1::1", 1)) == [200]
        assert await statuses(guard, "/", client=("2001:db8:0:1:ffff::2", 1)) == [429]
        assert await statuses(guard, "/", client=("2001:db8:0:2::1", 1)) == [200]

    async def test_users_of_the_authentication_outside(self):
        class User:
            def __init__(self, identity, is_authenticated=True):
                self.identity = identity
                self.is_authenticated = is_authenticated

        guard = guarded(hello, limits=["1/minute"], account="user")
        assert await statuses(guard, "/", "/", user=User("ada")) == [200, 429]
        assert await statuses(guard, "/", user=User("grace")) == [200]
        # Whoever has not signed in is known by the address.
        assert await statuses(guard, "/", "/", user=User("ada", is_authenticated=False)) == [200, 429]

    @pytest.mark.parametrize("account", [7, b"\xff\xfe", UUID(int=7), "x" * 1_000_000, "\ud800"], ids=type)
    async def test_usable_keys(self, account):
        guard = guarded(hello, limits=["1/minute"], account=lambda facts: account)
        assert await statuses(guard, "/", client=("192.0.2.1", 1)) == [200]
        assert await statuses(guard, "/", client=("192.0.2.2", 1)) == [429]

    @pytest.mark.parametrize("account", [None, "", b"", [], {}, {"id": 7}, True, math.nan, 2.5], ids=repr)
    async def test_what_is_no_key_leaves_the_address(self, account):
        guard = guarded(hello, limits=["1/minute"], account=lambda facts: account)
        assert await statuses(guard, "/", "/", client=("192.0.2.1", 1)) == [200, 429]
        assert await statuses(guard, "/", client=("192.0.2.2", 1)) == [200]

    @pytest.mark.parametrize("client", [None, (), ("", 0), ["", None]], ids=repr)
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [("allow", [200, 200]), ("deny", [403, 403]), ("shared", [200, 429])],
    )
    async def test_no_address(self, client, policy, expected):
        guard = guarded(hello, limits=["1/minute"], missing_address=policy)
        assert await statuses(guard, "/", "/", client=client) == expected

    async def test_a_scope_without_client(self):
        scope = http_scope()
        del scope["client"]
        assert (await send_request(guarded(hello, limits=["1/minute"]), scope)).status == 200

    async def test_names_of_peers_that_are_no_addresses(self):
        guard = guarded(hello, limits=["1/minute"])
        assert await statuses(guard, "/", "/", client=("testclient", 50000)) == [200, 429]


class TestCost:
    async def test_constant(self):
        guard = guarded(hello, limits=[Limit("10/minute", cost=4)])
        assert await statuses(guard, "/", "/", "/") == [200, 200, 429]

    async def test_function(self):
        guard = guarded(hello, limits=[Limit("10/minute", cost=lambda facts: len(facts.path))])
        assert await statuses(guard, "/234567", "/234", "/23") == [200, 429, 200]

    async def test_above_capacity_is_never(self):
        guard = guarded(hello, limits=[Limit("10/minute", cost=lambda facts: len(facts.path))])
        response = await get(guard, "/" + "x" * 10)
        assert response.status == 429
        assert response.field("retry-after") is None
        assert "more than" in response.problem["detail"]
        assert await statuses(guard, "/" + "x" * 9) == [200]

    @pytest.mark.parametrize("cost", [math.nan, math.inf, -1, None, "3", 1.5, True, 10**13], ids=repr)
    async def test_what_is_no_cost_counts_as_one(self, cost):
        guard = guarded(hello, limits=[Limit("2/minute", cost=lambda facts: cost)])
        assert await statuses(guard, "/", "/", "/") == [200, 200, 429]

    async def test_zero_asks_only_whether_there_is_debt(self):
        guard = guarded(hello, limits=[Limit("1/minute", cost=0)])
        assert await statuses(guard, *["/"] * 5) == [200] * 5


def broken(*_):
    raise RuntimeError("a fault of the user's function")


class TestFaultyFunctions:
    """The application goes on, and the fault is logged with its traceback."""

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"limits": ["1/minute"], "account": broken}, [200, 429]),
            ({"limits": ["1/minute"], "exempt": broken}, [200, 429]),
            ({"limits": ["1/minute"], "observer": broken}, [200, 429]),
            ({"limits": ["1/minute"], "response": broken}, [200, 429]),
            ({"limits": [broken, "1/minute"]}, [200, 429]),
            ({"limits": [Limit("1/minute", when=broken)]}, [200, 200]),
            ({"limits": [Limit("1/minute", per=broken)]}, [200, 200]),
            ({"limits": [Limit("1/minute", cost=broken)]}, [200, 429]),
            ({"limits": [Limit("1/minute", plans="a"), "9/hour"], "plan": broken}, [200, 200]),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    async def test_that_raise(self, settings, expected, caplog):
        assert await statuses(guarded(hello, **settings), "/", "/") == expected
        assert "a fault of the user's function" in caplog.text

    @pytest.mark.parametrize("estimate", [broken, lambda _: -1, lambda _: math.nan, lambda _: "7"])
    async def test_estimates(self, estimate, caplog):
        guard = guarded(hello, limits=[Limit("100/minute", unit="tokens")], estimate=estimate)
        assert (await post(guard, body=b"{}")).status == 200
        assert "estimate" in caplog.text

    @pytest.mark.parametrize("given", ["often", 7, [None], {"rate": "1/minute", "brust": 3}, b"1/minute"], ids=repr)
    async def test_dynamic_limits_that_are_none(self, given, caplog):
        assert await statuses(guarded(hello, limits=[lambda facts: given, "1/minute"]), "/", "/") == [200, 429]
        assert "limits[0]" in caplog.text

    @pytest.mark.parametrize("given", [None, "429", {"status": 429}], ids=repr)
    async def test_responses_that_are_no_answer(self, given):
        guard = guarded(hello, limits=["1/minute"], response=lambda *_: given)
        assert await statuses(guard, "/", "/") == [200, 429]


class TestResponse:
    async def test_the_users_own(self):
        def html(facts, decision, answer):
            assert facts.path == "/x"
            assert [quota.limit for quota in decision.denied_by] == ["1-per-minute"]
            headers = [*answer.headers, ("Content-Language", "de")]
            return Answer(status=503, headers=headers, body=b"<p>langsam")

        guard = guarded(hello, limits=["1/minute"], response=html)
        await get(guard, "/x")
        response = await get(guard, "/x")
        assert (response.status, response.body) == (503, b"<p>langsam")
        assert response.field("content-language") == "de"
        assert response.field("content-length") == "10"
        assert response.field("retry-after") == "60"


class TestDelay:
    async def test_held_back_then_served(self):
        guard = guarded(hello, SystemClock(), limits=["20/second burst=1"], max_delay_seconds=0.06)
        order = []

        async def ask(name):
            response = await get(guard)
            order.append((name, response.status))
            assert response.structured("ratelimit")["20-per-second"]["r"] == 0

        async def mark():
            await asyncio.sleep(0.02)
            order.append("later")

        # Refills every 50 ms: the second is held back for as long, the third could not be served within 60 ms.
        await asyncio.gather(ask("first"), ask("second"), ask("third"), mark())
        assert order == [("first", 200), ("third", 429), "later", ("second", 200)]
        assert guard.guard.outcomes[Outcome.DELAYED] == 1

    async def test_cancelled_while_held_back_costs_nothing(self):
        clock = ManualClock()
        guard = guarded(hello, clock, limits=["1/minute"], max_delay_seconds=60)
        await get(guard)
        held_back = asyncio.create_task(get(guard))
        await asyncio.sleep(0)
        assert (await get(guard)).status == 429
        held_back.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held_back
        clock.advance(seconds=60)
        assert (await get(guard)).structured("ratelimit") == {"1-per-minute": {"r": 0, "t": 60}}

    async def test_cancelled_while_held_back_returns_the_tokens_reserved(self):
        clock = ManualClock()
        limits = ["1/minute", Limit("100/day", unit="tokens")]
        guard = guarded(hello, clock, limits=limits, max_delay_seconds=60)
        body = json.dumps({"prompt": "", "max_tokens": 90}).encode()
        await get(guard)
        held_back = asyncio.create_task(post(guard, body=body))
        await asyncio.sleep(0)
        clock.advance(seconds=60)
        assert "100-tokens-per-day" in (await post(guard, body=body)).problem["violated-policies"]
        held_back.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held_back
        assert (await post(guard, body=body)).status == 200


class TestStoreFailure:
    """A Redis that is not there."""

    @pytest.mark.parametrize(
        ("policy", "expected"), [("allow", [200] * 3), ("deny", [503] * 3), ("local", [200, 200, 503])]
    )
    async def test_policies(self, policy, expected, caplog):
        pytest.importorskip("redis")
        guard = guarded(hello, limits=["2/minute"], store="redis://127.0.0.1:1", on_store_failure=policy)
        assert await statuses(guard, "/", "/", "/") == expected
        assert guard.guard.outcomes[Outcome.DEGRADED] == 3
        assert "the store failed" in caplog.text


async def test_header_sources_are_of_any_case():
    guard = guarded(hello, limits=["1/minute"], account=Header("X-User"))
    assert await statuses(guard, "/", "/", headers=[("x-user", "a")]) == [200, 429]
