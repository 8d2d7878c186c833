"""A circuit breaker: leaves a store that fails alone for a while, so that requests need not wait for it to fail."""

from __future__ import annotations

import threading

from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock
from abuseguard.errors import StoreError


class StoreUnavailableError(StoreError):
    """The store failed lately and is not being asked."""


class CircuitBreaker:
    """Opens after ``failures_to_open`` failures in a row; then lets one call through every ``open_seconds``.

    Args:
        clock: where the time comes from.
        failures_to_open: how many calls in a row must fail; one slow call is no outage.
        open_seconds: how long it stays open before the next call may try.

    Source: M. Nygard, *Release It!* (2007), chapter 5.
    """

    __slots__ = ("_failures", "_failures_to_open", "_lock", "_now_ns", "_open_ns", "_try_at_ns")

    def __init__(self, clock: Clock, *, failures_to_open: int = 3, open_seconds: float = 1.0) -> None:
        self._now_ns = clock.now_ns
        self._failures_to_open = failures_to_open
        self._open_ns = round(open_seconds * NANOSECONDS_PER_SECOND)
        self._failures = 0
        self._try_at_ns = 0
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether calls are being refused."""
        return self._failures >= self._failures_to_open

    def enter(self) -> None:
        """Asks to call the store.

        Raises:
            StoreUnavailableError: it is being left alone.
        """
        if self._failures < self._failures_to_open:
            return
        with self._lock:
            now_ns = self._now_ns()
            if self._failures >= self._failures_to_open and now_ns < self._try_at_ns:
                raise StoreUnavailableError("the store failed lately and is being left alone")
            self._try_at_ns = now_ns + self._open_ns

    def succeeded(self) -> None:
        """The call went through."""
        if self._failures:
            self._failures = 0

    def failed(self) -> None:
        """The call did not."""
        with self._lock:
            self._failures += 1
            self._try_at_ns = self._now_ns() + self._open_ns
