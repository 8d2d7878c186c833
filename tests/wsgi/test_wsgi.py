"""The WSGI shell under applications, servers and clients of every kind."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, Outcome, Settings, SettingsError, User
from abuseguard.clock import ManualClock
from abuseguard.guard import Guard
from abuseguard.wsgi import AbuseGuardMiddleware, facts_of
from tests.adapters.contract import CHAT, EVENTS, PROMPT, TOKENS
from tests.wsgi.driver import Client, Exchange, environ_of, facts_left_behind

PLAIN = [("Content-Type", "text/plain")]
STREAM = [("Content-Type", "text/event-stream")]


def guarded(app: Callable[..., Any], *limits: Any, validate: bool = True, **settings: Any) -> Client:
    made = Settings(limits=limits, retry_after_jitter=0, **settings)
    return Client(AbuseGuardMiddleware(app, made, clock=ManualClock(10**18)), validate=validate)


def left(client: Client) -> int:
    """The tokens that are left. The applications here may be broken, so none is asked."""
    facts = facts_of(environ_of())
    decision = client.app.guard.decide(facts)
    return next(quota.remaining for quota in decision.quotas if quota.limit == "tokens")


def hello(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"hello"]


def body_of_request(environ, start_response):
    start_response("200 OK", PLAIN)
    return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]


class TestPassingThrough:
    def test_the_body_is_the_applications_own(self):
        body = [b"hello"]

        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            return body

        assert guarded(app, "9/hour", validate=False).start().body is body

    def test_the_headers_of_the_application_are_not_changed(self):
        headers = list(PLAIN)

        def app(environ, start_response):
            start_response("200 OK", headers)
            return [b""]

        response = guarded(app, "9/hour").get()
        assert headers == PLAIN
        assert response.headers[:1] == PLAIN
        assert {name for name, _ in response.headers[1:]} == {"RateLimit", "RateLimit-Policy"}

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_the_file_wrapper_reaches_the_server(self, limit):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            return environ["wsgi.file_wrapper"](io.BytesIO(b"a file"))

        client = guarded(app, limit, validate=False)
        exchange = client.start(**{"wsgi.file_wrapper": FileWrapper})
        assert type(exchange.body) is FileWrapper
        assert exchange.finish().body == b"a file"

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_the_write_callable(self, limit):
        def app(environ, start_response):
            write = start_response("200 OK", PLAIN)
            write(b"written, ")
            write(b"twice, ")
            return [b"returned"]

        response = guarded(app, limit).get()
        assert response.chunks == [b"written, ", b"twice, ", b"returned"]
        assert response.tells_limits

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_a_response_that_is_replaced_after_an_error(self, limit):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as error:
                start_response("500 Oh", PLAIN, (type(error), error, error.__traceback__))
            return [b"failed"]

        response = guarded(app, limit).get()
        assert (response.status, response.body) == (500, b"failed")
        assert response.tells_limits

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_an_error_after_the_first_part_is_the_servers(self, limit):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            yield b"begun"
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as error:
                start_response("500 Oh", PLAIN, (type(error), error, error.__traceback__))

        exchange = guarded(app, limit).start()
        assert exchange.take(1) == [b"begun"]
        with pytest.raises(ZeroDivisionError):
            exchange.finish()

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_a_generator_that_starts_its_response_late(self, limit):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            yield b"late"

        response = guarded(app, limit, validate=False).get()
        assert (response.status, response.body) == (200, b"late")
        assert response.tells_limits

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    @pytest.mark.parametrize("taken", [0, 1, 2])
    def test_the_body_is_closed_once(self, limit, taken):
        class Body:
            closed = 0

            def __iter__(self):
                return iter([b"a", b"b"])

            def close(self):
                self.closed += 1

        body = Body()

        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            return body

        exchange = guarded(app, limit).start()
        exchange.take(taken)
        exchange.close()
        assert body.closed == 1

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    @pytest.mark.parametrize("body", [[], [b""], [b"", b""]])
    def test_an_empty_body(self, limit, body):
        def app(environ, start_response):
            start_response("204 No Content", [])
            return body

        response = guarded(app, limit).get()
        assert (response.status, response.body) == (204, b"")
        assert response.tells_limits

    def test_servers_can_tell_a_body_of_one_part(self):
        lengths = [
            len(guarded(app, TOKENS, validate=False).start().body)
            for app in (hello, lambda environ, start_response: [start_response("200 OK", PLAIN)] and [b"a", b"b"])
        ]
        assert lengths == [1, 2]

        def stream(environ, start_response):
            start_response("200 OK", PLAIN)
            yield b""

        with pytest.raises(TypeError):
            len(guarded(stream, TOKENS, validate=False).start().body)

    def test_what_comes_in_is_what_the_application_gets(self):
        seen = {}

        def app(environ, start_response):
            seen.update(environ)
            start_response("200 OK", PLAIN)
            return [b""]

        environ = environ_of("POST", "/é", [("X-One", "1")], b"{}")
        sent = dict(environ)
        Exchange(AbuseGuardMiddleware(app, Settings(limits=[TOKENS])), environ, validate=False).finish()
        exchange = seen.pop("abuseguard")
        assert exchange.decision.outcome is Outcome.ALLOWED
        seen["wsgi.input"] = sent["wsgi.input"]
        assert seen == sent

    @pytest.mark.parametrize("limits", [["3/hour"], ["3/hour", TOKENS]])
    def test_nothing_is_left_to_the_cycle_collector(self, limits):
        assert facts_left_behind(guarded(hello, *limits, validate=False)) == []


class TestFaultyApplications:
    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_one_that_never_starts_its_response(self, limit):
        def app(environ, start_response):
            return [b"anything"]

        client = guarded(app, limit, validate=False)
        response = client.post("/", PROMPT)
        assert (response.status, response.body) == (0, b"anything")  # which a server makes an error of its own of
        if limit is TOKENS:
            assert left(client) == 10_000

    @pytest.mark.parametrize("starts", [False, True])
    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
    def test_one_that_raises(self, limit, error, starts):
        def app(environ, start_response):
            if starts:
                start_response("200 OK", PLAIN)
            raise error

        client = guarded(app, limit)
        with pytest.raises(error):
            client.post("/", PROMPT)
        if limit is TOKENS:
            # What was started may have cost something, what was not has cost nothing.
            assert (left(client) < 10_000) is starts

    @pytest.mark.parametrize("limit", ["9/hour", TOKENS])
    def test_one_whose_body_fails_to_close(self, limit):
        class Body(list):
            def close(self):
                raise ZeroDivisionError

        def app(environ, start_response):
            start_response("200 OK", STREAM)
            return Body(EVENTS)

        client = guarded(app, limit, validate=False)
        with pytest.raises(ZeroDivisionError):
            client.post("/", PROMPT)
        if limit is TOKENS:
            assert left(client) == 10_000 - 7

    @pytest.mark.parametrize("part", ["text", None, 7, bytearray(b"bytes")])
    def test_one_whose_body_is_not_bytes(self, part):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)
            return [part]

        exchange = guarded(app, TOKENS, validate=False).start()
        assert exchange.take(1) == [part]

    def test_one_whose_body_is_none(self):
        def app(environ, start_response):
            start_response("200 OK", PLAIN)

        with pytest.raises(TypeError):
            guarded(app, TOKENS, validate=False).get()

    @pytest.mark.parametrize("status", ["", "OK", "²00 OK", "200"])
    def test_one_with_a_status_of_its_own(self, status):
        seen = []

        def app(environ, start_response):
            start_response(status, [])
            return [b""]

        middleware = AbuseGuardMiddleware(app, Settings(limits=[TOKENS]))
        list(middleware(environ_of(), lambda status, headers: seen.append(status)))
        assert seen == [status]


class TestRequestBodies:
    def test_one_that_is_cut_off(self):
        """The server gives the application what there is, and so does the guard."""
        client = guarded(body_of_request, TOKENS)
        assert client.post("/", b'{"max', CONTENT_LENGTH="1000").body == b'{"max'

    def test_one_that_cannot_be_read(self):
        class Broken(io.BytesIO):
            def read(self, *_):
                raise ConnectionResetError("gone")

        readings = [io.IOBase.readline, io.IOBase.readlines, list, io.RawIOBase.read, lambda stream: stream.read(5)]
        for reading in readings:

            def app(environ, start_response, reading=reading):
                try:
                    reading(environ["wsgi.input"])
                except ConnectionResetError as error:
                    start_response("400 Bad Request", PLAIN)
                    return [str(error).encode()]

            client = guarded(app, TOKENS, validate=False)
            response = client.post("/", b"12345", **{"wsgi.input": Broken()})
            assert (response.status, response.body) == (400, b"gone")

    @pytest.mark.parametrize("length", ["", "-1", "abc", "1.5", "1e3", "٣", "9" * 30, " 2 "])
    def test_one_of_a_length_that_makes_no_sense_is_left_alone(self, length):
        stream = io.BytesIO(b"{}")
        seen = []

        def app(environ, start_response):
            seen.append(environ["wsgi.input"])
            start_response("200 OK", PLAIN)
            return [b""]

        client = guarded(app, TOKENS, validate=False)
        assert client.post("/", b"{}", CONTENT_LENGTH=length, **{"wsgi.input": stream}).status == 200
        assert seen == [stream]

    def test_one_without_tokens_to_limit_is_not_read(self):
        class Untouchable:
            def read(self, *_):
                raise AssertionError

        client = guarded(hello, "9/hour", validate=False)
        assert client.post("/", b"{}", **{"wsgi.input": Untouchable()}).status == 200

    @given(st.binary(max_size=300))
    def test_any_bytes_arrive_as_they_were_sent(self, body):
        assert guarded(body_of_request, TOKENS).post("/", body).body == body


class TestPaths:
    @pytest.mark.parametrize(
        ("script_name", "path_info", "path"),
        [
            ("", "", "/"),
            ("/shop", "/cart", "/shop/cart"),
            ("/shop", "", "/shop"),
            ("", "/caf\xc3\xa9", "/café"),
            ("", "/\xff", "/\ufffd"),
            ("", "/\u20ac\udc80", "/??"),
        ],
    )
    def test_are_decoded(self, script_name, path_info, path):
        assert facts_of({"SCRIPT_NAME": script_name, "PATH_INFO": path_info}).path == path

    def test_that_are_not_utf_8_are_limited_like_any_other(self):
        client = guarded(hello, Limit("1/hour", routes="/v1/**"))
        assert [client.get(PATH_INFO="/v1/\xff\xfe").status for _ in range(2)] == [200, 429]

    def test_of_mounted_applications_are_whole(self):
        client = guarded(hello, Limit("1/hour", routes="/v1/*"))
        assert [client.get("/chat", SCRIPT_NAME="/v1").status for _ in range(2)] == [200, 429]


class TestTokens:
    def test_what_is_written_is_counted(self):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "application/json")])(json.dumps(CHAT).encode())
            return []

        client = guarded(app, TOKENS)
        client.post("/", PROMPT)
        assert left(client) == 9950

    def test_a_client_that_goes_before_a_late_response_began_pays_the_reservation(self):
        def app(environ, start_response):
            start_response("200 OK", STREAM)
            yield from EVENTS

        client = guarded(app, TOKENS, validate=False)
        exchange = client.start("POST", "/", (), json.dumps(PROMPT).encode())
        reserved = 10_000 - left(client)
        assert reserved > 100
        exchange.close()
        assert 10_000 - left(client) == reserved

    def test_an_application_that_fails_before_a_late_response_began_costs_nothing(self):
        def app(environ, start_response):
            yield from ()
            raise ZeroDivisionError

        client = guarded(app, TOKENS, validate=False)
        with pytest.raises(ZeroDivisionError):
            client.post("/", PROMPT)
        assert left(client) == 10_000

    def test_they_are_settled_as_soon_as_the_stream_has_ended(self):
        def app(environ, start_response):
            start_response("200 OK", STREAM)
            return iter(EVENTS)

        client = guarded(app, TOKENS)
        exchange = client.start("POST", "/", (), json.dumps(PROMPT).encode())
        exchange.response.chunks += list(exchange._chunks)
        assert left(client) == 9993
        exchange.close()
        assert left(client) == 9993

    def test_requests_at_the_same_time_cannot_overspend(self):
        """Fifty threads ask for 100 tokens of 1000 at once; each is let in or denied while the others are at work."""
        arrived = threading.Barrier(51)

        def app(environ, start_response):
            arrived.wait(10)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"usage": {"prompt_tokens": 0, "completion_tokens": 100}}).encode()]

        client = guarded(app, Limit("1000/day", unit="tokens", name="tokens"), estimate=lambda facts: 100)

        def ask(_):
            response = client.post("/", PROMPT)
            if response.status == 429:
                arrived.wait(10)
            return response.status

        with ThreadPoolExecutor(51) as pool:
            statuses = pool.map(ask, range(50))
            arrived.wait(10)
            assert sorted(statuses) == [200] * 10 + [429] * 40

    def test_they_are_settled_when_observing_as_well(self):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(CHAT).encode()]

        client = guarded(app, TOKENS, mode="observe")
        client.post("/", PROMPT)
        assert left(client) == 9950


class TestRoutes:
    """An application that asks limits of its own, through the exchange in the environment."""

    OWN = Limit("1/hour", name="own")

    def app(self, environ, start_response):
        answer = environ["abuseguard"].decide_limits([self.OWN])
        if answer is not None:
            start_response(f"{answer.status} Too Many", list(answer.headers))
            return [answer.body]
        start_response("200 OK", PLAIN)
        return [b"ok"]

    def test_are_told_and_refused(self):
        client = guarded(self.app, "9/hour")
        allowed, denied = client.get(), client.get()
        assert {name: state["r"] for name, state in allowed.limits().items()} == {"9-per-hour": 8, "own": 0}
        assert denied.status == 429
        assert denied.problem["violated-policies"] == ["own"]
        assert list(denied.limits()) == ["own"]

    def test_that_deny_cost_nothing(self):
        client = guarded(self.app, "9/hour", TOKENS)
        assert client.post("/", PROMPT).status == 200
        charged = left(client)
        assert [client.post("/", PROMPT).status for _ in range(4)] == [429] * 4
        assert left(client) == charged
        decision = client.app.guard.decide(facts_of(environ_of()))
        # One request of five was let in, and two looks and this one cost one each.
        assert {quota.limit: quota.remaining for quota in decision.quotas}["9-per-hour"] == 9 - 1 - 3

    def test_the_exchange_is_gone_with_the_request(self):
        environ = environ_of()
        Exchange(guarded(self.app, "9/hour").app, environ).finish()
        assert "abuseguard" not in environ


class TestSettings:
    def test_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("ABUSEGUARD_LIMITS", "1/hour")
        client = Client(AbuseGuardMiddleware(hello))
        assert [client.get().status for _ in range(2)] == [200, 429]

    def test_that_are_wrong_are_said_at_start(self, monkeypatch):
        monkeypatch.setenv("ABUSEGUARD_MODE", "sleep")
        with pytest.raises(SettingsError, match="ABUSEGUARD_MODE: got 'sleep', expected one of"):
            AbuseGuardMiddleware(hello)

    def test_a_guard_can_be_shared(self):
        guard = Guard(Settings(limits=["1/hour"]))
        clients = [Client(AbuseGuardMiddleware(hello, guard=guard)) for _ in range(2)]
        assert [client.get().status for client in clients] == [200, 429]

    def test_users_are_those_of_the_server(self):
        client = guarded(hello, "1/hour", account=User())
        for user in ("ada", "grace"):
            assert [client.get(REMOTE_USER=user).status for _ in range(2)] == [200, 429]
