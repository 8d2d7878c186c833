"""FastAPI behind the guard, and limits of its routes."""

# Without `from __future__ import annotations`, so that FastAPI finds what is defined within a test.

from typing import Annotated

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import BaseHTTPMiddleware

from abuseguard import Limit, Outcome, Settings, SettingsError
from abuseguard.clock import ManualClock
from abuseguard.guard import AsyncGuard
from abuseguard_fastapi import AbuseGuardMiddleware, MissingMiddlewareError, RateLimit, RateLimitExceeded
from tests.asgi.driver import Response, get, http_scope, post, send_request
from tests.asgi.test_websocket import DENIAL, Server, text, websocket_scope

pytestmark = pytest.mark.anyio


def fastapi_app(*limits, clock=None, **settings):
    app = FastAPI()
    own = Settings(limits=limits or ["100/minute"], retry_after_jitter=0, **settings)
    app.add_middleware(AbuseGuardMiddleware, settings=own, clock=clock or ManualClock())
    return app


async def statuses(app, *paths, **further):
    return [(await get(app, path, **further)).status for path in paths]


async def route_limits(app, path="/", **further):
    """What is left of each limit but those of the settings, by name."""
    states = (await get(app, path, **further)).structured("ratelimit")
    return {name: state["r"] for name, state in states.items() if name != "100-per-minute"}


class TestMiddleware:
    async def test_one_line(self):
        app = fastapi_app("2/minute")

        @app.get("/")
        async def root() -> dict[str, int]:
            return {"a": 1}

        for remaining in (1, 0):
            response = await get(app)
            assert (response.status, response.body) == (200, b'{"a":1}')
            assert response.structured("ratelimit")["2-per-minute"]["r"] == remaining
        response = await get(app)
        assert (response.status, response.problem["violated-policies"]) == (429, ["2-per-minute"])

    async def test_a_guard_of_ones_own(self):
        guard = AsyncGuard(Settings(limits=["1/minute"]), clock=ManualClock())
        app = FastAPI()
        app.add_middleware(AbuseGuardMiddleware, guard=guard)
        assert await statuses(app, "/", "/") == [404, 429]
        assert guard.outcomes[Outcome.DENIED] == 1

    async def test_validation_errors_and_unknown_paths_count(self):
        app = fastapi_app("2/minute")

        @app.get("/items/{number}")
        async def item(number: int) -> int:
            return number

        assert await statuses(app, "/items/x", "/nowhere", "/items/1") == [422, 404, 429]

    async def test_streams(self):
        app = fastapi_app()
        response = Response()

        async def events():
            for number in range(3):
                yield b"%d" % number
                assert response.chunks[-1] == b"%d" % number

        @app.get("/")
        async def stream() -> StreamingResponse:
            return StreamingResponse(events(), media_type="text/event-stream")

        await send_request(app, http_scope(), response=response)
        assert response.body == b"012"


class TestForms:
    """The same limit in every form in which FastAPI takes a dependency."""

    @staticmethod
    def default(app):
        @app.get("/")
        async def endpoint(limit: None = Depends(RateLimit("2/minute"))) -> int:
            return 1

    @staticmethod
    def annotated(app):
        @app.get("/")
        async def endpoint(limit: Annotated[None, Depends(RateLimit("2/minute"))]) -> int:
            return 1

    @staticmethod
    def alias(app):
        @app.get("/")
        async def endpoint(limit: TwoPerMinute) -> int:
            return 1

    @staticmethod
    def route(app):
        @app.get("/", dependencies=[Depends(RateLimit("2/minute"))])
        async def endpoint() -> int:
            return 1

    @staticmethod
    def plain_function(app):
        @app.get("/", dependencies=[Depends(RateLimit("2/minute"))])
        def endpoint() -> int:
            return 1

    @staticmethod
    def router(app):
        router = APIRouter(dependencies=[Depends(RateLimit("2/minute"))])

        @router.get("/")
        async def endpoint() -> int:
            return 1

        app.include_router(router)

    @staticmethod
    def included(app):
        router = APIRouter()

        @router.get("/")
        async def endpoint() -> int:
            return 1

        app.include_router(router, dependencies=[Depends(RateLimit("2/minute"))])

    @staticmethod
    def nested(app):
        def within(limit: Annotated[None, Depends(RateLimit("2/minute"))]) -> int:
            return 1

        @app.get("/")
        async def endpoint(value: Annotated[int, Depends(within)]) -> int:
            return value

    @staticmethod
    def added(app):
        async def endpoint() -> int:
            return 1

        app.add_api_route("/", endpoint, dependencies=[Depends(RateLimit("2/minute"))])

    @pytest.mark.parametrize(
        "form", [default, annotated, alias, route, plain_function, router, included, nested, added]
    )
    async def test_limits_the_route(self, form):
        app = fastapi_app()
        form.__func__(app)
        response = await get(app)
        assert (response.status, response.body) == (200, b"1")
        (name,) = await route_limits(app)
        assert name.startswith("2-per-minute-GET-")
        response = await get(app)
        assert (response.status, response.problem["violated-policies"]) == (429, [name])
        assert response.field("retry-after") == "30"
        assert response.field("content-type") == "application/problem+json"
        assert len(response.messages) == 2

    @pytest.mark.parametrize("form", [default, annotated, route])
    async def test_is_no_parameter_of_the_api(self, form):
        app = fastapi_app()
        form.__func__(app)
        assert "parameters" not in app.openapi()["paths"]["/"]["get"]


TwoPerMinute = Annotated[None, Depends(RateLimit("2/minute"))]


class TestBuckets:
    async def test_each_route_has_its_own(self):
        app = fastapi_app()
        limit = Depends(RateLimit("1/minute"))

        @app.get("/a", dependencies=[limit])
        @app.get("/b", dependencies=[limit])
        @app.post("/a", dependencies=[limit])
        async def endpoint() -> int:
            return 1

        assert await statuses(app, "/a", "/b", "/a", "/b") == [200, 200, 429, 429]
        assert [(await post(app, "/a")).status for _ in range(2)] == [200, 429]

    async def test_whatever_the_path_parameters_are(self):
        app = fastapi_app()

        @app.get("/items/{number}", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint(number: int) -> int:
            return number

        assert await statuses(app, "/items/1", "/items/2") == [200, 429]

    async def test_a_route_of_several_methods_has_one(self):
        app = fastapi_app()

        @app.api_route("/", methods=["GET", "POST", "HEAD"], dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> int:
            return 1

        assert await statuses(app, "/") == [200]
        assert (await post(app)).status == 429
        head = await send_request(app, http_scope("HEAD"))
        assert (head.status, head.body) == (429, b"")

    async def test_a_router_under_two_prefixes(self):
        app = fastapi_app()
        router = APIRouter(dependencies=[Depends(RateLimit("1/minute"))])
        outer = APIRouter(prefix="/outer")

        @router.get("/a")
        async def endpoint() -> int:
            return 1

        app.include_router(router, prefix="/v1")
        app.include_router(router, prefix="/v2")
        outer.include_router(router, prefix="/inner")
        app.include_router(outer)
        assert await statuses(app, "/v1/a", "/v2/a", "/outer/inner/a") == [200] * 3
        assert await statuses(app, "/v1/a", "/v2/a", "/outer/inner/a") == [429] * 3
        assert (await get(app, "/v1/a")).problem["violated-policies"][0].startswith("1-per-minute-GET-v1.a-")

    async def test_mounted_applications(self):
        outer = fastapi_app()

        def inner(answer):
            app = FastAPI()

            @app.get("/a", dependencies=[Depends(RateLimit("1/minute"))])
            async def endpoint() -> int:
                return answer

            return app

        outer.mount("/{tenant}/api", inner(1))
        # A tenant is the client's to choose, and no bucket comes of it.
        assert await statuses(outer, "/x/api/a", "/y/api/a") == [200, 429]

    async def test_the_same_name_in_every_process(self):
        app = fastapi_app()

        async def parts(number: int) -> int:
            return 1

        parts.__module__, parts.__qualname__ = "shop", "parts"
        limit = RateLimit("1/minute", burst=3, per=by_path)
        app.add_api_route("/items/{number}/parts", parts, dependencies=[Depends(limit)])
        # Names are keys in Redis: with a new one, buckets are full.
        assert list(await route_limits(app, "/items/1/parts")) == ["1-per-minute-GET-items.number.parts-72ccf77f"]

    async def test_long_paths(self):
        app = fastapi_app()
        for end in "ab":

            @app.get("/x" * 100 + end, dependencies=[Depends(RateLimit("1/minute"))])
            async def endpoint() -> int:
                return 1

        names = [*await route_limits(app, "/x" * 100 + "a"), *await route_limits(app, "/x" * 100 + "b")]
        assert names[0] != names[1]
        assert all(len(name) <= 64 for name in names)

    @pytest.mark.parametrize("options", [{"name": "both"}, {"shared": True}, {"shared": True, "burst": 1}])
    async def test_shared(self, options):
        app = fastapi_app("100/minute", "1/minute")
        for path in ("/a", "/b"):

            @app.get(path, dependencies=[Depends(RateLimit("1/minute", **options))])
            async def endpoint() -> int:
                return 1

        response = await get(app, "/a")
        assert response.status == 200
        assert len(response.structured("ratelimit")) == 3

    async def test_shared_by_routes(self):
        app = fastapi_app()
        for path in ("/a", "/b"):

            @app.get(path, dependencies=[Depends(RateLimit("2/minute", shared=True))])
            async def endpoint() -> int:
                return 1

        assert await route_limits(app, "/a") == {"shared-2-per-minute": 1}
        assert await route_limits(app, "/b") == {"shared-2-per-minute": 0}
        assert await statuses(app, "/a", "/b") == [429, 429]


def by_path(facts):
    return facts.path


by_path.__module__ = "shop"


class TestSeveral:
    async def test_of_a_router_and_of_a_route(self):
        app = fastapi_app()
        router = APIRouter(dependencies=[Depends(RateLimit("5/minute"))])

        @router.get("/", dependencies=[Depends(RateLimit("2/minute"))])
        async def endpoint() -> int:
            return 1

        app.include_router(router)
        assert sorted((await route_limits(app)).values()) == [1, 4]
        assert await statuses(app, "/", "/", "/", "/") == [200, 429, 429, 429]
        # Denied requests have cost none of them anything.
        assert (await get(app, "/nowhere")).structured("ratelimit")["100-per-minute"]["r"] == 97

    async def test_equal_ones_count_once(self):
        app = fastapi_app()
        router = APIRouter(dependencies=[Depends(RateLimit("5/minute", burst=3))])

        @router.get("/", dependencies=[Depends(RateLimit("5/minute", burst=3))])
        async def endpoint() -> int:
            return 1

        app.include_router(router)
        assert list((await route_limits(app)).values()) == [2]

    def test_equality(self):
        assert RateLimit("5/minute") == RateLimit("5/minute")
        assert len({RateLimit("5/minute"), RateLimit("5/minute"), RateLimit("5/minute", burst=3)}) == 2
        assert RateLimit("5/minute") != RateLimit("5/minute", shared=True)
        assert RateLimit("5/minute", name="a") != RateLimit("5/minute", name="b")
        assert RateLimit("5/minute") != "5/minute"

    async def test_can_be_overridden_for_tests(self):
        app = fastapi_app()

        @app.get("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> int:
            return 1

        app.dependency_overrides[RateLimit("1/minute")] = lambda: None
        assert await statuses(app, "/", "/") == [200, 200]


class TestOptions:
    @staticmethod
    def app(limit, **settings):
        app = fastapi_app(**settings)

        @app.get("/{rest:path}", dependencies=[Depends(limit)])
        async def endpoint() -> int:
            return 1

        return app

    async def test_burst(self):
        assert await statuses(self.app(RateLimit("60/minute", burst=2)), "/", "/", "/") == [200, 200, 429]

    async def test_cost(self):
        limit = RateLimit("10/minute", cost=lambda facts: int(facts.native["path_params"]["rest"]))
        assert await statuses(self.app(limit), "/7", "/4", "/3") == [200, 429, 200]

    async def test_per(self):
        app = self.app(RateLimit("1/minute", per=lambda facts: facts.path))
        assert await statuses(app, "/a", "/a", "/b") == [200, 429, 200]

    async def test_plans(self):
        app = self.app(RateLimit("1/minute", plans="free"), plan="header:x-plan")
        assert await statuses(app, "/", "/", headers=[("x-plan", "pro")]) == [200, 200]
        assert await statuses(app, "/", "/", headers=[("x-plan", "free")]) == [200, 429]

    async def test_when(self):
        app = self.app(RateLimit("1/minute", when=lambda facts: facts.headers.first("x-bulk") == "1"))
        assert await statuses(app, "/", "/") == [200, 200]
        assert await statuses(app, "/", "/", headers=[("x-bulk", "1")]) == [200, 429]

    async def test_refills(self):
        clock = ManualClock()
        app = self.app(RateLimit("1/minute"), clock=clock)
        assert await statuses(app, "/", "/") == [200, 429]
        clock.advance(seconds=60)
        assert await statuses(app, "/") == [200]

    async def test_observing(self):
        app = self.app(RateLimit("1/minute"), mode="observe")
        assert await statuses(app, "/", "/") == [200, 200]
        assert (await get(app)).fields("ratelimit") == []

    async def test_exempt_requests(self):
        app = self.app(RateLimit("1/minute"), exempt_paths=["/free"])
        assert await statuses(app, "/free", "/free") == [200, 200]

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ({"rate": "often"}, "rate"),
            ({"rate": 5}, "rate"),
            ({"rate": "5/minute", "burst": 0}, "burst"),
            ({"rate": "5/minute", "cost": -1}, "cost"),
            ({"rate": "5/minute", "per": "planet"}, "per"),
            ({"rate": "5/minute", "name": "a b"}, "name"),
            ({"rate": "5/minute", "shared": "yes"}, "shared"),
        ],
    )
    def test_errors_come_at_start_up(self, arguments, field):
        with pytest.raises(SettingsError) as raised:
            RateLimit(**arguments)
        assert raised.value.field == field

    def test_repr(self):
        assert repr(RateLimit("5/minute", burst=2)) == "RateLimit('5/minute', burst=2)"
        assert repr(RateLimit("5/minute", name="a")) == "RateLimit('5/minute', name='a')"


class TestDenial:
    """The answer is the guard's, whatever an application makes of exceptions."""

    @staticmethod
    def app(**options):
        app = fastapi_app()

        @app.get("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> int:
            return 1

        @app.get("/teapot")
        async def teapot() -> int:
            raise HTTPException(418, "own")

        return app

    @pytest.mark.parametrize("handled", [HTTPException, StarletteHTTPException, RateLimitExceeded, 429, Exception])
    async def test_of_exception_handlers(self, handled):
        app = self.app()
        seen = []

        @app.exception_handler(handled)
        async def handler(request: Request, error: Exception) -> JSONResponse:
            seen.append(error)
            return JSONResponse({"own": True}, 418, headers={"x-own": "1"})

        assert await statuses(app, "/") == [200]
        response = await get(app)
        assert (response.status, response.problem["status"]) == (429, 429)
        assert response.field("x-own") is None
        if handled is not Exception:  # which is for what is not handled otherwise
            (error,) = seen
            assert isinstance(error, RateLimitExceeded)
            assert (error.status_code, error.answer.status) == (429, 429)
            assert error.headers["Retry-After"] == "60"
            assert "Content-Type" not in error.headers
        if handled in (HTTPException, StarletteHTTPException):
            assert (await get(app, "/teapot")).body == b'{"own":true}'

    async def test_others_stay_the_applications_own(self):
        app = self.app()
        await get(app)
        response = await get(app, "/teapot")
        assert (response.status, response.body) == (418, b'{"detail":"own"}')

    @pytest.mark.parametrize("order", ["inside", "outside"])
    async def test_with_base_http_middleware(self, order):
        class Tagging(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                response = await call_next(request)
                response.headers["x-tag"] = str(response.status_code)
                return response

        app = FastAPI()
        own = {"settings": Settings(limits=["100/minute"]), "clock": ManualClock()}
        # The one that is added last is the outermost.
        if order == "inside":
            app.add_middleware(Tagging)
            app.add_middleware(AbuseGuardMiddleware, **own)
        else:
            app.add_middleware(AbuseGuardMiddleware, **own)
            app.add_middleware(Tagging)

        @app.get("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> StreamingResponse:
            return StreamingResponse(iter([b"a", b"b"]))

        response = await get(app)
        assert (response.status, response.body, response.field("x-tag")) == (200, b"ab", "200")
        response = await get(app)
        assert response.problem["status"] == 429
        assert response.field("x-tag") == ("429" if order == "outside" else None)
        assert response.field("content-length") == str(len(response.body))

    async def test_what_a_dependency_opened_is_closed(self):
        app = fastapi_app()
        steps = []

        async def resource():
            steps.append("open")
            try:
                yield
            finally:
                steps.append("close")

        @app.get("/", dependencies=[Depends(resource), Depends(RateLimit("1/minute"))])
        async def endpoint(tasks: BackgroundTasks) -> int:
            steps.append("endpoint")
            tasks.add_task(steps.append, "task")
            return 1

        await get(app)
        assert sorted(steps) == ["close", "endpoint", "open", "task"]
        steps.clear()
        assert (await get(app)).status == 429
        assert steps == ["open", "close"]

    async def test_the_users_own_response(self):
        from abuseguard.headers import Answer

        app = fastapi_app(response=lambda facts, decision, answer: Answer(status=503, body=b"later"))

        @app.get("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> int:
            return 1

        await get(app)
        response = await get(app)
        assert (response.status, response.body) == (503, b"later")

    async def test_tokens_that_were_reserved_are_given_back(self):
        class Prompt(BaseModel):
            prompt: str
            max_tokens: int

        app = fastapi_app(Limit("100/day", unit="tokens", name="tokens"))

        @app.post("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint(prompt: Prompt) -> dict:
            return {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}

        body = b'{"prompt": "", "max_tokens": 50}'
        assert [(await post(app, body=body)).status for _ in range(5)] == [200, 429, 429, 429, 429]
        assert (await get(app, "/nowhere")).structured("ratelimit")["tokens"]["r"] == 97

    async def test_without_the_middleware(self):
        app = FastAPI()

        @app.get("/", dependencies=[Depends(RateLimit("1/minute"))])
        async def endpoint() -> int:
            return 1

        with pytest.raises(MissingMiddlewareError, match="add_middleware"):
            await get(app)


class TestWebSockets:
    @staticmethod
    def app(limit):
        app = fastapi_app()

        @app.websocket("/ws")
        async def echo(websocket: WebSocket, _: Annotated[None, Depends(limit)]) -> None:
            await websocket.accept()
            async for message in websocket.iter_text():
                await websocket.send_text(message)

        return app

    async def test_a_limit_refuses_the_handshake(self):
        app = self.app(RateLimit("1/minute"))
        server = Server(text("a"), {"type": "websocket.disconnect", "code": 1000})
        await server.serve(app, websocket_scope("/ws"))
        assert server.types == ["accept", "send"]
        assert b'"1-per-minute-ws-' in dict(server.sent[0]["headers"])[b"ratelimit"]
        with_response = await Server().serve(app, websocket_scope("/ws", extensions=DENIAL))
        assert Response(with_response.sent).problem["status"] == 429
        without = await Server().serve(app, websocket_scope("/ws"))
        assert without.sent == [{"type": "websocket.close", "code": 1013, "reason": "limit reached"}]

    async def test_of_an_included_router(self):
        app = fastapi_app()
        router = APIRouter(dependencies=[Depends(RateLimit("1/minute"))])

        @router.websocket("/ws")
        async def endpoint(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.close()

        app.include_router(router, prefix="/v1")
        app.include_router(router, prefix="/v2")
        for path in ("/v1/ws", "/v2/ws"):
            assert (await Server().serve(app, websocket_scope(path))).types == ["accept", "close"]
            assert (await Server().serve(app, websocket_scope(path))).types == ["close"]
