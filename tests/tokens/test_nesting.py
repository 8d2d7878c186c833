from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from abuseguard.tokens._nesting import Nesting


def naive(text: bytes) -> int:
    levels, in_string, escaped = 0, False, False
    for byte in text:
        char = chr(byte)
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        else:
            levels += (char in "{[") - (char in "}]")
    return levels


@given(st.text('{}[]""\\\\a\n').map(str.encode), st.lists(st.integers(0, 30)))
def test_any_text_cut_anywhere(text, cuts) -> None:
    nesting = Nesting()
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(text)]):
        nesting.feed(text[start:stop])
    assert nesting.levels == naive(text)
