"""Patterns of paths, against an independent matcher that tries everything."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abuseguard.path_pattern import path_matcher


def naive(pattern: str, path: str) -> bool:
    """Every way in which the pattern could match, tried one after the other."""

    @lru_cache(None)
    def match(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(path)
        if pattern[i] != "*":
            return j < len(path) and pattern[i] == path[j] and match(i + 1, j + 1)
        after = i
        while after < len(pattern) and pattern[after] == "*":
            after += 1
        if match(after, j):
            return True
        return j < len(path) and (after - i > 1 or path[j] != "/") and match(i, j + 1)

    return match(0, 0)


def matches(pattern: str, path: str) -> bool:
    return path_matcher([pattern])(path) is not None


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/v1", "/v1", True),
        ("/v1", "/v1/", False),
        ("/v1", "/v11", False),
        ("/v1/**", "/v1/", True),
        ("/v1/**", "/v1/a/b", True),
        ("/v1/**", "/v1", False),
        ("/v1/*", "/v1/a", True),
        ("/v1/*", "/v1/a/b", False),
        ("/v1/*", "/v1/", True),
        ("/users/*/posts", "/users/7/posts", True),
        ("/users/*/posts", "/users/7/8/posts", False),
        ("/users/*/posts", "/users//posts", True),
        ("/**/posts", "/a/b/posts", True),
        ("**", "", True),
        ("*", "/", False),
        ("*.png", "a.png", True),
        ("/**.png", "/a/b.png", True),
        ("/*.png", "/a/b.png", False),
        ("/a.c", "/abc", False),
        ("/[ab]?(c)", "/[ab]?(c)", True),
        ("/[ab]", "/a", False),
        ("/**", "/a\nb", True),
        ("/*", "/a\nb", True),
        ("/a", "/a\n", False),
        ("/*a*b", "/xaxb", True),
        ("/*a*b", "/xa/b", False),
        ("/**a/**/b", "/a/b", False),
        ("/**a/**/b", "/xa//b", True),
        ("/***", "/a/b", True),
        ("/é/*", "/é/ü", True),
        ("/A", "/a", False),
        ("x*a*b", "xab", True),
        ("x*a*b", "ab", False),
        ("x*a*b", "aab", False),
        ("x*a*b", "qab", False),
        ("x*a*b", "xb", False),
        ("x*a*b", "xabq", False),
    ],
)
def test_patterns(pattern, path, expected):
    assert naive(pattern, path) is expected
    assert matches(pattern, path) is expected


@given(st.text("ab/*", max_size=9), st.text("ab/", max_size=12))
@example("*a*", "a")
@example("**a*", "/a")
def test_every_pattern_matches_what_its_words_say(pattern, path):
    assert matches(pattern, path) == naive(pattern, path)


@given(st.lists(st.text("ab/*.", min_size=1, max_size=8), min_size=1, max_size=4), st.text("ab/.", max_size=10))
def test_of_several_patterns_one_is_enough(patterns, path):
    assert (path_matcher(patterns)(path) is not None) == any(naive(pattern, path) for pattern in patterns)


@given(st.text(max_size=30))
def test_without_stars_a_pattern_stands_for_itself(text):
    text = text.replace("*", "")
    assert matches(text, text)
    assert not matches(text, text + "x")


def test_no_patterns_is_no_matcher():
    assert path_matcher([]) is None


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/**/a/**/b/**/c/**/d", "/a/b/c" * 10_000),
        ("/**x*y*z/end", "/" + "xy" * 30_000),
        ("/*a*a*a*a*a*b", "/" + "a" * 60_000),
        ("/**a", "/" + "a" * 60_000 + "b"),
        ("/*/*/*/*/x", "/" * 60_000),
    ],
)
def test_a_long_path_takes_time_in_proportion(pattern, path):
    # Tried in every way, each of these would take minutes at the least.
    assert not matches(pattern, path)
