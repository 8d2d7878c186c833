"""The user's own functions, called so that a fault in one never reaches the application behind the guard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
Default = TypeVar("Default")

logger = logging.getLogger("abuseguard")

_SECONDS_BETWEEN_REPORTS = 60.0


class Callback(Generic[Result, Default]):
    """A function of the settings, with what stands in for its result when it raises.

    Faults are logged with their traceback, at most once a minute for each function, and counted in between.
    """

    __slots__ = ("_default", "_field", "_function", "_next_report", "failures")

    def __init__(self, field: str, function: Callable[..., Result], default: Default) -> None:
        self._field = field
        self._function = function
        self._default = default
        self._next_report = 0.0
        self.failures = 0

    def __call__(self, *arguments: Any) -> Result | Default:
        try:
            return self._function(*arguments)
        except Exception:  # noqa: BLE001 - whatever it raises, the request goes on
            self.report("raised", with_traceback=True)
            return self._default

    def report(self, what: str, *, with_traceback: bool = False) -> None:
        """Counts a fault, and logs it if none was logged lately."""
        self.failures += 1
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _SECONDS_BETWEEN_REPORTS
            logger.error(
                "the function given as %s %s; using %r instead (failure %d)",
                self._field,
                what,
                self._default,
                self.failures,
                exc_info=with_traceback,
            )
