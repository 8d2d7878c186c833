"""Limits and exemptions of single views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.views import View as ClassView

from abuseguard.view_limit import View, ViewLimit, ViewMarks, limited, mark, view_path
from abuseguard_django.exchange import AsyncExchange
from abuseguard_django.settings import MIDDLEWARE, middleware_position

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from abuseguard import Limit
    from abuseguard.admission import Exchange
    from abuseguard.headers import Answer
    from abuseguard.view_limit import LimitOptions


def limit(rate: str | Limit, **options: Unpack[LimitOptions]) -> Callable[[View], View]:
    """Limits one view, besides the limits of the settings and in one step with them.

    Every view has a bucket of its own, called after it, unless the limit is ``shared`` or has a ``name``: views that
    give the same name, or the same ``Limit``, share one. Works on functions, ``async`` ones as well, and on methods of
    classes through ``method_decorator(limit("5/minute"), name="dispatch")``.

    Args:
        rate: such as ``"5/minute"``, or a ``Limit``.
        options: ``burst``, ``cost`` and the other fields of ``Limit``; ``shared``.

    Raises:
        SettingsError: a field is wrong.
    """
    view_limit = ViewLimit(rate, options)

    def decorate(view: View) -> View:
        return limited(view, view_limit, _refuse, _refuse_async, is_async=iscoroutinefunction(view))

    return decorate


def exempt(view: View) -> View:
    """Lets every request to one view pass, whatever the limits.

    On a class: ``method_decorator(exempt, name="dispatch")``.
    """
    mark(view, exempt=True)
    return view


def response_of(answer: Answer, request: HttpRequest) -> HttpResponse:
    """An answer as Django's response."""
    headers = {**dict(answer.headers), "Content-Length": str(len(answer.body))}
    return HttpResponse(b"" if request.method == "HEAD" else answer.body, status=answer.status, headers=headers)


def limits_of(marks: ViewMarks, view: Any, request: Any) -> Sequence[Limit]:
    """The limits written on a view."""
    path = _path(view, request)
    return [view_limit.of(path) for view_limit in marks.limits]


def _path(view: Any, request: Any) -> str:
    """What distinguishes a view from others: its function, its class, or its class and the method that is limited."""
    route: str = request.resolver_match.route
    bound = getattr(getattr(view, "func", None), "__self__", None)
    if isinstance(bound, ClassView):  # what method_decorator makes of a method, anew for each request
        return f"{view_path(type(bound), route)}.{view.__name__}"
    return view_path(getattr(view, "view_class", view), route)


def _refuse(view_limit: ViewLimit, view: Any, request: Any, *_: object) -> HttpResponse | None:
    """Asks the limit, if it could not be seen before the view was called; in a thread if that is under ASGI."""
    exchange = _exchange_not_asked(view_limit, request)
    if exchange is None:
        return None
    limits = [view_limit.of_hidden(_path(view, request))]
    if isinstance(exchange, AsyncExchange):
        answer = async_to_sync(exchange.decide_limits)(limits)
    else:
        answer = exchange.decide_limits(limits)
    return None if answer is None else response_of(answer, request)


async def _refuse_async(view_limit: ViewLimit, view: Any, request: Any, *_: object) -> HttpResponse | None:
    """The same on an event loop, which under WSGI is this request's own."""
    exchange = _exchange_not_asked(view_limit, request)
    if exchange is None:
        return None
    limits = [view_limit.of_hidden(_path(view, request))]
    if isinstance(exchange, AsyncExchange):
        answer = await exchange.decide_limits(limits)
    else:
        answer = exchange.decide_limits(limits)
    return None if answer is None else response_of(answer, request)


def _exchange_not_asked(view_limit: ViewLimit, request: Any) -> Exchange | AsyncExchange | None:
    """The request's exchange, if the limit could not be seen on the view.

    A limit on a method other than ``dispatch`` cannot, nor one that another decorator hides.

    Raises:
        ImproperlyConfigured: there is no guard to ask.
    """
    try:
        exchange: Exchange | AsyncExchange | None = request.abuseguard
    except AttributeError:
        if middleware_position(MIDDLEWARE) is None:
            raise ImproperlyConfigured(f"a view has a limit, but {MIDDLEWARE} is not in MIDDLEWARE") from None
        return None  # called by something else than a server, such as a test
    if exchange is None or not exchange.tells:
        return None
    return None if view_limit in ViewMarks.of(request.resolver_match.func).limits else exchange
