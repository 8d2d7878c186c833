"""The guard in front of any WSGI application (PEP 3333): Flask, Django, Bottle, Falcon and the rest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from abuseguard.clock import Clock
from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.guard import Guard
from abuseguard.headers import Answer
from abuseguard.limit import Limit
from abuseguard.metering import Meter, readable_length
from abuseguard.settings import Settings
from abuseguard.tokens import Ending

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_CGI_NAMES = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


class WsgiHeaders:
    """The header fields of a WSGI environment, where servers have joined those of the same name."""

    __slots__ = ("_environ",)

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ

    def first(self, name: str) -> str | None:
        value = self._environ.get(_CGI_NAMES.get(name) or "HTTP_" + name.upper().replace("-", "_"))
        return value if isinstance(value, str) else None

    def all(self, name: str) -> list[str]:
        value = self.first(name)
        return [] if value is None else [value]


class WsgiFacts(RequestFacts):
    """The facts of a WSGI request; the environment is ``native``."""

    __slots__ = ()

    def user(self) -> object | None:
        """What the server's or another middleware's authentication found (``REMOTE_USER``)."""
        user: object | None = self.native.get("REMOTE_USER")
        return user


def facts_of(environ: WSGIEnvironment) -> WsgiFacts:
    """The facts of a request."""
    # PEP 3333 hands paths over as bytes in disguise.
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1", "replace")
    return WsgiFacts(
        environ.get("REQUEST_METHOD", ""),
        path.decode("utf-8", "replace") or "/",
        WsgiHeaders(environ),
        environ.get("REMOTE_ADDR"),
        environ,
    )


class AbuseGuardMiddleware:
    """Limits the accounts of a WSGI application.

    Args:
        app: the application behind it.
        settings: what the operator decided. Default: from the environment, ``ABUSEGUARD_*``.
        guard: a guard to share, instead of settings.
        clock: where the time comes from.

    Raises:
        SettingsError: the settings are wrong.
    """

    def __init__(
        self,
        app: WSGIApplication,
        settings: Settings | None = None,
        *,
        guard: Guard | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self.guard = guard or Guard(settings or Settings.from_environment(), clock=clock)
        self._meters = self.guard.policy.limits_tokens

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        guard = self.guard
        facts = facts_of(environ)
        if self._meters:
            read_for_estimate(facts, environ, guard.settings.max_body_bytes)
        decision = guard.decide(facts)
        if not decision.admitted:
            return send_answer(environ, start_response, guard.answer(facts, decision))
        exchange = WsgiExchange(guard, facts, decision, start_response)
        environ["abuseguard"] = exchange
        if not (self._meters and decision.plan.meters_tokens):
            return self.app(environ, exchange.start_response)
        exchange.meter = Meter(decision, guard.settings.max_body_bytes)
        try:
            return MeteredBody(self.app(environ, exchange.start_response), exchange)
        except BaseException:
            exchange.settle(Ending.RAISED)
            raise


class WsgiExchange:
    """One request that was admitted, until its response has gone; in the environment as ``"abuseguard"``.

    Args:
        guard: who decided.
        facts, decision: on what, and how.
        start_response: the server's end.
    """

    __slots__ = ("_start_response", "decision", "facts", "guard", "meter", "route_decision")

    def __init__(self, guard: Guard, facts: RequestFacts, decision: Decision, start_response: StartResponse) -> None:
        self.guard = guard
        self.facts = facts
        self.decision = decision
        self.meter: Meter | None = None
        #: What the limits of the route itself said last, if it has any.
        self.route_decision: Decision | None = None
        self._start_response = start_response

    def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks a route's own limits; returns the answer to give if they deny."""
        self.route_decision = self.guard.decide_limits(self.facts, limits)
        if self.route_decision.admitted:
            return None
        return self.guard.answer(self.facts, self.route_decision)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Starts the application's response, with the fields that tell the client its limits."""
        meter = self.meter
        if meter is not None:
            meter.start(int(status[:3]) if status[:3].isdigit() else 0, headers)
        fields = self.guard.fields(self.route_decision or self.decision)
        if fields:
            headers = [*headers, *fields]
        write = self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)
        if meter is None:
            return write

        def metered_write(data: bytes) -> object:
            meter.feed(data)
            return write(data)

        return metered_write

    def settle(self, ending: Ending) -> None:
        """Charges the tokens used; only the first call counts."""
        meter, self.meter = self.meter, None
        if meter is not None:
            self.guard.settle(self.decision, meter.used_tokens(Ending.COMPLETE if meter.complete else ending))


class MeteredBody:
    """A response body that is watched as the server takes it.

    Args:
        body: what the application returned.
        exchange: what it belongs to.
    """

    __slots__ = ("_body", "_chunks", "_exchange")

    def __init__(self, body: Iterable[bytes], exchange: WsgiExchange) -> None:
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._exchange = exchange

    def __iter__(self) -> MeteredBody:
        return self

    def __len__(self) -> int:
        # Servers send a Content-Length of their own for a body of one part, so its length must be the body's own.
        return len(self._body)  # type: ignore[arg-type]

    def __next__(self) -> bytes:
        meter = self._exchange.meter
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            chunk = next(self._chunks)
        except StopIteration:
            if meter is not None:
                meter.complete = meter.started
            raise
        except BaseException:
            self._exchange.settle(Ending.RAISED)
            raise
        if meter is not None:
            meter.feed(chunk)
        return chunk

    def close(self) -> None:
        """Called by the server when the response has gone, or its client has."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._exchange.settle(Ending.DISCONNECTED)


def send_answer(environ: WSGIEnvironment, start_response: StartResponse, answer: Answer) -> Iterable[bytes]:
    """Starts and returns a whole response."""
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Unknown"
    headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
    start_response(f"{answer.status} {reason}", headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.body]


def read_for_estimate(facts: RequestFacts, environ: WSGIEnvironment, max_body_bytes: int) -> None:
    """Reads the body if an estimate needs it, and leaves it in the environment to be read again."""
    length = readable_length(facts, max_body_bytes)
    if length:
        facts.body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(facts.body)
