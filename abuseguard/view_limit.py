"""Limits and exemptions that are written on views, for the decorators of adapters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from abuseguard.errors import SettingsError
from abuseguard.limit import Limit

if TYPE_CHECKING:
    from abuseguard.facts import RequestFacts
    from abuseguard.limit import Scope, Strategy, Unit

View = TypeVar("View", bound=Callable[..., Any])

#: Where a view's marks are, and what stands for them where there are none: adapters read them at every request, which
#: a call of ``ViewMarks.of`` would double the price of.
MARKS = "__abuseguard__"
_LONGEST_NAME = 64
_DIGEST_BYTES = 4


class LimitOptions(TypedDict, total=False):
    """What can be said of a view's limit besides its rate; each as in ``Limit``.

    shared: whether all views with this limit have one bucket together.
    """

    burst: int | None
    unit: Unit
    name: str
    strategy: Strategy
    methods: str | Sequence[str]
    plans: str | Sequence[str]
    when: Callable[[RequestFacts], bool] | None
    per: Scope | Callable[[RequestFacts], str | None]
    cost: int | Callable[[RequestFacts], int]
    shared: bool


class ViewLimit:
    """A limit for the views it is written on, each with a bucket of its own unless it is shared or has a name.

    Args:
        rate: as in ``Limit``; or a whole ``Limit``, which is taken as it is: all views that it is given to share it.
        options: as in ``Limit``, and ``shared``. Views whose limits have the same ``name`` share its bucket.

    Raises:
        SettingsError: a field is wrong.

    >>> ViewLimit("5/minute").of("login").name, ViewLimit("5/minute", {"name": "sensitive"}).of("login").name
    ('5-per-minute-login', 'sensitive')
    """

    __slots__ = ("_limit", "_of_view", "_shared")

    def __init__(self, rate: str | Limit, options: LimitOptions | None = None) -> None:
        given: dict[str, Any] = {**(options or {})}
        if isinstance(rate, Limit):
            for name, value in given.items():
                raise SettingsError(name, value, "no options besides a whole Limit")
            self._limit = rate
            self._shared = True
        else:
            shared = given.pop("shared", False)
            if not isinstance(shared, bool):
                raise SettingsError("shared", shared, "True or False")
            limit = Limit.from_mapping({**given, "rate": rate})
            named = bool(given.get("name"))
            # Told apart from a limit of the settings with the same rate, which would have the same name.
            self._limit = replace(limit, name=_bucket_name(f"shared-{limit.name}")) if shared and not named else limit
            self._shared = shared or named
        if self._limit.unit == "messages":
            raise SettingsError("unit", "messages", "'requests' or 'tokens': a view receives no WebSocket messages")
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

    def of_hidden(self, view: str) -> Limit:
        """The same for a view that it was not seen on before the view was called, as another decorator hides it.

        Raises:
            RuntimeError: it is in LLM tokens, and now it is too late to reserve them and to watch the response.
        """
        if self.limits_tokens:
            raise RuntimeError(f"the limit in tokens on {view} is hidden by a decorator that lacks functools.wraps")
        return self.of(view)


@dataclass(frozen=True, slots=True)
class ViewMarks:
    """What decorators have written on a view.

    Args:
        limits: its own limits, the outermost last.
        exempt: no limit is for it.
        limits_tokens: one of its limits is in LLM tokens.
    """

    limits: tuple[ViewLimit, ...] = ()
    exempt: bool = False
    limits_tokens: bool = False

    @classmethod
    def of(cls, view: object) -> ViewMarks:
        """What is written on it."""
        marks: ViewMarks = getattr(view, MARKS, UNMARKED)
        return marks


UNMARKED = ViewMarks()


def mark(view: Any, *, limit: ViewLimit | None = None, exempt: bool = False) -> None:
    """Writes on a view, besides what is written there already; ``functools.wraps`` carries it outwards.

    Raises:
        TypeError: it is a class, on which nobody would look for it.
    """
    _require_no_class(view)
    marks = ViewMarks.of(view)
    if limit is not None:
        marks = replace(marks, limits=(*marks.limits, limit), limits_tokens=marks.limits_tokens or limit.limits_tokens)
    setattr(view, MARKS, replace(marks, exempt=marks.exempt or exempt))


def limited(
    view: View,
    limit: ViewLimit,
    refuse: Callable[..., Any],
    refuse_async: Callable[..., Awaitable[Any]],
    *,
    is_async: bool,
) -> View:
    """A view with a limit written on it, which answers with a refusal if there is one.

    Args:
        view: the view.
        limit: its limit.
        refuse, refuse_async: return a refusal or None, from the limit, the view and what this is called with.
        is_async: whether the view is a coroutine function.

    Raises:
        TypeError: it is a class.
    """
    _require_no_class(view)
    wrapper: Callable[..., Any]
    if is_async:

        @wraps(view)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            refusal = await refuse_async(limit, view, *args)
            return await view(*args, **kwargs) if refusal is None else refusal
    else:

        @wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            refusal = refuse(limit, view, *args)
            return view(*args, **kwargs) if refusal is None else refusal

    mark(wrapper, limit=limit)
    return cast("View", wrapper)


def _require_no_class(view: object) -> None:
    if isinstance(view, type):
        raise TypeError(f"{view.__qualname__} is a class: decorate the view that is made of it, or its dispatch method")


def view_path(view: Any, route: str) -> str:
    """The name of a function, or of an object's class, with its module.

    Args:
        view: the function or object.
        route: what tells functions apart that were defined inside another, and so may have their name in common.

    >>> import json
    >>> view_path(json.dumps, "/"), view_path(json.JSONDecoder(), "/"), view_path(lambda: None, "/users")
    ('json.dumps', 'json.decoder.JSONDecoder', 'abuseguard.view_limit.<lambda>-/users')
    """
    while isinstance(view, partial):
        view = view.func
    named = view if hasattr(view, "__qualname__") else type(view)
    path = f"{named.__module__}.{named.__qualname__}"
    return f"{path}-{route}" if "<" in path else path


def _bucket_name(text: str) -> str:
    """The text as the name of a limit, as different from others' as it was."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    if name == text and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
