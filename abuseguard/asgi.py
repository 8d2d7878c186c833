"""The guard in front of any ASGI application (ASGI 3.0): Starlette, FastAPI, Litestar, Quart and the rest.

Plain ASGI: every message passes through as it comes. Nothing is buffered but a declared, small request body when a
limit in tokens needs it for an estimate; it is then handed on message by message as it was received.

The middlewares around it see what they would see without it, and it sees what they leave. Authentication belongs
outside, where limits are for users; so does CORS, which then answers preflight requests by itself and lets scripts
read a 429. A preflight that comes this far is limited like any other request: a client could call anything one.
"""

from __future__ import annotations

import asyncio

from abuseguard._exchange import HttpExchange, MeteredExchange, Settlements, read_for_estimate, send_answer
from abuseguard._scope import Application, AsgiFacts, Message, Receive, Scope, Send
from abuseguard._websocket import WebSocketExchange, refuse
from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock
from abuseguard.decision import Decision
from abuseguard.errors import SettingsError
from abuseguard.guard import AsyncGuard
from abuseguard.settings import Settings


class AbuseGuardMiddleware:
    """Limits the accounts of an ASGI application.

    While the application serves a request, ``scope["abuseguard"]`` is its exchange: ``decision`` tells how the request
    was let in, and ``await exchange.decide_limits([Limit(...)])`` asks limits of the route's own.

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
        self._owns_guard = guard is None
        self.guard = _own_guard(settings, clock) if guard is None else _shared_guard(guard, settings)
        self._meters = self.guard.policy.limits_tokens
        self._may_delay = self.guard.settings.max_delay_seconds > 0
        self._settlements = Settlements()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        guard = self.guard
        facts = AsgiFacts(scope)
        if self._meters and guard.policy.may_limit_tokens(facts):
            receive = await read_for_estimate(facts, receive, guard.settings.max_body_bytes)
        decision = guard.decide_at_once(facts, self._may_delay)
        if decision is None:
            decision = await guard.decide(facts, may_delay=self._may_delay)
        if not decision.admitted:
            await send_answer(send, guard.answer(facts, decision), facts.method)
            return
        if decision.delay_ns:
            await self._hold_back(decision)
        exchange: HttpExchange
        try:
            if self._meters and decision.plan.meters_tokens:
                scope["abuseguard"] = exchange = metered = MeteredExchange(
                    guard, facts, decision, receive, send, self._settlements
                )
                await metered.serve(self.app, scope)
            else:
                scope["abuseguard"] = exchange = HttpExchange(guard, facts, decision, send)
                await self.app(scope, receive, exchange.forward)
            if exchange.answer is not None:
                await exchange.send_answer()
        finally:
            # The scope holds the exchange, whose facts hold the scope: without this every request would be left to
            # the cycle collector.
            scope.pop("abuseguard", None)

    async def _hold_back(self, decision: Decision) -> None:
        try:
            await asyncio.sleep(decision.delay_ns / NANOSECONDS_PER_SECOND)
        except asyncio.CancelledError:
            await self._settlements.begin(self.guard.refund(decision))
            raise

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "lifespan" and self._owns_guard:
            await self.app(scope, receive, self._closing(send))
        else:
            await self.app(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = AsgiFacts(scope)
        decision = await self.guard.decide(facts)
        if not decision.admitted:
            # The server expects to be asked for the connection before it hears that it is refused.
            await receive()
            await refuse(self.guard.answer(facts, decision), scope, send)
            return
        exchange = WebSocketExchange(self.guard, facts, decision, receive, send)
        scope["abuseguard"] = exchange
        try:
            await self.app(scope, exchange.receive, exchange.forward)
        finally:
            scope.pop("abuseguard", None)

    def _closing(self, send: Send) -> Send:
        async def close_and_send(message: Message) -> None:
            # Not later: once the application has reported its shutdown, the server may stop the event loop.
            if message["type"].startswith("lifespan.shutdown."):
                await self._settlements.finish()
                await self.guard.close()
            await send(message)

        return close_and_send


def _own_guard(settings: object, clock: Clock | None) -> AsyncGuard:
    if settings is None:
        settings = Settings.from_environment()
    if not isinstance(settings, Settings):
        raise SettingsError("settings", settings, "Settings(...), or none for those of the environment")
    return AsyncGuard(settings, clock=clock)


def _shared_guard(guard: object, settings: object) -> AsyncGuard:
    if not isinstance(guard, AsyncGuard):
        raise SettingsError("guard", guard, "an AsyncGuard")
    if settings is not None:
        raise SettingsError("settings", settings, "none besides a guard, which has its own")
    return guard
