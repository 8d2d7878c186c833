"""Drives ASGI applications message by message, as a server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import http_sf

from abuseguard import Settings
from abuseguard.asgi import AbuseGuardMiddleware
from abuseguard.clock import ManualClock
from abuseguard.guard import AsyncGuard

Message = MutableMapping[str, Any]
Application = Callable[..., Awaitable[None]]
DISCONNECT = {"type": "http.disconnect"}


@dataclass
class Response:
    """What an application sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def start(self) -> Message:
        starts = [message for message in self.messages if message["type"].endswith("response.start")]
        assert len(starts) == 1, self.messages
        return starts[0]

    @property
    def status(self) -> int:
        return self.start["status"]

    @property
    def chunks(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages if message["type"].endswith("response.body")]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def fields(self, name: str) -> list[str]:
        assert all(known == known.lower() for known, _ in self.start["headers"])
        return [value.decode("ascii") for known, value in self.start["headers"] if known == name.encode()]

    def field(self, name: str) -> str | None:
        found = self.fields(name)
        assert len(found) < 2, found
        return found[0] if found else None

    @property
    def problem(self) -> dict[str, Any]:
        assert self.field("content-type") == "application/problem+json"
        return json.loads(self.body)

    def structured(self, name: str) -> dict[str, dict[str, int]]:
        """A field of limits by their names, read by a parser of structured fields."""
        values = self.fields(name)
        assert values, self.start["headers"]
        items = http_sf.parse(", ".join(values).encode(), tltype="list")
        assert all(type(value) is str for value, _ in items)
        return dict(items)


def http_scope(
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[str | bytes, str | bytes]] = (),
    *,
    client: Any = ("203.0.113.9", 52011),
    **further: Any,
) -> dict[str, Any]:
    """The scope of a request, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "root_path": "",
        "headers": [(_bytes(name).lower(), _bytes(value)) for name, value in headers],
        "client": client,
        "server": ("127.0.0.1", 8000),
        **further,
    }


def body_messages(*chunks: bytes) -> list[Message]:
    """A request body in so many messages."""
    last = len(chunks) - 1
    return [
        {"type": "http.request", "body": chunk, "more_body": position < last} for position, chunk in enumerate(chunks)
    ]


async def send_request(
    app: Application,
    scope: MutableMapping[str, Any],
    messages: Iterable[Message] | None = None,
    *,
    response: Response | None = None,
) -> Response:
    """The response to one request. The client stays until it has all of it, unless the messages say otherwise."""
    waiting = list(body_messages(b"") if messages is None else messages)
    response = response or Response()
    complete = asyncio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await complete.wait()
        return DISCONNECT

    async def send(message: Message) -> None:
        # As servers do: what the application does to its message afterwards is of no effect.
        response.messages.append(dict(message))
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            complete.set()

    await app(scope, receive, send)
    return response


async def get(app: Application, path: str = "/", headers: Iterable[tuple[Any, Any]] = (), **further: Any) -> Response:
    return await send_request(app, http_scope("GET", path, headers, **further))


async def post(
    app: Application, path: str = "/", body: bytes = b"", headers: Iterable[tuple[Any, Any]] = (), **further: Any
) -> Response:
    """Posts JSON of a declared length."""
    own = [("content-type", "application/json"), ("content-length", str(len(body)))]
    return await send_request(app, http_scope("POST", path, [*own, *headers], **further), body_messages(body))


def guarded(
    app: Application, clock: ManualClock | None = None, *, guard: AsyncGuard | None = None, **settings: Any
) -> AbuseGuardMiddleware:
    """An application behind the guard, on a clock that stands still and without jitter."""
    if guard is not None:
        return AbuseGuardMiddleware(app, guard=guard)
    settings.setdefault("retry_after_jitter", 0)
    return AbuseGuardMiddleware(app, Settings(**settings), clock=clock or ManualClock(10**18))


async def hello(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """An application that says hello."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
