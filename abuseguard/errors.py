"""What can go wrong: misuse at start-up and broken infrastructure. A denial is a value, never one of these."""

from __future__ import annotations


class AbuseGuardError(Exception):
    """The base of every error this package raises."""


def shown(value: object) -> str:
    """A value for a message: its ``repr``, cut to 200 characters, or its type where it has none.

    >>> shown("x" * 300)[-24:]
    'xxx... (302 characters)'
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a number of 5,000 digits has none, and other objects as they like
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


class SettingsError(AbuseGuardError, ValueError):
    """A setting is wrong; names the field, the value given, and what is allowed.

    Args:
        field: the dotted name of the setting, such as ``limits[0].burst``.
        value: the value that was given.
        allowed: what would have been accepted, as the end of "expected ...".

    >>> print(SettingsError("limits[0].burst", -3, "a whole number of at least 1"))
    limits[0].burst: got -3, expected a whole number of at least 1
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(field, value, allowed)

    def __str__(self) -> str:
        return f"{self.field}: got {shown(self.value)}, expected {self.allowed}"

    def within(self, outer: str) -> SettingsError:
        """The same error with its field placed inside ``outer``: ``burst`` within ``limits[0]``."""
        joint = "." if self.field and not self.field.startswith("[") else ""
        return SettingsError(f"{outer}{joint}{self.field}", self.value, self.allowed)


class MissingExtraError(AbuseGuardError, ImportError):
    """An optional dependency is not installed; names it and the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'abuseguard[{extra}]'", name=package)


class StoreError(AbuseGuardError):
    """The store did not answer, or answered something else than what was asked."""


class StoreTimeoutError(StoreError):
    """The store did not answer in the time it was given."""


class StoreFullError(StoreError):
    """Every bucket that a bounded store holds is in debt, so no new one can be kept."""
