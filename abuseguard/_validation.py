"""The checks that settings share: each names the field, the value and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence

from abuseguard.errors import SettingsError


def require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(field, value, f"one of {', '.join(map(repr, choices))}")


def require_whole(field: str, value: object, *, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(field, value, f"a whole number from {least} to {most}")


def require_number(field: str, value: object, *, least: float, most: float) -> None:
    allowed = f"a number from {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise SettingsError(field, value, allowed)


def require_function(field: str, value: object, *, of: str) -> None:
    if value is not None:
        if not callable(value):
            raise SettingsError(field, value, f"a function of {of}, or None")
        require_plain_function(field, value)


def require_plain_function(field: str, value: object) -> None:
    """What is called has to be a function that answers at once."""
    if _is_asynchronous(value) or _is_asynchronous(getattr(value, "__call__", None)):  # noqa: B004 - what it does
        raise SettingsError(field, value, "a plain function, as nothing awaits it, not an async one")


def require_hashable(field: str, value: object) -> None:
    try:
        hash(value)
    except TypeError:
        raise SettingsError(field, value, "a function that can be hashed, such as one that is no dataclass") from None


def _is_asynchronous(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def require_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise SettingsError(field, value, "a text that is not empty")


def texts(field: str, value: object) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (Sequence, set, frozenset)) or isinstance(values, (bytes, bytearray)):
        raise SettingsError(field, value, "a text or a sequence of texts")
    for item in values:
        if not isinstance(item, str) or not item:
            raise SettingsError(field, item, "texts that are not empty")
    # The order of a set differs from process to process, and names are made of it.
    return tuple(sorted(values) if isinstance(values, (set, frozenset)) else values)


def path_patterns(field: str, value: object) -> tuple[str, ...]:
    """Patterns of paths, as a tuple."""
    patterns = texts(field, value)
    for pattern in patterns:
        if not pattern.startswith(("/", "*")):
            raise SettingsError(field, pattern, "path patterns that start with '/' or '*', such as '/v1/**'")
    return patterns


def each(field: str, values: object, parse: Callable[[object], object]) -> tuple[object, ...]:
    """Every item of a sequence, parsed; an error names the item's position."""
    if not isinstance(values, Collection) or isinstance(values, (str, bytes, bytearray)):
        raise SettingsError(field, values, "a sequence")
    parsed = []
    for position, item in enumerate(values):
        try:
            parsed.append(parse(item))
        except SettingsError as error:
            raise error.within(f"{field}[{position}]") from None
    return tuple(parsed)
