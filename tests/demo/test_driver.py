from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.demo import driver
from abuseguard.demo.connection import Answer
from abuseguard.demo.driver import Pace, drive, http_request, used_tokens
from abuseguard.demo.log_time import TIME_HEADER
from abuseguard.demo.server import ServerOptions
from abuseguard.demo.server_process import ServerError, ServerProcess
from abuseguard.demo.tally import Tally
from abuseguard.demo.trace import START, demo_kind, demo_requests
from abuseguard.replay import LoggedRequest, Message


def run(requests, server, **pace):
    tally = Tally()
    asyncio.run(drive(requests, server, Pace(**pace), tally))
    return tally


@pytest.fixture(scope="module")
def unguarded():
    with ServerProcess(ServerOptions(limits=())) as server:
        yield server


@contextmanager
def recording_server(*, answer=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"):
    """A server in a thread that keeps the requests it gets; ``answer=None`` gives none."""
    loop = asyncio.new_event_loop()
    received = []
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        connection = h11.Connection(h11.SERVER)
        while data := await reader.read(65536):
            connection.receive_data(data)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    received.append(SimpleNamespace(event=event, headers=dict(event.headers), body=b""))
                elif isinstance(event, h11.Data):
                    received[-1].body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage) and answer:
                    connection.send(h11.Response(status_code=204, headers=[]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                    writer.write(answer)

    listener = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close():
        listener.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.01)

    try:
        yield SimpleNamespace(port=listener.sockets[0].getsockname()[1], alive=True, exit_code=None, received=received)
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_request_carries_what_the_log_says():
    request = LoggedRequest(
        ts=1764547220.888,
        account="acct-1/ä",
        ip="39.218.51.197",
        user_agent="okhttp/4.34.0",
        session="s-1",
        model="m-large",
        stream=True,
        messages=[Message(role="system", content="Be brief."), Message(role="user", content="Why\n?")],
        output_tokens=300,
    )
    with recording_server() as server:
        run([request], server)
    (received,) = server.received
    assert received.event.method == b"POST"
    assert received.event.target == b"/v1/chat/completions"
    assert received.headers[b"authorization"] == b"Bearer sk-demo-acct-1%2F%C3%A4"
    assert received.headers[b"x-forwarded-for"] == b"39.218.51.197"
    assert received.headers[b"user-agent"] == b"okhttp/4.34.0"
    assert received.headers[b"x-session-id"] == b"s-1"
    assert received.headers[TIME_HEADER.encode()] == b"1764547220888000000"
    assert json.loads(received.body) == {
        "model": "m-large",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why\n?"}],
        "stream": True,
        "max_tokens": 512,
        "stream_options": {"include_usage": True},
    }


def test_requests_are_sent_in_the_order_of_the_log():
    requests = [LoggedRequest(ts=float(n), account="a") for n in range(50)]
    with recording_server() as server:
        run(requests, server, concurrency=1)
    assert [int(received.headers[TIME_HEADER.encode()]) for received in server.received] == [
        n * 10**9 for n in range(50)
    ]


any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates as well
any_request = st.builds(
    LoggedRequest,
    ts=st.floats(0, 1e11),
    account=st.text(st.characters(exclude_categories=()), min_size=1),
    ip=any_text,
    user_agent=any_text,
    session=st.none() | any_text,
    method=st.sampled_from(["GET", "POST", "HEAD", "CONNECT", "TRACE", "PATCH"]),
    path=any_text,
    model=any_text,
    stream=st.booleans(),
    messages=st.lists(st.builds(Message, role=any_text, content=any_text), max_size=2),
    output_tokens=st.integers(0, 10**9),
)


@given(any_request)
def test_nothing_in_a_log_makes_an_invalid_request(request):
    method, target, headers, body = http_request(request)
    client, server = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER)
    if body:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    server.receive_data(client.send(h11.Request(method=method, target=target, headers=headers)) or b"")
    received = server.next_event()
    assert isinstance(received, h11.Request)
    assert [(name.lower(), value) for name, value in headers] == list(received.headers)
    assert received.target.startswith(b"/")
    assert client.our_state is h11.SEND_BODY  # and not on the way to another protocol
    if body:
        assert json.loads(body)["max_tokens"] >= 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_accounts_have_different_keys(one, other):
    keys = {dict(http_request(LoggedRequest(ts=0, account=account))[2])[b"authorization"] for account in (one, other)}
    assert len(keys) == len({one, other})


def test_long_account_ids_still_differ():
    keys = {
        dict(http_request(LoggedRequest(ts=0, account="x" * 5000 + end))[2])[b"authorization"] for end in ("a", "b")
    }
    assert len(keys) == 2
    assert max(map(len, keys)) < 100


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage": {"total_tokens": 7}}', 7),
        (b'data: {"usage": null}\n\ndata: {"usage": {"total_tokens": 9}}\n\ndata: [DONE]\n\n', 9),
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', 0),
        (b"", 0),
        (b"[]", 0),
        (b"\xff", 0),
        (b'{"usage": null}', 0),
    ],
)
def test_tokens_used_are_read_from_any_answer(body, tokens):
    assert used_tokens(Answer(200, {}, body)) == tokens


def test_everything_of_a_log_is_sent_and_counted(unguarded):
    requests = demo_requests()[:400]
    tally = run(requests, unguarded)
    assert tally.total.requests == tally.total.allowed == 400
    assert tally.total.streamed == sum(request.stream for request in requests)
    assert tally.total.tokens == sum(request.input_tokens + request.output_tokens for request in requests)
    assert tally.total.accounts == len({request.account for request in requests})
    assert (tally.first_ts, tally.last_ts) == (requests[0].ts, requests[-1].ts)


def test_other_paths_and_methods_are_sent_as_logged(unguarded):
    requests = [
        LoggedRequest(ts=1, account="a", method="GET", path="/v1/models"),
        LoggedRequest(ts=2, account="a", method="HEAD", path="/v1/models"),
        LoggedRequest(ts=3, account="a", method="DELETE", path="/nowhere?x=1"),
        LoggedRequest(ts=4, account="a", messages=[Message(role="user", content="\ud800")]),
        LoggedRequest(ts=5, account="a"),
    ]
    tally = run(requests, unguarded, concurrency=1)
    assert tally.total.requests == tally.total.allowed == 5
    assert tally.total.failed == 0


def test_the_limits_hold_on_the_logs_own_time():
    # Ten requests a second for ten seconds, twice, an hour apart: each time the burst and the refill are granted.
    requests = [LoggedRequest(ts=hour + n / 10, account="greedy") for hour in (0, 3600) for n in range(100)]
    requests += [LoggedRequest(ts=5000 + 60 * n, account="slow") for n in range(50)]
    with ServerProcess(ServerOptions(limits=("60/minute burst=20",))) as server:
        tally = run(requests, server, concurrency=8)
    assert tally.accounts["slow"].denied == 0
    assert tally.accounts["greedy"].allowed == 2 * (20 + 9)
    assert tally.total.denied == 200 - tally.accounts["greedy"].allowed


def test_how_many_are_under_way_changes_no_decision():
    denied = []
    for concurrency in (1, 32):
        with ServerProcess(ServerOptions(limits=("20/minute burst=10", "20000/hour unit=tokens"))) as server:
            tally = run(demo_requests()[:800], server, concurrency=concurrency)
            denied.append({account: (count.denied, count.tokens) for account, count in tally.accounts.items()})
    assert denied[0] == denied[1]
    assert sum(count for count, _ in denied[0].values()) > 100


def test_of_its_own_traffic_only_the_harvesting_is_denied():
    from abuseguard.demo.command import DEFAULT_LIMITS

    with ServerProcess(ServerOptions(limits=DEFAULT_LIMITS)) as server:
        tally = run(demo_requests(), server)
    for account, count in tally.accounts.items():
        if demo_kind(account) == "harvesting":
            assert count.denied > count.requests / 4
        else:
            assert count.denied == 0
    assert tally.total.failed == tally.total.degraded == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_server_that_dies_is_an_error():
    def requests():
        for n, request in enumerate(demo_requests()):
            if n == 100:
                os.kill(server.pid, signal.SIGKILL)
            yield request

    with (
        ServerProcess(ServerOptions(limits=())) as server,
        pytest.raises(ServerError, match=r"broke down \(exit code -9\)"),
    ):
        run(requests(), server)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_server_that_is_gone_before_the_first_request_is_an_error():
    with ServerProcess(ServerOptions(limits=())) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="broke down"):
            run(demo_requests(), server)


def test_a_server_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(driver, "NO_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(driver, "WATCH_SECONDS", 0.01)
    with recording_server(answer=None) as server, pytest.raises(ServerError, match="has not answered for"):
        run(demo_requests()[:5], server)


def test_server_errors_are_counted():
    with recording_server(answer=b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n") as server:
        tally = run(demo_requests()[:5], server)
    assert (tally.total.failed, tally.total.allowed) == (5, 0)


def test_degraded_decisions_are_counted_apart():
    answer = b"HTTP/1.1 200 OK\r\nx-demo-outcome: degraded\r\ncontent-length: 0\r\n\r\n"
    with recording_server(answer=answer) as server:
        tally = run(demo_requests()[:5], server)
    assert (tally.total.degraded, tally.total.allowed) == (5, 0)


def test_a_connection_that_the_server_closes_is_opened_again():
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    with recording_server(answer=answer) as server:
        tally = run(demo_requests()[:6], server, concurrency=2)
    assert tally.total.allowed == 6


def test_in_real_time_the_pace_of_the_log_is_kept():
    requests = [LoggedRequest(ts=START + n, account="a") for n in range(4)]
    started = time.monotonic()
    with recording_server() as server:
        run(requests, server, speed=10.0)
    assert time.monotonic() - started >= 0.3  # never earlier: how much later is up to the machine
    assert len(server.received) == 4


def test_an_empty_log_ends_at_once(unguarded):
    assert run([], unguarded).total.requests == 0
