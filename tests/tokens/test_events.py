from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abuseguard.tokens._events import EventReader
from abuseguard.tokens._excerpt import Excerpt

LINES = [b"data: a", b"data:b", b"data:", b"data: ", b"data:  c", b"data", b"dat", b": d", b"event: e", b"id:1"]
LINE_ENDS = [b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n"]
STREAM = st.lists(st.sampled_from([*LINES, *LINE_ENDS, b"x" * 7])).map(b"".join)


def by_the_book(body: bytes) -> list[bytes]:
    """The data of all events, the unfinished one last, read from the whole stream as the specification has it."""
    found, data = [], []
    *lines, unfinished = re.split(rb"\r\n|\r|\n", body)
    # The last line is data only once it can be told from other lines.
    for line in [*lines, unfinished] if len(unfinished) >= len(b"data: ") else lines:
        name, colon, value = line.partition(b":")
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif name == b"data" and colon:
            data.append(value[1:] if value[:1] == b" " else value)
    return [*found, b"\n".join(data)]


def read(chunks: list[bytes], **settings: bool) -> list[bytes]:
    reader = EventReader(100_000, **settings)
    ended = [data for chunk in chunks for data in reader.feed(chunk)]
    return [*ended, reader.unfinished()]


@given(STREAM)
@example(b"data: a\rdata: b\n\n")
def test_every_cut_gives_what_the_whole_gives(body) -> None:
    expected = by_the_book(body)
    assert read([body]) == expected
    assert read([body[i : i + 1] for i in range(len(body))]) == expected
    for place in range(len(body)):
        assert read([body[:place], b"", body[place:]]) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@given(st.data())
def test_events_as_servers_send_them(end, data) -> None:
    texts = data.draw(st.lists(st.lists(st.text("ab :", max_size=3), min_size=1), max_size=4))
    body = b"".join(b"".join(b"data: %s%s" % (line.encode(), end) for line in lines) + end for lines in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)))))
    chunks = [body[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(body)])]
    assert read(chunks) == ["\n".join(lines).encode() for lines in texts] + [b""]


@given(st.lists(st.sampled_from([b"{}", b"\n", b"\r\n", b"data: x"])).map(b"".join))
def test_lines_of_json(body) -> None:
    expected = body.replace(b"\r\n", b"\n").split(b"\n")
    for place in range(len(body) + 1):
        assert read([body[:place], body[place:]], every_line=True) == expected


def test_long_data_is_an_excerpt_of_its_own() -> None:
    reader = EventReader(10)
    (short, first), (second,) = (
        reader.feed(b"data: a\n\ndata: " + b"b" * 99 + b"\n\n"),
        reader.feed(b"data: b\ndata: " + b"c" * 99 + b"\n\n"),
    )
    assert short == b"a"
    assert isinstance(first, Excerpt)
    assert isinstance(second, Excerpt)
    assert (first.total_bytes, first.head(), first.tail()) == (99, b"b" * 99, b"b" * 10)
    assert (second.total_bytes, second.head(), second.tail()) == (101, b"b\n" + b"c" * 99, b"c" * 10)
    (third,) = reader.feed(b"data: " + b"d" * 99 + b"\n\n")
    assert isinstance(third, Excerpt)
