"""Django behind the guard, under WSGI and under ASGI."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

from abuseguard import Settings
from tests.adapters import django_project
from tests.adapters.contract import PROMPT, TOKENS, ViewContract
from tests.asgi.driver import DISCONNECT, body_messages, http_scope
from tests.wsgi.driver import Client, Headers, Response

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
        """Posts JSON, takes so many parts of the response, and is gone."""
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
            await gone.wait()
            return DISCONNECT

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                response.status = message["status"]
                response.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
            elif message.get("body"):
                response.chunks.append(message["body"])
            if disconnect_after is not None and len(response.chunks) >= disconnect_after:
                gone.set()
                await asyncio.sleep(3600)  # the socket is not drained any more

        scope = http_scope(method, path, headers, client=(REMOTE_ADDR, 1) if REMOTE_ADDR else None)
        await self.app(scope, receive, send)
        return response


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    with override_settings():
        yield


def use(settings: Settings, *middleware: str) -> None:
    django_project.conf.settings.ABUSEGUARD = settings
    django_project.conf.settings.MIDDLEWARE = [*middleware, django_project.MIDDLEWARE]


class DjangoContract(ViewContract):
    """What is Django's own, on both sides."""

    @pytest.mark.parametrize("path", ["/limited-method", "/limited-async-method"])
    def test_a_method_of_a_class_can_be_limited(self, path):
        client = self.client("10/hour")
        assert [client.get(path).status for _ in range(3)] == [200, 200, 429]
        assert client.get("/limited-too").status == 200
        assert client.get().remaining("10-per-hour") == 6

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    @pytest.mark.parametrize("path", ["/async-stream", "/sync-stream"])
    def test_streams_of_both_kinds_are_settled(self, path):
        client = self.client(TOKENS)
        assert client.post(path, PROMPT).status == 200
        assert self.left(client) == 10_000 - 7

    def test_the_body_can_be_read_as_json_after_an_estimate(self):
        assert self.client(TOKENS).post("/body-json", PROMPT).body == b"100"


class TestWsgi(DjangoContract):
    def client_for(self, settings: Settings) -> Client:
        use(settings, AUTHENTICATION)
        return Client(WSGIHandler())


class TestAsgi(DjangoContract):
    @pytest.fixture(autouse=True)
    def _loop(self) -> Iterator[None]:
        self.loop = asyncio.new_event_loop()
        yield
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def client_for(self, settings: Settings) -> AsgiClient:
        use(settings, AUTHENTICATION)
        django_project.conf.settings.ROOT_URLCONF = django_project.AsyncUrls
        return AsgiClient(ASGIHandler(), self.loop)

    def test_an_exception_in_the_stream_is_charged_what_was_sent(self):
        super().test_an_exception_in_the_stream_is_charged_what_was_sent()
        with warnings.catch_warnings():
            # Django leaves the request's body open when a stream fails.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
