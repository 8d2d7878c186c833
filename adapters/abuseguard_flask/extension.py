"""The guard as an extension of Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, abort, current_app, request

from abuseguard import Address, ApiKey, Header, Limit, Settings
from abuseguard.guard import Guard
from abuseguard.view_limit import MARKS, UNMARKED, View, ViewLimit, ViewMarks, limited, mark, view_path
from abuseguard.wsgi import WsgiExchange, read_for_estimate
from abuseguard_flask.facts import FlaskFacts
from abuseguard_flask.settings import settings_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from typing_extensions import Unpack

    from abuseguard.clock import Clock
    from abuseguard.headers import Answer
    from abuseguard.view_limit import LimitOptions

_KEY = "abuseguard"
_KNOWN_FROM_REQUEST = (Address, ApiKey, Header)


class AbuseGuard:
    """Limits the accounts of Flask applications.

    The decision is made inside the request's context; its fields are on every response. Each application has a guard
    of its own, in ``app.extensions["abuseguard"]``.

    Where accounts are known from the request alone (by address, API key or header), the decision is made before any
    function that the application has for ``before_request``. Where they are users, or found by a function, those that
    were registered before the guard run before it, so that they can load the user into ``flask.g``.

    Args:
        app: the application to guard; others, or one that is made later, through ``init_app``.
        settings: what the operator decided. Default: ``ABUSEGUARD`` of ``app.config``, a mapping of the fields of
            ``Settings`` or a ``Settings``; else its keys ``ABUSEGUARD_*``; else the environment.
        clock: where the time comes from.

    Raises:
        SettingsError: the settings are wrong.
        RuntimeError: the application is guarded already.

    >>> app = Flask("shop")
    >>> guard = AbuseGuard(app, settings=Settings(limits=["1/minute"]))
    >>> [app.test_client().get("/").status_code for _ in range(2)]
    [404, 429]
    """

    def __init__(
        self, app: Flask | None = None, *, settings: Settings | None = None, clock: Clock | None = None
    ) -> None:
        self._settings = None if settings is None else Settings.from_mapping(settings)  # type: ignore[arg-type]
        self._clock = clock
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guards one more application; raises as the constructor does."""
        if _KEY in app.extensions:
            raise RuntimeError(f"{app.name} is guarded already")
        settings = settings_of(app.config) if self._settings is None else self._settings
        guard = Guard(settings, clock=self._clock)
        app.extensions[_KEY] = guard
        functions = app.before_request_funcs.setdefault(None, [])
        functions.insert(
            0 if isinstance(settings.account, _KNOWN_FROM_REQUEST) else len(functions), _decide_before(app, guard)
        )
        wsgi_app = app.wsgi_app

        def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            return WsgiExchange(guard, start_response).run(wsgi_app, environ)

        app.wsgi_app = guarded  # type: ignore[method-assign]

    @staticmethod
    def limit(rate: str | Limit, **options: Unpack[LimitOptions]) -> Callable[[View], View]:
        """Limits one view, besides the limits of the settings and in one step with them.

        Every endpoint has a bucket of its own, called after it, unless the limit is ``shared`` or has a ``name``: views
        that give the same name, or the same ``Limit``, share one. Works on functions, ``async`` ones as well, on those
        of blueprints, and in the ``decorators`` of a ``View``; write it below ``route``.

        Args:
            rate: such as ``"5/minute"``, or a ``Limit``.
            options: ``burst``, ``cost`` and the other fields of ``Limit``; ``shared``.

        Raises:
            SettingsError: a field is wrong.
        """
        limit = ViewLimit(rate, options)

        def decorate(view: View) -> View:
            return limited(view, limit, _refuse, _refuse_async, is_async=iscoroutinefunction(view))

        return decorate

    @staticmethod
    def exempt(view: View) -> View:
        """Lets every request to one view pass, whatever the limits; write it below ``route``."""
        mark(view, exempt=True)
        return view


def _decide_before(app: Flask, guard: Guard) -> Callable[[], Response | None]:
    """What Flask is to call before every request."""
    views = app.view_functions
    policy = guard.policy
    settings_meter = policy.limits_tokens
    max_body_bytes = guard.settings.max_body_bytes

    # A function rather than a method: Flask asks every time whether it is a coroutine function.
    def decide() -> Response | None:
        current = request._get_current_object()  # type: ignore[attr-defined]
        environ = current.environ
        rule = current.url_rule
        limits: Sequence[Limit] = ()
        meters = False
        if rule is not None:
            marks: ViewMarks = getattr(views.get(rule.endpoint), MARKS, UNMARKED)
            if marks.exempt:
                return None
            if marks.limits:
                limits = [limit.of(rule.endpoint) for limit in marks.limits]
                meters = marks.limits_tokens
        facts = FlaskFacts(environ, current.root_path + current.path, current)
        # Whoever has touched the stream holds on to the one that was.
        if (meters or (settings_meter and policy.may_limit_tokens(facts))) and "stream" not in current.__dict__:
            read_for_estimate(facts, environ, max_body_bytes)
        decision = guard.decide(facts, limits)
        if not decision.admitted:
            return _response(guard.answer(facts, decision))
        # Not there if the application is called by other ways than WSGI.
        exchange: WsgiExchange | None = environ.get(_KEY)
        if exchange is not None:
            exchange.admit(facts, decision)
        return None

    return decide


def _refuse(limit: ViewLimit, view: Callable[..., Any], *_: object) -> None:
    """Asks the limit, if it could not be seen before the view was called."""
    if _KEY not in current_app.extensions:
        raise RuntimeError(f"a view of {current_app.name} has a limit, but no AbuseGuard guards the application")
    exchange: WsgiExchange | None = request.environ.get(_KEY)
    seen = ViewMarks.of(current_app.view_functions.get(request.endpoint or ""))
    if exchange is None or not exchange.tells or limit in seen.limits:
        return
    answer = exchange.decide_limits([limit.of_hidden(view_path(view, request.endpoint or ""))])
    if answer is not None:
        abort(_response(answer))


async def _refuse_async(limit: ViewLimit, view: Callable[..., Any], *_: object) -> None:
    _refuse(limit, view)


def _response(answer: Answer) -> Response:
    return current_app.response_class(answer.body, answer.status, list(answer.headers))
