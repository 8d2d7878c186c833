"""Time as a parameter: integer nanoseconds, real or set by hand."""

from __future__ import annotations

import time
from typing import Protocol

NANOSECONDS_PER_SECOND = 1_000_000_000


class Clock(Protocol):
    """Tells the time in whole nanoseconds, in two kinds."""

    def now_ns(self) -> int:
        """Nanoseconds that never run backwards; only differences mean anything."""

    def epoch_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00:00Z, as the machine believes them; may jump."""


class SystemClock:
    """The machine's own clocks."""

    __slots__ = ()

    # The functions themselves, not wrappers: a decision asks for the time once, and a wrapper would double its price.
    now_ns = staticmethod(time.monotonic_ns)
    epoch_ns = staticmethod(time.time_ns)


class ManualClock:
    """A clock that stands still until it is told otherwise, for tests and for replaying a log on its own time.

    >>> clock = ManualClock()
    >>> clock.advance(seconds=1.5)
    >>> clock.now_ns()
    1500000000
    """

    __slots__ = ("_now_ns",)

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def epoch_ns(self) -> int:
        return self._now_ns

    def advance(self, *, seconds: float = 0, ns: int = 0) -> None:
        """Moves the clock by so much; a negative step models a clock that was set back."""
        self._now_ns += ns + round(seconds * NANOSECONDS_PER_SECOND)

    def set_ns(self, now_ns: int) -> None:
        """Sets the clock to an absolute time."""
        self._now_ns = now_ns
