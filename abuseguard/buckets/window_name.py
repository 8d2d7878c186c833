"""How a store that sees only names tells a window from a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abuseguard.limit import Limit


class WindowName(str):
    """The name of a limit that is one of the ``limits`` library's windows, together with that limit.

    The name alone would not do: limits that depend on the request may give one name to several rates, as when each
    plan has its own ``"daily"``.

    Args:
        limit: the limit; its strategy is not ``"token-bucket"``.
        interval_ns: what one unit of it costs in a ``Demand``: its period divided by its amount.
    """

    __slots__ = ("interval_ns", "limit")

    limit: Limit
    interval_ns: int

    def __new__(cls, limit: Limit, interval_ns: int) -> WindowName:
        name = super().__new__(cls, limit.name)
        name.limit = limit
        name.interval_ns = interval_ns
        return name
