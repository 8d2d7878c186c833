"""The guard in front of any ASGI application (ASGI 3.0): Starlette, FastAPI, Litestar, Quart and the rest.

Plain ASGI: every message passes through as it comes. Nothing is buffered but a declared, small request body when a
limit in tokens needs it for an estimate; it is then handed on message by message as it was received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from abuseguard._websocket import serve_websocket
from abuseguard.clock import Clock
from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.guard import AsyncGuard
from abuseguard.headers import Answer
from abuseguard.limit import Limit
from abuseguard.metering import Meter, readable_length
from abuseguard.settings import Settings
from abuseguard.tokens import Ending

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiHeaders:
    """The header fields of an ASGI scope."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def first(self, name: str) -> str | None:
        wanted = name.encode("latin-1", "replace")
        for known, value in self._pairs:
            if known == wanted:
                return value.decode("latin-1")
        return None

    def all(self, name: str) -> list[str]:
        wanted = name.encode("latin-1", "replace")
        return [value.decode("latin-1") for known, value in self._pairs if known == wanted]


class AsgiFacts(RequestFacts):
    """The facts of an ASGI request; the scope is ``native``."""

    __slots__ = ()

    def user(self) -> object | None:
        """What Starlette's ``AuthenticationMiddleware``, or another that keeps to its custom, left in the scope."""
        user: object | None = self.native.get("user")
        return user


def facts_of(scope: Scope) -> AsgiFacts:
    """The facts of a request, or of a WebSocket handshake."""
    client = scope.get("client")
    return AsgiFacts(
        scope.get("method", "WEBSOCKET"),
        scope["path"],
        AsgiHeaders(scope.get("headers", ())),
        client[0] if client else None,
        scope,
    )


class AbuseGuardMiddleware:
    """Limits the accounts of an ASGI application.

    Args:
        app: the application behind it.
        settings: what the operator decided. Default: from the environment, ``ABUSEGUARD_*``.
        guard: a guard to share, instead of settings; whoever made it closes it.
        clock: where the time comes from.

    Raises:
        SettingsError: the settings are wrong.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings | None = None,
        *,
        guard: AsyncGuard | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self.guard = guard or AsyncGuard(settings or Settings.from_environment(), clock=clock)
        self._owns_guard = guard is None
        self._meters = self.guard.policy.limits_tokens
        self._may_delay = self.guard.settings.max_delay_seconds > 0
        # asyncio keeps only weak references to tasks: one that nobody holds can vanish before it has run.
        self._settlements: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._serve_http(scope, receive, send)
        elif kind == "websocket":
            await serve_websocket(self.app, self.guard, facts_of(scope), scope, receive, send)
        elif kind == "lifespan":
            try:
                await self.app(scope, receive, send)
            finally:
                if self._owns_guard:
                    await self.guard.close()
        else:
            await self.app(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard = self.guard
        facts = facts_of(scope)
        if self._meters:
            receive = await _read_for_estimate(facts, receive, guard.settings.max_body_bytes)
        decision = await guard.decide(facts, may_delay=self._may_delay)
        if not decision.admitted:
            await send_answer(send, guard.answer(facts, decision))
            return
        if decision.delay_ns:
            await asyncio.sleep(decision.delay_ns / 1e9)
        exchange = HttpExchange(guard, facts, decision, send)
        scope["abuseguard"] = exchange
        try:
            if self._meters and decision.plan.meters_tokens:
                await self._serve_metered(exchange, scope, receive)
            else:
                await self.app(scope, receive, exchange.forward)
        finally:
            # The scope holds the exchange, whose facts hold the scope: without this every request would be left to
            # the cycle collector.
            scope.pop("abuseguard", None)

    async def _serve_metered(self, exchange: HttpExchange, scope: Scope, receive: Receive) -> None:
        meter = exchange.meter = Meter(exchange.decision, self.guard.settings.max_body_bytes)
        disconnected = False

        async def watch_for_disconnect() -> Message:
            nonlocal disconnected
            message = await receive()
            if message["type"] == "http.disconnect":
                disconnected = True
            return message

        # An application that returns with its response unfinished gave up on a client that is gone.
        ending = Ending.DISCONNECTED
        try:
            await self.app(scope, watch_for_disconnect, exchange.forward)
            if not meter.started and not disconnected:
                ending = Ending.RAISED
        except (asyncio.CancelledError, OSError):
            raise
        except BaseException:
            if not disconnected:
                ending = Ending.RAISED
            raise
        finally:
            used_tokens = meter.used_tokens(Ending.COMPLETE if meter.complete else ending)
            settlement = asyncio.ensure_future(self.guard.settle(exchange.decision, used_tokens))
            self._settlements.add(settlement)
            settlement.add_done_callback(self._settlements.discard)
            # Shielded: a request that is being cancelled is charged all the same.
            await asyncio.shield(settlement)


class HttpExchange:
    """One HTTP request that was admitted, until its response has gone; in the scope as ``"abuseguard"``.

    Args:
        guard: who decided.
        facts, decision: on what, and how.
        send: the server's end.
    """

    __slots__ = ("_answer", "_send", "decision", "facts", "guard", "meter", "route_decision")

    def __init__(self, guard: AsyncGuard, facts: RequestFacts, decision: Decision, send: Send) -> None:
        self.guard = guard
        self.facts = facts
        self.decision = decision
        self.meter: Meter | None = None
        #: What the limits of the route itself said last, if it has any.
        self.route_decision: Decision | None = None
        self._answer: Answer | None = None
        self._send = send

    async def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks a route's own limits. If they deny, whatever the application sends next is replaced by this answer."""
        self.route_decision = await self.guard.decide_limits(self.facts, limits)
        if self.route_decision.admitted:
            return None
        self._answer = self.guard.answer(self.facts, self.route_decision)
        return self._answer

    # Not a coroutine function: it returns what the server's `send` returns, which saves a frame for each message.
    def forward(self, message: Message) -> Awaitable[None]:
        """Sends a message of the application, with the fields that tell the client its limits."""
        if self._answer is not None:
            return self._replace(message)
        kind = message["type"]
        if kind == "http.response.start":
            headers = message.get("headers", ())
            if self.meter is not None:
                self.meter.start(message["status"], _text(headers))
            fields = self.guard.encoded_fields(self.route_decision or self.decision)
            if fields:
                # A new message: some applications send the same one, or the same list of headers, again and again.
                message = {
                    **message,
                    "headers": [*headers, *fields],
                }
        elif self.meter is not None and kind == "http.response.body":
            self.meter.feed(message.get("body", b""))
            if not message.get("more_body", False):
                self.meter.complete = True
        return self._send(message)

    async def _replace(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._answer is not None:
            await send_answer(self._send, self._answer)


async def send_answer(send: Send, answer: Answer) -> None:
    """Sends a whole response."""
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


async def _read_for_estimate(facts: RequestFacts, receive: Receive, max_body_bytes: int) -> Receive:
    """Reads the body if an estimate needs it, and returns what the application is to receive from."""
    if not readable_length(facts, max_body_bytes):
        return receive
    received: list[Message] = []
    body = bytearray()
    while True:
        message = await receive()
        received.append(message)
        body += message.get("body", b"")
        # A body longer than it was declared is the application's to deal with.
        if message["type"] != "http.request" or not message.get("more_body", False) or len(body) > max_body_bytes:
            break
    facts.body = bytes(body)
    received.reverse()

    async def replay() -> Message:
        return received.pop() if received else await receive()

    return replay
