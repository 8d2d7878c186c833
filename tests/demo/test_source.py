from __future__ import annotations

import gzip
import json

import pytest

from abuseguard.demo.source import LINES_TO_RECOGNISE, Source
from abuseguard.demo.trace import demo_requests
from abuseguard.replay import LogError

LINE = json.dumps({"ts": 1.0, "account": "a"}).encode() + b"\n"


def test_its_own_traffic_is_taken_whole_or_in_part():
    with Source() as source:
        assert list(source) == demo_requests()
        assert source.share() == 1.0
    with Source(max_requests=100) as source:
        assert source.kind
        assert source.kind(next(source).account) in source.kinds
        assert source.share() == 0.01
        assert len(list(source)) == 99
    assert len(list(Source(max_requests=10**6))) == len(demo_requests())


def test_a_log_is_taken_whole_or_in_part(tmp_path):
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(LINE * 1000))
    with Source(str(path)) as source:
        assert source.kind is None
        assert len(list(source)) == 1000
        assert source.share() == 1.0
    with Source(str(path), max_requests=10) as source:
        next(source)
        assert source.share() == 0.1
        assert len(list(source)) == 9


def test_skipped_lines_are_counted_and_the_first_is_remembered(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"{\n" + LINE + b"[]\n" * 3 * LINES_TO_RECOGNISE + LINE)
    with Source(str(path)) as source:
        assert len(list(source)) == 2
    assert source.skipped == 1 + 3 * LINES_TO_RECOGNISE
    assert str(source.first_skipped) == f"{path}: line 1: not JSON"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no requests in it"),
        (b"\n\n", "no requests in it"),
        (b"{\n", "not a request log: .*line 1: not JSON"),
        (b"some text\n" * 10_000, "not a request log: .*line 1: not JSON"),
        (bytes(range(256)) * 1000, "not a request log: .*line 1: not JSON"),
    ],
)
def test_another_kind_of_file_is_an_error_at_once(tmp_path, content, reason):
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(LogError, match=reason):
        Source(str(path))
