"""Faults that can come with every request, logged so that they do not fill a disk."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("abuseguard")

_SECONDS_BETWEEN_REPORTS = 60.0


class FaultLog:
    """Counts faults of one kind, and logs them at most once a minute.

    Args:
        level: how serious they are, as ``logging`` counts it.
    """

    __slots__ = ("_level", "_next_report_seconds", "count")

    def __init__(self, level: int = logging.ERROR) -> None:
        self._level = level
        self._next_report_seconds = 0.0
        #: How many there have been.
        self.count = 0

    def report(self, message: str, *arguments: object, with_traceback: bool = False) -> None:
        """Counts a fault, and logs it if none was logged lately."""
        self.count += 1
        now_seconds = time.monotonic()
        if now_seconds >= self._next_report_seconds:
            self._next_report_seconds = now_seconds + _SECONDS_BETWEEN_REPORTS
            logger.log(self._level, f"{message} (number %d)", *arguments, self.count, exc_info=with_traceback)
