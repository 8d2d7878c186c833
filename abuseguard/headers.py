"""A decision as HTTP: the fields that tell a client its limits, and the answer to a request that is denied.

Fields of draft-ietf-httpapi-ratelimit-headers-10 (Structured Fields, RFC 9651): ``RateLimit-Policy`` states each
limit's quota ``q`` and window ``w`` in seconds, ``RateLimit`` what remains, ``r``, and until when, ``t``. A token
bucket is stated as what it holds and how long it takes to fill, which a client can follow to the letter.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from abuseguard.clock import NANOSECONDS_PER_SECOND, Clock
from abuseguard.decision import Decision, Outcome
from abuseguard.policy import RuleSet
from abuseguard.rule import Rule
from abuseguard.settings import HeaderDialect

PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types#"
_RULE_SETS_REMEMBERED = 1024
# What a client is told to wait while the store is away: long enough for most restarts, too short to lose anyone.
_DEGRADED_RETRY_SECONDS = 1

Fields = list[tuple[str, str]]
EncodedFields = list[tuple[bytes, bytes]]

_DENIED = Outcome.DENIED
_NAMES = {
    name.lower().encode(): name
    for name in ("RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
}

# RFC 9110, sections 5.1 and 5.5; any character that Latin-1 has.
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole response, to be sent in place of the application's.

    Args:
        status: the HTTP status.
        headers: its fields, without ``Content-Length``, which is added.
        body: what follows them.
    """

    status: int
    headers: Sequence[tuple[str, str]] = field(default=())
    body: bytes = b""

    @property
    def is_sendable(self) -> bool:
        """Whether a server can send it: servers raise on what is no status, no header field, or no bytes."""
        try:
            return (
                type(self.status) is int
                and 200 <= self.status <= 599
                and isinstance(self.body, bytes)
                and all(_FIELD_NAME.fullmatch(name) and _FIELD_VALUE.fullmatch(value) for name, value in self.headers)
            )
        except (TypeError, ValueError):
            return False


class LimitFields:
    """Writes the fields that tell a client its limits, in the dialect of the settings.

    Args:
        dialect: see ``Settings.headers``.
        clock: for ``X-RateLimit-Reset``, which is a time of day.
    """

    __slots__ = ("_clock", "_constant_of", "_draft", "_legacy")

    def __init__(self, dialect: HeaderDialect, clock: Clock) -> None:
        self._draft = dialect in ("draft-10", "both")
        self._legacy = dialect in ("legacy", "both")
        self._clock = clock
        self._constant_of = lru_cache(_RULE_SETS_REMEMBERED)(_Constant)

    def write(self, decision: Decision) -> Fields:
        """The fields for a decision: all limits if it was allowed, those in the way if it was denied."""
        return [(_NAMES[name], value.decode("ascii")) for name, value in self.write_encoded(decision)]

    def write_encoded(self, decision: Decision) -> EncodedFields:
        """The same as ASGI has them."""
        times_to_full_ns = decision.times_to_full_ns
        if not times_to_full_ns:
            return []
        if not self._draft:
            return self._write_legacy(decision) if self._legacy else []
        constant = self._constant_of(decision.plan.rule_set)
        if decision.outcome is _DENIED:
            # `t` is when the denied cost can be taken, not when the bucket is full: Retry-After must not lie before it.
            state = _joined(
                (quota.limit, quota.remaining, quota.full_in_ns if quota.wait_ns is None else quota.wait_ns)
                for quota in decision.denied_by
            )
        else:
            # The arithmetic of `Bucket`, and one template for all limits: every response waits for this.
            numbers: list[int] = []
            for (capacity_ns, interval_ns), time_to_full_ns in zip(constant.buckets, times_to_full_ns):  # noqa: B905
                if time_to_full_ns is None:  # the store did not tell of every limit
                    state = _joined((quota.limit, quota.remaining, quota.full_in_ns) for quota in decision.quotas)
                    break
                remaining = (capacity_ns - time_to_full_ns) // interval_ns if time_to_full_ns < capacity_ns else 0
                numbers += (remaining, (time_to_full_ns + 999_999_999) // 1_000_000_000)
            else:
                state = constant.template % tuple(numbers)
        fields = [constant.policy, (b"ratelimit", state)] if state else [constant.policy]
        if self._legacy:
            fields += self._write_legacy(decision)
        return fields

    def _write_legacy(self, decision: Decision) -> EncodedFields:
        quotas = decision.denied_by or decision.quotas
        if not quotas:
            return []
        tightest = min(quotas, key=lambda quota: quota.remaining / quota.capacity)
        reset_ns = tightest.wait_ns or tightest.full_in_ns
        return [
            (b"x-ratelimit-limit", b"%d" % tightest.capacity),
            (b"x-ratelimit-remaining", b"%d" % tightest.remaining),
            (b"x-ratelimit-reset", b"%d" % -(-(self._clock.epoch_ns() + reset_ns) // NANOSECONDS_PER_SECOND)),
        ]


class _Constant:
    """What is the same in every response to requests that meet the same limits.

    Args:
        rule_set: those limits.
    """

    __slots__ = ("buckets", "policy", "template")

    def __init__(self, rule_set: RuleSet) -> None:
        rules = rule_set.rules
        self.policy = (b"ratelimit-policy", ", ".join(_policy(rule) for rule in rules).encode("ascii"))
        #: Of ``RateLimit``: all of it but the numbers, and what these are worked out from.
        self.template = ", ".join(f'"{rule.name}";r=%d;t=%d' for rule in rules).encode("ascii")
        self.buckets = [(rule.bucket.capacity_ns, rule.bucket.interval_ns) for rule in rules]


def _policy(rule: Rule) -> str:
    """One limit in ``RateLimit-Policy``."""
    capacity, item = rule.bucket.capacity, rule.limit.item
    # From the rate as it was given: that of the bucket is rounded to whole nanoseconds a token.
    window_seconds = -(-capacity * item.get_expiry() // item.amount)
    unit = "" if rule.limit.unit == "requests" else f';qu="{rule.limit.unit}"'
    return f'"{rule.name}";q={capacity};w={window_seconds}{unit}'


def _joined(states: Iterable[tuple[str, int, int]]) -> bytes:
    """Limits by name, what remains of them, and the nanoseconds until more does."""
    return ", ".join(
        f'"{name}";r={remaining};t={_seconds(duration_ns)}' for name, remaining, duration_ns in states
    ).encode("ascii")


def _seconds(duration_ns: int) -> int:
    return -(-duration_ns // NANOSECONDS_PER_SECOND)


def denial(decision: Decision, *, jitter: float, uniform: Callable[[], float] = random.random) -> Answer:
    """The answer to a request that was not admitted: problem details (RFC 9457) and when to come back.

    Args:
        decision: why.
        jitter: the share of the waiting time that is added to it at random at the most.
        uniform: the randomness, from 0 to 1.
    """
    if decision.outcome is Outcome.DEGRADED:
        return _problem(
            503,
            "temporary-reduced-capacity",
            "Request cannot be satisfied due to temporary server capacity constraints",
            retry_after_seconds=_DEGRADED_RETRY_SECONDS,
        )
    quotas = decision.denied_by
    if not quotas:
        return _problem(403, None, "Forbidden")
    retry_after_ns = decision.retry_after_ns
    detail = f"The limit {_names([quota.limit for quota in quotas])} is used up."
    retry_after_seconds = None
    if retry_after_ns is None:
        above = [quota.limit for quota in quotas if quota.wait_ns is None]
        detail = f"This request needs more than the limit {_names(above)} can ever grant."
    else:
        retry_after_seconds = max(1, _seconds(retry_after_ns + round(retry_after_ns * jitter * uniform())))
    return _problem(
        429,
        "quota-exceeded",
        "Request cannot be satisfied as assigned quota has been exceeded",
        retry_after_seconds=retry_after_seconds,
        detail=detail,
        violated_policies=[quota.limit for quota in quotas],
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _problem(
    status: int,
    kind: str | None,
    title: str,
    *,
    retry_after_seconds: int | None = None,
    detail: str | None = None,
    violated_policies: Sequence[str] = (),
) -> Answer:
    document: dict[str, object] = {"type": PROBLEM_TYPES + kind if kind else "about:blank", "title": title}
    document["status"] = status
    if detail:
        document["detail"] = detail
    if violated_policies:
        document["violated-policies"] = list(violated_policies)
    headers = [("Content-Type", "application/problem+json")]
    if retry_after_seconds is not None:
        headers.append(("Retry-After", str(retry_after_seconds)))
    return Answer(status=status, headers=headers, body=json.dumps(document).encode())
