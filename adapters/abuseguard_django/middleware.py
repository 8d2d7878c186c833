"""The guard as Django's middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http.response import HttpResponse, HttpResponseBase, StreamingHttpResponse

from abuseguard import AbuseGuardError, User
from abuseguard.admission import Exchange, MeteredBody
from abuseguard.guard import AsyncGuard, Guard
from abuseguard.metering import readable_length
from abuseguard.tokens import Ending
from abuseguard.view_limit import MARKS, UNMARKED, ViewMarks
from abuseguard.wsgi import read_ahead
from abuseguard_django import checks  # noqa: F401 - importing registers them
from abuseguard_django.decorators import limits_of, response_of
from abuseguard_django.exchange import AsyncExchange, AsyncMeteredBody
from abuseguard_django.facts import DjangoFacts, LoadedUserFacts
from abuseguard_django.settings import project_settings

if TYPE_CHECKING:
    from django.http import HttpRequest

    from abuseguard.decision import Decision

_KEY = "abuseguard"


class AbuseGuardMiddleware:
    """Limits the accounts of a Django project by the settings ``ABUSEGUARD``.

    Decides once the view is known, so that views can be exempt or have limits of their own; a request that comes to no
    view, such as one that is not found, is decided when its response is there. Put it after
    ``AuthenticationMiddleware`` if accounts are users, and as far up as possible otherwise.

    Works on both of Django's sides without a change of thread: blocking under WSGI, on the event loop under ASGI.

    Args:
        get_response: what is behind it.

    Raises:
        ImproperlyConfigured: the settings are wrong.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        self.guard: Guard | AsyncGuard
        self._decide: Callable[..., Decision]
        self._decide_async: Callable[..., Awaitable[Decision]]
        try:
            settings = project_settings()
            if self._is_async:
                self.guard = AsyncGuard(settings)
                self._decide_async = self.guard.decide
            else:
                self.guard = Guard(settings)
                self._decide = self.guard.decide
        except AbuseGuardError as error:
            raise ImproperlyConfigured(f"ABUSEGUARD: {error}") from error
        self._meters = self.guard.policy.limits_tokens
        self._max_body_bytes = settings.max_body_bytes
        self._loads_user = self._is_async and isinstance(settings.account, User)
        if self._is_async:
            markcoroutinefunction(self)
            # Django asks the method itself which kind it is, and calls the wrong kind in a thread.
            self.process_view: Callable[..., Any] = self._process_view_async
        else:
            self.process_view = self._process_view

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._call_async(request)
        try:
            response = self.get_response(request)
        except BaseException:
            _fail(request, Ending.RAISED)
            raise
        if _KEY not in request.__dict__:
            facts = DjangoFacts(request.META, request.path, request)
            response = _replaced(response, self._enter(request, facts, self._decide(facts)))
        _leave(request, response)
        return response

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException as error:
            _fail(request, Ending.DISCONNECTED if isinstance(error, asyncio.CancelledError) else Ending.RAISED)
            raise
        if _KEY not in request.__dict__:
            facts = await self._facts(request)
            response = _replaced(response, self._enter(request, facts, await self._decide_async(facts)))
        settlement = _leave(request, response)
        if settlement is not None:
            # Shielded: a request that is being cancelled is charged all the same.
            await asyncio.shield(settlement)
        return response

    def _process_view(self, request: HttpRequest, view: Any, args: object, kwargs: object) -> HttpResponse | None:
        marks: ViewMarks = getattr(view, MARKS, UNMARKED)
        if marks.exempt:
            request.__dict__[_KEY] = None
            return None
        facts = DjangoFacts(request.META, request.path, request)
        if marks.limits_tokens or (self._meters and self.guard.policy.may_limit_tokens(facts)):
            _read_for_estimate(facts, request, self._max_body_bytes)
        limits = marks.limits and limits_of(marks, view, request)
        return self._enter(request, facts, self._decide(facts, limits))

    async def _process_view_async(
        self, request: HttpRequest, view: Any, args: object, kwargs: object
    ) -> HttpResponse | None:
        marks: ViewMarks = getattr(view, MARKS, UNMARKED)
        if marks.exempt:
            request.__dict__[_KEY] = None
            return None
        facts = await self._facts(request)
        if marks.limits_tokens or (self._meters and self.guard.policy.may_limit_tokens(facts)):
            _read_for_estimate(facts, request, self._max_body_bytes)
        return self._enter(
            request, facts, await self._decide_async(facts, marks.limits and limits_of(marks, view, request))
        )

    async def _facts(self, request: HttpRequest) -> DjangoFacts:
        if not self._loads_user:
            return DjangoFacts(request.META, request.path, request)
        facts = LoadedUserFacts(request.META, request.path, request)
        await facts.load_user()
        return facts

    def _enter(self, request: HttpRequest, facts: DjangoFacts, decision: Decision) -> HttpResponse | None:
        """Notes the decision on the request; returns the response to one that was not admitted."""
        if not decision.admitted:
            request.__dict__[_KEY] = None
            return response_of(self.guard.answer(facts, decision), request)
        exchange: Exchange | AsyncExchange
        if isinstance(self.guard, AsyncGuard):
            exchange = AsyncExchange(self.guard)
        else:
            exchange = Exchange(self.guard)
        exchange.admit(facts, decision)
        request.__dict__[_KEY] = exchange
        return None


def _replaced(response: HttpResponseBase, denial: HttpResponse | None) -> HttpResponseBase:
    if denial is None:
        return response
    response.close()
    return denial


def _fail(request: HttpRequest, ending: Ending) -> None:
    """There will be no response."""
    exchange = request.__dict__.pop(_KEY, None)
    if exchange is not None:
        exchange.settle(ending)


def _leave(request: HttpRequest, response: HttpResponseBase) -> asyncio.Task[None] | None:
    """Tells the client its limits, and has the tokens used charged once the response has gone.

    Returns:
        What charges them, if that has begun and is to be waited for.
    """
    # Taken out, as the request holds the exchange, whose facts hold the request.
    exchange: Exchange | AsyncExchange | None = request.__dict__.pop(_KEY)
    if exchange is None:
        return None
    if exchange.tells:
        for name, value in exchange.guard.fields(exchange.decision):
            response.headers[name] = value
    meter = exchange.meter
    if meter is None:
        return None
    meter.start(response.status_code, response.items())
    if not isinstance(response, StreamingHttpResponse):
        meter.feed(cast("HttpResponse", response).content)
    elif getattr(response, "file_to_stream", None) is None:
        content: Any = response.streaming_content
        watched = AsyncMeteredBody if response.is_async else MeteredBody
        response.streaming_content = watched(content, exchange)
        return None
    return exchange.settle(Ending.COMPLETE)


def _read_for_estimate(facts: DjangoFacts, request: Any, max_body_bytes: int) -> None:
    """Reads the body if an estimate needs it, and leaves it to be read again."""
    length = readable_length(facts, max_body_bytes)
    if not length:
        return
    if hasattr(request, "_body"):
        facts.body = request.body
    elif not request._read_started:
        facts.body, request._stream = read_ahead(request._stream, length)
