"""The guard on an ASGI WebSocket: its handshake, and its messages where a limit counts them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from abuseguard.facts import RequestFacts
from abuseguard.guard import AsyncGuard
from abuseguard.headers import Answer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# "Try again later", from the registry of RFC 6455.
_TRY_AGAIN_LATER = 1013
_DENIAL_RESPONSE = "websocket.http.response"


async def serve_websocket(
    app: Callable[..., Awaitable[None]],
    guard: AsyncGuard,
    facts: RequestFacts,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
) -> None:
    """Serves one connection: refused before it is accepted, or closed at the first message above a limit."""
    decision = await guard.decide(facts)
    if not decision.admitted:
        # The server expects to be asked for the connection before it hears that it is refused.
        await receive()
        await _refuse(guard.answer(facts, decision), scope, send)
        return
    closed = False

    async def send_open(message: Message) -> None:
        # After the guard has closed the connection the application may still be sending; servers raise on that.
        if closed:
            return
        if message["type"] == "websocket.accept":
            message = {**message, "headers": [*message.get("headers", ()), *guard.encoded_fields(decision)]}
        await send(message)

    async def receive_counted() -> Message:
        nonlocal closed
        if closed:
            return {"type": "websocket.disconnect", "code": _TRY_AGAIN_LATER}
        message = await receive()
        if message["type"] == "websocket.receive" and not (await guard.decide_message(facts)).admitted:
            closed = True
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": "message limit reached"})
            return {"type": "websocket.disconnect", "code": _TRY_AGAIN_LATER}
        return message

    await app(scope, receive_counted if guard.policy.limits_messages else receive, send_open)


async def _refuse(answer: Answer, scope: MutableMapping[str, Any], send: Send) -> None:
    if _DENIAL_RESPONSE not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": "limit reached"})
        return
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": f"{_DENIAL_RESPONSE}.start", "status": answer.status, "headers": headers})
    await send({"type": f"{_DENIAL_RESPONSE}.body", "body": answer.body})
