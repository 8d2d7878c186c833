"""Limits and exemptions that are written on views."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, RequestFacts, Settings
from abuseguard.guard import Guard
from abuseguard.view_limit import ViewLimit, ViewMarks, limited, mark, view_path

FACTS = ("GET", "/")


def facts() -> RequestFacts:
    return RequestFacts(*FACTS, account="ada")


class TestBuckets:
    def test_are_named_after_their_view(self):
        assert ViewLimit("5/minute", {"burst": 2}).of("api.login") == Limit(
            "5/minute", burst=2, name="5-per-minute-api.login"
        )

    def test_of_one_view_are_the_same_limit(self):
        limit = ViewLimit("5/minute")
        assert limit.of("login") is limit.of("login")

    @given(st.lists(st.text(max_size=100), min_size=2, max_size=5, unique=True))
    def test_of_different_views_have_different_names_that_limits_may_have(self, views):
        limit = ViewLimit("5/minute")
        names = [limit.of(view).name for view in views]
        assert len(set(names)) == len(views)
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) for name in names)

    def test_of_one_name_are_shared(self):
        limits = [ViewLimit("5/minute", {"name": "sensitive"}), ViewLimit("5/minute", {"name": "sensitive"})]
        assert {limit.of(view).name for limit in limits for view in ("a", "b")} == {"sensitive"}

    def test_that_are_shared_are_apart_from_those_of_the_settings(self):
        limit = ViewLimit("5/minute", {"shared": True})
        assert {limit.of(view).name for view in ("a", "b")} == {"shared-5-per-minute"}

    def test_of_a_whole_limit_are_shared(self):
        whole = Limit("5/minute")
        assert ViewLimit(whole).of("a") is ViewLimit(whole).of("b") is whole


class TestMarks:
    def test_of_nothing_are_none(self):
        assert ViewMarks.of(None) == ViewMarks.of(facts) == ViewMarks()

    def test_gather_what_decorators_write(self):
        outer, inner = ViewLimit("5/minute"), ViewLimit("9/day", {"unit": "tokens"})

        def view():
            return "view"

        for limit in (inner, outer):
            view = limited(view, limit, lambda *_: None, None, is_async=False)
        assert ViewMarks.of(view) == ViewMarks((inner, outer), exempt=False, limits_tokens=True)
        mark(view, exempt=True)
        assert ViewMarks.of(view) == ViewMarks((inner, outer), exempt=True, limits_tokens=True)
        assert view() == "view"


class TestPaths:
    def test_of_partial_functions_are_those_of_the_functions(self):
        assert view_path(functools.partial(functools.partial(facts, 1), 2), "/") == view_path(facts, "/elsewhere")
        assert view_path(facts, "/").endswith("test_view_limit.facts")

    def test_of_functions_inside_others_tell_their_routes(self):
        views = [lambda: "view" for _ in range(2)]
        assert len({view_path(view, f"/{number}") for number, view in enumerate(views)}) == 2


class TestOneStep:
    """What adapters ask: the limits of the settings and those of a view together."""

    def test_all_are_taken_or_none(self):
        guard = Guard(Settings(limits=["9/hour"]))
        own = [Limit("2/hour", name="own")]
        decisions = [guard.decide(facts(), own) for _ in range(4)]
        assert [decision.admitted for decision in decisions] == [True, True, False, False]
        assert [quota.limit for quota in decisions[-1].denied_by] == ["own"]
        (quota,) = guard.decide(facts()).quotas
        assert quota.remaining == 9 - 2 - 1

    def test_a_name_that_the_settings_have_as_well_is_taken_once(self):
        guard = Guard(Settings(limits=[Limit("9/hour", name="same")]))
        (quota,) = guard.decide(facts(), [Limit("2/hour", name="same")]).quotas
        assert (quota.capacity, quota.remaining) == (9, 8)

    @pytest.mark.parametrize(("method", "limits"), [("GET", 1), ("POST", 2)])
    def test_only_those_that_apply_are_taken(self, method, limits):
        guard = Guard(Settings(limits=["9/hour"]))
        asked = RequestFacts(method, "/", account="ada")
        assert len(guard.decide(asked, [Limit("2/hour", methods="POST", name="own")]).quotas) == limits
