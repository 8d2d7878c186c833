"""Reading JSON that strangers wrote: no input costs more than linear time, and no number is too large."""

from __future__ import annotations

import json
import math
from typing import Final

MAX_TOKENS: Final = 1_000_000_000


def _bounded_int(digits: str) -> int:
    # Python 3.10 converts in quadratic time, newer ones refuse above 4300 digits where other parsers would not.
    return int(digits) if len(digits) <= 18 else -(10**18) if digits.startswith("-") else 10**18


DECODER: Final = json.JSONDecoder(parse_int=_bounded_int, strict=False)


def parse_json(raw: bytes) -> object:
    """The value of a JSON text in any of Unicode's encodings; bytes that are wrong in it count as U+FFFD.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    value: object = DECODER.decode(raw.decode(json.detect_encoding(raw), "replace"))
    return value


def token_count(value: object, *, least: int = 0) -> int | None:
    """A JSON value as a number of tokens, at most a billion; None for what is not a number of at least ``least``.

    >>> token_count(12), token_count(12.5), token_count(10**30), token_count(-1), token_count("12"), token_count(True)
    (12, 13, 1000000000, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        return None
    return math.ceil(min(value, MAX_TOKENS))


def text_tokens(text_bytes: int) -> int:
    """The tokens in so many bytes of UTF-8, rounded up.

    Four characters of English are about one token. Scripts with longer characters have more tokens for each, which
    counting bytes follows: "東京" is 6 bytes, 2 tokens.
    """
    return min(MAX_TOKENS, -(-max(0, text_bytes) // 4))
