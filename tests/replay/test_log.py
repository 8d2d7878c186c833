from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.replay import LogError, LoggedRequest, Message, read_log

LINE = {"ts": 1764547220.888, "account": "acct-1"}


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def read(path, **options):
    errors = []
    with read_log(path, report=errors.append, **options) as log:
        return list(log), errors


def test_every_field_is_read(tmp_path):
    fields = {
        **LINE,
        "ip": "39.218.51.197",
        "user_agent": "okhttp/4.34.0",
        "payment": "card-1",
        "plan": "pro",
        "session": "s-1",
        "method": "post",
        "path": "/v1/chat/completions",
        "status": 429,
        "model": "m-large",
        "stream": True,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "input_tokens": 26,
        "output_tokens": 128.0,
        "unheard_of": [1],
    }
    (request,), errors = read(write(tmp_path / "log", fields))
    assert errors == []
    fields.pop("unheard_of")
    assert request == LoggedRequest(
        **{**fields, "method": "POST", "messages": (Message(role="user", content="Why is the sky blue?"),)}
    )
    assert isinstance(request.output_tokens, int)


def test_absent_and_null_fields_take_their_defaults(tmp_path):
    (bare, null), _ = read(write(tmp_path / "log", LINE, {**LINE, "ip": None, "messages": None, "stream": None}))
    assert bare == null == LoggedRequest(ts=1764547220.888, account="acct-1")


def test_text_parts_of_a_message_are_joined_and_other_parts_left_out(tmp_path):
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url"}, 7, {"type": "text", "text": "this?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    (request,), _ = read(write(tmp_path / "log", {**LINE, "messages": messages}))
    assert [message.content for message in request.messages] == ["What is\nthis?", ""]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"ts": 1, "account":', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        ({"account": "a"}, "no ts"),
        ({"ts": 1}, "no account"),
        ({**LINE, "ts": "1"}, "ts: got '1', expected seconds since the epoch"),
        ({**LINE, "ts": True}, "ts: got True, expected seconds since the epoch"),
        ({**LINE, "ts": -1}, "ts: got -1, expected seconds since the epoch"),
        (b'{"ts": NaN, "account": "a"}', "ts: got nan, expected seconds since the epoch"),
        (b'{"ts": 1e999, "account": "a"}', "ts: got inf, expected seconds since the epoch"),
        ({**LINE, "ts": 10**400}, f"ts: got {10**59}..., expected seconds since the epoch"),
        ({**LINE, "ts": 1764547220888}, "ts: got 1764547220888, expected seconds since the epoch"),
        ({**LINE, "account": ""}, "account: got '', expected a string that is not empty"),
        ({**LINE, "account": 7}, "account: got 7, expected a string that is not empty"),
        ({**LINE, "ip": 7}, "ip: got 7, expected a string"),
        ({**LINE, "method": "GET /"}, "method: got 'GET /', expected an HTTP method"),
        ({**LINE, "stream": 1}, "stream: got 1, expected true or false"),
        ({**LINE, "messages": "hi"}, "messages: got 'hi', expected a list of messages"),
        ({**LINE, "messages": ["hi"]}, "messages: got ['hi'], expected a list of messages"),
        ({**LINE, "messages": [{"content": "hi"}]}, "role: got None, expected a string"),
        ({**LINE, "messages": [{"role": "user", "content": 7}]}, "content: got 7, expected a string"),
        ({**LINE, "output_tokens": -1}, "output_tokens: got -1, expected a whole number from 0 to 1000000000"),
        ({**LINE, "output_tokens": 1.5}, "output_tokens: got 1.5, expected a whole number from 0 to 1000000000"),
        (
            b'{"ts": 1, "account": "a", "status": Infinity}',
            "status: got inf, expected a whole number from 0 to 1000000000",
        ),
    ],
)
def test_a_malformed_line_is_reported_with_its_number_and_passed_over(tmp_path, line, reason):
    path = write(tmp_path / "log", LINE, b"", line, LINE)
    requests, errors = read(path)
    assert len(requests) == 2
    assert [(error.source, error.line_number, error.reason) for error in errors] == [(str(path), 3, reason)]


def test_strict_raises_at_the_first_malformed_line(tmp_path):
    path = write(tmp_path / "log", LINE, b"{", LINE)
    with read_log(path, strict=True) as log:
        next(log)
        with pytest.raises(LogError, match="log: line 2: not JSON") as caught:
            next(log)
        assert caught.value.line_number == 2
        assert list(log) == []


def test_malformed_lines_are_logged_unless_the_caller_takes_them(tmp_path, caplog):
    path = write(tmp_path / "log", b"{", LINE)
    with caplog.at_level(logging.WARNING, logger="abuseguard.replay.log"), read_log(path) as log:
        assert len(list(log)) == 1
    assert [record.getMessage() for record in caplog.records] == [f"passed over {path}: line 1: not JSON"]
    assert log.skipped == 1


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(gzip.compress(json.dumps(LINE).encode() + b"\n") * 3)
    requests, errors = read(path)
    assert len(requests) == 3
    assert errors == []


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_of_a_cut_off_gzip_file_everything_before_the_cut_is_read(tmp_path, keep):
    lines = [json.dumps({**LINE, "session": os.urandom(16).hex()}).encode() + b"\n" for _ in range(2000)]
    whole = gzip.compress(b"".join(lines))
    path = tmp_path / "log.gz"
    path.write_bytes(whole[: int(len(whole) * keep)])
    requests, errors = read(path)
    assert len(requests) > 2000 * keep * 0.9
    assert [error.line_number for error in errors] == [len(requests) + 1]
    assert "the rest cannot be read" in errors[0].reason
    with pytest.raises(LogError, match=f"line {len(requests) + 1}: the rest cannot be read"):
        list(read_log(path, strict=True))


def test_a_damaged_gzip_file_ends_the_log_without_raising(tmp_path):
    path = tmp_path / "log.gz"
    damaged = bytearray(gzip.compress(b"".join(json.dumps({**LINE, "ts": n}).encode() + b"\n" for n in range(5000))))
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    _, errors = read(path)
    assert errors != []


def test_a_line_beyond_the_bound_is_malformed_and_the_next_is_read(tmp_path):
    long = {**LINE, "messages": [{"role": "user", "content": "x" * 5000}]}
    exact = len(json.dumps(long)) + 1
    path = write(tmp_path / "log", LINE, long, LINE)
    requests, errors = read(path, max_line_bytes=1000)
    assert len(requests) == 2
    assert [(error.line_number, error.reason) for error in errors] == [(2, "longer than 1000 bytes")]
    assert read(path, max_line_bytes=exact) == (read(path)[0], [])
    assert len(read(path)[0]) == 3


def test_a_huge_line_is_read_whole(tmp_path):
    path = write(tmp_path / "log", {**LINE, "messages": [{"role": "user", "content": "x" * 20_000_000}]})
    (request,), _ = read(path)
    assert len(request.messages[0].content) == 20_000_000


def test_memory_holds_one_line_at_a_time(tmp_path):
    resource = pytest.importorskip("resource")
    assert resource
    path = write(tmp_path / "log", *[{**LINE, "messages": [{"role": "user", "content": "x" * 1_000_000}]}] * 100)
    code = (
        "import resource, sys; from abuseguard.replay import read_log\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); assert sum(1 for _ in read_log(sys.argv[1])) == 100; print(peak() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kibibytes = int(grown.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 30_000  # of 100 MB


def test_standard_input_is_read(tmp_path):
    code = "from abuseguard.replay import read_log; print([q.account for q in read_log('-')])"
    for data in (json.dumps(LINE).encode(), gzip.compress(json.dumps(LINE).encode())):
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
        assert done.stdout.decode().strip() == "['acct-1']"


def test_a_source_that_cannot_be_opened_is_an_error_at_once(tmp_path):
    with pytest.raises(LogError, match=r"missing\.jsonl: No such file or directory"):
        read_log(tmp_path / "missing.jsonl")
    with pytest.raises(LogError, match="Is a directory"):
        read_log(tmp_path)
    with pytest.raises(LogError):
        read_log("a\0b")


def test_an_empty_log_has_no_requests(tmp_path):
    assert read(write(tmp_path / "log")) == ([], [])


def test_the_reader_knows_how_far_it_has_come(tmp_path):
    path = write(tmp_path / "log", *[LINE] * 10_000)
    with read_log(path) as log:
        assert log.size_bytes == path.stat().st_size
        positions = [log.position_bytes for _ in log]
    assert positions == sorted(positions)
    assert 0 < positions[0] < log.size_bytes
    assert log.position_bytes == log.size_bytes
    assert log.line_number == 10_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
nearly_requests = st.fixed_dictionaries(
    {"ts": st.floats(0, 2e9) | json_values, "account": st.text(min_size=1) | json_values},
    optional={field.name: json_values for field in dataclasses.fields(LoggedRequest)[2:]},
)


@given(
    st.lists(st.binary() | nearly_requests.map(lambda record: json.dumps(record).encode()), max_size=6), st.booleans()
)
def test_no_content_whatever_makes_the_lenient_reader_raise(lines, compress):
    content = b"\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(gzip.compress(content, 1) if compress else content)
        requests, errors = read(path, max_line_bytes=500)
    blank = sum(1 for line in content.split(b"\n") if not line.strip())
    if compress or not content.startswith(b"\x1f\x8b"):
        assert len(requests) + len(errors) + blank == content.count(b"\n") + 1


messages = st.lists(st.builds(Message, role=st.text(), content=st.text()), max_size=3).map(tuple)
optional_text = st.none() | st.text()
logged_requests = st.builds(
    LoggedRequest,
    ts=st.floats(0, 1e11),
    account=st.text(min_size=1),
    ip=st.text(),
    user_agent=st.text(),
    payment=optional_text,
    plan=optional_text,
    session=optional_text,
    method=st.sampled_from(["GET", "POST"]),
    path=st.text(),
    status=st.integers(100, 599),
    model=st.text(),
    stream=st.booleans(),
    messages=messages,
    input_tokens=st.integers(0, 10**9),
    output_tokens=st.integers(0, 10**9),
)


@given(st.lists(logged_requests, max_size=5))
def test_what_was_written_is_read_back(requests):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "log", *[dataclasses.asdict(request) for request in requests])
        assert read(path) == (requests, [])
