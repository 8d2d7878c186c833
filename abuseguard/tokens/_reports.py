"""The usage that a language model's API reports in a response, in the shapes of OpenAI, Anthropic and Gemini.

A report is believed only where the API puts it: at the top of a document, or in the ``response`` of OpenAI's response
events, or in the ``message`` that opens Anthropic's streams. What the model wrote is elsewhere: in strings, where
quotes are escaped, or, for the arguments of tools, in objects further down. So a model cannot be talked into
reporting a usage of zero.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from abuseguard.tokens._excerpt import Excerpt
from abuseguard.tokens._json import DECODER, parse_json, token_count
from abuseguard.tokens._nesting import Nesting

if TYPE_CHECKING:
    from collections.abc import Iterable


class Report(NamedTuple):
    """Tokens as reported; None where nothing was."""

    input_tokens: int | None = None
    output_tokens: int | None = None

    def joined(self, other: Report) -> Report:
        """Both reports as one: counts in a stream are cumulative, so that the larger is the later."""
        return Report(
            _largest(self.input_tokens, other.input_tokens), _largest(self.output_tokens, other.output_tokens)
        )


NO_REPORT: Final = Report()

_HOLDERS: Final = ("usage", "usageMetadata", "usage_metadata")
# The counts that make up the input and the output in each dialect, the first being the one that identifies it.
_INPUTS: Final = (
    ("prompt_tokens",),
    ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
    ("promptTokenCount", "toolUsePromptTokenCount"),
    ("prompt_token_count", "tool_use_prompt_token_count"),
)
_OUTPUTS: Final = (
    ("completion_tokens",),
    ("output_tokens",),
    ("candidatesTokenCount", "thoughtsTokenCount"),
    ("candidates_token_count", "thoughts_token_count"),
)
_TOTALS: Final = (("total_tokens",), ("totalTokenCount",), ("total_token_count",))

USAGE_KEY: Final = re.compile(rb'"usage(?:Metadata|_metadata)?"\s*:\s*(?=\{)')
_WRAPPED: Final = re.compile(rb'\s*(?:\[|\{[^{}\[\]]*"response"\s*:\s*\{)')
_MAX_CANDIDATES: Final = 8


def report_in(text: bytes | Excerpt) -> Report:
    """The usage reported in a JSON text, or in an excerpt of a long one; ``NO_REPORT`` if there is none."""
    if isinstance(text, Excerpt):
        whole = text.whole()
        if whole is None:
            return _report_in_excerpt(text.head(), text.tail()) if text.closed() else NO_REPORT
        text = whole
    try:
        document = parse_json(text)
    except (ValueError, RecursionError):
        return NO_REPORT
    report = NO_REPORT
    for part in document if isinstance(document, list) else (document,):
        if isinstance(part, dict):
            report = report.joined(_report_of(part))
    return report


def _report_of(document: dict[str, Any]) -> Report:
    if document.get("type") == "message_start":
        # Its output is what was written before the stream began, not what will have been written at its end.
        return Report(_report_at(document.get("message")).input_tokens)
    report = _report_at(document)
    return _report_at(document.get("response")) if report is NO_REPORT else report


def _report_at(place: object) -> Report:
    if isinstance(place, dict):
        for name in _HOLDERS:
            usage = place.get(name)
            if isinstance(usage, dict):
                return _report_from(usage)
    return NO_REPORT


def _report_from(usage: dict[str, Any]) -> Report:
    read, written, total = _sum(usage, _INPUTS), _sum(usage, _OUTPUTS), _sum(usage, _TOTALS)
    if total is not None:
        # What a total has beyond its parts is thinking, or an embedding's input that has no output beside it.
        read = max(0, total - written) if read is None and written is not None else read or 0
        written = max(written or 0, total - read)
    # Some servers send zeros for "not known yet".
    return Report(read, written) if read or written else NO_REPORT


def _sum(usage: dict[str, Any], dialects: Iterable[tuple[str, ...]]) -> int | None:
    for names in dialects:
        first = token_count(usage.get(names[0]))
        if first is not None:
            return first + sum(token_count(usage.get(name)) or 0 for name in names[1:])
    return None


def _largest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _report_in_excerpt(head: bytes, tail: bytes) -> Report:
    """The usage in a complete document without its middle; the brackets around a key tell whether it is at the top."""
    levels = (-1, -2) if _WRAPPED.match(head) else (-1,)
    for key in islice(reversed(_keys(tail)), _MAX_CANDIDATES):
        usage, end = _object_at(tail, key.end())
        if usage and _levels(tail[end:]) in levels:
            return _report_from(usage)
    for key in islice(_keys(head), _MAX_CANDIDATES):
        usage, _ = _object_at(head, key.end())
        if usage and _levels(head[: key.start()]) == 1:
            return _report_from(usage)
    return NO_REPORT


def _keys(text: bytes) -> list[re.Match[bytes]]:
    # Before a quote inside a string stands a backslash, or nothing any more where the text was cut.
    return [key for key in USAGE_KEY.finditer(text) if key.start() and text[key.start() - 1] in b"{, \t\r\n"]


def _object_at(text: bytes, start: int) -> tuple[dict[str, Any] | None, int]:
    """The object that begins at a position, and the position where it ends."""
    decoded = text[start:].decode("utf-8", "surrogateescape")
    try:
        value, end = DECODER.raw_decode(decoded)
    except (ValueError, RecursionError):
        return None, start
    return value, start + len(decoded[:end].encode("utf-8", "surrogateescape"))


def _levels(text: bytes) -> int:
    """How many more brackets a piece of JSON opens than closes, if it begins outside strings."""
    nesting = Nesting()
    nesting.feed(text)
    return nesting.levels
