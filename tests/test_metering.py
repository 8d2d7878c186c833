"""What is read of a request for an estimate, and what one exchange is charged in the end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, RequestFacts, Settings
from abuseguard.clock import ManualClock
from abuseguard.facts import PlainHeaders
from abuseguard.guard import Guard
from abuseguard.metering import Meter, readable_length
from abuseguard.tokens import Ending

JSON = ("content-type", "application/json")


def facts(method="POST", *headers, body=None):
    return RequestFacts(method, "/v1/chat/completions", PlainHeaders(headers), "192.0.2.1", body=body)


class TestReadableLength:
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "post"])
    @pytest.mark.parametrize(
        "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "text/json"]
    )
    def test_of_json(self, method, content_type):
        request = facts(method, ("Content-Type", content_type), ("Content-Length", "100"))
        assert readable_length(request, 1000) == 100
        assert request.content_length == 100

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "WEBSOCKET", ""])
    def test_of_methods_that_call_no_model(self, method):
        request = facts(method, JSON, ("content-length", "100"))
        assert readable_length(request, 1000) == 0
        assert request.content_length is None

    @pytest.mark.parametrize("content_type", ["multipart/form-data", "text/plain", "", None])
    def test_of_other_bodies(self, content_type):
        headers = [("content-length", "100")] + ([("content-type", content_type)] if content_type is not None else [])
        request = facts("POST", *headers)
        assert readable_length(request, 1000) == 0
        assert request.content_length is None

    @pytest.mark.parametrize(("length", "readable"), [("1000", 1000), ("1001", 0), ("0", 0), ("999999999999999999", 0)])
    def test_no_more_than_is_allowed(self, length, readable):
        request = facts("POST", JSON, ("content-length", length))
        assert readable_length(request, 1000) == readable
        # The length is noted: being large is no way around a reservation.
        assert request.content_length == int(length)

    @pytest.mark.parametrize("length", ["", "-5", "1e3", "12 ", "0x10", "²", "٣", "9" * 19, "9" * 5000, "1,2", None])
    def test_not_declared_is_reserved_for_as_a_call_of_unknown_length(self, length):
        request = facts("POST", JSON, *([("content-length", length)] if length is not None else []))
        assert readable_length(request, 1000) == 0
        assert request.content_length == 0

    @given(st.text(max_size=10), st.text(max_size=20), st.text(max_size=20))
    def test_any_headers(self, method, content_type, length):
        request = facts(method, ("content-type", content_type), ("content-length", length))
        assert 0 <= readable_length(request, 1000) <= 1000


class TestMeter:
    """One exchange from reservation to settlement: 10,000 tokens an hour."""

    REQUEST = json.dumps({"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 500}).encode()

    @pytest.fixture
    def guard(self):
        return Guard(Settings(limits=[Limit("10000/hour", unit="tokens")]), clock=ManualClock())

    def exchange(self, guard, *, body=REQUEST):
        decision = guard.decide(facts("POST", body=body))
        return decision, Meter(decision, 65_536)

    def remaining(self, guard):
        return guard.decide(facts("GET")).quotas[0].remaining

    def test_the_reservation(self, guard):
        decision, _ = self.exchange(guard)
        assert decision.plan.tokens == 600
        assert self.remaining(guard) == 9400

    def test_reported_usage(self, guard):
        decision, meter = self.exchange(guard)
        assert not meter.started
        meter.start(200, [("Content-Type", "application/json")])
        assert meter.started
        meter.feed(b'{"usage": {"prompt_tokens": 90, ')
        meter.feed(b'"completion_tokens": 10}}')
        used = meter.used_tokens(Ending.COMPLETE)
        assert used == 100
        guard.settle(decision, used)
        assert self.remaining(guard) == 9900

    def test_counted_chunks_of_a_stream(self, guard):
        _, meter = self.exchange(guard)
        meter.start(200, [("CONTENT-TYPE", "text/event-stream")])
        for _ in range(37):
            meter.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
        assert meter.used_tokens(Ending.DISCONNECTED) == 100 + 37

    def test_compressed(self, guard):
        import gzip

        _, meter = self.exchange(guard)
        meter.start(200, [("content-type", "application/json"), ("content-encoding", "gzip")])
        meter.feed(gzip.compress(b'{"usage": {"prompt_tokens": 9, "completion_tokens": 1}}'))
        assert meter.used_tokens(Ending.COMPLETE) == 10

    @pytest.mark.parametrize(("ending", "used"), [(Ending.DISCONNECTED, 600), (Ending.RAISED, 0)])
    def test_no_response_at_all(self, guard, ending, used):
        _, meter = self.exchange(guard)
        assert meter.used_tokens(ending) == used

    def test_an_error_costs_nothing(self, guard):
        decision, meter = self.exchange(guard)
        meter.start(500, [])
        meter.feed(b"x" * 10_000)
        guard.settle(decision, meter.used_tokens(Ending.COMPLETE))
        assert self.remaining(guard) == 10_000

    def test_what_was_no_call_of_a_model_costs_nothing(self, guard):
        _, meter = self.exchange(guard, body=b'{"name": "Ada"}')
        meter.start(200, [("content-type", "application/json")])
        meter.feed(b'{"name": "Ada"}')
        assert meter.used_tokens(Ending.COMPLETE) == 0

    def test_but_what_reports_usage_was_one(self, guard):
        _, meter = self.exchange(guard, body=b"")
        meter.start(200, [("content-type", "application/json")])
        meter.feed(b'{"usage": {"input_tokens": 3, "output_tokens": 4}}')
        assert meter.used_tokens(Ending.COMPLETE) == 7
