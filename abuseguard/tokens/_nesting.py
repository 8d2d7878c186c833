"""How deep in a JSON text one is, told piece by piece without parsing it."""

from __future__ import annotations

import re
from typing import Final

# A string, or the part of one that is there: the group is what ended it, the quote or the piece's end.
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)', re.DOTALL)
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)', re.DOTALL)


class Nesting:
    r"""Counts the brackets that are open, other than in strings; linear in what is fed, in constant memory.

    >>> nesting = Nesting()
    >>> nesting.feed(b'{"a": ["}\\'); nesting.feed(b'"]')
    >>> nesting.levels
    2
    >>> nesting.feed(b'"]}')
    >>> nesting.levels
    0
    """

    __slots__ = ("_escaped", "_in_string", "levels")

    def __init__(self) -> None:
        self.levels = 0
        self._in_string = False
        self._escaped = False

    def feed(self, piece: bytes) -> None:
        if not piece:
            return
        start = 0
        if self._in_string:
            rest = _REST_OF_STRING.match(piece, int(self._escaped))
            if rest is None or rest[1] != b'"':
                self._escaped = rest is not None and rest[1] == b"\\"
                return
            start = rest.end()
        # Of a string remain two quotes, of the part of one a single quote and the backslash that it ends with.
        outside = _STRING.sub(rb'"\1', piece[start:])
        self.levels += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
        self._in_string = outside.count(b'"') % 2 == 1
        self._escaped = self._in_string and outside.endswith(b"\\")
