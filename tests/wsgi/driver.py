"""Drives WSGI applications as a server does, with the standard library's validator in between."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import http_sf

from abuseguard import RequestFacts

Environ = dict[str, Any]
Headers = Iterable[tuple[str, str]]


@dataclass
class Response:
    """What an application answered."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def fields(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]

    def field(self, name: str) -> str | None:
        found = self.fields(name)
        assert len(found) < 2, found
        return found[0] if found else None

    def limits(self, name: str = "RateLimit") -> dict[str, dict[str, Any]]:
        """A field of limits by their names, read by a parser of structured fields."""
        value = self.field(name)
        assert value is not None, self.headers
        return dict(http_sf.parse(value.encode(), tltype="list"))

    def remaining(self, limit: str) -> int:
        return self.limits()[limit]["r"]

    @property
    def tells_limits(self) -> bool:
        return bool(self.fields("RateLimit") or self.fields("RateLimit-Policy"))

    @property
    def problem(self) -> dict[str, Any]:
        assert self.field("Content-Type") == "application/problem+json"
        return json.loads(self.body)


def environ_of(
    method: str = "GET", path: str = "/", headers: Headers = (), body: bytes | None = None, **further: Any
) -> Environ:
    """The environment of a request from 203.0.113.9; several headers of one name are joined, as servers do."""
    environ: Environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": "",
        "REMOTE_ADDR": "203.0.113.9",
        "wsgi.input": io.BytesIO(body or b""),
        "wsgi.errors": io.StringIO(),
    }
    if body is not None:
        environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
    for name, value in headers:
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ and key.startswith("HTTP_") else value
    environ |= further
    setup_testing_defaults(environ)
    return environ


class Exchange:
    """One request to an application, whose response is taken part by part.

    Args:
        app: the application.
        environ: the request.
        validate: whether the validator looks on; it insists on its own types, and on complete responses.
    """

    def __init__(self, app: Callable[..., Any], environ: Environ, *, validate: bool = True) -> None:
        self.response = Response()
        self.body = (validator(app) if validate else app)(environ, self._start_response)
        self._chunks = iter(self.body)

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert type(status) is str
        assert type(headers) is list
        if self.response.status and not exc_info:
            raise AssertionError("the response was started twice")
        if exc_info and self.response.chunks:
            raise exc_info[1].with_traceback(exc_info[2])
        self.response.status = int(status[:3])
        self.response.headers = list(headers)
        return self.response.chunks.append

    def take(self, chunks: int) -> list[bytes]:
        """The next few parts of the body."""
        taken = [next(self._chunks) for _ in range(chunks)]
        self.response.chunks += taken
        return taken

    def close(self) -> None:
        """The client is gone, or has everything."""
        if hasattr(self.body, "close"):
            self.body.close()

    def finish(self) -> Response:
        """Takes the rest, as a server does."""
        try:
            self.response.chunks += list(self._chunks)
        finally:
            self.close()
        return self.response


class Client:
    """Sends requests to a WSGI application.

    Args:
        app: the application.
        validate: as for ``Exchange``.
    """

    def __init__(self, app: Callable[..., Any], *, validate: bool = True) -> None:
        self.app = app
        self._validate = validate

    def request(self, *arguments: Any, **further: Any) -> Response:
        return self.start(*arguments, **further).finish()

    def start(self, *arguments: Any, **further: Any) -> Exchange:
        return Exchange(self.app, environ_of(*arguments, **further), validate=self._validate)

    def get(self, path: str = "/", headers: Headers = (), **further: Any) -> Response:
        return self.request("GET", path, headers, **further)

    def post(self, path: str, body: Any, headers: Headers = (), **further: Any) -> Response:
        """Posts JSON."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, headers, encoded, **further)

    def get_at_once(self, path: str, *, times: int) -> list[Response]:
        """Sends the same request from as many threads."""
        with ThreadPoolExecutor(times) as pool:
            return list(pool.map(self.get, [path] * times))

    def disconnect(self, path: str, body: Any, *, after: int) -> Response:
        """Posts JSON, takes so many parts of the response, and is gone."""
        exchange = self.start("POST", path, (), json.dumps(body).encode())
        exchange.take(after)
        exchange.close()
        return exchange.response


def facts_left_behind(client: Client) -> list[RequestFacts]:
    """What is known of requests that are over, and is left to the cycle collector; the last one is denied."""
    gc.collect()
    gc.disable()
    try:
        before = _facts_alive()
        while client.get().status != 429:
            pass
        return [facts for number, facts in _facts_alive().items() if number not in before]
    finally:
        gc.enable()


def _facts_alive() -> dict[int, RequestFacts]:
    return {id(facts): facts for facts in gc.get_objects() if issubclass(type(facts), RequestFacts)}
