"""Serves requests to WSGI applications without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.requests import wsgi_environ

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Any]


def _start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
    return _write


def _write(data: bytes) -> None:
    pass


def serve(app: WsgiApp, requests: int) -> None:
    """One after the other, each to the end of its body."""
    for _ in range(requests):
        body = app(wsgi_environ(), _start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()


def first_response(app: WsgiApp) -> tuple[int, dict[str, str]]:
    """Status and header fields of one response, to make sure that a contender does what it is measured for."""
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        started.append((int(status[:3]), {name.lower(): value for name, value in headers}))
        return _write

    body = app(wsgi_environ(), start_response)
    for _ in body:
        pass
    if hasattr(body, "close"):
        body.close()
    return started[0]
