"""A text of any length in bounded memory: all of it while it is short, then how it began and how it ended."""

from __future__ import annotations

from typing import Final

from abuseguard.tokens._nesting import Nesting

_HEAD_BYTES: Final = 8192


class Excerpt:
    """Keeps the first 8 KiB and the last ``max_bytes`` of what is appended, and so all of it up to ``max_bytes``.

    Of a longer text it also knows whether it is complete as JSON.

    Appending takes time in proportion to what is appended, and at most twice ``max_bytes`` are held. What it tells
    depends on the bytes only, not on how they were cut into pieces.
    """

    __slots__ = ("_head", "_max_bytes", "_nesting", "_tail", "total_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._nesting: Nesting | None = None
        self.total_bytes = 0

    def append(self, piece: bytes) -> None:
        self.total_bytes += len(piece)
        if self.total_bytes > self._max_bytes:
            if self._nesting is None:
                self._nesting = Nesting()
                self._nesting.feed(bytes(self._tail))
            self._nesting.feed(piece)
        if len(self._head) < _HEAD_BYTES:
            self._head += piece[: _HEAD_BYTES - len(self._head)]
        self._tail += piece if len(piece) <= self._max_bytes else piece[-self._max_bytes :]
        if len(self._tail) > 2 * self._max_bytes:
            del self._tail[: -self._max_bytes]

    def clear(self) -> None:
        """Begins anew, after a text that was kept as a whole."""
        self._head.clear()
        self._tail.clear()
        self.total_bytes = 0

    def whole(self) -> bytes | None:
        """Everything, or None if it was too long to keep."""
        return bytes(self._tail) if self.total_bytes <= self._max_bytes else None

    def closed(self) -> bool:
        """Whether a text that was too long to keep has closed every bracket that it opened."""
        return self._nesting is not None and self._nesting.levels == 0

    def head(self) -> bytes:
        return bytes(self._head)

    def tail(self) -> bytes:
        return bytes(self._tail[-self._max_bytes :])
