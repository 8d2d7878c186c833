"""What errors say."""

from __future__ import annotations

import copy
import pickle

import pytest

from abuseguard.errors import (
    AbuseGuardError,
    MissingExtraError,
    SettingsError,
    StoreError,
    StoreFullError,
    StoreTimeoutError,
    shown,
)


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


class TestSettingsError:
    def test_says_what_was_given_and_what_is_allowed(self):
        error = SettingsError("limits[0].burst", -3, "a whole number of at least 1")
        assert str(error) == "limits[0].burst: got -3, expected a whole number of at least 1"
        assert (error.field, error.value, error.allowed) == ("limits[0].burst", -3, "a whole number of at least 1")

    @pytest.mark.parametrize(
        "value", [10**5000, -(10**5000), Unshowable(), [Unshowable()]], ids=["huge", "-huge", "object", "list"]
    )
    def test_says_so_whatever_the_value(self, value):
        assert str(SettingsError("workers", value, "x")).startswith(f"workers: got a {type(value).__name__} that")

    def test_does_not_show_a_megabyte(self):
        message = str(SettingsError("secret", "x" * 1_000_000, "x"))
        assert len(message) < 300
        assert "(1000002 characters)" in message

    @pytest.mark.parametrize(
        ("field", "outer", "expected"),
        [
            ("burst", "limits[0]", "limits[0].burst"),
            ("[2]", "exempt_networks", "exempt_networks[2]"),
            ("", "limits[0]", "limits[0]"),
            ("limits[0].burst", "ABUSEGUARD", "ABUSEGUARD.limits[0].burst"),
        ],
    )
    def test_is_placed_within(self, field, outer, expected):
        error = SettingsError(field, 5, "x").within(outer)
        assert (error.field, error.value, error.allowed) == (expected, 5, "x")

    def test_survives_a_copy(self):
        error = SettingsError("workers", 0, "x")
        for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(other) is SettingsError
            assert str(other) == str(error)

    def test_can_be_caught_as_a_value_error(self):
        assert issubclass(SettingsError, ValueError)


def test_a_missing_extra_is_named_with_its_command():
    error = MissingExtraError("redis", "redis")
    assert str(error) == "redis is not installed: pip install 'abuseguard[redis]'"
    assert error.name == "redis"
    assert isinstance(error, ImportError)


@pytest.mark.parametrize("kind", [SettingsError, MissingExtraError, StoreError, StoreFullError, StoreTimeoutError])
def test_every_error_has_one_base(kind):
    assert issubclass(kind, AbuseGuardError)


@pytest.mark.parametrize("kind", [StoreFullError, StoreTimeoutError])
def test_failures_of_stores_are_store_errors(kind):
    assert issubclass(kind, StoreError)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "5"),
        ("a", "'a'"),
        ("x" * 198, repr("x" * 198)),
        ("x" * 199, "'" + "x" * 199 + "... (201 characters)"),
    ],
)
def test_values_are_shown_as_far_as_200_characters(value, expected):
    assert shown(value) == expected
