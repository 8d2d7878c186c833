"""The bounded storage in memory, for ``limits.aio``.

Importing this module makes it known to ``limits`` under the scheme ``async+abuseguard+memory``.
"""

from __future__ import annotations

from typing import Any

from limits.aio.storage.base import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from abuseguard.buckets.memory import MemoryStore
from abuseguard.buckets.window_storage import WindowStorage
from abuseguard.clock import Clock


class AsyncWindowStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """A ``WindowStorage`` for ``limits.aio``: it never blocks, so it is called as it is. Takes the same arguments."""

    STORAGE_SCHEME = ["async+abuseguard+memory"]  # noqa: RUF012 - declared by `limits`, whose metaclass reads it

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self.storage = WindowStorage(uri, **options)

    @property
    def clock(self) -> Clock:
        return self.storage.clock

    @property
    def buckets(self) -> MemoryStore:
        return self.storage.buckets

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        return self.storage.incr(key, expiry, amount)

    async def get(self, key: str) -> int:
        return self.storage.get(key)

    async def get_expiry(self, key: str) -> float:
        return self.storage.get_expiry(key)

    async def clear(self, key: str) -> None:
        self.storage.clear(key)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        return self.storage.reset()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return self.storage.acquire_entry(key, limit, expiry, amount)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        return self.storage.get_moving_window(key, limit, expiry)

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return self.storage.acquire_sliding_window_entry(key, limit, expiry, amount)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        return self.storage.get_sliding_window(key, expiry)

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        self.storage.clear_sliding_window(key, expiry)
