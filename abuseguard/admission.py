"""One request that was admitted, until its response has gone: what every shell and adapter that may block shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.guard import AsyncGuard, Guard
from abuseguard.headers import Answer
from abuseguard.limit import Limit
from abuseguard.metering import Meter
from abuseguard.tokens import Ending

AnyGuard = TypeVar("AnyGuard", Guard, AsyncGuard)


class Admission(Generic[AnyGuard]):
    """What is known of one request from its admission until its response has gone.

    Args:
        guard: who decides.
    """

    __slots__ = ("decision", "facts", "guard", "meter", "reserved", "tells")

    guard: AnyGuard
    #: What the request was admitted on, and how; with the limits of its route once those were asked.
    facts: RequestFacts
    decision: Decision
    #: The decision that reserved the tokens.
    reserved: Decision

    def __init__(self, guard: AnyGuard) -> None:
        self.guard = guard
        #: What watches the response, if the tokens used have to be found out.
        self.meter: Meter | None = None
        #: Whether the response is to tell the client its limits.
        self.tells = False

    def admit(self, facts: RequestFacts, decision: Decision) -> None:
        """The guard has let the request in."""
        self.facts = facts
        self.decision = self.reserved = decision
        self.tells = True
        if decision.plan.meters_tokens:
            self.meter = Meter(decision, self.guard.settings.max_body_bytes)

    def turn_away(self) -> bool:
        """The route's own limits have denied the request; returns whether what it was charged has to be given back."""
        # Its answer tells the limits that denied it.
        was_in, self.tells, self.meter = self.tells, False, None
        return was_in


class Exchange(Admission[Guard]):
    """One request that was admitted, for callers that may block."""

    __slots__ = ()

    def decide_limits(self, limits: Sequence[Limit]) -> Answer | None:
        """Asks limits of the route's own, besides those of the settings.

        Returns:
            None if the request may go on; the answer to give to it if not.
        """
        decision = self.guard.decide_limits(self.facts, limits)
        if decision.admitted:
            self.decision = self.guard.policy.join(self.decision, decision)
            return None
        if self.turn_away():
            self.guard.refund(self.reserved)
        return self.guard.answer(self.facts, decision)

    def settle(self, ending: Ending) -> None:
        """Charges the tokens used; only the first call counts."""
        meter, self.meter = self.meter, None
        if meter is not None:
            self.guard.settle(self.reserved, meter.used_tokens(ending))


class Settles(Protocol):
    """Whatever has a meter, and charges what it shows."""

    meter: Meter | None

    def settle(self, ending: Ending) -> object:
        """Charges the tokens used; only the first call counts."""


class MeteredBody:
    """A response body that is watched as the server takes it.

    Args:
        body: what the application returned: parts in bytes, or in text where a framework will encode them.
        exchange: what it belongs to.
    """

    __slots__ = ("_body", "_chunks", "_exchange")

    def __init__(self, body: Iterable[Any], exchange: Settles) -> None:
        self._body = body
        self._chunks: Iterator[Any] | None = None
        self._exchange: Settles | None = exchange

    def __iter__(self) -> MeteredBody:
        return self

    def __len__(self) -> int:
        # Servers send a Content-Length of their own for a body of one part, so its length must be the body's own.
        return len(self._body)  # type: ignore[arg-type]

    def __next__(self) -> Any:
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            chunk = next(self._chunks)
        except StopIteration:
            self._settle(Ending.COMPLETE)
            raise
        except BaseException:
            self._settle(Ending.RAISED)
            raise
        if self._exchange is not None and self._exchange.meter is not None:
            self._exchange.meter.feed(chunk_bytes(chunk))
        return chunk

    def close(self) -> None:
        """Called by the server when the response has gone, or its client has."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._settle(Ending.DISCONNECTED)

    def _settle(self, ending: Ending) -> None:
        # Let go of, as a server that keeps the body is held by the exchange.
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.settle(ending)


def chunk_bytes(chunk: object) -> bytes:
    """A part of a body as bytes; none of what no server will take."""
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, str):
        return chunk.encode("utf-8", "replace")
    return bytes(chunk) if isinstance(chunk, (bytearray, memoryview)) else b""
