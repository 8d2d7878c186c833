"""One WebSocket over ASGI that was admitted: its handshake, and its messages where a limit counts them."""

from __future__ import annotations

from collections.abc import Sequence

from abuseguard._exchange import encoded_headers
from abuseguard._scope import Message, Receive, Scope, Send
from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.guard import AsyncGuard
from abuseguard.headers import Answer
from abuseguard.limit import Limit

# "Try again later", from the registry of RFC 6455.
TRY_AGAIN_LATER = 1013
_DENIAL_RESPONSE = "websocket.http.response"


class WebSocketExchange:
    """One connection until it is closed; in the scope as ``"abuseguard"``.

    Args:
        guard: who decided.
        facts, decision: on what, and how; with the limits of the route once those were asked.
        receive, send: the server's ends.
    """

    __slots__ = ("_accepted", "_asked", "_closed", "_receive", "_refused", "_send", "decision", "facts", "guard")

    def __init__(
        self, guard: AsyncGuard, facts: RequestFacts, decision: Decision, receive: Receive, send: Send
    ) -> None:
        self.guard = guard
        self.facts = facts
        self.decision = decision
        self._receive = receive
        self._send = send
        # Whether the application has asked for the connection, taken it, closed it; whether the guard has.
        self._asked = self._accepted = self._closed = self._refused = False

    async def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks limits of a route's own, besides those of the settings.

        Returns:
            None if the connection may go on. If not, the answer, which was given: the handshake is refused, or the
            connection closed, and whatever the application still sends goes nowhere.
        """
        decision = await self.guard.decide_limits(self.facts, limits)
        if decision.admitted:
            self.decision = self.guard.policy.join(self.decision, decision)
            return None
        answer = self.guard.answer(self.facts, decision)
        if not self._accepted:
            await self.guard.refund(self.decision)
        await self._end(answer)
        return answer

    async def receive(self) -> Message:
        """Hands the application its next message, if no limit is in the way."""
        if self._refused:
            return {"type": "websocket.disconnect", "code": TRY_AGAIN_LATER}
        message = await self._receive()
        self._asked = True
        if message["type"] == "websocket.receive" and self.guard.policy.limits_messages and not self._closed:
            decision = await self.guard.decide_message(self.facts)
            if not decision.admitted:
                await self._end(self.guard.answer(self.facts, decision))
                return {"type": "websocket.disconnect", "code": TRY_AGAIN_LATER}
        return message

    async def forward(self, message: Message) -> None:
        """Sends a message of the application; with the fields that tell the client its limits, if it accepts."""
        # After the guard has ended the connection the application may still be sending; servers raise on that.
        if self._refused:
            return
        kind = message["type"]
        if kind == "websocket.accept":
            self._accepted = True
            fields = self.guard.encoded_fields(self.decision)
            if fields:
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
        elif kind == "websocket.close":
            self._closed = True
        await self._send(message)

    async def _end(self, answer: Answer) -> None:
        if self._closed or self._refused:
            return
        self._refused = True
        if self._accepted:
            await self._send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": "limit reached"})
        else:
            if not self._asked:
                # The server expects to be asked for the connection before it hears that it is refused.
                await self._receive()
            await refuse(answer, self.facts.native, self._send)


async def refuse(answer: Answer, scope: Scope, send: Send) -> None:
    """Refuses a handshake: with the answer where the server can send one, else by its own 403."""
    if _DENIAL_RESPONSE not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": "limit reached"})
        return
    await send({"type": f"{_DENIAL_RESPONSE}.start", "status": answer.status, "headers": encoded_headers(answer)})
    await send({"type": f"{_DENIAL_RESPONSE}.body", "body": answer.body})
