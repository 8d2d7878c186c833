"""The guard in front of any WSGI application (PEP 3333), and what the adapters of WSGI frameworks build on.

Everything passes through as it comes: nothing is buffered but a declared, small request body when a limit in tokens
needs it for an estimate, and a response body is wrapped only where its tokens have to be found out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from abuseguard.admission import Exchange, MeteredBody
from abuseguard.clock import Clock
from abuseguard.facts import RequestFacts
from abuseguard.guard import Guard
from abuseguard.headers import Answer
from abuseguard.metering import readable_length
from abuseguard.settings import Settings
from abuseguard.tokens import Ending

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

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
    """The facts of a WSGI request.

    Args:
        environ: its environment.
        path: its path, decoded.
        native: the framework's own object, or the environment.
    """

    __slots__ = ()

    # Written out, as one is made for every request: the inherited one takes twice as long.
    def __init__(self, environ: WSGIEnvironment, path: str, native: Any) -> None:
        self.method = environ.get("REQUEST_METHOD", "")
        self.path = path
        self.headers = WsgiHeaders(environ)
        self.peer = environ.get("REMOTE_ADDR")
        self.native = native
        self.body = self.content_length = self.address = self.plan = None
        self.account = ""

    def user(self) -> object | None:
        """What the server's or another middleware's authentication found (``REMOTE_USER``)."""
        user: object | None = self.native.get("REMOTE_USER")
        return user


def facts_of(environ: WSGIEnvironment) -> WsgiFacts:
    """The facts of a request."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    if not path.isascii():
        # PEP 3333 hands paths over as bytes in disguise.
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    return WsgiFacts(environ, path or "/", environ)


class AbuseGuardMiddleware:
    """Limits the accounts of a WSGI application.

    While the application is being called, ``environ["abuseguard"]`` is its exchange: ``decision`` tells how the request
    was let in, and ``exchange.decide_limits([Limit(...)])`` asks limits of the route's own.

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
        if self._meters and guard.policy.may_limit_tokens(facts):
            read_for_estimate(facts, environ, guard.settings.max_body_bytes)
        decision = guard.decide(facts)
        if not decision.admitted:
            return send_answer(environ, start_response, guard.answer(facts, decision))
        exchange = WsgiExchange(guard, start_response)
        exchange.admit(facts, decision)
        return exchange.run(self.app, environ)


class WsgiExchange(Exchange):
    """An exchange whose response is started by ``start_response``; in the environment as ``"abuseguard"``.

    Args:
        guard: who decides.
        start_response: the server's end.
    """

    __slots__ = ("_start_response",)

    def __init__(self, guard: Guard, start_response: StartResponse) -> None:
        self.guard = guard
        self.meter = None
        self.tells = False
        self._start_response = start_response

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Calls the application, and settles once its response has gone."""
        environ["abuseguard"] = self
        try:
            body = app(environ, self.start_response)
        except BaseException:
            self.settle(Ending.RAISED)
            raise
        finally:
            # The environment holds the exchange, whose facts hold the environment: without this every request would
            # be left to the cycle collector.
            environ.pop("abuseguard", None)
        if self.meter is None:
            return body
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
            # The server knows it by its type, and sends it without reading it.
            self.settle(Ending.COMPLETE)
            return body
        return MeteredBody(body, self)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Starts the application's response, with the fields that tell the client its limits."""
        meter = self.meter
        if meter is not None:
            code = status[:3]
            meter.start(int(code) if code.isdecimal() else 0, headers)
        if self.tells:
            fields = self.guard.fields(self.decision)
            if fields:
                headers = [*headers, *fields]
        write = self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)
        if meter is None:
            return write

        def metered_write(data: bytes) -> object:
            meter.feed(data)
            return write(data)

        return metered_write


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
        facts.body, environ["wsgi.input"] = read_ahead(environ["wsgi.input"], length)


def read_ahead(stream: Any, length: int) -> tuple[bytes, InputStream]:
    """What can be read of a stream, and a stream that reads the same, or fails the same, once more."""
    try:
        body = stream.read(length)
    except Exception as error:  # noqa: BLE001 - servers raise what they like, and it is the application's to deal with
        return b"", _FailedInput(error)
    return body, io.BytesIO(body)


class _FailedInput(io.RawIOBase):
    """A stream that fails as the one did that it stands for."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> NoReturn:
        raise self._error
