"""What clients may send: never an error of ours, never another bucket than their own."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit
from abuseguard._scope import AsgiHeaders
from tests.asgi.driver import Response, body_messages, get, guarded, hello, http_scope, post, send_request

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
NAMES = ["x-forwarded-for", "forwarded", "authorization", "x-user", "content-type", "content-length", "x-plan", "host"]
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES).map(str.encode) | st.binary(max_size=20), st.binary(max_size=60)))
SETTINGS = {
    "limits": ["1/minute", Limit("1000/minute", unit="tokens"), Limit("9/minute", plans="pro", per="address")],
    "plan": "header:x-plan",
    "trusted_proxies": ["10.0.0.0/8"],
    "exempt_networks": ["192.0.2.0/24"],
}


async def statuses(app, headers, *, times=2, **further):
    return [(await get(app, headers=headers, **further)).status for _ in range(times)]


@given(
    headers=HEADERS,
    account=st.sampled_from(["address", "api-key", "header:x-user", "user"]),
    client=st.none() | st.tuples(st.text(max_size=30), st.integers()),
    path=st.text(max_size=30),
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "BREW", ""]),
)
def test_any_request_reaches_the_application_or_is_denied(headers, account, client, path, method):
    guard = guarded(hello, account=account, **SETTINGS)

    async def run():
        for _ in range(2):
            scope = http_scope(method, path, client=client)
            scope["headers"] = headers
            response = await send_request(guard, scope)
            assert response.status in (200, 429), response.messages

    asyncio.run(run())


@pytest.mark.parametrize("name", ["authorization", "x-user"])
@pytest.mark.parametrize(
    "value", [b"\xff\xfe\x00", b"", b" ", b"Bearer", b"Bearer ", b"Bearer \xc3\xa4" + b"x" * MEGABYTE]
)
async def test_keys_in_headers(name, value):
    account = "api-key" if name == "authorization" else "header:x-user"
    guard = guarded(hello, limits=["1/minute"], account=account)
    assert await statuses(guard, [(name, value)]) == [200, 429]


async def test_of_duplicate_headers_one_counts():
    guard = guarded(hello, limits=["1/minute"], account="header:x-user")
    assert await statuses(guard, [("x-user", "a"), ("x-user", "b")]) == [200, 429]
    assert await statuses(guard, [("x-user", "a"), ("x-user", "c")], times=1) == [429]


@pytest.mark.parametrize("source", ["api-key", "api-key:x-user", "header:x-user", "per"])
async def test_long_keys_are_not_kept(source):
    name = "authorization" if source == "api-key" else "x-user"
    if source == "per":
        guard = guarded(hello, limits=[Limit("1/minute", per=lambda facts: facts.headers.first("x-user"))])
    else:
        guard = guarded(hello, limits=["1/minute"], account=source)
    tracemalloc.start()
    try:
        for number in range(50):
            key = b"Bearer " + b"%d" % number * (MEGABYTE // 10)
            assert await statuses(guard, [(name, key)]) == [200, 429]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < MEGABYTE


class TestForwardedFor:
    """A client can write anything into the header before the first proxy sees it."""

    async def test_without_proxies_it_is_ignored(self):
        guard = guarded(hello, limits=["1/minute"])
        assert await statuses(guard, [("x-forwarded-for", "192.0.2.1")], times=1) == [200]
        assert await statuses(guard, [("x-forwarded-for", "192.0.2.2")], times=1) == [429]

    @pytest.mark.parametrize(
        "spoofed",
        [b"192.0.2.%d", b"10.0.0.%d", b'"192.0.2.%d', b"unknown, %d", b",,%d,", b"\xff%d\x00", b"%d" + b"x" * MEGABYTE],
        ids=lambda value: repr(value[:12]),
    )
    async def test_what_a_client_wrote_chooses_nothing(self, spoofed):
        guard = guarded(hello, limits=["1/minute"], trusted_proxies=["10.0.0.0/8"])
        found = []
        for number in range(3):
            header = (spoofed % number) + b", 203.0.113.9"
            found += await statuses(guard, [("x-forwarded-for", header)], times=1, client=("10.0.0.1", 1))
        assert found == [200, 429, 429]

    async def test_one_field_each_is_the_same_as_one_for_all(self):
        guard = guarded(hello, limits=["1/minute"], trusted_proxies=["10.0.0.0/8"])
        fields = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "203.0.113.9")]
        assert await statuses(guard, fields, client=("10.0.0.1", 1)) == [200, 429]
        joined = [("x-forwarded-for", "192.0.2.7, 203.0.113.9")]
        assert await statuses(guard, joined, client=("10.0.0.1", 1), times=1) == [429]


@pytest.mark.parametrize("path", ["/caf\ufffd", "/\udcff\udcfe", "/\x00", "", "//", "/%2e%2e/", "/" + "x" * MEGABYTE])
async def test_paths_that_are_no_text(path):
    guard = guarded(hello, limits=[Limit("1/minute", routes=["/**"]), Limit("5/minute", name="all")])
    response = await get(guard, path)
    assert (response.status, response.body) == (200, b"hello")
    assert response.structured("ratelimit")["all"]["r"] == 4


async def test_raw_bytes_of_a_path_reach_the_application():
    async def app(scope, receive, send):
        assert scope["raw_path"] == b"/caf\xe9"
        await hello(scope, receive, send)

    scope = http_scope(path="/caf\ufffd", raw_path=b"/caf\xe9")
    assert (await send_request(guarded(app, limits=[Limit("1/minute", routes=["/caf*"])]), scope)).status == 200


class TestBodies:
    """A limit in tokens reads the body of a request first: the application must find it as it came."""

    @staticmethod
    async def seen(messages, *, declared=None, content_type="application/json", **settings):
        """What the application receives of a body, and how the request was estimated."""
        received = []
        facts = []

        async def app(scope, receive, send):
            facts.append(scope["abuseguard"].facts)
            received.extend([await receive() for _ in messages])
            await hello(scope, receive, send)

        headers = [("content-type", content_type)]
        if declared is not None:
            headers.append(("content-length", str(declared)))
        guard = guarded(app, limits=[Limit("1000000/minute", unit="tokens")], **settings)
        originals = [dict(message) for message in messages]
        response = await send_request(guard, http_scope("POST", "/", headers), messages)
        assert response.status == 200
        assert received == originals
        return facts[0]

    @pytest.mark.parametrize(
        "chunks", [[b"{}"], [b"{", b"}"], [b"", b"{}", b""], [b"{", b'"a"', b":1", b"}"], [b""]], ids=repr
    )
    async def test_message_by_message(self, chunks):
        body = b"".join(chunks)
        facts = await self.seen(body_messages(*chunks), declared=len(body))
        assert (facts.body or b"") == body

    async def test_without_declared_length_nothing_is_read_before(self):
        facts = await self.seen(body_messages(b"{}"))
        assert (facts.body, facts.content_length) == (None, 0)

    @pytest.mark.parametrize("declared", ["-1", "1e3", "2, 2", "²", "", "9" * 30])
    async def test_lengths_that_are_none(self, declared):
        facts = await self.seen(body_messages(b"{}"), declared=declared.encode("utf-8"))
        assert facts.body is None

    async def test_large_bodies_are_not_read_before(self):
        facts = await self.seen(body_messages(b"[" * 2000), declared=2000, max_body_bytes=1024)
        assert (facts.body, facts.content_length) == (None, 2000)

    async def test_longer_than_declared(self):
        chunks = [b"x" * 600] * 4
        facts = await self.seen(body_messages(*chunks), declared=10, max_body_bytes=1024)
        assert len(facts.body) <= 1200

    async def test_other_types_are_not_read_before(self):
        facts = await self.seen(body_messages(b"a=1"), declared=3, content_type="application/x-www-form-urlencoded")
        assert (facts.body, facts.content_length) == (None, None)

    @pytest.mark.parametrize(
        "settings",
        [
            {"limits": [Limit("1000/minute", unit="tokens", routes=["/v1/**"])]},
            {"limits": [Limit("1000/minute", unit="tokens", methods=["PUT"])]},
            {"limits": [Limit("1000/minute", unit="tokens")], "exempt_paths": ["/"]},
        ],
        ids=["routes", "methods", "exempt"],
    )
    async def test_where_no_limit_in_tokens_can_apply_nothing_is_read_before(self, settings):
        async def app(scope, receive, send):
            assert receive is own
            await hello(scope, receive, send)

        async def own():
            raise AssertionError

        messages = Response()

        async def send(message):
            messages.messages.append(message)

        headers = [("content-type", "application/json"), ("content-length", "2")]
        await guarded(app, **settings)(http_scope("POST", "/", headers), own, send)
        assert messages.status == 200

    @pytest.mark.parametrize("received", [0, 1, 2])
    async def test_disconnect_while_reading(self, received):
        chunks = [{"type": "http.request", "body": b"[1,", "more_body": True}] * received
        facts = await self.seen([*chunks, {"type": "http.disconnect"}], declared=100)
        assert facts.body == b"[1," * received

    async def test_messages_without_body(self):
        await self.seen(
            [{"type": "http.request", "more_body": True}, {"type": "http.request", "body": b"{}"}], declared=2
        )

    async def test_what_comes_after_the_body(self):
        messages = [*body_messages(b"{}"), {"type": "http.disconnect"}, {"type": "http.disconnect"}]
        await self.seen(messages, declared=2)

    async def test_a_server_that_fails_while_reading(self):
        async def receive():
            raise ConnectionResetError("gone")

        guard = guarded(hello, limits=[Limit("10/minute", unit="tokens")])
        scope = http_scope("POST", "/", [("content-type", "application/json"), ("content-length", "2")])
        with pytest.raises(ConnectionResetError, match="gone"):
            await guard(scope, receive, None)

    @pytest.mark.parametrize("body", [b"[" * 60_000, b"{" * 60_000, b"\xff" * 100, b'{"max_tokens": 1e999}', b"null"])
    async def test_bodies_that_are_no_request_to_a_model(self, body):
        guard = guarded(hello, limits=[Limit("1000000/minute", unit="tokens")])
        assert (await post(guard, body=body)).status == 200


@given(HEADERS)
def test_headers_are_read_as_frameworks_do(pairs):
    headers = AsgiHeaders(pairs)
    for name in NAMES:
        values = [value.decode("latin-1") for known, value in pairs if known.decode("latin-1") == name]
        assert headers.all(name) == values
        assert headers.first(name) == (values[0] if values else None)
