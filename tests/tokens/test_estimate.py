from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.tokens import MEDIA_TOKENS, Estimate, estimate_from_length, estimate_tokens

BILLION = 1_000_000_000


def estimated(request: object, **settings: int) -> Estimate | None:
    return estimate_tokens(json.dumps(request).encode(), **settings)


def output_of(request: dict[str, object], **settings: int) -> int:
    estimate = estimated({"prompt": "x", **request}, **settings)
    assert estimate is not None
    return estimate.output_tokens


def input_of(request: dict[str, object]) -> int:
    estimate = estimated(request)
    assert estimate is not None
    return estimate.input_tokens


# -- the shapes of the APIs


@pytest.mark.parametrize(
    ("request_", "input_tokens", "output_tokens"),
    [
        # OpenAI, chat completions
        (
            {
                "model": "gpt-4o",
                "messages": [
                    {"role": "system", "content": "a" * 40},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "b" * 20}, {"type": "text", "text": "c" * 20}],
                    },
                ],
                "max_completion_tokens": 300,
                "n": 3,
            },
            20,
            900,
        ),
        # OpenAI, completions with several prompts
        ({"prompt": ["a" * 8, "b" * 8], "max_tokens": 10, "n": 2, "best_of": 4}, 4, 80),
        ({"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 10}, 5, 20),
        ({"prompt": [1, 2, 3], "max_tokens": 10}, 3, 10),
        # OpenAI, responses
        ({"input": "a" * 400, "instructions": "b" * 40, "max_output_tokens": 50}, 110, 50),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a" * 400}]}]}, 100, 1024),
        # Anthropic, messages
        (
            {
                "system": [{"type": "text", "text": "a" * 40}],
                "messages": [{"role": "user", "content": "b" * 40}],
                "max_tokens": 77,
            },
            20,
            77,
        ),
        # Gemini, generateContent
        (
            {
                "contents": [{"role": "user", "parts": [{"text": "a" * 40}]}],
                "systemInstruction": {"parts": [{"text": "b" * 40}]},
                "generationConfig": {"maxOutputTokens": 200, "candidateCount": 2},
            },
            20,
            400,
        ),
        ({"contents": "a" * 40, "generation_config": {"max_output_tokens": 9, "candidate_count": 2}}, 10, 18),
        # anything else that limits its output
        ({"question": "a" * 40, "max_tokens": 5}, 11, 5),
    ],
)
def test_shapes(request_, input_tokens, output_tokens) -> None:
    estimate = estimated(request_)
    assert estimate == Estimate(input_tokens=input_tokens, output_tokens=output_tokens)
    assert estimate.total_tokens == input_tokens + output_tokens


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000, "detail": "high"}},
        {"type": "input_image", "image_url": "https://example.org/cat.png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 100_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}},
        {"inlineData": {"mimeType": "image/png", "data": "A" * 100_000}},
        {"file_data": {"mime_type": "image/png", "file_uri": "gs://bucket/file"}},
    ],
)
def test_media_count_a_constant(part) -> None:
    assert (
        input_of({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "a" * 8}]}]})
        == MEDIA_TOKENS + 2
    )
    assert input_of({"contents": [{"parts": [part, part]}]}) == 2 * MEDIA_TOKENS


def test_a_document_of_text_counts_as_text() -> None:
    part = {"type": "document", "source": {"type": "text", "data": "a" * 400}}
    assert input_of({"messages": [{"role": "user", "content": [part]}]}) == 100


def test_tools_count_with_their_schema() -> None:
    tool = {"name": "a" * 20, "parameters": {"properties": {"image_url": {"description": "b" * 100}}}}
    without = input_of({"messages": "x" * 4})
    assert (
        input_of({"messages": "x" * 4, "tools": [tool]}) - without
        == (len("name") + 20 + len("parameters") + len("properties") + len("image_url") + len("description") + 100 + 3)
        // 4
    )
    assert input_of({"messages": "x" * 4, "tools": [{"type": "image", "description": "b" * 400}]}) - without >= 100


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("東京", 2), ("\ud800", 1)])
def test_four_bytes_are_a_token(text, tokens) -> None:
    assert input_of({"prompt": text}) == tokens


# -- not a model call


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'["messages"]',
        b'"messages"',
        b"{}",
        b'{"name": "Ada"}',
        b'{"messages": null}',
        b'{"input": 5}',
        b'{"prompt": true}',
        b"name=Ada&prompt=x",
        b"\xff\xfe\x00",
        b"\x00" * 100,
    ],
)
def test_no_estimate_for_other_bodies(body) -> None:
    assert estimate_tokens(body) is None


# -- hostile limits


@pytest.mark.parametrize("limit", [0, -1, -1e300, True, "500", None, [], {}, [500]])
def test_senseless_limits_are_none_given(limit) -> None:
    assert output_of({"max_tokens": limit}) == 1024
    assert output_of({"max_tokens": limit}, default_output_tokens=7) == 7
    assert output_of({"max_tokens": 10, "n": limit}) == 10
    assert output_of({"max_tokens": limit, "max_completion_tokens": 5}) == 5


@pytest.mark.parametrize("limit", ["NaN", "Infinity", "-Infinity", "1e999", "-" + "9" * 10_000])
def test_limits_that_are_no_numbers(limit) -> None:
    estimate = estimate_tokens(f'{{"prompt": "x", "max_tokens": {limit}}}'.encode())
    assert estimate == Estimate(input_tokens=1, output_tokens=1024)


@pytest.mark.parametrize("limit", ["1e300", "9" * 100_000, "1000001"])
def test_huge_limits_are_clamped(limit) -> None:
    estimate = estimate_tokens(f'{{"prompt": "x", "max_tokens": {limit}}}'.encode())
    assert estimate == Estimate(input_tokens=1, output_tokens=1_000_000)
    estimate = estimate_tokens(
        f'{{"prompt": "x", "max_tokens": {limit}, "n": {limit}}}'.encode(), max_output_tokens=100
    )
    assert estimate == Estimate(input_tokens=1, output_tokens=12_800)


def test_the_largest_limit_counts() -> None:
    assert output_of({"max_tokens": 10, "max_completion_tokens": 30, "max_output_tokens": 20}) == 30
    assert output_of({"max_tokens": 10.2}) == 11
    assert output_of({"prompt": ["x"] * 100_000, "n": 128, "max_tokens": 10**6}) == BILLION


# -- hostile bodies


def test_nesting_too_deep_to_parse_is_told_from_the_length() -> None:
    body = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert estimate_tokens(body, default_output_tokens=5) == estimate_from_length(len(body), default_output_tokens=5)


def test_nesting_that_can_be_parsed_is_walked() -> None:
    deep = "[" * 500 + '"aaaa"' + "]" * 500
    assert estimate_tokens(f'{{"messages": {deep}, "max_tokens": 1}}'.encode()) == Estimate(
        input_tokens=1, output_tokens=1
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_json_parsers_accept(encoding) -> None:
    assert estimate_tokens('{"prompt": "abcdefgh"}'.encode(encoding)) == Estimate(input_tokens=2, output_tokens=1024)


def test_invalid_utf8_still_counts() -> None:
    assert estimate_tokens(b'{"prompt": "abcd\xff"}') == Estimate(input_tokens=2, output_tokens=1024)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "content", "text", "inlineData"]) | st.text(), inner)
    ),
    max_leaves=10,
)
FIELDS = ["messages", "prompt", "input", "contents", "system", "tools", "max_tokens", "n", "generationConfig", "type"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.booleans())
def test_any_json_gives_a_sound_estimate_or_none(request, ascii_only) -> None:
    body = json.dumps(request, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    estimate = estimate_tokens(body)
    assert estimate == estimate_tokens(body)
    if any(isinstance(request.get(name), str | list | dict) for name in ("messages", "prompt", "input", "contents")):
        assert estimate is not None
    if estimate is not None:
        assert 0 <= estimate.input_tokens <= BILLION
        assert 1 <= estimate.output_tokens <= BILLION
        assert estimate.total_tokens <= BILLION


@given(st.binary())
def test_any_bytes_do_not_raise(body) -> None:
    estimate_tokens(body)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_more_text_is_never_fewer_tokens(text, more) -> None:
    assert input_of({"prompt": text}) <= input_of({"prompt": text + more})


# -- from the length


@pytest.mark.parametrize(("length", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (-3, 0), (10**30, BILLION)])
def test_from_length(length, tokens) -> None:
    assert estimate_from_length(length, default_output_tokens=3) == Estimate(input_tokens=tokens, output_tokens=3)
