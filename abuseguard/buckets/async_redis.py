"""Buckets in Redis for callers on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from abuseguard.buckets._channel import Channel
from abuseguard.buckets.breaker import CircuitBreaker
from abuseguard.buckets.denied import DeniedKeys
from abuseguard.buckets.redis import ADJUST, Command, RedisCommands, Script
from abuseguard.buckets.store import Adjustment, Demand, Reply
from abuseguard.clock import Clock, SystemClock
from abuseguard.errors import StoreError


class AsyncRedisStore:
    """Keeps buckets in Redis; decisions that come while another is under way share the next round trip.

    Connections belong to the loop they were opened on, so each loop has a client of its own.

    Args:
        connect: makes an asynchronous Redis storage of the ``limits`` library; called once for each loop.
        timeout_seconds: how long a command may take.
        key_prefix, secret, clock: as for ``RedisStore``.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        timeout_seconds: float,
        key_prefix: str = "abuseguard",
        secret: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._commands = RedisCommands(key_prefix, secret)
        self._denied = DeniedKeys(clock)
        self.breaker = CircuitBreaker(clock)
        self._channels: WeakKeyDictionary[asyncio.AbstractEventLoop, Channel] = WeakKeyDictionary()

    async def take(self, account: str, demands: Sequence[Demand]) -> Reply:
        known = self._denied.answer(account, demands)
        if known is not None:
            return known
        self.breaker.enter()
        try:
            answer = await self._channel().take(self._commands.step(account, demands))
        except StoreError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        reply = self._commands.reply(answer)
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
        channel = self._channels.pop(asyncio.get_running_loop(), None)
        if channel is not None:
            await channel.close()

    async def _run(self, command: Command, script: Script | None) -> Any:
        self.breaker.enter()
        try:
            answer = await self._channel().execute(command, script)
        except StoreError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return answer

    def _channel(self) -> Channel:
        loop = asyncio.get_running_loop()
        channel = self._channels.get(loop)
        if channel is None:
            channel = self._channels[loop] = Channel(self._connect(), self._timeout_seconds)
        return channel
