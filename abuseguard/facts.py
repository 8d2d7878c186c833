"""What is known of a request before it is answered, whatever the framework."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Headers(Protocol):
    """The header fields of a request, by lower-case name."""

    def first(self, name: str) -> str | None:
        """The value of the first field of that name, as frameworks read it; None if there is none."""

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name, in the order received."""


class PlainHeaders:
    """Header fields from pairs of text, for tests and for replaying a log.

    >>> PlainHeaders([("X-Plan", "pro")]).first("x-plan")
    'pro'
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def first(self, name: str) -> str | None:
        return next((value for known, value in self._pairs if known == name), None)

    def all(self, name: str) -> list[str]:
        return [value for known, value in self._pairs if known == name]


# Slotted but not frozen: one is made for every request, and freezing it costs more than a bucket step does
# (docs/decisions/0002-values-on-the-request-path.md). Nothing changes it once the guard has filled it in.
@dataclass(slots=True)
class RequestFacts:
    """The facts of one request: what a shell read from it, then who the guard found is asking.

    Args:
        method: the HTTP method, upper case; ``"WEBSOCKET"`` for a WebSocket handshake.
        path: the decoded path, without query.
        headers: the header fields.
        peer: the address that the connection came from; None where the server knows none.
        native: the framework's own object: the ASGI scope, the WSGI environ, the Flask or Django request.
        body: the request body as far as it was read, None where it was not. Only read for limits in tokens.
        content_length: the length of the body in bytes as declared; None if it was not.
        address: the client's address behind trusted proxies, IPv6 as its prefix; None if there is none.
        account: the key of who is asking.
        plan: the account's plan, if the settings say how to know it.
    """

    method: str
    path: str
    headers: Headers = field(default_factory=PlainHeaders)
    peer: str | None = None
    native: Any = None
    body: bytes | None = None
    content_length: int | None = None
    address: str | None = None
    account: str = ""
    plan: str | None = None

    def user(self) -> object | None:
        """The user as the framework's authentication left it; shells know where to look."""
        return None
