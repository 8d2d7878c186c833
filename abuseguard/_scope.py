"""What an ASGI scope tells of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from abuseguard.facts import RequestFacts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiHeaders:
    """The header fields of an ASGI scope, which are bytes: any of them can be read as Latin-1."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def first(self, name: str) -> str | None:
        wanted = name.encode("latin-1", "replace")
        for known, value in self._pairs:
            if known == wanted:
                return value.decode("latin-1")
        return None

    def all(self, name: str) -> list[str]:
        wanted = name.encode("latin-1", "replace")
        return [value.decode("latin-1") for known, value in self._pairs if known == wanted]


class AsgiFacts(RequestFacts):
    """The facts of an ASGI request, or of a WebSocket handshake; the scope is ``native``."""

    __slots__ = ()

    # Written out, as one is made for every request: the inherited one takes twice as long.
    # `headers` is made when it is asked for: most requests are decided without.
    def __init__(self, scope: Scope) -> None:
        client = scope.get("client")
        self.method = scope.get("method", "WEBSOCKET")
        self.path = _full_path(scope) if scope.get("root_path") else scope["path"]
        self.peer = client[0] if client else None
        self.native = scope
        self.body = self.content_length = self.address = self.plan = None
        self.account = ""

    @property
    def headers(self) -> AsgiHeaders:  # type: ignore[override]
        """The header fields."""
        return AsgiHeaders(self.native.get("headers", ()))

    def user(self) -> object | None:
        """What Starlette's ``AuthenticationMiddleware``, or another that keeps to its custom, left in the scope."""
        user: object | None = self.native.get("user")
        return user


def _full_path(scope: Scope) -> str:
    """The path as the outermost application has it, also where it mounted the one behind the guard.

    Starlette before 0.33 cuts off a mount's prefix, which then is to be found at the end of ``root_path`` only.
    """
    path: str = scope["path"]
    outer: str | None = scope.get("app_root_path")
    if outer is None:
        return path
    root_path: str = scope["root_path"]
    if path == root_path or path.startswith(root_path + "/"):
        return path
    return root_path[len(outer) :] + path
