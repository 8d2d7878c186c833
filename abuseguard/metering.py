"""LLM tokens of one exchange: what to read of a request for an estimate, what to watch of its response."""

from __future__ import annotations

from collections.abc import Iterable

from abuseguard.decision import Decision
from abuseguard.facts import RequestFacts
from abuseguard.tokens import Ending, UsageMeter, settled_tokens

_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def readable_length(facts: RequestFacts, max_body_bytes: int) -> int:
    """How many bytes of the body to read before the application does; 0 to leave it alone.

    Only a JSON body of declared, small length is read: the application would wait for all of it as well. Of any other
    JSON body the length is noted, so that it cannot evade a reservation by being large or chunked.
    """
    if facts.method.upper() not in _METHODS_WITH_BODY:
        return 0
    content_type = facts.headers.first("content-type") or ""
    if "json" not in content_type.lower():
        return 0
    declared = facts.headers.first("content-length")
    if declared is None or not declared.isascii() or not declared.isdigit() or len(declared) > 18:
        facts.content_length = 0
        return 0
    facts.content_length = int(declared)
    return facts.content_length if facts.content_length <= max_body_bytes else 0


class Meter:
    """Watches one response go by and tells how many tokens the exchange used.

    Args:
        decision: what was reserved.
        max_body_bytes: the most that is kept of the response.
    """

    __slots__ = ("_decision", "_usage", "started")

    def __init__(self, decision: Decision, max_body_bytes: int) -> None:
        self._decision = decision
        self._usage = UsageMeter(max_bytes=max_body_bytes)
        #: Whether there is a response.
        self.started = False

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """The response begins."""
        content_type = content_encoding = ""
        for name, value in headers:
            lowered = name.lower()
            if lowered == "content-type":
                content_type = value
            elif lowered == "content-encoding":
                content_encoding = value
        self.started = True
        self._usage.start(status, content_type, content_encoding)

    def feed(self, chunk: bytes) -> None:
        """A part of its body."""
        self._usage.feed(chunk)

    def used_tokens(self, ending: Ending) -> int:
        """The tokens to charge, now that the exchange has come to this end."""
        plan = self._decision.plan
        return settled_tokens(
            reserved=plan.tokens, estimate=plan.estimate, observed=self._usage.observed(), ending=ending
        )
