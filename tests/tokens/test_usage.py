from __future__ import annotations

import gzip
import itertools
import json
import random
import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abuseguard.errors import SettingsError
from abuseguard.tokens import Observed, UsageMeter

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"
COMPACT, SPACED, INDENTED = {"separators": (",", ":")}, {}, {"indent": 2}


def observe(
    body: bytes | list[bytes], content_type: str = JSON, encoding: str = "", status: int = 200, max_bytes: int = 65536
) -> Observed:
    meter = UsageMeter(max_bytes)
    meter.start(status, content_type, encoding)
    for chunk in [body] if isinstance(body, bytes) else body:
        meter.feed(chunk)
    observed = meter.observed()
    assert meter.observed() == observed, "looking changes nothing"
    return observed


def reported(observed: Observed) -> tuple[int | None, int | None]:
    assert observed.reported is (observed.output_tokens is not None)
    return observed.input_tokens, observed.output_tokens


def events(*datas: object, names: bool = False, end: str = "\n", **style: object) -> bytes:
    lines = []
    for data in datas:
        if names and isinstance(data, dict):
            lines.append(f"event: {data['type']}{end}")
        text = data if isinstance(data, str) else json.dumps(data, **style)
        lines.append(f"data: {text}{end}{end}")
    return "".join(lines).encode()


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:stop] for start, stop in itertools.pairwise(places)]


# -- the shapes of the APIs


def chat_chunk(content: str = "Hi", **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **more}


OPENAI_STREAM = [
    chat_chunk("", usage=None),
    chat_chunk("Hello", usage=None),
    chat_chunk(" you", usage=None),
    {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}},
    "[DONE]",
]
ANTHROPIC_STREAM = [
    {
        "type": "message_start",
        "message": {
            "type": "message",
            "content": [],
            "usage": {
                "input_tokens": 25,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 1000,
                "output_tokens": 1,
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop"},
]
RESPONSES_STREAM = [
    {"type": "response.created", "response": {"id": "resp_1", "usage": None}},
    {"type": "response.output_text.delta", "delta": "Hello"},
    {"type": "response.output_text.done", "text": "Hello"},
    {
        "type": "response.completed",
        "response": {
            "output": [{"content": [{"text": "Hello"}]}],
            "usage": {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 30},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 64},
                "total_tokens": 123,
            },
        },
        "sequence_number": 4,
    },
]


def gemini_chunk(text: str, written: int) -> dict[str, object]:
    usage = {"promptTokenCount": 8, "candidatesTokenCount": written, "totalTokenCount": 8 + written + 5}
    return {
        "candidates": [{"content": {"parts": [{"text": text}]}}],
        "usageMetadata": {**usage, "thoughtsTokenCount": 5},
    }


GEMINI_STREAM = [gemini_chunk("Hello", 3), gemini_chunk(" you", 7)]
STREAMS = [
    (events(*OPENAI_STREAM, **COMPACT), (9, 2)),
    (events(*OPENAI_STREAM, **SPACED), (9, 2)),
    (events(*OPENAI_STREAM, end="\r\n"), (9, 2)),
    (events(*OPENAI_STREAM, end="\r"), (9, 2)),
    (events(*ANTHROPIC_STREAM, names=True), (1125, 15)),
    (events(*ANTHROPIC_STREAM, names=True, end="\r\n"), (1125, 15)),
    (events(*RESPONSES_STREAM, names=True), (36, 87)),
    (events(*GEMINI_STREAM, end="\r\n"), (8, 12)),
]
DOCUMENTS = [
    (
        {
            "choices": [{"message": {"content": "Hi"}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
            "service_tier": "default",
        },
        (9, 12),
    ),
    ({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, (8, 0)),
    ({"output": [], "usage": {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123}}, (36, 87)),
    (
        {
            "type": "message",
            "content": [{"type": "text", "text": "Hi"}],
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": None,
                "output_tokens": 2,
            },
        },
        (15, 2),
    ),
    (GEMINI_STREAM[0], (8, 8)),
    (GEMINI_STREAM, (8, 12)),
    ({"usage": {"total_tokens": 30}}, (0, 30)),
    ({"usage": {"total_tokens": 30, "completion_tokens": 10}}, (20, 10)),
    ({"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}}, (10, 30)),
    ({"usage": {"prompt_tokens": 10}}, (10, None)),
    ({"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}}, (10**9, 1)),
    ({"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}, (None, None)),
    ({"usage": {"prompt_tokens": "9", "completion_tokens": -1, "total_tokens": True}}, (None, None)),
    ({"usage": []}, (None, None)),
    ({"usage": None}, (None, None)),
    ({"type": "message_start", "message": "x"}, (None, None)),
    ([], (None, None)),
    ([1, None], (None, None)),
    ("usage", (None, None)),
]


@pytest.mark.parametrize(("body", "expected"), STREAMS)
def test_usage_in_streams(body, expected) -> None:
    assert reported(observe(body, SSE)) == expected


@pytest.mark.parametrize("style", [COMPACT, SPACED, INDENTED])
@pytest.mark.parametrize(("document", "expected"), DOCUMENTS)
def test_usage_in_documents(document, expected, style) -> None:
    assert reported(observe(json.dumps(document, **style).encode())) == expected


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/hal+json"]
)
def test_types_of_json(content_type) -> None:
    assert reported(observe(b'{"usage": {"total_tokens": 3}}', content_type)) == (0, 3)


@pytest.mark.parametrize("content_type", ["", "text/plain", "text/html", "application/octet-stream", "é;;;"])
def test_usage_is_not_looked_for_in_other_types(content_type) -> None:
    observed = observe(b'{"usage": {"total_tokens": 3}}', content_type)
    assert reported(observed) == (None, None)
    assert observed.counted_output_tokens == 8


def test_lines_of_json() -> None:
    body = b'{"text": "Hello"}\n{"text": " you"}\n{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n'
    observed = observe(body, "application/x-ndjson")
    assert reported(observed) == (3, 4)
    assert observed.counted_output_tokens == 3
    assert observe(body[:-1], "application/x-ndjson") == observed


# -- the same however it is cut, packed, and kept


@pytest.mark.parametrize(("body", "expected"), STREAMS)
@given(cuts=st.lists(st.integers(0, 10**6)), max_bytes=st.sampled_from([40, 300, 65536]))
def test_cuts_between_chunks_make_no_difference(body, expected, cuts, max_bytes) -> None:
    whole = observe(body, SSE, max_bytes=max_bytes)
    assert observe(pieces(body, cuts), SSE, max_bytes=max_bytes) == whole
    if max_bytes == 65536:
        assert reported(whole) == expected


@pytest.mark.parametrize("body", [body for body, _ in STREAMS])
def test_a_stream_byte_by_byte_is_the_stream(body) -> None:
    assert observe([body[i : i + 1] for i in range(len(body))], SSE) == observe(body, SSE)


@given(
    st.lists(st.sampled_from([b"data:", b"data: ", b"{}", b"\n", b"\r", b"\r\n", b"x", b": c", b"event: e", b"dat"])),
    st.data(),
)
def test_any_lines_cut_anywhere(parts, data) -> None:
    body = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(body))))
    assert observe(pieces(body, cuts), SSE, max_bytes=9) == observe(body, SSE, max_bytes=9)


@given(st.sampled_from(DOCUMENTS), st.lists(st.integers(0, 10**6)), st.integers(1, 400))
def test_cuts_in_documents_make_no_difference(case, cuts, max_bytes) -> None:
    body = json.dumps(case[0]).encode()
    assert observe(pieces(body, cuts), max_bytes=max_bytes) == observe(body, max_bytes=max_bytes)


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("x-gzip", 31), (" GZip", 31), ("deflate", 15)])
@given(cuts=st.lists(st.integers(0, 10**6)), case=st.sampled_from(STREAMS))
def test_compressed_streams_are_read(encoding, wbits, cuts, case) -> None:
    body, expected = case
    packer = zlib.compressobj(wbits=wbits)
    packed = packer.compress(body) + packer.flush()
    assert observe(pieces(packed, cuts), SSE, encoding) == observe(body, SSE)
    assert reported(observe(packed, SSE, encoding)) == expected


def test_compressed_members_in_a_row_are_read() -> None:
    body = events(*OPENAI_STREAM)
    packed = b"".join(gzip.compress(part) for part in pieces(body, [30, 200]))
    assert observe(packed, SSE, "gzip") == observe(body, SSE)
    assert observe([packed[i : i + 1] for i in range(len(packed))], SSE, "gzip") == observe(body, SSE)


# -- long documents and long events


def long_document(text: str, *, usage_first: bool) -> dict[str, object]:
    usage = {"usage": {"prompt_tokens": 9, "completion_tokens": 5000}}
    answer = {"choices": [{"message": {"content": text}}]}
    return {**usage, **answer} if usage_first else {**answer, **usage, "service_tier": "default"}


@pytest.mark.parametrize("usage_first", [True, False])
@pytest.mark.parametrize("style", [COMPACT, SPACED, INDENTED])
def test_long_documents_are_searched_at_both_ends(style, usage_first) -> None:
    body = json.dumps(long_document('"}]\\ é ' * 30_000, usage_first=usage_first), **style).encode()
    assert reported(observe(body)) == (9, 5000)
    assert reported(observe([body[i : i + 4096] for i in range(0, len(body), 4096)])) == (9, 5000)


def test_long_events_are_searched() -> None:
    done = RESPONSES_STREAM[-1]
    long = {**done, "response": {**done["response"], "output": [{"text": "word " * 30_000}]}}
    body = events(chat_chunk(), *RESPONSES_STREAM[1:-1], long)
    assert reported(observe([body[i : i + 4096] for i in range(0, len(body), 4096)], SSE)) == (36, 87)
    # Its text repeats what the deltas had.
    assert observe(body, SSE).counted_output_tokens == 4


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_long_documents_may_be_cut_in_their_strings(cut) -> None:
    text = '"\\\\"}\\' * 20
    body = json.dumps({"text": text, "usage": {"prompt_tokens": 9, "completion_tokens": 12}}).encode()
    for place in range(cut, cut + 7):
        assert reported(observe([body[:place], b"", body[place:]], max_bytes=100)) == (9, 12)


def test_only_whole_keys_are_keys() -> None:
    for key in ('x"usage', "usage", "xusage", "usagex"):
        body = json.dumps({"text": "a" * 200, key: {"prompt_tokens": 9, "completion_tokens": 12}}).encode()
        assert observe(body, max_bytes=100).reported is (key == "usage")


def test_invalid_utf8_does_not_hide_usage() -> None:
    body = (
        b'{"text": "' + b"\xff" * 9000 + b'", "usage": {"x": "\xff\xff", "prompt_tokens": 9, "completion_tokens": 12}}'
    )
    assert reported(observe(body)) == (9, 12)
    assert reported(observe(body, max_bytes=100)) == (9, 12)


def test_a_list_of_chunks_is_searched() -> None:
    body = json.dumps([gemini_chunk("word " * 10_000, 3), gemini_chunk("word " * 10_000, 7)]).encode()
    assert reported(observe(body)) == (8, 12)


# -- what a model can write

FAKE = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1, "input_tokens": 0, "output_tokens": 1}
FAKE_TEXTS = st.lists(
    st.sampled_from(
        [
            json.dumps({"usage": FAKE}),
            json.dumps({"usage": FAKE}, **COMPACT),
            ',"usage":{"total_tokens":1}}',
            '"usage": {"output_tokens": 1}}',
            '"}}],"usage":{"output_tokens":1}}',
            "\\",
            "\\\\",
            '"',
            '\\"',
            "{",
            "}",
            "\n\ndata: ",
            " ",
            "\\u0022",
            "é",
        ]
    )
    | st.text(max_size=5),
    min_size=1,
).map("".join)
ESCAPINGS = st.integers(0, 3)


def escaped(text: str, times: int) -> str:
    for _ in range(times):
        text = json.dumps(text)
    return text


@given(
    text=FAKE_TEXTS,
    times=ESCAPINGS,
    style=st.sampled_from([COMPACT, SPACED, INDENTED]),
    ascii_only=st.booleans(),
    real=st.booleans(),
    max_bytes=st.sampled_from([20, 64, 150, 65536]),
    cut_off=st.none() | st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 10**6), max_size=4),
)
@example(',"usage":{"total_tokens":1}}', 0, COMPACT, True, False, 20, None, [])
def test_text_cannot_forge_usage_in_a_document(text, times, style, ascii_only, real, max_bytes, cut_off, cuts) -> None:
    document = {"choices": [{"message": {"content": escaped(text, times)}}]}
    if real:
        document["usage"] = {"prompt_tokens": 9, "completion_tokens": 12}
    body = json.dumps(document, ensure_ascii=ascii_only, **style).encode("utf-8", "surrogatepass")
    if cut_off is not None:
        body = body[: cut_off % (len(body) + 1)]
    observed = observe(pieces(body, cuts), max_bytes=max_bytes)
    assert reported(observed) in ((None, None), (9, 12)) if real else reported(observed) == (None, None)
    if real and cut_off is None and max_bytes >= 150:
        assert reported(observed) == (9, 12)


@given(
    texts=st.lists(FAKE_TEXTS, min_size=1, max_size=3),
    times=ESCAPINGS,
    ascii_only=st.booleans(),
    max_bytes=st.sampled_from([20, 64, 150, 65536]),
    cut_off=st.none() | st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 10**6), max_size=4),
)
def test_text_cannot_forge_usage_in_a_stream(texts, times, ascii_only, max_bytes, cut_off, cuts) -> None:
    chunks = [chat_chunk(escaped(text, times), usage=None) for text in texts]
    body = events(*chunks, ensure_ascii=ascii_only) if ascii_only else events(*chunks)
    if cut_off is not None:
        body = body[: cut_off % (len(body) + 1)]
    observed = observe(pieces(body, cuts), SSE, max_bytes=max_bytes)
    assert reported(observed) == (None, None)
    whole = observe([body, events(OPENAI_STREAM[3])], SSE)
    assert reported(whole) == (9, 2) or cut_off is not None


@pytest.mark.parametrize("max_bytes", [20, 150, 65536])
@pytest.mark.parametrize(
    "arguments", [{"usage": FAKE}, {"a": {"usage": FAKE, "usageMetadata": FAKE}}, [{"usage": FAKE}] * 50]
)
def test_arguments_of_tools_cannot_forge_usage(arguments, max_bytes) -> None:
    message = {
        "type": "message",
        "content": [{"type": "text", "text": "a" * 50}, {"type": "tool_use", "input": arguments}],
    }
    body = json.dumps(message).encode()
    # Wherever the connection breaks: the brackets after the fake are then as many as after an honest one.
    for length in range(len(body) + 1) if len(body) < 500 else (len(body),):
        assert reported(observe(body[:length], max_bytes=max_bytes)) == (None, None)
    honest = json.dumps({**message, "usage": {"input_tokens": 9, "output_tokens": 12}}).encode()
    assert reported(observe(honest, max_bytes=max(100, max_bytes))) == (9, 12)
    part = {"candidates": [{"content": {"parts": [{"functionCall": {"args": arguments}}]}}]}
    assert reported(observe(events(part), SSE, max_bytes=max_bytes)) == (None, None)


@pytest.mark.parametrize(
    "body",
    [
        events("Here", "you are", {"usage": FAKE}),
        events({"usage": FAKE}, "as asked"),
        b'data: Here\ndata: {"usage": {"output_tokens": 1}}\n\n',
        b': {"usage": {"output_tokens": 1}}\nevent: {"usage": {"output_tokens": 1}}\n\n',
    ],
)
def test_text_cannot_forge_usage_in_a_stream_of_plain_text(body) -> None:
    assert reported(observe(body, SSE)) == (None, None)


def test_texts_as_json_strings_may_be_followed_by_usage() -> None:
    assert reported(observe(events('"Hello"', '" you"', {"usage": {"total_tokens": 7}}), SSE)) == (0, 7)


# -- streams that were cut off


def test_a_stream_cut_off_after_its_start_has_told_only_its_input() -> None:
    observed = observe(events(*ANTHROPIC_STREAM[:4], names=True), SSE)
    assert reported(observed) == (1125, None)
    assert observed.counted_output_tokens == 3


def test_an_output_of_zero_in_a_stream_is_not_a_report_yet() -> None:
    start = chat_chunk("", usage={"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9})
    assert reported(observe(events(start, chat_chunk()), SSE)) == (9, None)


def test_counts_that_run_along_are_a_report_of_what_was_sent() -> None:
    running = [chat_chunk(usage={"prompt_tokens": 9, "completion_tokens": count}) for count in range(1, 6)]
    assert reported(observe(events(*running), SSE)) == (9, 5)
    for written in (0, 1):
        less = chat_chunk(usage={"prompt_tokens": 0, "completion_tokens": written})
        assert reported(observe(events(*running, less), SSE)) == (9, 5)


def test_the_input_told_at_the_start_is_kept_over_many_reports() -> None:
    body = events(*ANTHROPIC_STREAM[:5], *[ANTHROPIC_STREAM[5]] * 5, names=True)
    assert reported(observe(body, SSE)) == (1125, 15)


# -- counting


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"", 0),
        (b"data:\n\n\n\n", 0),
        (b": keep-alive\n\n: OPENROUTER PROCESSING\n\n", 0),
        (b'event: ping\ndata: {"type": "ping"}\n\ndata: [DONE]\n\ndata:  [DONE] \n\n', 0),
        (b"data: a\n\ndata:b\n\ndata: c\n\n", 3),
        (b"data: a\ndata: b\n\n", 1),
        (b"data: aaaa\ndata: aaaa\n\n", 3),
        (b"event: x\ndata: aaaa\n\n" * 2, 2),
        (b"data: a\n\ndata: b\n", 2),
        (b"data: a\n\ndata: b", 2),
        (b"data: a\n\nda", 1),
        (b"id: 1\nretry: 5\nevent: x\ndata: a\n\n", 1),
        (b"data: " + b"a" * 400 + b"\n\n", 100),
        (events(*[chat_chunk("abc")] * 50), 50),
        (events(chat_chunk("a" * 400)), 100),
        (events(*[chat_chunk("a" * 400)] * 2, **COMPACT), 200),
        (events({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "a" * 40}}), 10),
        (events({"type": "content_block_delta", "delta": {"partial_json": 'a"' * 40}}), 30),
        (events({"type": "response.output_text.delta", "delta": "a" * 40}), 10),
        (events({"type": "response.output_text.done", "text": "a" * 40}), 1),
        (events(chat_chunk("a" * 400_000)), 100_000),
    ],
)
def test_counting_events(body, tokens) -> None:
    counted = observe(body, SSE).counted_output_tokens
    assert counted == tokens if len(body) < 65536 else tokens <= counted < tokens + 100
    assert reported(observe(body, SSE)) == (None, None)


@pytest.mark.parametrize("encoding", ["", "identity", "br", "zstd", "gzip, br"])
def test_counting_bytes(encoding) -> None:
    assert observe([b"a" * 10, b"b" * 3], "text/plain", encoding).counted_output_tokens == 4
    if encoding not in ("", "identity"):
        assert observe([b"a" * 10, b"b" * 3], SSE, encoding).counted_output_tokens == 4


def test_counting_compressed_bytes_counts_the_text() -> None:
    assert observe(zlib.compress(b"a" * 400_000), "text/plain", "deflate").counted_output_tokens == 100_000


# -- starting


def test_before_the_start() -> None:
    meter = UsageMeter()
    assert meter.observed() == Observed()
    meter.start(503, "", "")
    assert meter.observed() == Observed(started=True, status=503)


def test_a_second_start_replaces_the_first() -> None:
    meter = UsageMeter()
    meter.start(200, SSE)
    meter.feed(events(*OPENAI_STREAM[:4]))
    meter.start(500, "text/plain", "")
    meter.feed(b"sorry")
    assert meter.observed() == Observed(started=True, status=500, counted_output_tokens=2)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_chunks_of_other_kinds(kind, content_type) -> None:
    body = events(*OPENAI_STREAM) if content_type == SSE else json.dumps(DOCUMENTS[0][0]).encode()
    chunk = kind(bytearray(body))
    observed = observe([chunk], content_type)
    assert observed.reported
    assert observed == observe(body, content_type)


@pytest.mark.parametrize("wrong", [0, -1, True, None, "65536", 1.5, b""])
def test_wrong_sizes_are_refused(wrong) -> None:
    with pytest.raises(SettingsError, match=r"max_bytes: got .* expected a whole number of at least 1"):
        UsageMeter(wrong)


# -- hostile responses


@given(
    st.lists(st.binary() | st.sampled_from([b"data: ", b"\n\n", b'{"usage":{', b"\x1f\x8b\x08", b'"', b"\\"])),
    st.sampled_from([SSE, JSON, "application/x-ndjson", "text/plain", ""]),
    st.sampled_from(["", "gzip", "deflate", "br"]),
    st.integers(1, 100),
)
def test_any_bytes_do_not_raise(chunks, content_type, encoding, max_bytes) -> None:
    observed = observe(chunks, content_type, encoding, max_bytes=max_bytes)
    assert observed.counted_output_tokens >= 0


@given(st.text(), st.text())
def test_any_head_does_not_raise(content_type, encoding) -> None:
    assert observe(b"abcd", content_type, encoding).started


@pytest.mark.parametrize("opening", [b"[", b'{"type":"message_start","message":', b'{"usage":', b'{"response":'])
@pytest.mark.parametrize("repeats", [400, 5000])
@pytest.mark.parametrize("max_bytes", [1000, 10**6])
def test_deep_nesting_does_not_raise(opening, repeats, max_bytes) -> None:
    for body in (opening * repeats, opening * repeats + b"1" + (b"]" if opening == b"[" else b"}") * repeats):
        assert reported(observe(body, max_bytes=max_bytes)) == (None, None)
        assert reported(observe(b"data: " + body + b"\n\n", SSE, max_bytes=max_bytes)) == (None, None)


def test_deep_nesting_at_the_end_of_a_long_document_does_not_raise() -> None:
    usage = '{"a":' * 3000 + "1" + "}" * 3000
    body = f'{{"text": "{"a" * 100_000}", "usage": {usage}}}'.encode()
    assert reported(observe(body)) == (None, None)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_not_compressed_although_it_says_so_is_counted(encoding) -> None:
    assert observe([b"a" * 400] * 3, SSE, encoding).counted_output_tokens == 300


def test_a_report_survives_rubbish_after_the_compressed_body() -> None:
    packed = gzip.compress(json.dumps(DOCUMENTS[0][0]).encode())
    assert reported(observe([packed, b"\x00" * 100], JSON, "gzip")) == (9, 12)


def gzip_bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(bytes(size)) + packer.flush()


@pytest.mark.parametrize("content_type", [SSE, JSON, "text/plain"])
@pytest.mark.parametrize(
    ("encoding", "chunks"),
    [
        ("", [b"data: " + b"x" * 65530] * 60),
        ("", [b'{"a": "' + b'\\"' * 30_000] * 60),
        ("", [b"data: x\ndata: " + b"y" * 50_000 + b"\n"] * 60),
        ("", [b'data: {"usage":{"a":"' + b"y" * 50_000 + b'"}}\n\n'] * 60),
        ("gzip", [gzip_bomb(100_000_000)]),
    ],
)
def test_memory_is_bounded(content_type, encoding, chunks) -> None:
    meter = UsageMeter()
    meter.start(200, content_type, encoding)
    tracemalloc.start()
    try:
        for chunk in chunks:
            meter.feed(chunk)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 5 * 65536


def test_a_bomb_is_read_to_its_bound_only() -> None:
    observed = observe(gzip_bomb(100_000_000), "text/plain", "gzip")
    assert 4_000_000 < observed.counted_output_tokens < 5_000_000


def test_random_documents_agree_with_a_parser() -> None:
    # Long documents are searched without being parsed; here they are parsed as well.
    generator = random.Random(7)

    def value(depth: int) -> object:
        kind = generator.randrange(6 if depth else 3)
        if kind == 0:
            return generator.choice(
                ['"', "\\", 'x"usage":{"output_tokens":1}', "}]", "plain", "é"]
            ) * generator.randrange(4)
        if kind == 1:
            return generator.randrange(100)
        if kind == 2:
            return {"output_tokens": generator.randrange(1, 100)}
        if kind == 3:
            return [value(depth - 1) for _ in range(generator.randrange(4))]
        keys = ["usage", "a", 'k"', "response", "usageMetadata"]
        return {generator.choice(keys): value(depth - 1) for _ in range(generator.randrange(4))}

    compared = 0
    for _ in range(3000):
        document = {"choices": value(4), "usage": value(1), "z": value(2)}
        body = json.dumps(document, **generator.choice([COMPACT, SPACED])).encode()
        expected = reported(observe(body))
        found = reported(observe(body, max_bytes=len(body) - 1))
        assert found in (expected, (None, None)), body
        compared += found == expected != (None, None)
    assert compared > 100
