"""Server-sent events, cut out of a stream of bytes (WHATWG HTML, section 9.2.6), and lines of JSON the same way."""

from __future__ import annotations

from abuseguard.tokens._excerpt import Excerpt


class EventReader:
    """Turns chunks into the data of the events that they complete; where the stream was cut makes no difference.

    Args:
        max_bytes: the longest data that is given as bytes; of longer data there is an excerpt.
        every_line: every line is an event's data, as in newline-delimited JSON: no field names, no blank lines.
    """

    __slots__ = ("_after_return", "_data", "_every_line", "_idle", "_is_data", "_max_bytes", "_open", "_start")

    def __init__(self, max_bytes: int, *, every_line: bool = False) -> None:
        self._max_bytes = max_bytes
        self._every_line = every_line
        self._data = Excerpt(max_bytes)
        self._open = False  # there is data of an event that has not ended
        self._start = b""  # the first bytes of a line, as long as they do not tell what it is
        self._is_data: bool | None = None  # what the line is
        self._after_return = False  # a line has ended, or half ended, with a carriage return
        self._idle = not every_line

    def feed(self, chunk: bytes) -> list[bytes | Excerpt]:
        """The data of each event that ended in this chunk."""
        # Nearly every chunk is one event of one line.
        size = len(chunk)
        if self._idle and chunk[:6] == b"data: " and chunk.find(b"\n") == size - 2 and chunk[-1:] == b"\n":
            data = chunk[6:-2]
            if size <= self._max_bytes and b"\r" not in data:
                return [data]
        if not chunk:
            return []
        if self._after_return and chunk[:1] == b"\n":
            chunk = chunk[1:]  # the second half of a line end
        self._after_return = chunk[-1:] == b"\r"
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        ended = [self._take() for line in lines if self._read(line, line_ends=True)]
        if rest:
            self._read(rest, line_ends=False)
        self._idle = not (self._open or rest or self._start or self._after_return or self._every_line)
        return ended

    def unfinished(self) -> bytes | Excerpt:
        """The data, so far, of an event that has not ended."""
        whole = self._data.whole()
        return self._data if whole is None else whole

    def _read(self, piece: bytes, *, line_ends: bool) -> bool:
        """Takes a piece of a line, and tells whether an event has ended with it."""
        if self._is_data is None:
            piece = self._start + piece
            self._start = b""
            if self._every_line:
                self._is_data = True
            elif not piece:
                return self._open
            elif len(piece) < len(b"data: ") and not line_ends:
                self._start = piece
                return False
            elif piece.startswith(b"data:"):
                self._is_data = True
                piece = piece[6:] if piece[5:6] == b" " else piece[5:]
                if self._open:
                    self._data.append(b"\n")
                self._open = True
            else:
                self._is_data = False
        if self._is_data:
            self._data.append(piece)
        if line_ends:
            self._is_data = None
        return line_ends and self._every_line

    def _take(self) -> bytes | Excerpt:
        self._open = False
        whole = self._data.whole()
        if whole is not None:
            self._data.clear()
            return whole
        data, self._data = self._data, Excerpt(self._max_bytes)
        return data
