"""The log's own time: each request carries it, and the guard's clock is set by it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abuseguard.clock import ManualClock
    from abuseguard.decision import Decision
    from abuseguard.facts import RequestFacts

# Of a request: its time, and how many requests of the log came before it. Of an answer: how the guard decided.
TIME_HEADER = "x-demo-log-time-ns"
POSITION_HEADER = "x-demo-log-position"
OUTCOME_HEADER = "x-demo-outcome"

# What LogTime and the guard's observer leave for each other in the ASGI scope.
PASS_TURN_ON = "abuseguard.demo.pass_turn_on"
_OUTCOME = "abuseguard.demo.outcome"

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Application = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class LogTime:
    """Lets requests come before the guard one by one, in the order of the log, each at its own time of the log.

    Requests that are under way together arrive in any order, and a clock that a later one has set forward would fill
    the buckets of an earlier one. So each waits for its turn, and passes the turn on as soon as the guard has decided.
    It also waits for the answer to the last request with its API key: in the log that was minutes ago, and its tokens
    have been settled since. So the decisions are those of a log that is sent request by request, while requests still
    overlap.

    Args:
        app: the application, with the guard in front of it.
        clock: the guard's clock; None to leave order and time as they come.
    """

    def __init__(self, app: _Application, *, clock: ManualClock | None) -> None:
        self.app = app
        self._clock = clock
        self._turn = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last_of_key: dict[bytes, asyncio.Future[None]] = {}

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_outcome(message: _Message) -> None:
            if message["type"] == "http.response.start" and _OUTCOME in scope:
                message["headers"] = [*message["headers"], (OUTCOME_HEADER.encode(), scope[_OUTCOME].encode())]
            await send(message)

        position = _read_number(scope, POSITION_HEADER)
        if self._clock is None or position is None:
            await self.app(scope, receive, send_with_outcome)
            return
        await self._wait_for_turn(position)
        key = _read(scope, "authorization")
        last = self._last_of_key.get(key)
        this = self._last_of_key[key] = asyncio.get_running_loop().create_future()
        try:
            if last is not None and key:
                await last
            time_ns = _read_number(scope, TIME_HEADER)
            if time_ns is not None:
                self._clock.set_ns(max(self._clock.now_ns(), time_ns))
            scope[PASS_TURN_ON] = lambda: self._pass_turn_on(position)
            await self.app(scope, receive, send_with_outcome)
        finally:
            this.set_result(None)
            if self._last_of_key.get(key) is this:
                del self._last_of_key[key]
            self._pass_turn_on(position)

    async def _wait_for_turn(self, position: int) -> None:
        if position > self._turn:
            self._waiting[position] = asyncio.get_running_loop().create_future()
            await self._waiting[position]

    def _pass_turn_on(self, position: int) -> None:
        if position == self._turn:
            self._turn += 1
            waiting = self._waiting.pop(self._turn, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)


def note_decision(facts: RequestFacts, decision: Decision) -> None:
    """The guard's observer: lets the next request come, and keeps the outcome for the driver."""
    scope: _Scope = facts.native
    scope[_OUTCOME] = decision.outcome.value
    if PASS_TURN_ON in scope:
        scope[PASS_TURN_ON]()


def _read_number(scope: _Scope, header: str) -> int | None:
    value = _read(scope, header)
    return int(value) if value.isdigit() and len(value) < 22 else None


def _read(scope: _Scope, header: str) -> bytes:
    wanted = header.encode()
    return next((value for name, value in scope["headers"] if name == wanted), b"")
