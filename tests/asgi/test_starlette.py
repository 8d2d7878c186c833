"""Starlette behind the guard: other middlewares inside and outside, background tasks, mounted applications."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from abuseguard import Limit, Settings
from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard.clock import ManualClock
from tests.asgi.driver import Response, get, guarded, http_scope, send_request

pytestmark = pytest.mark.anyio

LIMITS = (Limit("3/minute", name="all"),)


def starlette_app(**options):
    async def plain(request):
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", plain)], **options)


async def test_background_tasks_run_after_the_response():
    response = Response()

    async def work():
        response.messages.append({"type": "background"})

    async def endpoint(request):
        return PlainTextResponse("hello", background=BackgroundTask(work))

    guard = guarded(Starlette(routes=[Route("/", endpoint)]), limits=LIMITS)
    await send_request(guard, http_scope(), response=response)
    assert [message["type"] for message in response.messages][-2:] == ["http.response.body", "background"]


@pytest.mark.parametrize("order", ["inside", "outside"])
async def test_base_http_middleware(order):
    class Tagging(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            response = await call_next(request)
            response.headers["x-tag"] = str(response.status_code)
            return response

    own = Middleware(AbuseGuardMiddleware, settings=Settings(limits=["1/minute"]), clock=ManualClock())
    tagging = Middleware(Tagging)
    middleware = [own, tagging] if order == "inside" else [tagging, own]
    app = starlette_app(middleware=middleware)
    response = await get(app)
    assert (response.status, response.body, response.field("x-tag")) == (200, b"hello", "200")
    assert response.structured("ratelimit") == {"1-per-minute": {"r": 0, "t": 60}}
    response = await get(app)
    assert response.problem["status"] == 429
    assert response.field("x-tag") == ("429" if order == "outside" else None)


async def test_compression_inside_and_outside():
    async def endpoint(request):
        return PlainTextResponse("x" * 5000)

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(GZipMiddleware)])
    for wrapped in (guarded(app, limits=LIMITS), GZipMiddleware(guarded(app, limits=LIMITS))):
        response = await get(wrapped, headers=[("accept-encoding", "gzip")])
        assert response.field("content-encoding") == "gzip"
        assert response.field("content-length") == str(len(response.body))
        assert "all" in response.structured("ratelimit")


async def test_users_of_the_authentication_middleware():
    class Backend(AuthenticationBackend):
        async def authenticate(self, conn):
            name = conn.headers.get("x-name")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    guard = guarded(starlette_app(), limits=["1/minute"], account="user")
    app = AuthenticationMiddleware(guard, backend=Backend())
    found = [(await get(app, headers=[("x-name", name)])).status for name in ("ada", "ada", "grace")]
    assert found == [200, 429, 200]
    # Nobody in particular: by address.
    assert [(await get(app)).status for _ in range(2)] == [200, 429]


async def test_a_preflight_is_answered_by_the_middleware_outside():
    guard = guarded(starlette_app(), limits=["1/minute"])
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


async def test_a_preflight_that_comes_through_counts():
    """Whatever a client may call its requests, it gets no more of them."""
    guard = guarded(CORSMiddleware(starlette_app(), allow_origins=["*"]), limits=["1/minute"])
    preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")]
    found = [(await send_request(guard, http_scope("OPTIONS", "/", preflight))).status for _ in range(2)]
    assert found == [200, 429]


async def test_patterns_see_the_whole_path_in_a_mounted_application():
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
async def test_the_path_that_patterns_see(scope, path):
    seen = []
    guard = guarded(starlette_app(), limits=["9/minute"], observer=lambda facts, _: seen.append(facts.path))
    await send_request(guard, http_scope(**scope))
    assert seen == [path]
