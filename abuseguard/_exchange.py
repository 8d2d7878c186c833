"""One HTTP request over ASGI that was admitted: its messages on the way between the application and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any

from abuseguard._scope import Application, Message, Receive, Scope, Send
from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.guard import AsyncGuard
from abuseguard.headers import Answer
from abuseguard.limit import Limit
from abuseguard.metering import Meter, readable_length
from abuseguard.tokens import Ending


class HttpExchange:
    """One HTTP request until its response has gone; in the scope as ``"abuseguard"``.

    Args:
        guard: who decided.
        facts, decision: on what, and how; with the limits of the route once those were asked.
        send: the server's end.
    """

    __slots__ = ("_send", "_started", "answer", "decision", "facts", "guard")

    def __init__(self, guard: AsyncGuard, facts: RequestFacts, decision: Decision, send: Send) -> None:
        self.guard = guard
        self.facts = facts
        self.decision = decision
        #: What is sent in place of the application's response.
        self.answer: Answer | None = None
        self._started = False
        self._send = send

    async def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks limits of a route's own, besides those of the settings.

        Returns:
            None if the request may go on. If not, the answer that takes the place of whatever the application sends,
            unless it has begun its response before.
        """
        decision = await self.guard.decide_limits(self.facts, limits)
        if decision.admitted:
            self.decision = self.guard.policy.join(self.decision, decision)
            return None
        answer = self.guard.answer(self.facts, decision)
        if not self._started and self.answer is None:
            self.answer = answer
            await self._give_back()
        return answer

    async def _give_back(self) -> None:
        """Returns what the other limits were charged: a denied request costs nothing."""
        await self.guard.refund(self.decision)

    # Not a coroutine function: it returns what the server's `send` returns, which saves a frame for each message.
    def forward(self, message: Message) -> Awaitable[None]:
        """Sends a message of the application, with the fields that tell the client its limits."""
        if self.answer is not None:
            return self._replace(message)
        if message["type"] == "http.response.start":
            self._started = True
            fields = self.guard.encoded_fields(self.decision)
            if fields:
                # A new message: some applications send the same one, or the same list of headers, again and again.
                # In two steps, which take half as long as one.
                message = {**message}
                message["headers"] = [*message.get("headers", ()), *fields]
        return self._send(message)

    async def _replace(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self.send_answer()

    async def send_answer(self) -> None:
        """Sends the answer, if there is one and it was not sent."""
        if self.answer is not None and not self._started:
            self._started = True
            await send_answer(self._send, self.answer, self.facts.method)


class Settlements:
    """Corrections of buckets that are under way: they run to their end even where the request is cancelled."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        # asyncio keeps only weak references to tasks: one that nobody holds can vanish before it has run.
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, settlement: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Begins one; whoever waits for what is returned can be cancelled without cancelling it."""
        task = asyncio.get_running_loop().create_task(settlement)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    async def finish(self) -> None:
        """Waits until none is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class MeteredExchange(HttpExchange):
    """An exchange whose LLM tokens are found out as the response goes by, and charged as soon as it has gone.

    Args:
        guard, facts, decision: as for ``HttpExchange``.
        receive, send: the server's ends.
        settlements: those that are under way.
    """

    __slots__ = ("_disconnected", "_meter", "_receive", "_reserved", "_settlement", "_settlements")

    def __init__(
        self,
        guard: AsyncGuard,
        facts: RequestFacts,
        decision: Decision,
        receive: Receive,
        send: Send,
        settlements: Settlements,
    ) -> None:
        super().__init__(guard, facts, decision, send)
        self._reserved = decision
        self._meter = Meter(decision, guard.settings.max_body_bytes)
        self._receive = receive
        self._disconnected = False
        self._settlement: asyncio.Future[None] | None = None
        self._settlements = settlements

    async def serve(self, app: Application, scope: Scope) -> None:
        """Runs the application and settles, however it ends."""
        try:
            await app(scope, self.receive, self.forward)
        except GeneratorExit:
            raise  # the event loop is no more: there is nothing to wait with
        except BaseException as error:
            # Servers cancel the requests of clients that are gone.
            self._disconnected = self._disconnected or isinstance(error, asyncio.CancelledError)
            await self._settle()
            raise
        await self._settle()

    async def receive(self) -> Message:
        """Hands the application its next message."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._disconnected = True
        return message

    def forward(self, message: Message) -> Awaitable[None]:
        """As for every exchange, and reads along."""
        kind = message["type"]
        if kind == "http.response.start":
            self._meter.start(message["status"], _text(message.get("headers", ())))
        elif kind == "http.response.body":
            self._meter.feed(message.get("body", b""))
            if not message.get("more_body", False):
                self._begin_to_settle(Ending.COMPLETE)
        elif kind == "http.response.pathsend":
            self._begin_to_settle(Ending.COMPLETE)
        return super().forward(message)

    async def _give_back(self) -> None:
        # With everything else goes what was reserved, so that nothing is left to settle.
        self._settlement = self._settlements.begin(self.guard.refund(self.decision))
        await self._settlement

    async def _settle(self) -> None:
        await self._begin_to_settle(Ending.DISCONNECTED if self._disconnected else Ending.RAISED)

    def _begin_to_settle(self, ending: Ending) -> Awaitable[None]:
        if self._settlement is None:
            used_tokens = self._meter.used_tokens(ending)
            self._settlement = self._settlements.begin(self.guard.settle(self._reserved, used_tokens))
        return self._settlement


async def send_answer(send: Send, answer: Answer, method: str) -> None:
    """Sends a whole response to a request of that method."""
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded_headers(answer)})
    # A HEAD request is told how long the body is, and not sent it (RFC 9110, section 9.3.2).
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})


def encoded_headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The header fields of a response as ASGI has them."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    return headers


async def read_for_estimate(facts: RequestFacts, receive: Receive, max_body_bytes: int) -> Receive:
    """Reads the body if an estimate needs it; returns what hands the application the same messages once more."""
    if not readable_length(facts, max_body_bytes):
        return receive
    received: list[Message] = []
    body = bytearray()
    while True:
        message = await receive()
        received.append(message)
        body += message.get("body") or b""
        # A body longer than it was declared is the application's to deal with.
        if not message.get("more_body", False) or len(body) > max_body_bytes:
            break
    facts.body = bytes(body)
    received.reverse()

    async def replay() -> Message:
        return received.pop() if received else await receive()

    return replay


def _text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
