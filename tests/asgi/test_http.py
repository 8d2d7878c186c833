"""HTTP through the guard: what is refused, what is told, and that nothing else changes."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from abuseguard import Limit, Outcome, Settings, SettingsError
from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard.clock import ManualClock
from abuseguard.guard import AsyncGuard, Guard
from tests.asgi.driver import DISCONNECT, Response, get, guarded, hello, http_scope, send_request

pytestmark = pytest.mark.anyio


async def test_allowed_response_tells_the_limits():
    response = await get(guarded(hello, limits=["2/minute", "100/hour burst=10"]))
    assert (response.status, response.body) == (200, b"hello")
    assert response.field("content-type") == "text/plain"
    assert response.structured("ratelimit-policy") == {
        "2-per-minute": {"q": 2, "w": 60},
        "100-per-hour": {"q": 10, "w": 360},
    }
    assert response.structured("ratelimit") == {"2-per-minute": {"r": 1, "t": 30}, "100-per-hour": {"r": 9, "t": 36}}


async def test_denied_request_gets_problem_details_and_when_to_come_back():
    called = 0

    async def app(scope, receive, send):
        nonlocal called
        called += 1
        await hello(scope, receive, send)

    clock = ManualClock()
    guard = guarded(app, clock, limits=["2/minute", "100/hour"])
    for _ in range(2):
        assert (await get(guard)).status == 200
    clock.advance(seconds=1)
    response = await get(guard)
    assert called == 2
    assert response.status == 429
    assert response.problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert response.problem["status"] == 429
    assert response.problem["violated-policies"] == ["2-per-minute"]
    assert response.field("content-length") == str(len(response.body))
    assert response.field("retry-after") == "29"
    assert response.structured("ratelimit") == {"2-per-minute": {"r": 0, "t": 29}}
    clock.advance(seconds=29)
    assert (await get(guard)).status == 200


async def test_denial_of_head_has_a_length_and_no_body():
    guard = guarded(hello, limits=["1/minute"])
    await get(guard)
    by_get = await get(guard)
    by_head = await send_request(guard, http_scope("HEAD"))
    assert (by_head.status, by_head.body) == (429, b"")
    assert by_head.field("content-length") == by_get.field("content-length") == str(len(by_get.body))
    assert by_head.field("retry-after") == by_get.field("retry-after")


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        ("draft-10", {"ratelimit-policy", "ratelimit"}),
        ("legacy", {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}),
        ("both", {"ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}),
        ("none", set()),
    ],
)
async def test_dialects(dialect, names):
    guard = guarded(hello, ManualClock(5_000_000_000), limits=["2/minute"], headers=dialect)
    for remaining in (1, 0, 0):
        response = await get(guard)
        assert {name.decode() for name, _ in response.start["headers"] if b"ratelimit" in name} == names
        if "x-ratelimit-limit" in names:
            assert response.field("x-ratelimit-limit") == "2"
            assert response.field("x-ratelimit-remaining") == str(remaining)
    if "x-ratelimit-reset" in names:
        assert response.field("x-ratelimit-reset") == "35"


async def test_chunks_arrive_as_they_are_sent():
    """Each chunk has to have arrived before the application makes the next one."""
    response = Response()

    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(3):
            assert len(response.messages) == 1 + number
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    await send_request(guarded(app, limits=["1/minute"]), http_scope(), response=response)
    assert response.chunks == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b""]


async def test_other_messages_are_the_applications_own():
    messages = [
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
        {"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True},
        {"type": "http.response.zerocopysend", "file": 3, "more_body": False},
        {"type": "http.response.trailers", "headers": [(b"etag", b'"1"')]},
    ]
    seen = []

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    async def send(message):
        seen.append(message)

    await guarded(app, limits=["1/minute"])(http_scope(), None, send)
    assert [message["type"] for message in seen] == [message["type"] for message in messages]
    assert all(sent is own for sent, own in zip(seen, messages, strict=True) if not own["type"].endswith("start"))
    assert seen[1]["trailers"] is True


async def test_messages_and_headers_that_are_sent_again_stay_as_they_are():
    headers = [(b"content-type", b"text/plain")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}

    async def app(scope, receive, send):
        await send(start)
        await send({"type": "http.response.body"})

    guard = guarded(app, limits=["10/minute"])
    for remaining in (9, 8, 7):
        response = await get(guard)
        assert response.structured("ratelimit")["10-per-minute"]["r"] == remaining
    assert start == {"type": "http.response.start", "status": 200, "headers": headers}
    assert headers == [(b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    "headers", [{}, {"headers": ()}, {"headers": iter([(b"etag", b"1")])}], ids=["none", "empty", "once"]
)
async def test_any_form_of_headers(headers):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, **headers})
        await send({"type": "http.response.body"})

    response = await get(guarded(app, limits=["1/minute"]))
    assert (response.status, response.body) == (204, b"")
    assert response.structured("ratelimit") == {"1-per-minute": {"r": 0, "t": 60}}


async def test_scopes_of_other_types_pass():
    seen = []

    async def app(*arguments):
        seen.append(arguments)

    scope, receive, send = {"type": "telegram"}, object(), object()
    await guarded(app, limits=["1/minute"])(scope, receive, send)
    assert [tuple(map(id, arguments)) for arguments in seen] == [(id(scope), id(receive), id(send))]


async def test_the_application_hears_from_the_server_directly():
    """Nothing stands between the two where there is nothing to do."""

    async def app(scope, receive, send):
        assert receive is server_receive

    async def server_receive():
        return DISCONNECT

    await guarded(app, limits=["1/minute"])(http_scope(), server_receive, None)


async def test_work_in_the_background_goes_on_after_the_response():
    response = Response()

    async def app(scope, receive, send):
        await hello(scope, receive, send)
        assert response.body == b"hello"
        response.messages.append({"type": "background"})

    await send_request(guarded(app, limits=["1/minute"]), http_scope(), response=response)
    assert response.messages[-1] == {"type": "background"}


@pytest.mark.parametrize("started", [False, True])
async def test_exceptions_pass(started):
    error = ValueError("the application's own")

    async def app(scope, receive, send):
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    response = Response()
    scope = http_scope()
    with pytest.raises(ValueError, match="own") as raised:
        await send_request(guarded(app, limits=["1/minute"]), scope, response=response)
    assert raised.value is error
    assert len(response.messages) == started
    assert "abuseguard" not in scope


async def test_an_application_that_sends_nothing():
    async def app(scope, receive, send):
        return

    assert (await get(guarded(app, limits=["1/minute"]))).messages == []


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_disconnects_are_the_applications_to_see(when):
    async def app(scope, receive, send):
        if when == "before":
            assert await receive() == DISCONNECT
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if when == "after":
            await send({"type": "http.response.body", "body": b"all"})
        assert await receive() == DISCONNECT

    response = await send_request(guarded(app, limits=["1/minute"]), http_scope(), [DISCONNECT])
    assert len(response.messages) == {"before": 0, "during": 1, "after": 2}[when]


async def test_a_send_that_fails_raises_in_the_application():
    async def app(scope, receive, send):
        with pytest.raises(OSError, match="gone"):
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        raise OSError("the client is gone")

    await guarded(app, limits=["1/minute"])(http_scope(), None, send)


async def test_cancelling_a_request_cancels_the_application():
    started = asyncio.Event()

    async def app(scope, receive, send):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(get(guarded(app, limits=["1/minute"])))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_exchange_is_in_the_scope_while_the_request_lasts():
    async def app(scope, receive, send):
        exchange = scope["abuseguard"]
        assert exchange.decision.outcome is Outcome.ALLOWED
        assert exchange.decision.account == "ip:203.0.113.9"
        assert exchange.facts.native is scope
        await hello(scope, receive, send)

    scope = http_scope()
    assert (await send_request(guarded(app, limits=["1/minute"]), scope)).status == 200
    assert "abuseguard" not in scope


async def test_a_request_leaves_nothing_to_the_cycle_collector():
    guard = guarded(hello, limits=["2/minute"])
    await get(guard)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await get(guard)
        gc.collect()
        ours = [item for item in gc.garbage if type(item).__module__.startswith("abuseguard")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert ours == []


async def test_one_guard_inside_another():
    inner = guarded(hello, limits=[Limit("5/minute", name="inner")])
    response = await get(guarded(inner, limits=[Limit("10/minute", name="outer")]))
    assert response.structured("ratelimit") == {"inner": {"r": 4, "t": 12}, "outer": {"r": 9, "t": 6}}


class TestLimitsOfARoute:
    """``scope["abuseguard"].decide_limits``, what the adapters build on."""

    @staticmethod
    def app(*limits, answers=True, started=False):
        async def app(scope, receive, send):
            if started:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            for limit in limits:
                answer = await scope["abuseguard"].decide_limits([limit])
                if answer is not None and not answers:
                    return
            if started:
                await send({"type": "http.response.body", "body": b"late"})
            else:
                await hello(scope, receive, send)

        return app

    async def test_all_limits_are_told(self):
        app = self.app(Limit("5/minute", name="route"), Limit("3/minute", name="other"))
        response = await get(guarded(app, limits=[Limit("10/minute", name="all")]))
        assert response.structured("ratelimit-policy") == {
            "all": {"q": 10, "w": 60},
            "route": {"q": 5, "w": 60},
            "other": {"q": 3, "w": 60},
        }
        assert {name: state["r"] for name, state in response.structured("ratelimit").items()} == {
            "all": 9,
            "route": 4,
            "other": 2,
        }

    @pytest.mark.parametrize("answers", [True, False], ids=["app-answers", "app-returns"])
    async def test_denial_takes_the_place_of_the_response(self, answers):
        guard = guarded(self.app(Limit("1/minute", name="route"), answers=answers), limits=["10/minute"])
        await get(guard)
        response = await get(guard)
        assert (response.status, response.problem["violated-policies"]) == (429, ["route"])
        assert len(response.messages) == 2
        assert response.field("retry-after") == "60"
        head = await send_request(guard, http_scope("HEAD"))
        assert (head.status, head.body) == (429, b"")

    async def test_denial_gives_back_what_the_other_limits_took(self):
        app = self.app(Limit("5/minute", name="first"), Limit("1/minute", name="second"))
        guard = guarded(app, limits=[Limit("10/minute", name="all")])
        assert (await get(guard)).status == 200
        for _ in range(20):
            assert (await get(guard)).status == 429
        after = await get(guarded(self.app(Limit("5/minute", name="first")), guard=guard.guard))
        assert {name: state["r"] for name, state in after.structured("ratelimit").items()} == {"all": 8, "first": 3}

    async def test_a_response_that_has_begun_goes_on(self):
        guard = guarded(self.app(Limit("1/minute", name="route"), started=True), limits=["10/minute"])
        for _ in range(2):
            response = await get(guard)
            assert (response.status, response.body) == (200, b"late")

    async def test_observing_never_denies(self):
        guard = guarded(self.app(Limit("1/minute", name="route")), limits=["10/minute"], mode="observe")
        for _ in range(3):
            assert (await get(guard)).status == 200
        assert guard.guard.outcomes[Outcome.DENIED] == 2

    async def test_exempt_requests_are_exempt_here_too(self):
        guard = guarded(self.app(Limit("1/minute", name="route")), limits=["10/minute"], exempt_paths=["/free"])
        for _ in range(3):
            response = await get(guard, "/free")
            assert (response.status, response.fields("ratelimit")) == (200, [])

    async def test_no_address_is_no_account_here_either(self):
        guard = guarded(self.app(Limit("1/minute", name="route")), limits=["1/minute"])
        for _ in range(3):
            assert (await get(guard, client=None)).status == 200


class TestLifespan:
    @staticmethod
    async def run(app, messages):
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message["type"])

        await app({"type": "lifespan", "state": {}}, receive, send)
        return sent

    @staticmethod
    async def lifespan_app(scope, receive, send):
        for _ in range(2):
            kind = (await receive())["type"]
            scope["state"]["seen"] = kind
            await send({"type": f"{kind}.complete"})

    @staticmethod
    def messages():
        return [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def test_passes_and_closes_the_guard(self):
        closed_at = []

        class Guard(AsyncGuard):
            async def close(self):
                closed_at.append(len(sent))
                await super().close()

        middleware = guarded(self.lifespan_app, limits=["1/minute"])
        middleware.guard = Guard(Settings())
        sent = []

        async def send(message):
            sent.append(message["type"])

        messages = self.messages()

        async def receive():
            return messages.pop(0)

        await middleware({"type": "lifespan", "state": {}}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert closed_at == [1]

    async def test_a_shared_guard_stays_open(self):
        guard = AsyncGuard(Settings(limits=["1/minute"]), clock=ManualClock())
        app = AbuseGuardMiddleware(self.lifespan_app, guard=guard)
        await get(AbuseGuardMiddleware(hello, guard=guard))
        assert len(await self.run(app, self.messages())) == 2
        assert (await get(AbuseGuardMiddleware(hello, guard=guard))).status == 429

    async def test_an_application_without_lifespan_keeps_its_guard(self):
        async def app(scope, receive, send):
            assert scope["type"] != "lifespan", "not supported"
            await hello(scope, receive, send)

        guard = guarded(app, limits=["1/minute"])
        await get(guard)
        with pytest.raises(AssertionError, match="not supported"):
            await self.run(guard, self.messages())
        assert (await get(guard)).status == 429


class TestArguments:
    def test_settings_of_the_environment(self, monkeypatch):
        for name in os.environ:
            if name.startswith("ABUSEGUARD_"):  # the tests have some of their own
                monkeypatch.delenv(name)
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "7/minute")
        assert AbuseGuardMiddleware(hello).guard.settings.limits == (Limit("7/minute"),)

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ({"settings": {"limits": ["7/minute"]}}, "settings"),
            ({"settings": "7/minute"}, "settings"),
            ({"guard": Guard(Settings())}, "guard"),
            ({"guard": AsyncGuard(Settings()), "settings": Settings()}, "settings"),
        ],
        ids=["mapping", "text", "guard-that-blocks", "both"],
    )
    def test_what_is_wrong_is_named(self, arguments, field):
        with pytest.raises(SettingsError) as raised:
            AbuseGuardMiddleware(hello, **arguments)
        assert raised.value.field == field
