"""The user's own functions, called so that a fault in one never reaches the application behind the guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from abuseguard._fault_log import FaultLog
from abuseguard.errors import shown

Result = TypeVar("Result")
Default = TypeVar("Default")


class Callback(Generic[Result, Default]):
    """A function of the settings, with what stands in for its result when it raises.

    Faults are logged with their traceback, at most once a minute for each function, and counted in between.
    """

    __slots__ = ("_default", "_faults", "_field", "_function")

    def __init__(self, field: str, function: Callable[..., Result], default: Default) -> None:
        self._field = field
        self._function = function
        self._default = default
        self._faults = FaultLog()

    def __call__(self, *arguments: Any) -> Result | Default:
        try:
            return self._function(*arguments)
        except Exception:  # noqa: BLE001 - whatever it raises, the request goes on
            self._report("raised", with_traceback=True)
            return self._default

    @property
    def failures(self) -> int:
        """How often it raised or returned what cannot be used."""
        return self._faults.count

    def refuse(self, result: object, expected: str) -> None:
        """Reports a result that cannot be used."""
        self._report(f"returned {shown(result)}, expected {expected}")

    def report(self, what: str) -> None:
        """Reports any other fault of the function, as what it did."""
        self._report(what)

    def _report(self, what: str, *, with_traceback: bool = False) -> None:
        self._faults.report(
            "the function given as %s %s; using %r instead",
            self._field,
            what,
            self._default,
            with_traceback=with_traceback,
        )
