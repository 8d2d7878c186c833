"""What every adapter promises, whatever its framework.

A suite that inherits from ``AdapterContract`` says how an application is made with given settings. Its paths:

``GET /``, ``/other``, ``/items/1`` answer "ok"; ``/raises`` fails; all else is not found. ``POST /echo`` answers with
the request's body. ``POST /chat`` answers with ``CHAT``, ``/messages`` with ``MESSAGE``, ``/stream`` with ``EVENTS``,
``/stream-raises`` with the first two of them and then fails, ``/failing-chat`` fails.
"""

from __future__ import annotations

import io
import json
import logging
import socket
from typing import Any

import pytest

from abuseguard import Limit, Outcome, RequestFacts, Settings, User
from abuseguard.headers import Answer
from tests.wsgi.driver import Client

CHAT = {"choices": [{"message": {"content": "Hello"}}], "usage": {"prompt_tokens": 20, "completion_tokens": 30}}
MESSAGE = {"type": "message", "content": [], "usage": {"input_tokens": 7, "output_tokens": 4}}
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"lo"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]
PROMPT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
TOKENS = Limit("10000/day", unit="tokens", name="tokens")


class AdapterContract:
    """Behaviours; ``client_for`` makes a client of an application that has these settings."""

    def client_for(self, settings: Settings) -> Any:
        raise NotImplementedError

    def client(self, *limits: Any, **settings: Any) -> Any:
        settings.setdefault("retry_after_jitter", 0)
        return self.client_for(Settings(limits=limits, **settings))

    # Limits

    def test_requests_are_allowed_up_to_the_limit_then_denied(self):
        client = self.client("2/minute")
        allowed = [client.get() for _ in range(2)]
        assert [(response.status, response.body) for response in allowed] == [(200, b"ok")] * 2
        assert [response.remaining("2-per-minute") for response in allowed] == [1, 0]
        denied = client.get()
        assert denied.status == 429
        assert denied.problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert denied.problem["violated-policies"] == ["2-per-minute"]
        assert denied.limits("RateLimit-Policy") == {"2-per-minute": {"q": 2, "w": 60}}
        assert denied.limits() == {"2-per-minute": {"r": 0, "t": 30}}
        assert denied.field("Retry-After") == "30"
        assert denied.field("Content-Length") == str(len(denied.body))

    def test_a_denied_request_costs_nothing(self):
        client = self.client(Limit("1/hour", routes="/other"), Limit("10/hour"))
        assert [client.get("/other").status for _ in range(4)] == [200, 429, 429, 429]
        assert client.get().remaining("10-per-hour") == 8

    def test_every_response_tells_the_limits(self):
        client = self.client("10/hour")
        paths = ["/", "/nowhere", "/raises"]
        responses = [client.get(path) for path in paths]
        assert [response.status for response in responses] == [200, 404, 500]
        assert [response.remaining("10-per-hour") for response in responses] == [9, 8, 7]

    def test_requests_that_come_to_no_view_are_limited(self):
        client = self.client("2/hour")
        assert [client.get("/nowhere").status for _ in range(3)] == [404, 404, 429]

    def test_a_denied_head_request_has_no_body(self):
        client = self.client("1/minute")
        client.get()
        denied = client.request("HEAD", "/")
        assert (denied.status, denied.body) == (429, b"")
        assert denied.tells_limits

    def test_legacy_fields(self):
        response = self.client("10/hour", headers="legacy").get()
        assert (response.field("X-RateLimit-Limit"), response.field("X-RateLimit-Remaining")) == ("10", "9")
        assert not response.tells_limits

    def test_no_limits_change_nothing(self):
        response = self.client().get()
        assert (response.status, response.body) == (200, b"ok")
        assert not response.tells_limits

    def test_observing_refuses_nothing_and_says_nothing(self):
        outcomes = []
        client = self.client(
            "1/minute", mode="observe", observer=lambda facts, decision: outcomes.append(decision.outcome)
        )
        responses = [client.get() for _ in range(2)]
        assert [response.status for response in responses] == [200, 200]
        assert not any(response.tells_limits for response in responses)
        assert outcomes == [Outcome.ALLOWED, Outcome.DENIED]

    def test_routes_and_methods(self):
        client = self.client(Limit("1/hour", routes="/items/*", methods="GET"))
        assert [client.get("/items/1").status for _ in range(2)] == [200, 429]
        assert [client.get(path).status for path in ("/", "/other")] == [200, 200]

    def test_exemptions(self):
        client = self.client(
            "1/hour", account="header:x-account", exempt_paths="/other", exempt_accounts=["staff"], exempt=is_internal
        )
        for path, headers in (("/other", []), ("/", [("X-Account", "staff")]), ("/", [("X-Internal", "yes")])):
            responses = [client.get(path, headers) for _ in range(2)]
            assert [response.status for response in responses] == [200, 200]
            assert not any(response.tells_limits for response in responses)
        assert [client.get().status for _ in range(2)] == [200, 429]

    def test_an_answer_of_ones_own(self):
        def respond(facts: RequestFacts, decision: Any, answer: Answer) -> Answer:
            headers = [("Content-Type", "text/plain"), ("X-Mood", "calm")]
            return Answer(status=420, headers=headers, body=facts.path.encode())

        client = self.client("1/minute", response=respond)
        client.get("/other")
        denied = client.get("/other")
        assert (denied.status, denied.field("X-Mood"), denied.body) == (420, "calm", b"/other")

    # Who is asking

    def test_every_account_has_its_own_bucket(self):
        client = self.client("1/hour", account="api-key")
        for key in ("one", "two"):
            headers = [("Authorization", f"Bearer {key}")]
            assert [client.get("/", headers).status for _ in range(2)] == [200, 429]

    def test_the_facts_of_a_request(self):
        seen = []

        def account(facts: RequestFacts) -> str:
            seen.append((facts.method, facts.path, facts.headers.first("x-one"), facts.peer, facts.native is not None))
            return "someone"

        self.client("10/hour", account=account).get("/items/é", [("X-One", "1")])
        assert seen == [("GET", "/items/é", "1", "203.0.113.9", True)]

    @pytest.mark.parametrize("key", ["", None, [], {}, object(), b"", True])
    def test_a_key_that_is_none_falls_back_to_the_address(self, key):
        client = self.client("1/hour", account=lambda facts: key)
        assert [client.get().status for _ in range(2)] == [200, 429]
        assert client.get("/", REMOTE_ADDR="203.0.113.77").status == 200

    def test_a_spoofed_forwarded_address_is_ignored(self):
        client = self.client("1/hour")
        statuses = [client.get("/", [("X-Forwarded-For", f"198.51.100.{last}")]).status for last in range(2)]
        assert statuses == [200, 429]

    def test_the_address_behind_a_trusted_proxy(self):
        client = self.client("1/hour", trusted_proxies=["203.0.113.0/24"])
        for client_address in ("198.51.100.1", "198.51.100.2"):
            headers = [("X-Forwarded-For", f"10.0.0.1, {client_address}")]
            assert [client.get("/", headers).status for _ in range(2)] == [200, 429]

    @pytest.mark.parametrize(
        ("policy", "statuses"), [("allow", [200] * 3), ("deny", [403] * 3), ("shared", [200, 429, 429])]
    )
    def test_a_missing_address_is_a_policy(self, policy, statuses):
        client = self.client("1/hour", missing_address=policy)
        assert [client.get("/", REMOTE_ADDR="").status for _ in range(3)] == statuses

    # Faults

    @pytest.mark.parametrize("name", ["account", "plan", "exempt", "observer", "response"])
    def test_a_faulty_function_fails_no_request(self, name, caplog):
        def faulty(*_: Any) -> Any:
            raise ZeroDivisionError(name)

        with caplog.at_level(logging.CRITICAL, logger="abuseguard"):
            client = self.client("1/hour", **{name: faulty})
            assert [client.get().status for _ in range(2)] == [200, 429]

    def test_faulty_functions_of_a_limit_fail_no_request(self, caplog):
        def faulty(facts: RequestFacts) -> Any:
            raise ZeroDivisionError

        with caplog.at_level(logging.CRITICAL, logger="abuseguard"):
            client = self.client(
                Limit("9/hour", when=faulty), Limit("8/hour", per=faulty), Limit("7/hour", cost=faulty), faulty
            )
            assert client.get().limits() == {"7-per-hour": {"r": 6, "t": 515}}

    @pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("local", 200), ("deny", 503)])
    def test_an_unreachable_store_is_a_policy(self, policy, status, caplog):
        outcomes = []
        with socket.socket() as nobody_listens, caplog.at_level(logging.CRITICAL, logger="abuseguard"):
            nobody_listens.bind(("127.0.0.1", 0))
            client = self.client(
                "1/hour",
                store=f"redis://127.0.0.1:{nobody_listens.getsockname()[1]}",
                on_store_failure=policy,
                observer=lambda facts, decision: outcomes.append(decision.outcome),
            )
            response = client.get()
        assert (response.status, outcomes) == (status, [Outcome.DEGRADED])

    def test_a_megabyte_of_headers(self):
        client = self.client("2/hour", account="api-key")
        headers = [("Authorization", "Bearer " + "k" * 1_000_000), ("X-Forwarded-For", "1.2.3.4, " * 100_000)]
        assert [client.get("/", headers).status for _ in range(3)] == [200, 200, 429]

    def test_duplicate_headers_are_one_account(self):
        client = self.client("1/hour", account="header:x-account")
        twice = [("X-Account", "a"), ("X-Account", "b")]
        assert [client.get("/", twice).status for _ in range(2)] == [200, 429]

    # LLM tokens

    def left(self, client: Any) -> int:
        """The tokens that are left, by a request that takes none."""
        return client.get().remaining("tokens")

    @pytest.mark.parametrize(("path", "used"), [("/chat", 50), ("/messages", 11), ("/stream", 7)])
    def test_tokens_are_settled_by_what_the_response_reports(self, path, used):
        client = self.client(TOKENS)
        response = client.post(path, PROMPT)
        assert response.status == 200
        assert 9800 < response.remaining("tokens") <= 9900  # what is told is the reservation
        assert self.left(client) == 10_000 - used

    def test_a_stream_arrives_as_it_was_sent(self):
        assert self.client(TOKENS).post("/stream", PROMPT).chunks == EVENTS

    def test_a_disconnect_is_charged_what_was_sent(self):
        client = self.client(TOKENS)
        client.disconnect("/stream", PROMPT, after=2)
        used = 10_000 - self.left(client)
        assert 2 <= used < 50

    def test_a_disconnect_before_the_first_part_is_charged_the_input(self):
        client = self.client(TOKENS)
        client.disconnect("/stream", PROMPT, after=0)
        assert 0 < 10_000 - self.left(client) < 50

    def test_an_exception_before_the_response_costs_nothing(self):
        client = self.client(TOKENS)
        assert client.post("/failing-chat", PROMPT).status == 500
        assert self.left(client) == 10_000

    def test_an_exception_in_the_stream_is_charged_what_was_sent(self):
        client = self.client(TOKENS)
        with pytest.raises(ZeroDivisionError):
            client.post("/stream-raises", PROMPT)
        assert 2 <= 10_000 - self.left(client) < 50

    def test_a_request_above_what_is_left_is_denied(self):
        client = self.client(Limit("1000/day", unit="tokens", name="tokens"))
        assert client.post("/chat", PROMPT | {"max_tokens": 990}).status == 200
        assert self.left(client) == 950
        denied = client.post("/chat", PROMPT | {"max_tokens": 980})
        assert denied.status == 429
        assert client.post("/chat", PROMPT | {"max_tokens": 2000}).field("Retry-After") is None
        assert self.left(client) == 950

    def test_the_application_reads_the_body_that_was_sent(self):
        body = json.dumps(PROMPT).encode() * 3
        for limits in ([TOKENS], ["10/hour"]):
            assert self.client(*limits).post("/echo", body).body == body

    def test_a_body_too_large_to_be_read_is_reserved_by_its_length(self):
        client = self.client(TOKENS, max_body_bytes=1024, default_output_tokens=10)
        body = json.dumps(PROMPT | {"padding": "x" * 20_000}).encode()
        response = client.post("/echo", body)
        assert response.body == body
        assert response.remaining("tokens") < 9000

    def test_bodies_that_no_limit_in_tokens_is_for_are_left_alone(self):
        class Untouchable(io.BytesIO):
            def read(self, *_):
                raise SystemExit("was read")

        client = self.client(Limit("9/day", unit="tokens", routes="/chat"), exempt_paths="/echo")
        if isinstance(client, Client):
            for path in ("/other", "/nowhere"):
                Client(client.app, validate=False).post(path, PROMPT, **{"wsgi.input": Untouchable()})

    def test_bodies_that_are_not_json_are_left_alone(self):
        client = self.client(TOKENS)
        response = client.post("/echo", b"a=1", [("Content-Type", "text/plain")])
        assert (response.body, response.remaining("tokens")) == (b"a=1", 10_000)

    def test_an_estimate_of_ones_own(self):
        client = self.client(TOKENS, estimate=lambda facts: 1234 if facts.method == "POST" else None)
        assert client.post("/stream", PROMPT).remaining("tokens") == 10_000 - 1234
        assert self.left(client) == 10_000 - 7

    def test_concurrent_requests_cannot_overspend(self):
        client = self.client("20/hour", TOKENS)
        assert sorted(response.status for response in client.get_at_once("/other", times=50)) == [200] * 20 + [429] * 30


class ViewContract(AdapterContract):
    """For adapters with decorators. Further paths, whose views are limited to 2 requests an hour unless said:

    ``/limited`` (a function), ``/limited-async`` (a coroutine function), ``/limited-class`` (a class), ``/hidden``
    (a function whose mark another decorator hides) have their own buckets; ``/shared-1`` and ``/shared-2`` have the one
    of the name "shared"; ``/twice`` allows 3 an hour and 2 a day; ``/costly`` costs 2 of 3; ``/chat-limited`` is a chat
    with 200 tokens a day; ``/exempt`` is exempt, ``/exempt-class`` as well.
    """

    @pytest.mark.parametrize("path", ["/limited", "/limited-async", "/limited-class", "/hidden"])
    def test_a_limited_view_has_its_own_bucket(self, path):
        client = self.client("10/hour")
        assert [client.get(path).status for _ in range(3)] == [200, 200, 429]
        others = {"/limited", "/limited-async", "/limited-class", "/hidden"} - {path}
        assert {client.get(other).status for other in others} == {200}

    @pytest.mark.parametrize("path", ["/limited", "/limited-async", "/limited-class", "/hidden"])
    def test_the_response_tells_both_limits(self, path):
        client = self.client("10/hour")
        response = client.get(path)
        assert {name: state["r"] for name, state in response.limits().items() if name == "10-per-hour"} == {
            "10-per-hour": 9
        }
        (own,) = set(response.limits()) - {"10-per-hour"}
        assert response.remaining(own) == 1
        client.get(path)
        denied = client.get(path)
        assert list(denied.limits()) == [own]
        assert denied.problem["violated-policies"] == [own]

    @pytest.mark.parametrize("path", ["/limited", "/limited-async", "/limited-class", "/hidden"])
    def test_what_a_view_denies_costs_nothing_of_the_other_limits(self, path):
        client = self.client("10/hour")
        assert [client.get(path).status for _ in range(5)] == [200, 200, 429, 429, 429]
        assert client.get().remaining("10-per-hour") == 7

    def test_views_share_a_bucket_by_name(self):
        client = self.client()
        assert [client.get(path).status for path in ("/shared-1", "/shared-2", "/shared-1", "/shared-2")] == [
            200,
            200,
            429,
            429,
        ]

    def test_several_limits_on_one_view(self):
        client = self.client()
        response = client.get("/twice")
        assert sorted(state["r"] for state in response.limits().values()) == [1, 2]
        assert [client.get("/twice").status for _ in range(2)] == [200, 429]

    def test_the_cost_of_a_view(self):
        client = self.client()
        assert [client.get("/costly").status for _ in range(2)] == [200, 429]

    @pytest.mark.parametrize("path", ["/exempt", "/exempt-class"])
    def test_an_exempt_view_is_not_limited(self, path):
        client = self.client("1/hour")
        responses = [client.get(path) for _ in range(3)]
        assert [response.status for response in responses] == [200] * 3
        assert not any(response.tells_limits for response in responses)
        assert [client.get().status for _ in range(2)] == [200, 429]

    def test_a_view_limited_in_tokens(self):
        client = self.client()
        assert client.post("/chat-limited", PROMPT).status == 200
        response = client.post("/chat-limited", PROMPT)
        (name,) = response.limits()
        assert response.limits("RateLimit-Policy")[name]["qu"] == "tokens"
        assert response.remaining(name) < 50  # 200 less the 50 that were used, less what is reserved now
        assert [client.post("/chat-limited", PROMPT).status for _ in range(3)].count(200) == 0

    def test_exemptions_of_the_settings_are_for_views_as_well(self):
        client = self.client(exempt=is_internal)
        assert [client.get("/limited", [("X-Internal", "yes")]).status for _ in range(4)] == [200] * 4

    def test_observing_is_for_views_as_well(self):
        client = self.client(mode="observe")
        for path in ("/limited", "/hidden"):
            responses = [client.get(path) for _ in range(4)]
            assert [response.status for response in responses] == [200] * 4
            assert not any(response.tells_limits for response in responses)

    def test_accounts_are_users(self):
        client = self.client("1/hour", account=User())
        for name in ("ada", "grace"):
            assert [client.get("/", [("X-User", name)]).status for _ in range(2)] == [200, 429]
        assert [client.get().status for _ in range(2)] == [200, 429]


def is_internal(facts: RequestFacts) -> bool:
    return facts.headers.first("x-internal") is not None
