"""What a response shows of the tokens it took, read as it passes by: the usage it reports, or the events it has.

Reported usage is the truth. Without it, output is counted: in a stream of events every event with data is a token,
or a token is four bytes of the texts in all of them if that is more (some servers put several tokens into an event);
in anything else four bytes of the body are. Counting is rough, and errs to the high side for JSON.
"""

from __future__ import annotations

import copy
import re
import zlib
from dataclasses import dataclass
from typing import Final

from abuseguard.errors import SettingsError
from abuseguard.tokens._events import EventReader
from abuseguard.tokens._excerpt import Excerpt
from abuseguard.tokens._json import text_tokens
from abuseguard.tokens._reports import NO_REPORT, USAGE_KEY, Report, report_in

_MAX_INFLATED_BYTES: Final = 16 * 1024 * 1024
_INFLATED_PIECE_BYTES: Final = 65536
_GZIP_OR_ZLIB: Final = 47
_PING_BYTES: Final = 64

_PING: Final = re.compile(rb'\s*(?:\[DONE\]|\{\s*"type"\s*:\s*"ping"\s*\}|)\s*')
_TEXT: Final = re.compile(
    rb'"(?:content|text|delta|arguments|partial_json|thinking|reasoning|reasoning_content|refusal)"'
    rb'\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen of a response.

    Args:
        input_tokens: what the response says the model read; None if it does not say.
        output_tokens: what the response says the model wrote; None if it does not say.
        reported: whether the response says so for its whole length. A stream that was cut off before its report is
            not, even if it told its input at the start.
        counted_output_tokens: the output as counted here.
        started: whether there was a response at all.
        status: its status; None if it did not start.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    reported: bool = False
    counted_output_tokens: int = 0
    started: bool = False
    status: int | None = None


class UsageMeter:
    r"""Watches one response, chunk by chunk, and tells how many tokens it took.

    ``feed`` takes time in proportion to the chunk and never raises. At most four times ``max_bytes`` are held.
    Bodies in gzip and deflate are read, up to 16 MiB of text; of other encodings only the bytes are counted.

    Args:
        max_bytes: how much of a body, or of one event in a stream, is kept to be parsed as a whole. Of longer ones
            the beginning and the end are searched, where the usage stands.

    >>> meter = UsageMeter()
    >>> meter.start(200, "text/event-stream", "")
    >>> meter.feed(b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\nda')
    >>> meter.observed().counted_output_tokens
    2
    >>> meter.feed(b'ta: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\ndata: [DONE]\n\n')
    >>> observed = meter.observed()
    >>> observed.reported, observed.input_tokens, observed.output_tokens
    (True, 9, 1)
    """

    __slots__ = (
        "_body",
        "_events",
        "_inflater",
        "_max_bytes",
        "_readable",
        "_status",
        "_tally",
        "_text_bytes",
        "_wire_bytes",
    )

    def __init__(self, max_bytes: int = 65536) -> None:
        self._max_bytes = _checked_size(max_bytes)
        self._reset()

    def _reset(self) -> None:
        self._status: int | None = None
        self._wire_bytes = 0  # as sent
        self._text_bytes = 0  # as read
        self._readable = True
        self._inflater: zlib._Decompress | None = None
        self._events: EventReader | None = None  # for a stream of events
        self._body: Excerpt | None = None  # for JSON
        self._tally = _Tally()

    def start(self, status: int, content_type: str = "", content_encoding: str = "") -> None:
        """The response's head; a second one replaces the first, as an error page does before anything was sent."""
        self._reset()
        self._status = status
        encoding = content_encoding.strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif encoding not in ("", "identity"):
            self._readable = False
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "text/event-stream":
            self._events = EventReader(self._max_bytes)
        elif media_type in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
            self._events = EventReader(self._max_bytes, every_line=True)
        elif media_type == "application/json" or media_type.endswith("+json"):
            self._body = Excerpt(self._max_bytes)

    def feed(self, chunk: bytes) -> None:
        """A piece of the body, as it was sent."""
        self._wire_bytes += len(chunk)
        if self._readable:
            if self._inflater is None:
                self._read(bytes(chunk))
            else:
                self._inflate(chunk)

    def observed(self) -> Observed:
        """What was seen so far; an event or a body that is not complete counts as far as it goes."""
        if self._status is None:
            return Observed()
        counted, report = text_tokens(self._text_bytes), NO_REPORT
        if self._events is not None:
            tally = copy.copy(self._tally)
            tally.add(self._events.unfinished())
            counted, report = max(tally.events, text_tokens(tally.text_bytes)), tally.report()
        elif self._body is not None:
            report = report_in(self._body)
        if not self._readable:
            counted = max(counted, text_tokens(self._wire_bytes))
        return Observed(
            input_tokens=report.input_tokens,
            output_tokens=report.output_tokens,
            reported=report.output_tokens is not None,
            counted_output_tokens=counted,
            started=True,
            status=self._status,
        )

    def _read(self, text: bytes) -> None:
        self._text_bytes += len(text)
        if self._events is not None:
            for data in self._events.feed(text):
                self._tally.add(data)
        elif self._body is not None:
            self._body.append(text)

    def _inflate(self, chunk: bytes) -> None:
        """Reads a compressed chunk in small pieces, so that one that unfolds into gigabytes does no harm."""
        while self._inflater is not None:
            try:
                text = self._inflater.decompress(chunk, _INFLATED_PIECE_BYTES)
            except zlib.error:
                break
            self._read(text)
            if self._text_bytes > _MAX_INFLATED_BYTES:
                break
            chunk = self._inflater.unconsumed_tail
            if self._inflater.eof:
                chunk = self._inflater.unused_data
                self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            if not chunk and len(text) < _INFLATED_PIECE_BYTES:
                return
        self._readable = False
        self._inflater = None


class _Tally:
    """The sums over a stream's events."""

    __slots__ = ("_latest", "_plain", "_report", "events", "text_bytes")

    def __init__(self) -> None:
        self.events = 0
        self.text_bytes = 0
        self._report = NO_REPORT
        self._latest: tuple[bytes, ...] = ()  # the last events with usage in them, which are read at the end
        self._plain = False

    def report(self) -> Report:
        """The usage reported; none where events are plain text, since then a model could write one."""
        if self._plain:
            return NO_REPORT
        report = self._report
        for data in self._latest:
            report = report.joined(report_in(data))
        # No output yet is what some servers tell at the start. Cut off there, a stream has not told its output.
        return report._replace(output_tokens=report.output_tokens or None)

    def add(self, data: bytes | Excerpt) -> None:
        """One event's data."""
        if isinstance(data, Excerpt):
            self._add_long(data)
        elif len(data) >= _PING_BYTES or not _PING.fullmatch(data):
            self.events += 1
            opening = data[:1] if data[:1] == b"{" else data.lstrip()[:1]
            if opening == b"{":
                self._add_object(data)
            else:
                self._plain = self._plain or opening not in b'["'
                self.text_bytes += len(data)

    def _add_object(self, data: bytes) -> None:
        # OpenAI's response events repeat the text of their deltas when a part is done, and when all is.
        if b'"response.' not in data or b'.delta"' in data:
            for text in _TEXT.findall(data):
                self.text_bytes += len(text)
        if b'"usage' in data and USAGE_KEY.search(data):
            if b'"message_start"' in data:
                self._report = self._report.joined(report_in(data))
            else:
                self._latest = (*self._latest[-1:], data)

    def _add_long(self, data: Excerpt) -> None:
        self.events += 1
        head = data.head().lstrip()
        self._plain = self._plain or head[:1] not in b'{["'
        if b'"response.' not in head and b'"response.' not in data.tail():
            self.text_bytes += data.total_bytes
        self._report = self._report.joined(report_in(data))


def _checked_size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError("max_bytes", value, "a whole number of at least 1")
    return value
