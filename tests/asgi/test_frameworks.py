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
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from abuseguard import Limit, Settings
from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard.clock import ManualClock
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


class TestStarlette:
    async def test_background_tasks_run_after_the_response(self):
        response = Response()

        async def work():
            response.messages.append({"type": "background"})

        async def endpoint(request):
            return PlainTextResponse("hello", background=BackgroundTask(work))

        guard = guarded(Starlette(routes=[Route("/", endpoint)]), limits=LIMITS)
        await send_request(guard, http_scope(), response=response)
        assert [message["type"] for message in response.messages][-2:] == ["http.response.body", "background"]

    @pytest.mark.parametrize("order", ["inside", "outside"])
    async def test_base_http_middleware(self, order):
        class Tagging(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                response = await call_next(request)
                response.headers["x-tag"] = str(response.status_code)
                return response

        own = Middleware(AbuseGuardMiddleware, settings=Settings(limits=["1/minute"]), clock=ManualClock())
        tagging = Middleware(Tagging)
        middleware = [own, tagging] if order == "inside" else [tagging, own]
        app = starlette_app(None)
        app = Starlette(routes=app.routes, middleware=middleware)
        response = await get(app)
        assert (response.status, response.body, response.field("x-tag")) == (200, b"hello", "200")
        assert response.structured("ratelimit") == {"1-per-minute": {"r": 0, "t": 60}}
        response = await get(app)
        assert response.problem["status"] == 429
        assert response.field("x-tag") == ("429" if order == "outside" else None)

    async def test_compression_inside_and_outside(self):
        async def endpoint(request):
            return PlainTextResponse("x" * 5000)

        app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(GZipMiddleware)])
        for wrapped in (guarded(app, limits=LIMITS), GZipMiddleware(guarded(app, limits=LIMITS))):
            response = await get(wrapped, headers=[("accept-encoding", "gzip")])
            assert response.field("content-encoding") == "gzip"
            assert response.field("content-length") == str(len(response.body))
            assert "all" in response.structured("ratelimit")

    async def test_users_of_the_authentication_middleware(self):
        class Backend(AuthenticationBackend):
            async def authenticate(self, conn):
                name = conn.headers.get("x-name")
                return (AuthCredentials(), SimpleUser(name)) if name else None

        guard = guarded(starlette_app(None), limits=["1/minute"], account="user")
        app = AuthenticationMiddleware(guard, backend=Backend())
        found = [(await get(app, headers=[("x-name", name)])).status for name in ("ada", "ada", "grace")]
        assert found == [200, 429, 200]
        # Nobody in particular: by address.
        assert [(await get(app)).status for _ in range(2)] == [200, 429]

    async def test_a_preflight_is_answered_by_the_middleware_outside(self):
        guard = guarded(starlette_app(None), limits=["1/minute"])
        app = CORSMiddleware(guard, allow_origins=["https://a.example"], expose_headers=["RateLimit"])
        origin = ("origin", "https://a.example")
        preflight = http_scope("OPTIONS", "/", [origin, ("access-control-request-method", "GET")])
        for _ in range(3):
            assert (await send_request(app, dict(preflight))).status == 200
        assert (await get(app, headers=[origin])).status == 200
        denied = await get(app, headers=[origin])
        assert denied.status == 429
        assert denied.field("access-control-allow-origin") == "https://a.example"
        assert denied.field("access-control-expose-headers") == "RateLimit"

    async def test_a_preflight_that_comes_through_counts(self):
        """Whatever a client may call its requests, it gets no more of them."""
        guard = guarded(CORSMiddleware(starlette_app(None), allow_origins=["*"]), limits=["1/minute"])
        preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")]
        found = [(await send_request(guard, http_scope("OPTIONS", "/", preflight))).status for _ in range(2)]
        assert found == [200, 429]

    async def test_patterns_see_the_whole_path_in_a_mounted_application(self):
        limited = Middleware(
            AbuseGuardMiddleware,
            settings=Settings(limits=[Limit("1/minute", routes=["/api/v1/items"])]),
            clock=ManualClock(),
        )

        async def items(request):
            return PlainTextResponse("hello")

        inner = Starlette(routes=[Route("/items", items)], middleware=[limited])
        app = Starlette(routes=[Mount("/api", routes=[Mount("/v1", app=inner)]), Mount("/other", app=inner)])
        assert [(await get(app, "/api/v1/items")).status for _ in range(2)] == [200, 429]
        assert [(await get(app, "/other/items")).status for _ in range(2)] == [200, 200]

    @pytest.mark.parametrize(
        ("scope", "path"),
        [
            ({"path": "/v1/items"}, "/v1/items"),
            ({"path": "/v1/items", "root_path": "/app"}, "/v1/items"),
            ({"path": "/app/v1/items", "root_path": "/app"}, "/app/v1/items"),
            # As a mounted application has it, in Starlette since 0.33 and before
            ({"path": "/v1/items", "root_path": "/v1", "app_root_path": ""}, "/v1/items"),
            ({"path": "/items", "root_path": "/v1", "app_root_path": ""}, "/v1/items"),
            ({"path": "/items", "root_path": "/app/v1", "app_root_path": "/app"}, "/v1/items"),
            ({"path": "/v10", "root_path": "/v1", "app_root_path": ""}, "/v1/v10"),
        ],
        ids=str,
    )
    async def test_the_path_that_patterns_see(self, scope, path):
        seen = []
        guard = guarded(starlette_app(None), limits=["9/minute"], observer=lambda facts, _: seen.append(facts.path))
        await send_request(guard, http_scope(**scope))
        assert seen == [path]
