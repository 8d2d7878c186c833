"""One request that was admitted, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from abuseguard import Limit
from abuseguard.admission import Admission, Exchange, chunk_bytes
from abuseguard.guard import AsyncGuard
from abuseguard.headers import Answer
from abuseguard.tokens import Ending

# asyncio keeps only weak references to tasks: one that nobody holds can vanish before it has run.
_settlements: set[asyncio.Task[None]] = set()


class AsyncExchange(Admission[AsyncGuard]):
    """One request that was admitted, for callers on an event loop, the one that it is made on.

    Args:
        guard: who decides.
    """

    __slots__ = ("_loop",)

    def __init__(self, guard: AsyncGuard) -> None:
        super().__init__(guard)
        self._loop = asyncio.get_running_loop()

    async def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks limits of the route's own; as ``Exchange.decide_limits``."""
        decision = await self.guard.decide_limits(self.facts, limits)
        if decision.admitted:
            self.decision = self.guard.policy.join(self.decision, decision)
            return None
        if self.turn_away():
            await self.guard.refund(self.reserved)
        return self.guard.answer(self.facts, decision)

    def settle(self, ending: Ending) -> asyncio.Task[None] | None:
        """Has the tokens used charged, from any thread; only the first call counts.

        Returns:
            What charges them, to be waited for; None in another thread, or if there is nothing to charge.
        """
        meter, self.meter = self.meter, None
        if meter is None:
            return None
        settling = self.guard.settle(self.reserved, meter.used_tokens(ending))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Django iterates and closes what is not asynchronous in a thread.
            if self._loop.is_closed():
                settling.close()
            else:
                self._loop.call_soon_threadsafe(_start, self._loop, settling)
            return None
        return _start(loop, settling)


def _start(loop: asyncio.AbstractEventLoop, settling: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = loop.create_task(settling)
    _settlements.add(task)
    task.add_done_callback(_settlements.discard)
    return task


class AsyncMeteredBody:
    """The content of a streamed response that is watched as an event loop takes it.

    Args:
        body: the content.
        exchange: what it belongs to.
    """

    __slots__ = ("_body", "_exchange")

    def __init__(self, body: AsyncIterator[Any], exchange: Exchange | AsyncExchange) -> None:
        self._body = body
        self._exchange = exchange

    def __aiter__(self) -> AsyncMeteredBody:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await self._body.__anext__()
        except BaseException:
            # Its end, its failure, or that of its client. It has begun, so all are charged alike.
            self._settle()
            raise
        if self._exchange.meter is not None:
            self._exchange.meter.feed(chunk_bytes(chunk))
        return chunk

    def close(self) -> None:
        """Called by Django when the client has gone between two parts; in a thread."""
        self._exchange.settle(Ending.DISCONNECTED)

    def _settle(self) -> None:
        if isinstance(self._exchange, AsyncExchange):
            self._exchange.settle(Ending.COMPLETE)
        else:
            # The guard is one that blocks, as some middleware between it and the view is not asynchronous.
            asyncio.get_running_loop().run_in_executor(None, self._exchange.settle, Ending.COMPLETE)
