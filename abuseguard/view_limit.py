"""Limits and exemptions that are written on views, for the decorators of adapters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from abuseguard.errors import SettingsError
from abuseguard.limit import Limit

if TYPE_CHECKING:
    from abuseguard.facts import RequestFacts
    from abuseguard.limit import Scope, Strategy, Unit

_ATTRIBUTE = "__abuseguard__"
_LONGEST_NAME = 64
_DIGEST_BYTES = 4


class LimitOptions(TypedDict, total=False):
    """What can be said of a view's limit besides its rate; each as in ``Limit``."""

    burst: int | None
    unit: Unit
    name: str
    strategy: Strategy
    methods: str | Sequence[str]
    plans: str | Sequence[str]
    when: Callable[[RequestFacts], bool] | None
    per: Scope | Callable[[RequestFacts], str | None]
    cost: int | Callable[[RequestFacts], int]


class ViewLimit:
    """A limit for the views it is written on, with a bucket of its own for each of them unless it is given a name.

    Args:
        rate: as in ``Limit``; or a whole ``Limit``, which is taken as it is: views that it is given to share it.
        options: as in ``Limit``. Views whose limits have the same ``name`` share its bucket.

    Raises:
        SettingsError: a field is wrong.

    >>> ViewLimit("5/minute").of("login").name, ViewLimit("5/minute", name="sensitive").of("login").name
    ('5-per-minute-login', 'sensitive')
    """

    __slots__ = ("_limit", "_of_view", "_shared")

    def __init__(self, rate: str | Limit, options: LimitOptions | None = None) -> None:
        given: dict[str, Any] = {**(options or {})}
        if isinstance(rate, Limit):
            if given:
                raise SettingsError(next(iter(given)), next(iter(given.values())), "no options besides a whole Limit")
            self._limit = rate
        else:
            self._limit = Limit(rate, **given)
        if self._limit.unit == "messages":
            raise SettingsError("unit", "messages", "'requests' or 'tokens': a view receives no WebSocket messages")
        self._shared = isinstance(rate, Limit) or "name" in given
        self._of_view: dict[str, Limit] = {}

    @property
    def limits_tokens(self) -> bool:
        """Whether it is in LLM tokens."""
        return self._limit.unit == "tokens"

    def of(self, view: str) -> Limit:
        """The limit of the view of that name."""
        if self._shared:
            return self._limit
        limit = self._of_view.get(view)
        if limit is None:
            limit = replace(self._limit, name=_bucket_name(f"{self._limit.name}-{view}"))
            self._of_view[view] = limit
        return limit


@dataclass(frozen=True, slots=True)
class ViewMarks:
    """What decorators have written on a view.

    Args:
        limits: its own limits, the outermost last.
        exempt: no limit is for it.
    """

    limits: tuple[ViewLimit, ...] = ()
    exempt: bool = False

    @classmethod
    def of(cls, view: object) -> ViewMarks | None:
        """What is written on it; None if nothing is."""
        marks: ViewMarks | None = getattr(view, _ATTRIBUTE, None)
        return marks

    @property
    def limits_tokens(self) -> bool:
        """Whether one of the limits is in LLM tokens."""
        return any(limit.limits_tokens for limit in self.limits)


_UNMARKED = ViewMarks()


def mark(view: Any, *, limit: ViewLimit | None = None, exempt: bool = False) -> None:
    """Writes on a view, besides what is written there already; ``functools.wraps`` carries it outwards.

    Raises:
        TypeError: it is a class, on which nobody would look for it.
    """
    if isinstance(view, type):
        raise TypeError(f"{view.__qualname__} is a class: decorate the view that is made of it, or its dispatch method")
    marks = ViewMarks.of(view) or _UNMARKED
    limits = marks.limits if limit is None else (*marks.limits, limit)
    setattr(view, _ATTRIBUTE, ViewMarks(limits, marks.exempt or exempt))


def view_path(view: Any) -> str:
    """The name of a function, or of an object's class, with its module.

    >>> import json
    >>> view_path(json.dumps), view_path(json.JSONDecoder())
    ('json.dumps', 'json.decoder.JSONDecoder')
    """
    named = view if hasattr(view, "__qualname__") else type(view)
    return f"{named.__module__}.{named.__qualname__}"


def _bucket_name(text: str) -> str:
    """The text as the name of a limit, as different from others' as it was."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
