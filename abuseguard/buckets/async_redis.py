"""Buckets in Redis for callers on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from abuseguard.buckets.breaker import CircuitBreaker
from abuseguard.buckets.denied import DeniedKeys
from abuseguard.buckets.redis import (
    ADJUST,
    TAKE,
    Command,
    RedisCommands,
    Script,
    client_errors,
    clients_of,
    is_no_script,
    store_error,
)
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.clock import Clock, SystemClock
from abuseguard.errors import StoreError


class AsyncRedisStore:
    """Keeps buckets in Redis; decisions that come in one turn of the event loop share one round trip.

    Connections belong to the loop they were opened on, so each loop has a client of its own.

    Args:
        connect: makes an asynchronous Redis storage of the ``limits`` library; called once for each loop.
        key_prefix, secret, clock: as for ``RedisStore``.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        key_prefix: str = "abuseguard",
        secret: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._connect = connect
        self._commands = RedisCommands(key_prefix, secret)
        self._denied = DeniedKeys(clock)
        self.breaker = CircuitBreaker(clock)
        self._flushes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flush] = WeakKeyDictionary()

    async def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        known = self._denied.answer(account, demands)
        if known is not None:
            return known
        reply = self._commands.reply(await self._run(self._commands.take(account, demands), TAKE))
        if not reply.allowed:
            self._denied.note(account, demands, reply)
        return reply

    async def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        await self._run(self._commands.adjust(account, adjustments), ADJUST)
        self._denied.forget(account, [(adjustment.bucket, adjustment.key) for adjustment in adjustments])

    async def clear(self, account: str, buckets: Sequence[str]) -> None:
        if buckets:
            await self._run(("DEL", *(self._commands.key(bucket, account) for bucket in buckets)), None)
            self._denied.forget(account, [(bucket, None) for bucket in buckets])

    async def close(self) -> None:
        flush = self._flushes.pop(asyncio.get_running_loop(), None)
        if flush is not None:
            await flush.close()

    async def _run(self, command: Command, script: Script | None) -> Any:
        self.breaker.enter()
        loop = asyncio.get_running_loop()
        flush = self._flushes.get(loop)
        if flush is None:
            flush = self._flushes[loop] = _Flush(loop, self._connect())
        try:
            answer = await flush.send(command, script)
        except StoreError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return answer


class _Flush:
    """Gathers the commands of one turn of an event loop and sends them together.

    Args:
        loop: the event loop.
        storage: its storage.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Any) -> None:
        self._loop = loop
        self._bridge = storage.bridge
        self._client = storage.bridge.get_connection()
        self._errors: tuple[type[Exception], ...] = (*client_errors(storage), asyncio.TimeoutError)
        self._waiting: list[tuple[Command, Script | None, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, command: Command, script: Script | None) -> asyncio.Future[Any]:
        """The answer to a command that goes out with the others of this turn."""
        answer = self._loop.create_future()
        self._waiting.append((command, script, answer))
        if len(self._waiting) == 1:
            # A task of its own: a request that is cancelled must not take the others' answers with it.
            task = self._loop.create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    async def close(self) -> None:
        for client in clients_of(self._bridge):
            with contextlib.suppress(*self._errors):
                await client.aclose()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            answers = await self._execute([command for command, _, _ in waiting])
            missing = {script for (_, script, _), answer in zip(waiting, answers, strict=True) if is_no_script(answer)}
            if missing:
                answers = await self._load_and_repeat(missing, waiting, answers)
        except Exception as error:  # noqa: BLE001 - whoever waits must be answered
            failure = store_error(error)
            answers = [failure] * len(waiting)
        for (_, _, future), answer in zip(waiting, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer if isinstance(answer, StoreError) else store_error(answer))
            else:
                future.set_result(answer)

    async def _load_and_repeat(
        self, missing: set[Script | None], waiting: list[tuple[Command, Script | None, Any]], answers: list[Any]
    ) -> list[Any]:
        """Teaches the server its scripts again, after a restart or a fail-over, and repeats what it did not know."""
        for script in missing:
            if script is not None:
                await self._client.script_load(script.text)
        again = [position for position, answer in enumerate(answers) if is_no_script(answer)]
        repeated = await self._execute([waiting[position][0] for position in again])
        for position, answer in zip(again, repeated, strict=True):
            answers[position] = answer
        return answers

    async def _execute(self, commands: list[Command]) -> list[Any]:
        """Runs commands; an answer each, which may be an exception."""
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except self._errors as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))
