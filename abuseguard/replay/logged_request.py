"""One line of a request log: what it says, and what makes it malformed.

Only ``ts`` and ``account`` must be there. A field that is absent or null takes its default; a field of a wrong type
makes the line malformed, because a log that is misread quietly gives wrong figures.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_COUNT = 10**9
# The year 5138. A larger number is milliseconds, which is what goes wrong most with times.
MAX_EPOCH_SECONDS = 1e11

_METHOD = re.compile(r"[A-Za-z]{1,32}")


class MalformedError(ValueError):
    """A line is no request; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat; of content in several parts, the text parts, joined by newlines."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRequest:
    """One request as it was logged.

    Args:
        ts: when it came, in seconds since the epoch.
        account: opaque account id, never empty.
        ip, user_agent: as the server saw them.
        payment, plan, session: opaque ids and the plan's name, None if not logged.
        method, path, status: the HTTP request and its answer.
        model, stream, messages: the call.
        input_tokens, output_tokens: as charged.
    """

    ts: float
    account: str
    ip: str = ""
    user_agent: str = ""
    payment: str | None = None
    plan: str | None = None
    session: str | None = None
    method: str = "POST"
    path: str = "/v1/chat/completions"
    status: int = 200
    model: str = ""
    stream: bool = False
    messages: Sequence[Message] = ()
    input_tokens: int = 0
    output_tokens: int = 0


def parse(line: bytes) -> LoggedRequest:
    """Reads one line of a log.

    Raises:
        MalformedError: it is no request.

    >>> parse(b'{"ts": 1764547220.888, "account": "acct-1", "output_tokens": 128}').output_tokens
    128
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedError("not JSON") from None
    if not isinstance(record, dict):
        raise MalformedError("not a JSON object")
    fields = {name: read(name, record[name]) for name, read in _FIELDS.items() if record.get(name) is not None}
    for name in ("ts", "account"):
        if name not in fields:
            raise MalformedError(f"no {name}")
    return LoggedRequest(**fields)


def _wrong(name: str, value: object, expected: str) -> MalformedError:
    shown = repr(value)
    return MalformedError(f"{name}: got {shown if len(shown) <= 60 else shown[:60] + '...'}, expected {expected}")


def _seconds(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_EPOCH_SECONDS:
        return float(value)
    raise _wrong(name, value, "seconds since the epoch")


def _count(name: str, value: object) -> int:
    # Some writers turn whole numbers into floats on the way.
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    raise _wrong(name, value, f"a whole number from 0 to {MAX_COUNT}")


def _string(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise _wrong(name, value, "a string")


def _nonempty(name: str, value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise _wrong(name, value, "a string that is not empty")


def _method(name: str, value: object) -> str:
    if isinstance(value, str) and _METHOD.fullmatch(value):
        return value.upper()
    raise _wrong(name, value, "an HTTP method")


def _boolean(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(name, value, "true or false")


def _messages(name: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise _wrong(name, value, "a list of messages")
    return tuple(
        Message(role=_string("role", message.get("role")), content=_content(message.get("content")))
        for message in value
    )


def _content(value: object) -> str:
    if value is None:  # a message that only calls tools
        return ""
    if isinstance(value, list):  # text beside images or files
        return "\n".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return _string("content", value)


_FIELDS: Mapping[str, Callable[[str, object], Any]] = {
    "ts": _seconds,
    "account": _nonempty,
    "ip": _string,
    "user_agent": _string,
    "payment": _string,
    "plan": _string,
    "session": _string,
    "method": _method,
    "path": _string,
    "status": _count,
    "model": _string,
    "stream": _boolean,
    "messages": _messages,
    "input_tokens": _count,
    "output_tokens": _count,
}
