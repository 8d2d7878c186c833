"""Patterns of paths: ``*`` for anything within a segment, ``**`` for anything at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# What a regular expression matches in linear time: stars that end at a slash or with the pattern, or a single star;
# and `**` at the end. Of two stars before other text each tries every length for every length of the other, and a
# client that sends 64 KB of slashes would keep a server busy for seconds.
_LINEAR = re.compile(r"(?:[^*]*(?:\*(?=/|\Z)[^*]*)*|[^*]*\*+[^*]*)(?:\*\*+)?")


def path_matcher(patterns: Sequence[str]) -> Callable[[str], object | None] | None:
    """A function that tells in time proportional to a path whether it matches a pattern: gives None if it does not.

    Without patterns there is no function: None.

    ``*`` stands for anything within a segment, ``**`` for anything at all, everything else for itself.

    >>> matches = path_matcher(["/v1/**", "/users/*/posts"])
    >>> bool(matches("/v1/chat/completions")), bool(matches("/users/7/posts")), bool(matches("/users/7/8/posts"))
    (True, True, False)
    """
    if not patterns:
        return None
    expressions = [_expression(pattern) for pattern in patterns if _LINEAR.fullmatch(pattern)]
    fullmatch = re.compile("|".join(expressions), re.DOTALL).fullmatch if expressions else None
    automata = [_Automaton(pattern) for pattern in patterns if not _LINEAR.fullmatch(pattern)]
    if not automata:
        return fullmatch

    def matches(path: str) -> object | None:
        if fullmatch is not None and (match := fullmatch(path)) is not None:
            return match
        return next((automaton for automaton in automata if automaton.matches(path)), None)

    return matches


def _tokens(pattern: str) -> list[str]:
    """The pattern as its characters, ``*`` and ``**``."""
    tokens: list[str] = []
    for part in re.split(r"(\*+)", pattern):
        tokens += [part[:2]] if part.startswith("*") else part
    return tokens


def _expression(pattern: str) -> str:
    special = {"*": "[^/]*", "**": ".*"}
    return "".join(special.get(token) or re.escape(token) for token in _tokens(pattern))


class _Automaton:
    """One pattern of any form, matched by following all the ways in which it can match at once.

    The bits of a number are the states: bit ``i`` is set while the first ``i`` tokens match what was read (Baeza-Yates
    and Gonnet, "A new approach to text searching", 1992).

    Args:
        pattern: the pattern.
    """

    __slots__ = ("_accepting", "_at_character", "_at_double_star", "_at_star")

    def __init__(self, pattern: str) -> None:
        tokens = _tokens(pattern)
        self._accepting = 1 << len(tokens)
        self._at_star = self._at_double_star = 0
        self._at_character: dict[str, int] = {}
        for position, token in enumerate(tokens):
            if token == "*":
                self._at_star |= 1 << position
            elif token == "**":
                self._at_double_star |= 1 << position
            else:
                self._at_character[token] = self._at_character.get(token, 0) | 1 << position

    def matches(self, path: str) -> bool:
        """Whether the whole path matches."""
        double_star = self._at_double_star
        stars = self._at_star | double_star
        at_character = self._at_character
        states = 1 | (1 & stars) << 1
        for character in path:
            states = (
                states & (double_star if character == "/" else stars) | (states & at_character.get(character, 0)) << 1
            )
            states |= (states & stars) << 1  # a star may stand for nothing; no two stars are next to each other
            if not states:
                return False
        return bool(states & self._accepting)
