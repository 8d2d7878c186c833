"""LLM tokens: reserved before the application runs, settled when its response has gone, however that goes."""

from __future__ import annotations

import asyncio
import json

import pytest

from abuseguard import Limit, Outcome, Settings, StoreError
from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard.buckets.memory import AsyncMemoryStore, MemoryStore
from abuseguard.clock import ManualClock
from abuseguard.guard import AsyncGuard
from tests.asgi.driver import (
    DISCONNECT,
    Response,
    body_messages,
    get,
    guarded,
    hello,
    http_scope,
    post,
    send_request,
)

pytestmark = pytest.mark.anyio

TOKENS = Limit("1000/day", unit="tokens", name="tokens")
# Sixteen bytes of text are four tokens to read; up to fifty to write.
PROMPT = json.dumps({"messages": [{"role": "user", "content": "Why is sky blue?"}], "max_tokens": 50}).encode()
RESERVED = 54
DELTA = b'data: {"choices":[{"delta":{"content":"so"}}]}\n\n'
OPENAI = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}
ANTHROPIC = {"type": "message", "content": [], "usage": {"input_tokens": 5, "output_tokens": 7}}


def answering(*chunks, status=200, content_type="application/json"):
    async def app(scope, receive, send):
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunks[-1]})

    return app


async def start_stream(send, chunks=1):
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(chunks):
        await send({"type": "http.response.body", "body": DELTA, "more_body": True})


async def left(guard):
    """The tokens left, as a request that needs none is told."""
    return (await get(AbuseGuardMiddleware(hello, guard=guard.guard))).structured("ratelimit")["tokens"]["r"]


def limited(app, **settings):
    return guarded(app, limits=[TOKENS], **settings)


async def test_reserved_while_the_application_runs():
    async def app(scope, receive, send):
        assert await left(guard) == 1000 - RESERVED
        await hello(scope, receive, send)

    guard = limited(app)
    response = await post(guard, body=PROMPT)
    assert response.structured("ratelimit-policy") == {"tokens": {"q": 1000, "w": 86400, "qu": "tokens"}}
    assert response.structured("ratelimit")["tokens"]["r"] == 1000 - RESERVED


@pytest.mark.parametrize("usage", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_settled_by_what_the_response_reports(usage, pieces):
    body = json.dumps(usage).encode()
    step = -(-len(body) // pieces)
    guard = limited(answering(*[body[start : start + step] for start in range(0, len(body), step)]))
    assert (await post(guard, body=PROMPT)).body == body
    assert await left(guard) == 1000 - 12


async def test_settled_by_the_last_events_of_a_stream():
    events = [DELTA] * 30 + [b"data: " + json.dumps(OPENAI).encode() + b"\n\n", b"data: [DONE]\n\n"]
    guard = limited(answering(*events, b"", content_type="text/event-stream; charset=utf-8"))
    response = await post(guard, body=PROMPT)
    assert response.chunks == [*events, b""]
    assert await left(guard) == 1000 - 12


async def test_a_stream_that_reports_nothing_is_counted():
    guard = limited(answering(*[DELTA] * 30, b"data: [DONE]\n\n", content_type="text/event-stream"))
    await post(guard, body=PROMPT)
    assert await left(guard) == 1000 - 4 - 30


async def test_more_than_was_reserved_is_a_debt():
    clock = ManualClock()
    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 1495}}
    guard = limited(answering(json.dumps(usage).encode()), clock=clock)
    assert (await post(guard, body=PROMPT)).status == 200
    assert await left(guard) == 0
    assert (await post(guard, body=PROMPT)).status == 429
    clock.advance(seconds=86400 * 0.5)
    assert (await post(guard, body=PROMPT)).status == 429
    clock.advance(seconds=86400 * 0.1)
    assert (await post(guard, body=PROMPT)).status == 200


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_errors_cost_nothing(status):
    guard = limited(answering(b'{"error": "no"}', status=status))
    await post(guard, body=PROMPT)
    assert await left(guard) == 1000


async def test_requests_that_are_not_for_a_model_cost_nothing():
    guard = limited(answering(b'{"users": []}'))
    await post(guard, body=b'{"name": "Ada"}')
    assert await left(guard) == 1000


async def test_denied_requests_cost_nothing():
    guard = limited(hello)
    body = json.dumps({"prompt": "", "max_tokens": 2000}).encode()
    response = await post(guard, body=body)
    assert (response.status, response.field("retry-after")) == (429, None)
    assert await left(guard) == 1000


@pytest.mark.parametrize("answers", [True, False], ids=["app-answers", "app-returns"])
async def test_a_denial_by_the_routes_own_limit_gives_back_what_was_reserved(answers):
    async def app(scope, receive, send):
        answer = await scope["abuseguard"].decide_limits([Limit("1/minute", name="route")])
        if answer is None or answers:
            await answering(json.dumps(OPENAI).encode())(scope, receive, send)

    guard = limited(app)
    assert (await post(guard, body=PROMPT)).status == 200
    for _ in range(3):
        assert (await post(guard, body=PROMPT)).problem["violated-policies"] == ["route"]
    assert await left(guard) == 1000 - 12


@pytest.mark.parametrize("length", [10, 100_000])
async def test_a_body_that_is_not_read_is_estimated_by_its_length(length):
    async def app(scope, receive, send):
        exchange = scope["abuseguard"]
        assert exchange.decision.plan.tokens == 300 + (length // 4 if declared else 0)
        await hello(scope, receive, send)

    guard = guarded(app, limits=[Limit("1000000/day", unit="tokens")], max_body_bytes=1024, default_output_tokens=300)
    for declared in (False, True):
        headers = [("content-type", "application/json")] + [("content-length", str(length))] * declared
        if declared and length < 1024:
            continue  # is read
        scope = http_scope("POST", "/", headers)
        assert (await send_request(guard, scope, body_messages(b"x" * length))).status == 200


async def test_fifty_at_once_cannot_overspend():
    running = 0
    most = asyncio.Event()

    async def app(scope, receive, send):
        nonlocal running
        running += 1
        await most.wait()
        await answering(json.dumps(OPENAI).encode())(scope, receive, send)

    guard = limited(app)
    requests = [asyncio.create_task(post(guard, body=PROMPT)) for _ in range(50)]
    await asyncio.sleep(0.01)
    assert running == 1000 // RESERVED
    most.set()
    responses = await asyncio.gather(*requests)
    assert sorted(response.status for response in responses) == [200] * 18 + [429] * 32
    assert await left(guard) == 1000 - 18 * 12


class TestEndings:
    """Four tokens are read, and as many written as chunks were sent."""

    async def test_the_server_says_on_sending_that_the_client_is_gone(self):
        sent = 0

        async def send(message):
            nonlocal sent
            sent += 1
            if sent > 4:
                raise OSError("gone")

        async def app(scope, receive, send):
            await start_stream(send, chunks=100)

        guard = limited(app)
        scope, messages = http_scope("POST", "/", _json_headers()), body_messages(PROMPT)

        async def receive():
            return messages.pop(0)

        with pytest.raises(OSError, match="gone"):
            await guard(scope, receive, send)
        # The chunk that could not be sent was written all the same.
        assert await left(guard) == 1000 - 4 - 4

    async def test_the_application_is_told_that_the_client_is_gone(self):
        async def app(scope, receive, send):
            await receive()
            await start_stream(send, chunks=6)
            assert await receive() == DISCONNECT

        guard = limited(app)
        await send_request(guard, http_scope("POST", "/", _json_headers()), [*body_messages(PROMPT), DISCONNECT])
        assert await left(guard) == 1000 - 4 - 6

    async def test_the_request_is_cancelled(self):
        streaming = asyncio.Event()

        async def app(scope, receive, send):
            await start_stream(send, chunks=5)
            streaming.set()
            await asyncio.Event().wait()

        guard = limited(app)
        task = asyncio.create_task(post(guard, body=PROMPT))
        await streaming.wait()
        assert await left(guard) == 1000 - RESERVED
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left(guard) == 1000 - 4 - 5

    @pytest.mark.parametrize("how", ["cancelled", "told", "told-and-raises"])
    async def test_gone_before_the_response_began_costs_what_was_reserved(self, how):
        """The model may be at work: or else a client could have it work for nothing."""
        running = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            running.set()
            if how == "cancelled":
                await asyncio.Event().wait()
            assert await receive() == DISCONNECT
            if how == "told-and-raises":
                raise ValueError("own")

        guard = limited(app)
        scope = http_scope("POST", "/", _json_headers())
        task = asyncio.create_task(send_request(guard, scope, [*body_messages(PROMPT), DISCONNECT]))
        await running.wait()
        if how == "cancelled":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await left(guard) == 1000 - RESERVED

    @pytest.mark.parametrize("error", [ValueError("own"), ConnectionRefusedError("upstream"), TimeoutError()], ids=repr)
    async def test_an_exception_before_the_response_costs_nothing(self, error):
        async def app(scope, receive, send):
            raise error

        guard = limited(app)
        with pytest.raises(type(error)):
            await post(guard, body=PROMPT)
        assert await left(guard) == 1000

    async def test_an_exception_within_the_response_costs_what_was_sent(self):
        async def app(scope, receive, send):
            await start_stream(send, chunks=3)
            raise ValueError("own")

        guard = limited(app)
        with pytest.raises(ValueError, match="own"):
            await post(guard, body=PROMPT)
        assert await left(guard) == 1000 - 4 - 3

    async def test_an_application_that_sends_nothing_costs_nothing(self):
        async def app(scope, receive, send):
            return

        guard = limited(app)
        await post(guard, body=PROMPT)
        assert await left(guard) == 1000

    async def test_settled_before_the_work_in_the_background_is_done(self):
        async def app(scope, receive, send):
            await answering(json.dumps(OPENAI).encode())(scope, receive, send)
            await asyncio.sleep(0)
            assert await left(guard) == 1000 - 12
            raise ValueError("in the background")

        guard = limited(app)
        with pytest.raises(ValueError, match="background"):
            await post(guard, body=PROMPT)
        assert await left(guard) == 1000 - 12

    async def test_a_file_that_the_server_sends_by_itself(self):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.pathsend", "path": "/etc/hostname"})
            await asyncio.sleep(0)
            assert await left(guard) == 1000 - 4

        guard = limited(app)
        await post(guard, body=PROMPT)
        assert await left(guard) == 1000 - 4

    async def test_a_request_that_is_dropped_with_its_event_loop(self):
        """As when an event loop is closed: there is nothing to wait with, and nothing may be tried."""

        async def app(scope, receive, send):
            await Forever()

        class Forever:
            def __await__(self):
                yield

        guard = limited(app)
        request = guard(http_scope("GET", "/"), None, None)
        request.send(None)
        request.close()


class SlowStore(AsyncMemoryStore):
    """A store whose corrections wait until they may."""

    def __init__(self):
        super().__init__(MemoryStore(clock=ManualClock()))
        self.may = asyncio.Event()
        self.waiting = asyncio.Event()

    async def adjust(self, account, adjustments):
        self.waiting.set()
        await self.may.wait()
        await super().adjust(account, adjustments)


class TestSlowStore:
    @staticmethod
    def guarded(app):
        store = SlowStore()
        guard = AsyncGuard(Settings(limits=[TOKENS]), store=store)
        return AbuseGuardMiddleware(app, guard=guard), store

    async def test_a_request_cancelled_while_it_is_settled_is_settled(self):
        guard, store = self.guarded(answering(json.dumps(OPENAI).encode()))
        task = asyncio.create_task(post(guard, body=PROMPT))
        await store.waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left(guard) == 1000 - RESERVED
        store.may.set()
        await asyncio.sleep(0.01)
        assert await left(guard) == 1000 - 12

    async def test_the_response_does_not_wait_for_the_settlement(self):
        response = Response()
        guard, store = self.guarded(answering(json.dumps(OPENAI).encode()))
        scope = http_scope("POST", "/", _json_headers())
        task = asyncio.create_task(send_request(guard, scope, body_messages(PROMPT), response=response))
        await store.waiting.wait()
        assert json.loads(response.body) == OPENAI
        assert response.messages[-1].get("more_body", False) is False
        store.may.set()
        await task

    async def test_the_shutdown_waits_for_settlements(self):
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await send({"type": "lifespan.shutdown.complete"})
            else:
                await answering(json.dumps(OPENAI).encode())(scope, receive, send)

        store = SlowStore()
        guard = limited(app)
        guard.guard = AsyncGuard(Settings(limits=[TOKENS]), store=store)
        request = asyncio.create_task(post(guard, body=PROMPT))
        await store.waiting.wait()
        request.cancel()
        sent = []

        async def send(message):
            sent.append(message)

        shutdown = asyncio.create_task(guard({"type": "lifespan"}, None, send))
        await asyncio.sleep(0.01)
        assert sent == []
        store.may.set()
        await shutdown
        assert len(sent) == 1


async def test_a_settlement_that_the_store_does_not_take_is_counted():
    class Failing(AsyncMemoryStore):
        async def adjust(self, account, adjustments):
            raise StoreError("away")

    guard = AsyncGuard(Settings(limits=[TOKENS]), store=Failing(MemoryStore()))
    response = await post(AbuseGuardMiddleware(answering(b"{}"), guard=guard), body=PROMPT)
    assert (response.status, response.body) == (200, b"{}")
    assert guard.unsettled == 1


async def test_observing_reserves_and_settles_and_refuses_nothing():
    guard = limited(answering(json.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 2000}}).encode()))
    observing = guarded(guard.app, limits=[TOKENS], mode="observe")
    for _ in range(3):
        assert (await post(observing, body=PROMPT)).status == 200
    assert observing.guard.outcomes[Outcome.ALLOWED] == 1
    assert observing.guard.outcomes[Outcome.DENIED] == 2


async def test_dynamic_limits_in_tokens():
    guard = guarded(answering(json.dumps(OPENAI).encode()), limits=[lambda facts: TOKENS])
    for used in (12, 24):
        await post(guard, body=PROMPT)
        assert await left(guard) == 1000 - used


async def test_exempt_requests_are_not_charged():
    guard = limited(answering(json.dumps(OPENAI).encode()), exempt_paths=["/free"])
    await post(guard, "/free", body=PROMPT)
    assert await left(guard) == 1000


def _json_headers():
    return [("content-type", "application/json"), ("content-length", str(len(PROMPT)))]
