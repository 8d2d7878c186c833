"""What is known of a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from abuseguard.facts import PlainHeaders, RequestFacts


class TestPlainHeaders:
    def test_names_have_no_case(self):
        headers = PlainHeaders([("X-Plan", "pro"), ("ACCEPT", "a"), ("accept", "b")])
        assert headers.first("x-plan") == "pro"
        assert headers.all("accept") == ["a", "b"]

    def test_what_is_not_there(self):
        assert PlainHeaders().first("x") is None
        assert PlainHeaders().all("x") == []

    @given(st.lists(st.tuples(st.sampled_from(["a", "A", "b", "c"]), st.text())))
    def test_the_first_of_all_in_the_order_received(self, pairs):
        headers = PlainHeaders(iter(pairs))
        for name in ("a", "b", "c", "d"):
            values = [value for known, value in pairs if known.lower() == name]
            assert headers.all(name) == values
            assert headers.first(name) == (values[0] if values else None)


class TestRequestFacts:
    def test_only_method_and_path_are_needed(self):
        facts = RequestFacts("GET", "/")
        assert facts.headers.first("host") is None
        assert (facts.peer, facts.address, facts.account, facts.plan, facts.body) == (None, None, "", None, None)

    def test_knows_no_user_without_a_framework(self):
        assert RequestFacts("GET", "/").user() is None

    def test_two_requests_share_nothing(self):
        assert RequestFacts("GET", "/").headers is not RequestFacts("GET", "/").headers

    def test_takes_no_other_field(self):
        assert not hasattr(RequestFacts("GET", "/"), "__dict__")
