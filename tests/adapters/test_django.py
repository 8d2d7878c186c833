"""Django behind the guard, under WSGI and under ASGI."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.util import FileWrapper

import django
import pytest
from asgiref.sync import async_to_sync
from django import conf
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import AsyncClient, RequestFactory, override_settings

from abuseguard import Limit, Settings, User
from abuseguard_django import exchange, middleware
from abuseguard_django.middleware import AbuseGuardMiddleware
from tests.adapters import django_project
from tests.adapters.contract import EVENTS, PROMPT, TOKENS, ViewContract
from tests.asgi.driver import DISCONNECT, body_messages, http_scope
from tests.redis_servers import wait_until
from tests.wsgi.driver import Client, Headers, Response, facts_left_behind

AUTHENTICATION = "tests.adapters.django_project.authentication"


class AsgiClient:
    """Sends requests to Django's ASGI application, on one event loop, as one server does."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop

    def get(self, path: str = "/", headers: Headers = (), **environ: Any) -> Response:
        return self.request("GET", path, headers, **environ)

    def post(self, path: str, body: Any, headers: Headers = ()) -> Response:
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, headers, encoded)

    def request(self, *arguments: Any, **further: Any) -> Response:
        return self._run(self.send(*arguments, **further))

    def get_at_once(self, path: str, *, times: int) -> list[Response]:
        async def send_all() -> list[Response]:
            return await asyncio.gather(*(self.send("GET", path) for _ in range(times)))

        return self._run(send_all())

    def disconnect(self, path: str, body: Any, *, after: int) -> Response:
        """Posts JSON, takes so many parts of the response, and is gone; -1: while the view hangs."""
        return self._run(self.send("POST", path, (), json.dumps(body).encode(), disconnect_after=after))

    def _run(self, sending: Any) -> Any:
        async def run() -> Any:
            result = await sending
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
            return result

        return self.loop.run_until_complete(run())

    # Its arguments are called as those of a WSGI client are.
    async def send(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        REMOTE_ADDR: str = "203.0.113.9",  # noqa: N803
        disconnect_after: int | None = None,
    ) -> Response:
        response = Response()
        waiting = body_messages(body or b"")
        gone = asyncio.Event()
        if body is not None and not any(name == "Content-Type" for name, _ in headers):
            headers = [*headers, ("Content-Type", "application/json")]
        if body is not None:
            headers = [*headers, ("Content-Length", str(len(body)))]

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            await (scope["hanging"] if disconnect_after == -1 else gone).wait()
            return DISCONNECT

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                response.status = message["status"]
                response.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
            elif message.get("body"):
                response.chunks.append(message["body"])
            if disconnect_after is not None and len(response.chunks) >= disconnect_after >= 0:
                gone.set()
                if django.VERSION >= (5, 0):  # before, Django did not listen, and sent into the void
                    await asyncio.sleep(3600)

        client = (REMOTE_ADDR, 1) if REMOTE_ADDR else None
        scope = http_scope(method, path, headers, client=client, hanging=asyncio.Event())
        await self.app(scope, receive, send)
        return response


@pytest.fixture(scope="module", autouse=True)
def _project() -> Iterator[None]:
    django.setup()
    with override_settings(**django_project.SETTINGS):
        yield


@pytest.fixture(autouse=True)
def _settings_restored(_project: None) -> Iterator[None]:
    with override_settings():
        yield


def use(settings: object, *middleware: str) -> None:
    conf.settings.ABUSEGUARD = settings
    conf.settings.MIDDLEWARE = [*middleware, django_project.MIDDLEWARE]


@contextmanager
def body_left_open() -> Iterator[None]:
    """Django under ASGI does not close the request's body when a response fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


class DjangoContract(ViewContract):
    """What is Django's own, on both sides."""

    sessions = ("django.contrib.sessions.middleware.SessionMiddleware",)
    authentication = (*sessions, "django.contrib.auth.middleware.AuthenticationMiddleware")

    def handler(self) -> Any:
        """A client of the project with the settings as they are."""
        raise NotImplementedError

    def client_for(self, settings: Settings) -> Any:
        use(settings, AUTHENTICATION)
        return self.handler()

    def test_logged_in_users_have_their_own_buckets(self):
        use(Settings(limits=["1/hour"], account=User()), *self.authentication)
        client = self.handler()
        for user_id in (1, 2):
            headers = [("Cookie", django_project.session_cookie(user_id))]
            addresses = [f"192.0.2.{last}" for last in range(2)]
            assert [client.get("/other", headers, REMOTE_ADDR=address).status for address in addresses] == [200, 429]
        assert [client.get("/other").status for _ in range(2)] == [200, 429]
        assert [client.get("/nowhere").status for _ in range(2)] == [429, 429]

    def test_users_are_left_alone_where_accounts_are_something_else(self):
        use(Settings(limits=["9/hour"]), *self.authentication)
        before = django_project.Backend.loaded
        assert self.handler().get("/other", [("Cookie", django_project.session_cookie(1))]).status == 200
        assert django_project.Backend.loaded == before

    def test_users_that_cannot_be_loaded_are_limited_by_address(self, monkeypatch, caplog):
        def fail(self, user_id):
            raise ZeroDivisionError

        monkeypatch.setattr(django_project.Backend, "get_user", fail)
        use(Settings(limits=["1/hour"], account=User()), *self.authentication)
        client = self.handler()
        headers = [("Cookie", django_project.session_cookie(1))]
        assert [client.get("/other", headers).status for _ in range(2)] == [200, 429]
        assert "the function given as account raised" in caplog.text

    def test_a_middleware_behind_the_guard_that_answers_is_limited(self):
        use(Settings(limits=["1/hour"]))
        conf.settings.MIDDLEWARE.append("tests.adapters.django_project.short_cut")
        client = self.handler()
        django_project.closed.clear()
        responses = [client.get("/short-cut") for _ in range(2)]
        assert len(django_project.closed) == 2
        assert [response.status for response in responses] == [200, 429]
        assert [response.remaining("1-per-hour") for response in responses] == [0, 0]

    def test_wrong_settings_are_said_at_start(self):
        use({"mode": "sleep"})
        with pytest.raises(ImproperlyConfigured, match="ABUSEGUARD: mode: got 'sleep', expected one of 'enforce'"):
            self.handler()

    def test_settings_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "1/hour")
        use(None)
        client = self.handler()
        assert [client.get().status for _ in range(2)] == [200, 429]

    @pytest.mark.parametrize("limits", [[TOKENS], ["9/hour"]])
    def test_a_body_that_is_too_large_for_django_is_its_to_refuse(self, limits):
        conf.settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
        assert self.client(*limits).post("/body", PROMPT).body == b"RequestDataTooBig"

    def test_a_limit_without_the_middleware_is_an_error(self):
        conf.settings.MIDDLEWARE = []
        client = self.handler()
        conf.settings.DEBUG_PROPAGATE_EXCEPTIONS = True
        with body_left_open(), pytest.raises(ImproperlyConfigured, match="a view has a limit, but abuseguard_django"):
            client.get("/limited")

    @pytest.mark.parametrize(
        "path",
        [
            "/limited-method",
            pytest.param(
                "/limited-async-method",
                marks=pytest.mark.skipif(django.VERSION < (5, 2), reason="method_decorator is for blocking methods"),
            ),
        ],
    )
    def test_a_method_of_a_class_can_be_limited(self, path):
        client = self.client("10/hour")
        assert [client.get(path).status for _ in range(3)] == [200, 200, 429]
        assert client.get("/limited-too").status == 200
        assert client.get().remaining("10-per-hour") == 6

    def test_views_that_were_made_alike_have_their_own_buckets(self):
        client = self.client()
        for path in ("/made-1", "/made-2", "/made-3", "/made-4"):
            assert [client.get(path).status for _ in range(3)] == [200, 200, 429]

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    @pytest.mark.parametrize("path", ["/async-stream", "/sync-stream"])
    def test_streams_of_both_kinds_are_settled(self, path):
        client = self.client(TOKENS)
        assert client.post(path, PROMPT).status == 200
        assert self.left(client) == 10_000 - 7

    def test_a_body_that_somebody_read_before_is_estimated_as_well(self):
        reserved = []
        for before in ((), ("tests.adapters.django_project.reading",)):
            use(Settings(limits=[TOKENS]), *before)
            client = self.handler()
            reserved.append(client.post("/chat", PROMPT).remaining("tokens"))
        assert reserved[0] == reserved[1]

    def test_the_body_can_be_read_as_json_after_an_estimate(self):
        assert self.client(TOKENS).post("/body-json", PROMPT).body == b"100"


class TestWsgi(DjangoContract):
    def handler(self) -> Client:
        return Client(WSGIHandler())

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_files_are_handed_to_the_server(self, limit):
        exchange = self.client(limit).start("GET", "/file", **{"wsgi.file_wrapper": FileWrapper})
        assert exchange.finish().body == b"a file"
        unchecked = Client(self.client(limit).app, validate=False)
        exchange = unchecked.start("GET", "/file", **{"wsgi.file_wrapper": FileWrapper})
        assert type(exchange.body) is FileWrapper
        exchange.close()

    @pytest.mark.parametrize("limits", [[TOKENS], ["9/hour"]])
    def test_a_body_that_cannot_be_read_is_the_views(self, limits):
        class Broken(io.BytesIO):
            def read(self, *_):
                raise ConnectionResetError

        client = Client(self.client(*limits).app, validate=False)
        assert client.post("/body", PROMPT, **{"wsgi.input": Broken()}).body == b"UnreadablePostError"

    def test_a_request_of_a_test_reaches_a_limited_view(self):
        use(Settings(limits=["1/hour"]))
        request = RequestFactory().get("/limited")
        assert [django_project.limited(request).status_code for _ in range(3)] == [200] * 3

    @pytest.mark.parametrize("limits", [["3/hour"], ["3/hour", TOKENS]])
    def test_nothing_is_left_to_the_cycle_collector(self, limits):
        assert facts_left_behind(Client(self.client(*limits).app, validate=False)) == []


class TestAsgi(DjangoContract):
    @pytest.fixture(autouse=True)
    def _loop(self) -> Iterator[None]:
        self.loop = asyncio.new_event_loop()
        yield
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def handler(self) -> AsgiClient:
        conf.settings.ROOT_URLCONF = django_project.AsyncUrls
        return AsgiClient(ASGIHandler(), self.loop)

    def test_tokens_are_settled_before_the_response_is_there(self, redis_url):
        guards = []

        class Remembered(AbuseGuardMiddleware):
            def __init__(self, get_response):
                super().__init__(get_response)
                guards.append(self.guard)

        use(Settings(limits=[TOKENS], store=redis_url))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(middleware, "AbuseGuardMiddleware", Remembered)
            client = self.handler()
        under_way = []

        async def watch(message):
            under_way.append(len(exchange._settlements))

        async def post():
            body = json.dumps(PROMPT).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            messages = body_messages(body)

            async def receive():
                return messages.pop(0) if messages else await asyncio.sleep(3600)

            await client.app(http_scope("POST", "/chat", headers), receive, watch)

        self.loop.run_until_complete(post())
        assert under_way == [0, 0]
        assert self.left(client) == 9950
        self.loop.run_until_complete(guards[0].close())

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    def test_a_stream_that_is_closed_after_its_loop_is_no_error(self):
        use(Settings(limits=[TOKENS]))

        async def post():
            return await AsyncClient().post("/sync-stream", PROMPT, content_type="application/json")

        response = async_to_sync(post)()
        assert b"".join(response.streaming_content) == b"".join(EVENTS)
        response.close()

    def test_decisions_are_made_on_the_event_loop(self):
        threads = []
        client = self.client("9/hour", observer=lambda facts, decision: threads.append(threading.current_thread()))
        assert [client.get(path).status for path in ("/", "/other", "/nowhere")] == [200, 200, 404]
        assert threads == [threading.current_thread()] * 3

    @pytest.mark.skipif(django.VERSION < (5, 0), reason="Django listens for disconnects since 5.0")
    def test_a_client_that_goes_before_the_response_pays_the_reservation(self):
        client = self.client(TOKENS)
        client.disconnect("/hang", PROMPT, after=-1)
        assert 100 < 10_000 - self.left(client) < 200

    @pytest.mark.parametrize(("path", "used"), [("/chat", 50), ("/stream", 7), ("/stream-raises", 3)])
    def test_a_middleware_that_can_only_block_changes_nothing(self, path, used):
        use(Settings(limits=[TOKENS, Limit("3/hour", routes="/")]))
        conf.settings.MIDDLEWARE.append("tests.adapters.django_project.blocking")
        client = self.handler()
        with body_left_open(), suppress(ZeroDivisionError):
            assert client.post(path, PROMPT).status == 200
        wait_until(lambda: client.get("/other").remaining("tokens") == 10_000 - used, "the settlement, in a thread")
        assert [client.get().status for _ in range(4)][-1] == 429

    def test_an_exception_in_the_stream_is_charged_what_was_sent(self):
        with body_left_open():
            super().test_an_exception_in_the_stream_is_charged_what_was_sent()
