"""A store for callers on an event loop that takes windows of the ``limits`` library along with token buckets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from abuseguard.buckets._deadline import timeout
from abuseguard.buckets._window import Steps, Windows, run_async
from abuseguard.buckets.redis import client_errors, clients_of, store_error
from abuseguard.buckets.store import Adjustment, AsyncStore, Demand, Reply
from abuseguard.buckets.window_name import WindowName
from abuseguard.buckets.windows import WindowSteps, has_window, windows_on
from abuseguard.clock import Clock, SystemClock

Result = TypeVar("Result")


class AsyncWindowedStore:
    """What ``WindowedStore`` does, for event loops, on Redis. In memory nothing waits: there the former serves both.

    Args:
        store: keeps the buckets.
        storage: gives the storage of the windows for the event loop that runs: a Redis storage of ``limits.aio``
            without timeouts of its own.
        timeout_seconds: how long a step may take, buckets included.
        secret, clock: as for ``WindowedStore``.
    """

    def __init__(
        self,
        store: AsyncStore,
        storage: Callable[[], Any],
        *,
        timeout_seconds: float,
        secret: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._storage = storage
        self._timeout_seconds = timeout_seconds
        self._secret = secret
        self._steps = WindowSteps(store, clock or SystemClock())
        self._windows: WeakKeyDictionary[asyncio.AbstractEventLoop, Windows] = WeakKeyDictionary()

    # Not a coroutine around the store's: one frame less to wait through where there are no windows.
    def take(self, account: str, demands: Sequence[Demand]) -> Coroutine[Any, Any, Reply]:
        if not has_window(demands):
            return self._store.take(account, demands)
        return self._run(lambda windows: self._steps.take(windows, account, demands))

    async def adjust(self, account: str, adjustments: Sequence[Adjustment]) -> None:
        if not has_window(adjustments):
            await self._store.adjust(account, adjustments)
        else:
            await self._run(lambda windows: self._steps.adjust(windows, account, adjustments))

    async def clear(self, account: str, buckets: Sequence[str]) -> None:
        if not any(isinstance(bucket, WindowName) for bucket in buckets):
            await self._store.clear(account, buckets)
        else:
            await self._run(lambda windows: self._steps.clear(windows, account, buckets))

    async def close(self) -> None:
        await self._store.close()
        windows = self._windows.pop(asyncio.get_running_loop(), None)
        if windows is not None:
            # The store closes the connections they share, but does not know of them before it has used them itself.
            for client in clients_of(windows.storage.bridge):
                with contextlib.suppress(*client_errors(windows.storage)):
                    await client.aclose()

    def _connected(self) -> Windows:
        loop = asyncio.get_running_loop()
        windows = self._windows.get(loop)
        if windows is None:
            with self._steps.connecting():
                windows = self._windows[loop] = windows_on(self._storage(), self._secret)
        return windows

    async def _run(self, steps: Callable[[Windows], Steps[Result]]) -> Result:
        windows = self._connected()
        try:
            async with timeout(self._timeout_seconds):
                return await run_async(steps(windows))
        except asyncio.TimeoutError as error:
            self._steps.breaker.failed()
            raise store_error(error) from error
