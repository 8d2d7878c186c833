from __future__ import annotations

import asyncio
import itertools
import json

import httpx
import pytest

from abuseguard.demo.log_time import OUTCOME_HEADER, POSITION_HEADER, TIME_HEADER
from abuseguard.demo.server import ServerOptions, build_app
from abuseguard.errors import SettingsError

CALL = {"model": "demo-large", "messages": [{"role": "user", "content": "Why do bees dance?"}]}
SECOND = 1_000_000_000


class Client:
    """Requests at an application, as from a proxy on the same machine."""

    def __init__(self, app):
        self.positions = itertools.count()
        self._transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 4711))

    def request(self, method, path, **options):
        async def send():
            async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path, **options):
        return self.request("GET", path, **options)


def client(*limits, log_time=True):
    return Client(build_app(ServerOptions(limits=limits, log_time=log_time)))


def ask(server, *, key="sk-1", at_seconds=None, ip="203.0.113.1", output_tokens=None, **call):
    headers = {"authorization": f"Bearer {key}", "x-forwarded-for": ip}
    if at_seconds is not None:
        headers[TIME_HEADER] = str(round(at_seconds * SECOND))
        headers[POSITION_HEADER] = str(next(server.positions))
    if output_tokens is not None:
        headers["x-demo-output-tokens"] = str(output_tokens)
    return server.request("POST", "/v1/chat/completions", json={**CALL, **call}, headers=headers)


def events(response):
    blocks = response.text.split("\n\n")
    assert blocks[-1] == ""
    assert blocks[-2] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_a_plain_completion_has_the_shape_of_the_api():
    body = ask(client(), output_tokens=12).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 12
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}


def test_a_streamed_completion_says_the_same_in_pieces_and_the_tokens_at_the_end():
    server = client()
    plain = ask(server, output_tokens=50).json()
    streamed = ask(server, output_tokens=50, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = events(streamed)
    pieces = [
        chunk["choices"][0]["delta"]["content"] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"]
    ]
    assert len(pieces) == 4
    assert "".join(pieces).strip() == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == plain["usage"]


@pytest.mark.parametrize("length", [1, 3, 5])
def test_short_answers_are_streamed_whole(length):
    chunks = events(ask(client(), output_tokens=length, stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert len(text.split()) == length


def test_an_answer_is_no_longer_than_max_tokens_or_the_server_can_make():
    server = client()
    assert ask(server, max_tokens=7).json()["usage"]["completion_tokens"] == 7
    assert ask(server, max_tokens=7, output_tokens=100).json()["usage"]["completion_tokens"] == 7
    assert ask(server, output_tokens=10**9).json()["usage"]["completion_tokens"] == 32_768


def test_models_and_health():
    server = client()
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["demo-large", "demo-small"]
    assert server.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "call", [{"messages": "hi"}, {"messages": [{}]}, {"max_tokens": 0}, {"messages": [{"role": "user", "content": 7}]}]
)
def test_a_malformed_call_is_refused_by_the_application(call):
    assert ask(client(), **call).status_code == 422


def test_content_in_parts_is_taken():
    parts = [{"type": "text", "text": "hello"}]
    assert ask(client(), messages=[{"role": "user", "content": parts}]).status_code == 200


def test_the_guard_runs_on_the_time_that_requests_carry():
    server = client("2/minute")
    outcomes = [ask(server, at_seconds=1_764_547_200 + at) for at in (0, 0, 0, 31, 3600, 3600, 3600)]
    assert [answer.status_code for answer in outcomes] == [200, 200, 429, 200, 200, 200, 429]
    assert [answer.headers[OUTCOME_HEADER] for answer in outcomes][:3] == ["allowed", "allowed", "denied"]


def test_time_never_runs_backwards():
    server = client("2/minute")
    assert [ask(server, at_seconds=at).status_code for at in (7200, 7200, 0, 3600)] == [200, 200, 429, 429]


def test_without_log_time_the_header_sets_nothing():
    server = client("2/minute", log_time=False)
    assert [ask(server, at_seconds=at).status_code for at in (0, 0, 7200)] == [200, 200, 429]


def test_accounts_are_limited_by_key_not_by_address():
    server = client("1/minute")
    assert ask(server, key="sk-1", at_seconds=1).status_code == 200
    assert ask(server, key="sk-1", at_seconds=1, ip="203.0.113.2").status_code == 429
    assert ask(server, key="sk-2", at_seconds=1).status_code == 200


def test_who_has_no_key_is_limited_by_the_address_that_the_proxy_reports():
    server = client("1/minute")
    statuses = [
        server.get("/v1/models", headers={"x-forwarded-for": ip}).status_code
        for ip in ("203.0.113.1", "203.0.113.1", "203.0.113.2")
    ]
    assert statuses == [200, 429, 200]


def test_tokens_used_are_settled_plain_and_streamed():
    for stream in (False, True):
        server = client("1000/hour unit=tokens")
        # 4 + 100 tokens are used of 1,000 each time, whatever was reserved for it.
        statuses = [
            ask(server, at_seconds=1, max_tokens=500, output_tokens=100, stream=stream).status_code for _ in range(7)
        ]
        assert statuses == [200, 200, 200, 200, 200, 429, 429]


def test_health_is_exempt():
    server = client("1/minute")
    assert {server.get("/healthz").status_code for _ in range(5)} == {200}


def test_a_wrong_limit_is_an_error_at_once():
    with pytest.raises(SettingsError, match=r"limits\[0\]"):
        build_app(ServerOptions(limits=("1000/fortnight",)))
