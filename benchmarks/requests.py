"""What clients send: the header fields of a common client library of model APIs, as ASGI and as WSGI have them."""

from __future__ import annotations

from typing import Any

PATH = "/v1/models"
CLIENT = "203.0.113.9"

_HEADERS = {
    "Host": "api.example.com",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 1.99.9",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "1.99.9",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.9",
    "Authorization": "Bearer sk-benchmark-4Q9vB1xW7cJ2mT5nR8kL3pZ6",
    "X-Stainless-Async": "false",
    "X-Stainless-Retry-Count": "0",
}

_ASGI_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
_ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": PATH,
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": CLIENT,
    "REMOTE_PORT": "50123",
    "CONTENT_TYPE": _HEADERS["Content-Type"],
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
} | {"HTTP_" + name.upper().replace("-", "_"): value for name, value in _HEADERS.items() if name != "Content-Type"}

HEADER_LINES = [f"{name}: {value}" for name, value in _HEADERS.items()]


def asgi_scope(client: str = CLIENT) -> dict[str, Any]:
    """A new scope, as uvicorn makes one for every request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": (client, 50123),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": list(_ASGI_HEADERS),
        "state": {},
    }


def wsgi_environ() -> dict[str, Any]:
    """A new environment, as a WSGI server makes one for every request."""
    return {**_ENVIRON, "wsgi.input": _NOTHING, "wsgi.errors": _NOTHING}


class _NoBody:
    def read(self, *_: object) -> bytes:
        return b""

    readline = read

    def write(self, *_: object) -> None:
        pass

    def flush(self) -> None:
        pass


_NOTHING = _NoBody()
