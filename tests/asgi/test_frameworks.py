"""Starlette, Litestar and Quart behind the guard: plain and streamed responses, WebSockets, exceptions, mounts."""

from __future__ import annotations

import asyncio

import pytest
from litestar import Litestar, WebSocket
from litestar import get as litestar_get
from litestar import websocket as litestar_websocket
from litestar.response import Stream
from quart import Quart
from quart import websocket as quart_websocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from abuseguard import Limit
from tests.asgi.driver import Response, get, guarded, http_scope, send_request
from tests.asgi.test_websocket import DENIAL, Server, text, websocket_scope

pytestmark = pytest.mark.anyio

EVENTS = [b"data: %d\n\n" % number for number in range(3)]
LIMITS = (Limit("3/minute", name="all"), Limit("2/minute", unit="messages", name="messages"))


class Events:
    """A stream whose next event is made only if the one before has arrived."""

    def __init__(self):
        self.response = Response()
        self.finished = False

    async def __aiter__(self):
        for event in EVENTS:
            yield event
            assert event in self.response.chunks
        self.finished = True


def starlette_app(events):
    async def echo(websocket):
        await websocket.accept()
        async for message in websocket.iter_text():
            await websocket.send_text(message)

    async def plain(request):
        return PlainTextResponse("hello")

    async def stream(request):
        return StreamingResponse(events, media_type="text/event-stream")

    async def error(request):
        raise ValueError("own")

    return Starlette(
        routes=[Route("/", plain), Route("/stream", stream), Route("/error", error), WebSocketRoute("/ws", echo)]
    )


def litestar_app(events):
    @litestar_get("/", media_type="text/plain", sync_to_thread=False)
    def plain() -> str:
        return "hello"

    @litestar_get("/stream")
    async def stream() -> Stream:
        return Stream(aiter(events), media_type="text/event-stream")

    @litestar_get("/error", sync_to_thread=False)
    def error() -> str:
        raise ValueError("own")

    @litestar_websocket("/ws")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for message in socket.iter_data():
            await socket.send_text(message)

    # Names in annotations are looked up among a module's globals, and here they are local.
    return Litestar([plain, stream, error, echo], openapi_config=None, signature_namespace={"Stream": Stream})


def quart_app(events):
    app = Quart(__name__)

    @app.get("/")
    async def plain():
        return "hello", {"content-type": "text/plain"}

    @app.get("/stream")
    async def stream():
        return aiter(events), {"content-type": "text/event-stream"}

    @app.get("/error")
    async def error():
        raise ValueError("own")

    @app.websocket("/ws")
    async def echo():
        while True:
            await quart_websocket.send(await quart_websocket.receive())

    return app


FRAMEWORKS = pytest.mark.parametrize("framework", [starlette_app, litestar_app, quart_app])


def behind_the_guard(framework, events=None, **settings):
    return guarded(framework(events), limits=LIMITS, **settings)


@FRAMEWORKS
async def test_allowed_then_denied(framework):
    guard = behind_the_guard(framework)
    for remaining in (2, 1, 0):
        response = await get(guard)
        assert (response.status, response.body) == (200, b"hello")
        assert response.structured("ratelimit")["all"]["r"] == remaining
        assert response.field("content-length") == "5"
    response = await get(guard)
    assert response.status == 429
    assert response.problem["violated-policies"] == ["all"]


@FRAMEWORKS
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_streams_arrive_event_by_event(framework, spec_version):
    events = Events()
    guard = behind_the_guard(framework, events)
    scope = http_scope(path="/stream", asgi={"version": "3.0", "spec_version": spec_version})
    await asyncio.wait_for(send_request(guard, scope, response=events.response), 5)
    assert events.finished
    assert events.response.body == b"".join(EVENTS)
    assert events.response.structured("ratelimit")["all"]["r"] == 2


@FRAMEWORKS
@pytest.mark.filterwarnings("ignore")
async def test_error_pages_tell_the_limits(framework, caplog):
    guard = behind_the_guard(framework)
    response = Response()
    try:
        await send_request(guard, http_scope(path="/error"), response=response)
    except ValueError:  # Starlette raises after it has answered, for the server to log
        assert framework is starlette_app
    assert response.status == 500
    assert response.structured("ratelimit")["all"]["r"] == 2
    assert (await get(guard, "/nowhere")).status == 404


@FRAMEWORKS
async def test_websockets(framework):
    guard = behind_the_guard(framework)
    server = Server(*map(text, "abc"), patient=True)
    headers = {"host": "a.example", "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    scope = websocket_scope("/ws", headers.items(), extensions=DENIAL)
    await asyncio.wait_for(server.serve(guard, scope), 5)
    assert server.types == ["accept", "send", "send", "close"]
    assert server.sent[-1]["code"] == 1013
    assert b"ratelimit" in dict(server.sent[0]["headers"])


@FRAMEWORKS
async def test_refused_websockets(framework):
    guard = behind_the_guard(framework)
    for _ in range(3):
        await get(guard)
    server = Server()
    await server.serve(guard, websocket_scope("/ws", extensions=DENIAL))
    assert Response(server.sent).status == 429
