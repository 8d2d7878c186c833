"""WebSockets: the handshake is a request like any other, and messages count where a limit says so."""

from __future__ import annotations

import asyncio
import json

import pytest

from abuseguard import Limit, Outcome
from tests.asgi.driver import Response, get, guarded, hello, http_scope

pytestmark = pytest.mark.anyio

CONNECT = {"type": "websocket.connect"}
DENIAL = {"websocket.http.response": {}}


def websocket_scope(path="/", headers=(), **further):
    scope = http_scope("GET", path, headers, **further)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": []}


def text(message):
    return {"type": "websocket.receive", "text": message}


class Server:
    """The server's end of one connection: raises on what a server raises on.

    Args:
        messages: what comes once the application has accepted.
        patient: whether each of them waits until the one before was answered.
    """

    def __init__(self, *messages, patient=False):
        self.messages = list(messages)
        self.sent = []
        self.asked = False
        self.patient = patient
        self.may_send = asyncio.Event()

    async def receive(self):
        if not self.asked:
            self.asked = True
            return CONNECT
        await self.may_send.wait()
        if self.patient:
            self.may_send.clear()
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message):
        # An application may accept without looking, and Quart does.
        assert self.asked or message["type"] == "websocket.accept", "refused before the connection was asked for"
        assert not self.sent or self.sent[-1]["type"] != "websocket.close", "sent after the close"
        self.sent.append(message)
        if message["type"] in ("websocket.accept", "websocket.send"):
            self.may_send.set()

    @property
    def types(self):
        return [message["type"].removeprefix("websocket.") for message in self.sent]

    async def serve(self, app, scope=None):
        await app(websocket_scope() if scope is None else scope, self.receive, self.send)
        return self


async def echo(scope, receive, send):
    """Accepts, and sends back what comes."""
    assert (await receive()) == CONNECT
    await send({"type": "websocket.accept", "subprotocol": None})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    scope["ended"] = message["code"]


async def chat(app, *words, scope=None):
    server = Server(*map(text, words), {"type": "websocket.disconnect", "code": 1000})
    return await server.serve(app, scope)


async def test_accepting_tells_the_limits():
    server = await chat(guarded(echo, limits=["2/minute"]), "a", "b")
    assert server.types == ["accept", "send", "send"]
    accept = server.sent[0]
    assert dict(accept["headers"]) == {
        b"ratelimit-policy": b'"2-per-minute";q=2;w=60',
        b"ratelimit": b'"2-per-minute";r=1;t=30',
    }
    assert accept["subprotocol"] is None
    assert [message["text"] for message in server.sent[1:]] == ["a", "b"]


async def test_the_applications_own_headers_stay():
    own = {"type": "websocket.accept", "headers": [(b"set-cookie", b"a=1")]}

    async def app(scope, receive, send):
        await receive()
        await send(own)

    for _ in range(2):
        server = await chat(guarded(app, limits=["2/minute"]))
        assert server.sent[0]["headers"][0] == (b"set-cookie", b"a=1")
        assert len(server.sent[0]["headers"]) == 3
    assert own["headers"] == [(b"set-cookie", b"a=1")]


class TestRefusedHandshake:
    async def test_with_a_response_where_the_server_can(self):
        guard = guarded(echo, limits=["1/minute"])
        await chat(guard)
        server = await chat(guard, scope=websocket_scope(extensions=DENIAL))
        response = Response(server.sent)
        assert server.types == ["http.response.start", "http.response.body"]
        assert (response.status, response.field("retry-after")) == (429, "60")
        assert response.problem["violated-policies"] == ["1-per-minute"]
        assert response.field("content-length") == str(len(response.body))
        assert response.structured("ratelimit") == {"1-per-minute": {"r": 0, "t": 60}}

    @pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {"tls": {}}}], ids=str)
    async def test_by_closing_where_it_cannot(self, extensions):
        guard = guarded(echo, limits=["1/minute"])
        await chat(guard)
        server = await chat(guard, scope=websocket_scope(**extensions))
        assert server.sent == [{"type": "websocket.close", "code": 1013, "reason": "limit reached"}]

    async def test_handshakes_and_requests_share_their_limits(self):
        async def app(scope, receive, send):
            await (echo if scope["type"] == "websocket" else hello)(scope, receive, send)

        guard = guarded(app, limits=["2/minute"])
        await chat(guard)
        assert (await get(guard)).status == 200
        assert (await get(guard)).status == 429

    async def test_limits_can_be_for_handshakes_only(self):
        guard = guarded(echo, limits=[Limit("1/minute", methods=["WEBSOCKET"])])
        assert (await chat(guard)).types == ["accept"]
        assert (await chat(guard)).types == ["close"]

    async def test_observing_refuses_none(self):
        guard = guarded(echo, limits=["1/minute"], mode="observe")
        for _ in range(3):
            assert (await chat(guard)).sent == [{"type": "websocket.accept", "subprotocol": None}]
        assert guard.guard.outcomes[Outcome.DENIED] == 2


class TestMessages:
    LIMITS = ("100/minute", Limit("3/minute", unit="messages", name="messages"))

    async def test_the_one_above_the_limit_closes_the_connection(self):
        scope = websocket_scope()
        server = await chat(guarded(echo, limits=self.LIMITS), *"abcde", scope=scope)
        assert server.types == ["accept", "send", "send", "send", "close"]
        assert server.sent[-1]["code"] == 1013
        assert scope["ended"] == 1013

    async def test_they_count_over_connections(self):
        guard = guarded(echo, limits=self.LIMITS)
        assert (await chat(guard, *"ab")).types == ["accept", "send", "send"]
        assert (await chat(guard, *"cd")).types == ["accept", "send", "close"]

    async def test_what_the_application_sends_after_that_goes_nowhere(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            assert (await receive())["type"] == "websocket.receive"
            for _ in range(3):
                assert await receive() == {"type": "websocket.disconnect", "code": 1013}
                await send({"type": "websocket.send", "text": "still there?"})
            await send({"type": "websocket.close"})

        server = await chat(guarded(app, limits=[Limit("1/minute", unit="messages")]), *"ab")
        assert server.types == ["accept", "close"]

    async def test_after_the_application_has_closed_none_counts(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1000})
            assert (await receive())["text"] == "a"
            assert (await receive())["text"] == "b"
            assert (await receive())["code"] == 1006

        server = Server(text("a"), text("b"), {"type": "websocket.disconnect", "code": 1006})
        await server.serve(guarded(app, limits=[Limit("1/minute", unit="messages")]))
        assert server.types == ["accept", "close"]

    async def test_observing_closes_none(self):
        server = await chat(guarded(echo, limits=self.LIMITS, mode="observe"), *"abcde")
        assert server.types == ["accept"] + ["send"] * 5

    async def test_exempt_connections(self):
        guard = guarded(echo, limits=self.LIMITS, exempt_paths=["/free"])
        server = await chat(guard, *"abcde", scope=websocket_scope("/free"))
        assert server.types == ["accept"] + ["send"] * 5

    async def test_connections_without_an_address_are_let_pass_by_default(self):
        server = await chat(guarded(echo, limits=self.LIMITS), *"abcde", scope=websocket_scope(client=None))
        assert server.types == ["accept"] + ["send"] * 5

    async def test_messages_of_some_routes(self):
        limit = Limit("1/minute", unit="messages", routes=["/chat"])
        guard = guarded(echo, limits=[limit])
        assert (await chat(guard, *"ab", scope=websocket_scope("/chat"))).types == ["accept", "send", "close"]
        assert (await chat(guard, *"ab", scope=websocket_scope("/feed"))).types == ["accept", "send", "send"]


class TestLimitsOfARoute:
    @staticmethod
    def app(*limits, asks_late=False, accept_first=False):
        async def app(scope, receive, send):
            if not asks_late:
                await receive()
            if accept_first:
                await send({"type": "websocket.accept"})
            answer = await scope["abuseguard"].decide_limits(limits)
            # As exception handlers do, whichever they are.
            if answer is not None:
                await send({"type": "websocket.http.response.start", "status": answer.status, "headers": []})
                await send({"type": "websocket.http.response.body", "body": b"the application's own"})
                await send({"type": "websocket.close"})
            elif not accept_first:
                if asks_late:
                    assert await receive() == CONNECT
                await send({"type": "websocket.accept"})

        return app

    @pytest.mark.parametrize("asks_late", [False, True])
    async def test_refuse_the_handshake(self, asks_late):
        guard = guarded(self.app(Limit("1/minute", name="route"), asks_late=asks_late), limits=["10/minute"])
        assert (await chat(guard)).types == ["accept"]
        server = await chat(guard, scope=websocket_scope(extensions=DENIAL))
        assert server.types == ["http.response.start", "http.response.body"]
        assert json.loads(server.sent[1]["body"])["violated-policies"] == ["route"]
        assert (await chat(guard)).sent == [{"type": "websocket.close", "code": 1013, "reason": "limit reached"}]

    async def test_all_limits_are_told(self):
        guard = guarded(self.app(Limit("5/minute", name="route")), limits=[Limit("10/minute", name="all")])
        headers = dict((await chat(guard)).sent[0]["headers"])
        assert headers[b"ratelimit"] == b'"all";r=9;t=6, "route";r=4;t=12'

    async def test_close_what_was_accepted(self):
        guard = guarded(self.app(Limit("1/minute", name="route"), accept_first=True), limits=["10/minute"])
        assert (await chat(guard)).types == ["accept"]
        server = await chat(guard, scope=websocket_scope(extensions=DENIAL))
        assert server.types == ["accept", "close"]
        assert server.sent[-1]["code"] == 1013

    @pytest.mark.parametrize("accept_first", [False, True])
    @pytest.mark.parametrize("closed_by", ["guard", "application"])
    async def test_a_connection_is_ended_once(self, accept_first, closed_by):
        async def app(scope, receive, send):
            await receive()
            if accept_first:
                await send({"type": "websocket.accept"})
            if closed_by == "application":
                await send({"type": "websocket.close"})
            for _ in range(3):
                await scope["abuseguard"].decide_limits([Limit("1/minute", name="route")])

        server = await chat(guarded(app, limits=["10/minute"]))
        assert server.types == ["accept"] * accept_first + ["close"]

    async def test_denial_gives_back_what_the_other_limits_took(self):
        guard = guarded(self.app(Limit("1/minute", name="route")), limits=["3/minute"])
        for expected in (["accept"], ["close"], ["close"], ["close"]):
            assert (await chat(guard)).types == expected
        assert (await chat(guarded(echo, guard=guard.guard))).types == ["accept"]


async def test_exceptions_pass_and_leave_no_exchange():
    async def app(scope, receive, send):
        raise ValueError("own")

    scope = websocket_scope()
    with pytest.raises(ValueError, match="own"):
        await chat(guarded(app, limits=["1/minute"]), scope=scope)
    assert "abuseguard" not in scope
