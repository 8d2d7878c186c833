"""A limit of one route's own, as a dependency."""

# Without `from __future__ import annotations`: FastAPI looks names in annotations up in a function's globals, and an
# object that is called like one has none.

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import HTTPException, WebSocketException
from fastapi.requests import HTTPConnection

from abuseguard.errors import AbuseGuardError, SettingsError
from abuseguard.facts import RequestFacts
from abuseguard.headers import Answer
from abuseguard.limit import Limit, Scope

# "Try again later", from the registry of RFC 6455.
_TRY_AGAIN_LATER = 1013
_LONGEST_NAME = 64


class MissingMiddlewareError(AbuseGuardError, RuntimeError):
    """A route has a limit of its own, but there is no guard to ask."""

    def __init__(self) -> None:
        super().__init__("RateLimit needs the middleware: app.add_middleware(AbuseGuardMiddleware, settings=...)")


class RateLimitExceeded(HTTPException):
    """A route's own limit was reached.

    The guard sends ``answer``, whatever an exception handler makes of this.

    Args:
        answer: the whole response.
    """

    def __init__(self, answer: Answer) -> None:
        headers = {name: value for name, value in answer.headers if name.lower() != "content-type"}
        super().__init__(answer.status, "rate limit exceeded", headers)
        self.answer = answer


class RateLimit:
    """A dependency that limits the requests to one route, besides the limits of the settings.

    Needs no argument in the endpoint, and works for plain and ``async`` ones, for routers and for WebSockets. That of
    a router is a limit for each of its routes, unless it is shared. Two that are equal count once. Exempt is what the
    settings exempt.

    Args:
        rate: in the notation of the ``limits`` library: ``"5/minute"``.
        burst: how many may come at once. Default: the amount of ``rate``.
        cost: what one request takes, a whole number of at least 0 or a function of the facts that returns one.
        per: whose bucket it is: see ``Limit``.
        plans: plan names, of which one must match. Default: every plan.
        when: any other condition, a function of the facts of a request.
        name: how it is called in response headers, logs and keys. Whatever has the same name has the same bucket.
            Default: from rate and route, so that every route has its own.
        shared: whether all routes with this limit have one bucket together.

    Raises:
        SettingsError: an argument is wrong; names it, the value, and what is allowed.
        MissingMiddlewareError: at the first request, when the application has no ``AbuseGuardMiddleware``.

    >>> RateLimit("5/minute", burst=2)
    RateLimit('5/minute', burst=2)
    """

    __slots__ = ("_hash", "_limit", "_limits", "_named")

    def __init__(
        self,
        rate: str,
        *,
        burst: int | None = None,
        cost: int | Callable[[RequestFacts], int] = 1,
        per: Scope | Callable[[RequestFacts], str | None] = "account",
        plans: str | Sequence[str] = (),
        when: Callable[[RequestFacts], bool] | None = None,
        name: str = "",
        shared: bool = False,
    ) -> None:
        if not isinstance(shared, bool):
            raise SettingsError("shared", shared, "True or False")
        limit = Limit(rate, burst=burst, cost=cost, per=per, plans=plans, when=when, name=name)
        self._named = bool(name) or shared
        if shared and not name:
            # Told apart from a limit of the settings with the same rate, which would have the same name.
            name = f"shared-{limit.name}" if burst is None else f"shared-{limit.name}-burst-{burst}"
            limit = replace(limit, name=name[:_LONGEST_NAME])
        self._limit = limit
        self._hash = hash((limit, self._named))
        # One for each route that has this dependency.
        self._limits: dict[tuple[object, ...], Limit] = {}

    async def __call__(self, connection: HTTPConnection) -> None:
        exchange = connection.scope.get("abuseguard")
        if exchange is None:
            raise MissingMiddlewareError
        limit = self._limit if self._named else self._limit_of_route(connection.scope)
        answer = await exchange.decide_limits((limit,))
        if answer is None:
            return
        if connection.scope["type"] == "websocket":
            raise WebSocketException(_TRY_AGAIN_LATER, "limit reached")
        raise RateLimitExceeded(answer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateLimit) and self._limit == other._limit and self._named == other._named

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        options = [] if self._limit.burst is None else [f", burst={self._limit.burst}"]
        if self._named:
            options.append(f", name={self._limit.name!r}")
        return f"RateLimit({self._limit.rate!r}{''.join(options)})"

    def _limit_of_route(self, scope: Mapping[str, Any]) -> Limit:
        route = scope.get("route")
        endpoint = scope.get("endpoint")
        methods = frozenset(getattr(route, "methods", None) or ())
        path = _path_template(scope, route)
        limit = self._limits.get((path, methods, endpoint))
        if limit is None:
            limit = replace(self._limit, name=self._name_for(path, sorted(methods), endpoint))
            self._limits[path, methods, endpoint] = limit
        return limit

    def _name_for(self, path: str, methods: Sequence[str], endpoint: object) -> str:
        """A name that is the same in every process, and that no other route has.

        Made of what the application says of its route, never of the request: a client could choose its bucket.
        """
        limit = self._limit
        identity = repr((limit.rate, limit.burst, _origin(limit.per), path, methods, _origin(endpoint)))
        digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        readable = "-".join([limit.name, *methods, re.sub(r"[^A-Za-z0-9_]+", ".", path).strip(".")])
        return f"{readable[: _LONGEST_NAME - 9].rstrip('-.')}-{digest}"


def _path_template(scope: Mapping[str, Any], route: object) -> str:
    # Newer versions of FastAPI keep an included router's routes as they are, and the prefix elsewhere. Where this
    # looks in vain, routes that differ in nothing but a prefix share a bucket.
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    if context is not None and getattr(context, "original_route", None) is route:
        route = context
    path: str = getattr(route, "path_format", None) or getattr(route, "path", None) or ""
    return path


def _origin(value: object) -> object:
    """A function as where it is defined, which is the same in every process; anything else as it is."""
    return f"{value.__module__}.{getattr(value, '__qualname__', '')}" if callable(value) else value
