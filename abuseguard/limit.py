"""A limit as an operator writes it: a rate, a burst, and the requests it is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from abuseguard._validation import (
    path_patterns,
    require_choice,
    require_function,
    require_hashable,
    require_plain_function,
    require_whole,
    texts,
)
from abuseguard.errors import SettingsError

if TYPE_CHECKING:
    from limits import RateLimitItem

    from abuseguard.facts import RequestFacts

Unit = Literal["requests", "tokens", "messages"]
Strategy = Literal["token-bucket", "fixed-window", "moving-window", "sliding-window-counter"]
Scope = Literal["account", "address", "everyone"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Far above any budget of a real account.
_MOST = 10**12
# One a nanosecond: time has no smaller unit here.
_MOST_PER_SECOND = 10**9
# In nanoseconds still inside 2**63; in seconds far inside what a structured field can hold.
_LONGEST_SECONDS = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class Limit:
    """So much for every account in so long, for the requests that match.

    Args:
        rate: in the notation of the ``limits`` library: ``"600/minute"``, ``"90 per 2 hours"``. Refilled evenly, so
            ``"90/hour"`` gains one every 40 s.
        burst: how many may come at once, the bucket's capacity. Default: the amount of ``rate``.
        unit: what is counted: ``"requests"``, LLM ``"tokens"`` (reserved before the request, settled after), or
            ``"messages"`` received on a WebSocket.
        name: how it is called in response headers, logs and keys. Default: from rate and unit.
        strategy: ``"token-bucket"``, or one of the ``limits`` library's windows, which have no burst.
        routes: path patterns, of which one must match: ``*`` stands for anything within one segment, ``**`` for
            anything at all. Default: every path.
        methods: HTTP methods, of which one must match. Default: every method.
        plans: plan names, of which one must match. Default: every plan.
        when: any other condition, a function of the facts of a request.
        per: whose bucket it is: each ``"account"``'s, each client ``"address"``', one for ``"everyone"``, or whatever
            key a function of the facts returns (None: the limit does not apply).
        cost: what one request takes, a whole number of at least 0 or a function of the facts that returns one.
            Tokens are not counted by it but estimated: see ``Settings.estimate``.

    Raises:
        SettingsError: a field is wrong; names it, the value, and what is allowed.

    >>> Limit("600/minute", burst=50).name
    '600-per-minute'
    >>> Limit("200000/hour", unit="tokens", plans="free").name
    '200000-tokens-per-hour-free'
    >>> Limit("often")
    Traceback (most recent call last):
        ...
    abuseguard.errors.SettingsError: rate: got 'often', expected a rate such as '600/minute' or '90 per 2 hours'
    """

    rate: str
    burst: int | None = field(default=None, kw_only=True)
    unit: Unit = field(default="requests", kw_only=True)
    name: str = field(default="", kw_only=True)
    strategy: Strategy = field(default="token-bucket", kw_only=True)
    routes: Sequence[str] = field(default=(), kw_only=True)
    methods: Sequence[str] = field(default=(), kw_only=True)
    plans: Sequence[str] = field(default=(), kw_only=True)
    when: Callable[[RequestFacts], bool] | None = field(default=None, kw_only=True)
    per: Scope | Callable[[RequestFacts], str | None] = field(default="account", kw_only=True)
    cost: int | Callable[[RequestFacts], int] = field(default=1, kw_only=True)
    item: RateLimitItem = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        item = _parse_rate(self.rate)
        object.__setattr__(self, "item", item)
        require_choice("unit", self.unit, get_args(Unit))
        require_choice("strategy", self.strategy, get_args(Strategy))
        object.__setattr__(self, "routes", path_patterns("routes", self.routes))
        object.__setattr__(self, "methods", tuple(method.upper() for method in texts("methods", self.methods)))
        object.__setattr__(self, "plans", texts("plans", self.plans))
        if self.burst is not None:
            require_whole("burst", self.burst, least=1, most=_MOST)
            if self.strategy != "token-bucket":
                raise SettingsError("burst", self.burst, f"none: the strategy {self.strategy!r} has no burst")
        if self.unit == "tokens" and self.strategy == "moving-window":
            # It keeps an entry in Redis for each unit that it counts.
            raise SettingsError("strategy", self.strategy, "another strategy for a limit in tokens")
        if item.amount > item.get_expiry() * _MOST_PER_SECOND:
            raise SettingsError("rate", self.rate, f"a rate of at most {_MOST_PER_SECOND} a second")
        if -(-item.get_expiry() * (self.burst or item.amount) // item.amount) > _LONGEST_SECONDS:
            raise SettingsError("rate", self.rate, "a rate that fills the bucket within 100 years")
        require_function("when", self.when, of="the facts of a request")
        if callable(self.per):
            require_plain_function("per", self.per)
        else:
            require_choice("per", self.per, get_args(Scope))
        if callable(self.cost):
            require_plain_function("cost", self.cost)
        else:
            require_whole("cost", self.cost, least=0, most=_MOST)
        for name in ("when", "per", "cost"):
            require_hashable(name, getattr(self, name))
        if self.name == "":
            object.__setattr__(self, "name", self._default_name(item))
        elif not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SettingsError("name", self.name, "1 to 64 of the characters A-Z a-z 0-9 _ . -")

    @classmethod
    def from_text(cls, text: str) -> Limit:
        """A limit from one line, as in an environment variable: ``"600/minute burst=50 unit=tokens routes=/v1/**"``.

        Several routes, methods or plans are joined by ``|``.

        >>> Limit.from_text("600/minute burst=50").burst
        50
        """
        if not isinstance(text, str):
            raise SettingsError("", text, "a text such as '600/minute burst=50'")
        rate, *options = re.split(r"\s+(?=\w+=)", text.strip())
        values: dict[str, Any] = {"rate": rate}
        for option in options:
            key, _, value = option.partition("=")
            if key in values:
                raise SettingsError(key, value, "each field once")
            if key in ("burst", "cost"):
                values[key] = int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else value
            elif key in ("routes", "methods", "plans"):
                values[key] = value.split("|")
            else:
                values[key] = value
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Limit:
        """A limit from a mapping of its fields, as in a TOML file."""
        known = [f.name for f in fields(cls) if f.init]
        for key in values:
            if key not in known:
                raise SettingsError(str(key), values[key], f"one of the fields {', '.join(known)}")
        if "rate" not in values:
            raise SettingsError("rate", None, "a rate such as '600/minute' or '90 per 2 hours'")
        return cls(**values)

    def _default_name(self, item: RateLimitItem) -> str:
        unit = "" if self.unit == "requests" else f"-{self.unit}"
        period = item.GRANULARITY.name if item.multiples == 1 else f"{item.multiples}-{item.GRANULARITY.name}s"
        parts = [f"{item.amount}{unit}-per-{period}", *self.methods, *self.plans]
        parts += [route.strip("/*").replace("/", ".") for route in self.routes]
        if self.per in ("address", "everyone"):
            parts.append(str(self.per))
        return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(part for part in parts if part))[:64]


def _parse_rate(rate: object) -> RateLimitItem:
    # Imported here: `limits` takes longer to import than the rest of this package together.
    from limits.util import parse_many

    allowed = "a rate such as '600/minute' or '90 per 2 hours'"
    if not isinstance(rate, str):
        raise SettingsError("rate", rate, allowed)
    try:
        items = parse_many(rate)
    except ValueError:
        raise SettingsError("rate", rate, allowed) from None
    if len(items) != 1:
        raise SettingsError("rate", rate, "one rate; give several limits for several rates")
    if not 1 <= items[0].amount <= _MOST or not 1 <= items[0].multiples <= _MOST:
        raise SettingsError("rate", rate, f"an amount and a period of 1 to {_MOST}")
    return items[0]
