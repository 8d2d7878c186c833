"""The same on a real Redis, where every decision waits."""

from __future__ import annotations

import asyncio
import json

import pytest

from abuseguard import Limit
from tests.asgi.driver import get, guarded, hello, post

pytestmark = pytest.mark.anyio


@pytest.fixture
async def guard(redis_url):
    async def app(scope, receive, send):
        if scope["method"] == "POST":
            await scope["abuseguard"].decide_limits([Limit("2/hour", name="route")])
        await hello(scope, receive, send)

    # A machine that is slow to schedule us must not make Redis seem dead.
    limits = [Limit("10/hour", name="all"), Limit("1000/day", unit="tokens", name="tokens")]
    guard = guarded(app, limits=limits, store=redis_url, store_timeout_seconds=20)
    yield guard
    await guard.guard.close()


async def test_many_at_once_share_what_there_is(guard):
    responses = await asyncio.gather(*(get(guard) for _ in range(30)))
    assert sorted(response.status for response in responses) == [200] * 10 + [429] * 20
    lefts = [response.structured("ratelimit")["all"]["r"] for response in responses]
    assert sorted(lefts) == [0] * 21 + list(range(1, 10))


async def test_denials_of_a_route_give_back_requests_and_tokens(guard):
    body = json.dumps({"prompt": "", "max_tokens": 100}).encode()
    responses = [await post(guard, body=body) for _ in range(6)]
    assert [response.status for response in responses] == [200] * 2 + [429] * 4
    state = (await get(guard)).structured("ratelimit")
    assert state["all"]["r"] == 7
    # Two answers of five bytes, which are two tokens each.
    assert state["tokens"]["r"] == 996
