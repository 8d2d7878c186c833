"""Sends the requests of a log at the demo's server, in order, some at a time, and counts what comes back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from abuseguard.demo.connection import Answer, Connection, open_connection
from abuseguard.demo.log_time import OUTCOME_HEADER, POSITION_HEADER, TIME_HEADER
from abuseguard.demo.server import MAX_OUTPUT_TOKENS, OUTPUT_TOKENS_HEADER
from abuseguard.demo.server_process import HOST, ServerError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from abuseguard.demo.tally import Tally
    from abuseguard.replay.logged_request import LoggedRequest

NO_ANSWER_SECONDS = 30.0
WATCH_SECONDS = 0.5

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_UNPRINTABLE = re.compile(r"[^ -~]")
_OUTCOME = OUTCOME_HEADER.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the requests are sent.

    Args:
        concurrency: how many at a time, at least 1.
        speed: seconds of the log to a second; None for as fast as it goes.
    """

    concurrency: int = 32
    speed: float | None = None


async def drive(requests: Iterable[LoggedRequest], server: ServerProcess, pace: Pace, tally: Tally) -> None:
    """Sends the requests at the server and counts them in ``tally``, which can be read meanwhile.

    Raises:
        ServerError: the server broke down, or does not answer.
    """
    driver = _Driver(iter(requests), server, pace, tally)
    tasks = [asyncio.ensure_future(driver.work()) for _ in range(pace.concurrency)]
    watch = asyncio.ensure_future(driver.watch())
    ends: list[asyncio.Future[Any]] = [asyncio.gather(*tasks), watch]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except OSError as error:
        raise ServerError(await _cause(server, str(error))) from error
    finally:
        for task in (*tasks, watch):
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


async def _cause(server: ServerProcess, symptom: str) -> str:
    """What to say of a connection that failed: a process that is ending needs a moment until it can be seen."""
    for _ in range(10):
        if not server.alive:
            return f"the demo's server broke down (exit code {server.exit_code})"
        await asyncio.sleep(0.05)
    return f"the demo's server failed: {symptom}"


class _Driver:
    def __init__(self, requests: Iterator[LoggedRequest], server: ServerProcess, pace: Pace, tally: Tally) -> None:
        self._requests = requests
        self._server = server
        self._speed = pace.speed
        self._tally = tally
        self._taken = 0
        self._waiting_since: dict[Connection, float] = {}
        self._started: tuple[float, float] | None = None

    async def watch(self) -> None:
        """Ends in an error when the server is gone, or leaves a request without an answer."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._server.alive:
                raise ServerError(await _cause(self._server, ""))
            if min(self._waiting_since.values(), default=math.inf) < time.perf_counter() - NO_ANSWER_SECONDS:
                raise ServerError(f"the demo's server has not answered for {NO_ANSWER_SECONDS:.0f} s")

    async def work(self) -> None:
        """Takes the next request and sends it, until there is none, on a connection of its own."""
        connection = await open_connection(HOST, self._server.port)
        try:
            for request in self._requests:
                position, self._taken = self._taken, self._taken + 1
                if self._speed is not None:
                    await self._sleep_until(request.ts, self._speed)
                if not connection.reusable:
                    connection = await open_connection(HOST, self._server.port)
                await self._send(connection, request, position)
        finally:
            connection.close()

    async def _sleep_until(self, ts: float, speed: float) -> None:
        now = time.perf_counter()
        if self._started is None:
            self._started = (ts, now)
        first_ts, started = self._started
        await asyncio.sleep(max(0.0, started + (ts - first_ts) / speed - now))

    async def _send(self, connection: Connection, request: LoggedRequest, position: int) -> None:
        method, target, headers, body = http_request(request)
        headers.append((POSITION_HEADER.encode(), b"%d" % position))
        start = time.perf_counter()
        self._waiting_since[connection] = start
        try:
            answer = await connection.request(method, target, headers, body)
        finally:
            del self._waiting_since[connection]
        self._tally.add(
            request.account,
            ts=request.ts,
            status=answer.status,
            degraded=answer.headers.get(_OUTCOME) == b"degraded",
            streamed=answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"),
            tokens=used_tokens(answer) if answer.status == 200 else 0,
            seconds=time.perf_counter() - start,
        )


def http_request(request: LoggedRequest) -> tuple[str, str, list[tuple[bytes, bytes]], bytes]:
    """A logged request as it is sent: method, target, headers and body.

    Nothing in a log can make it invalid: what HTTP does not allow is replaced, and a method that the log may name but
    that means something else to a connection (CONNECT) becomes POST.
    """
    headers = [
        (b"host", b"localhost"),
        (b"authorization", b"Bearer sk-demo-" + _key(request.account)),
        (b"user-agent", _field(request.user_agent)),
        (TIME_HEADER.encode(), b"%d" % round(request.ts * 1_000_000_000)),
        (OUTPUT_TOKENS_HEADER.encode(), b"%d" % max(1, request.output_tokens)),
    ]
    if request.ip:
        headers.append((b"x-forwarded-for", _field(request.ip)))
    if request.session:
        headers.append((b"x-session-id", _field(request.session)))
    method = request.method if request.method in _METHODS else "POST"
    target = quote(f"/{request.path.lstrip('/')}", safe="/?&=%:@!$'()*+,;~", errors="replace")[:2000]
    if method in _BODILESS_METHODS:
        return method, target, headers, b""
    headers.append((b"content-type", b"application/json"))
    call = {
        "model": request.model or "demo-large",
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "stream": request.stream,
        "max_tokens": _requested_tokens(request.output_tokens),
    }
    if request.stream:
        call["stream_options"] = {"include_usage": True}
    return method, target, headers, json.dumps(call, ensure_ascii=False).encode("utf-8", "replace")


def used_tokens(answer: Answer) -> int:
    r"""The tokens that an answer says were used, plain or in the last events of a stream; 0 if it says nothing.

    >>> used_tokens(Answer(200, {}, b'data: {"usage": {"total_tokens": 7}}\n\ndata: [DONE]\n\n'))
    7
    """
    last = answer.body
    if last.startswith(b"data:"):
        events = [event for event in last.rsplit(b"\n\n", 3) if b'"usage"' in event]
        last = events[-1].rpartition(b"data:")[2] if events else b""
    try:
        return int(json.loads(last)["usage"]["total_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0


def _requested_tokens(output_tokens: int) -> int:
    """What a client asks for that does not know how long the answer will be: room to spare, in round numbers.

    >>> _requested_tokens(300)
    512
    """
    return int(min(MAX_OUTPUT_TOKENS, max(256, 1 << max(0, output_tokens - 1).bit_length())))


def _key(account: str) -> bytes:
    key = quote(account, safe="", errors="replace").encode()
    return key if len(key) <= 200 else hashlib.sha256(key).hexdigest().encode()


def _field(value: str) -> bytes:
    return _UNPRINTABLE.sub("?", value[:500]).strip().encode("ascii")
