"""A limit as an operator writes it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard import Limit, SettingsError
from abuseguard.rule import Rule
from tests.identifiers import shown


async def asynchronous(facts):
    return None


async def asynchronous_generator(facts):
    yield None


class AsynchronousCall:
    async def __call__(self, facts):
        return None


@dataclasses.dataclass
class Unhashable:
    minimum: int = 5

    def __call__(self, facts):
        return True


ASYNCHRONOUS = [asynchronous, asynchronous_generator, AsynchronousCall(), functools.partial(asynchronous)]
HUGE = 10**5000


class TestRate:
    @pytest.mark.parametrize(
        ("rate", "amount", "seconds"),
        [
            ("600/minute", 600, 60),
            ("600 per minute", 600, 60),
            ("600 / Minute", 600, 60),
            ("90 per 2 hours", 90, 7200),
            ("90/2hours", 90, 7200),
            ("10/5minutes", 10, 300),
            ("1/second", 1, 1),
            ("1000/day", 1000, 86_400),
            ("5/month", 5, 30 * 86_400),
            ("5/year", 5, 12 * 30 * 86_400),
        ],
    )
    def test_the_notation_of_limits(self, rate, amount, seconds):
        item = Limit(rate).item
        assert (item.amount, item.get_expiry()) == (amount, seconds)

    @pytest.mark.parametrize(
        "rate",
        [
            *[None, 5, 1.5, math.nan, b"600/minute", ["600/minute"], object(), True, HUGE],
            *["", "often", "600", "/minute", "600/", "-5/minute", "1.5/minute", "1e3/minute", "600/fortnight", "5/m"],
            *["600/minute burst=50", "0/minute", "600/minute/hour", "\uff15/minute", "minute/600", "x" * 100_000],
        ],
        ids=lambda rate: "HUGE" if rate is HUGE else shown(rate),
    )
    def test_what_is_no_rate(self, rate):
        with pytest.raises(SettingsError) as caught:
            Limit(rate)
        assert caught.value.field == "rate"
        assert caught.value.value is rate
        assert str(caught.value).startswith("rate: got ")

    @pytest.mark.parametrize("rate", ["5/minute; 100/hour", "5/minute, 100/hour", "5/minute | 100/hour"])
    def test_one_rate_a_limit(self, rate):
        with pytest.raises(SettingsError, match="one rate; give several limits for several rates"):
            Limit(rate)

    @pytest.mark.parametrize("rate", ["1000000000001/minute", "1/1000000000001 seconds"])
    def test_amounts_beyond_all_budgets(self, rate):
        with pytest.raises(SettingsError, match="1 to 1000000000000"):
            Limit(rate)

    def test_time_has_no_smaller_unit_than_a_nanosecond(self):
        assert Rule(Limit("1000000000/second")).bucket.interval_ns == 1
        with pytest.raises(SettingsError, match="at most 1000000000 a second"):
            Limit("1000000001/second")

    @pytest.mark.parametrize(("rate", "burst"), [("1/103 years", None), ("1/year", 102), ("1/day", 36_601)])
    def test_a_bucket_fills_within_a_lifetime(self, rate, burst):
        assert Limit("1/day", burst=36_600).burst == 36_600
        with pytest.raises(SettingsError, match="100 years"):
            Limit(rate, burst=burst)

    @given(st.integers(1, 10**12), st.integers(1, 10**4), st.sampled_from(["second", "minute", "hour", "day"]))
    def test_the_bucket_never_grants_more_than_the_rate(self, amount, multiples, granularity):
        try:
            limit = Limit(f"{amount} per {multiples} {granularity}")
        except SettingsError:
            return
        bucket = Rule(limit).bucket
        seconds = limit.item.get_expiry()
        # In one period it gains the amount at the most, and at worst a billionth of a second a token is lost.
        assert bucket.capacity == amount
        assert amount * bucket.interval_ns >= seconds * 10**9
        assert amount * (bucket.interval_ns - 1) < seconds * 10**9


class TestFields:
    WRONG: ClassVar = {
        "burst": [0, -1, 1.5, math.nan, "5", "", [5], object(), True, HUGE, 10**12 + 1],
        "unit": [None, 5, "", "request", "TOKENS", object(), ["tokens"], math.nan],
        "name": [None, 5, 0, [], False, "a b", "ä", "a/b", 'a"b', "x" * 65, b"name", object(), "a\n", "{a}"],
        "strategy": [None, 5, "", "leaky-bucket", "moving_window", object(), math.nan],
        "routes": [None, 5, "", "v1", ["/v1", "v2"], [""], [None], b"/v1", object(), math.nan, {"/v1": 1}],
        "methods": [None, 5, "", [""], [None], b"GET", object(), math.nan, {"GET": 1}],
        "plans": [None, 5, "", [""], [None], b"free", object(), math.nan, {"free": 1}],
        "when": ["text", 5, 0, "", object(), [], True, Unhashable(), *ASYNCHRONOUS],
        "per": [None, "", "user", "Account", 5, object(), math.nan, [], Unhashable(), *ASYNCHRONOUS],
        "cost": [None, "", "1", -1, 1.5, math.nan, math.inf, True, [], object(), HUGE, Unhashable(), *ASYNCHRONOUS],
    }

    def test_no_field_is_left_out_here(self):
        fields = {field.name for field in dataclasses.fields(Limit) if field.init}
        assert {*self.WRONG, "rate"} == fields

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            pytest.param(field, value, id=f"{field}={'HUGE' if value is HUGE else shown(value)}")
            for field, values in WRONG.items()
            for value in values
        ],
    )
    def test_what_is_wrong_is_refused_by_name_and_value(self, field, value):
        with pytest.raises(SettingsError) as caught:
            Limit("5/minute", **{field: value})
        error = caught.value
        assert error.field == field
        assert error.value is value or error.value in value
        assert str(error).startswith(f"{field}: got ")

    def test_only_keywords_but_for_the_rate(self):
        with pytest.raises(TypeError):
            Limit("5/minute", 50)

    def test_limits_do_not_change(self):
        limit = Limit("5/minute")
        with pytest.raises(dataclasses.FrozenInstanceError):
            limit.burst = 7
        with pytest.raises((AttributeError, TypeError)):
            limit.another = 7

    def test_one_text_stands_for_a_sequence_of_one(self):
        limit = Limit("5/minute", routes="/v1/**", methods="post", plans="free")
        assert (limit.routes, limit.methods, limit.plans) == (("/v1/**",), ("POST",), ("free",))

    def test_equal_limits_are_equal(self):
        limit = Limit("5/minute", routes=["/a"], methods={"GET", "post"})
        other = Limit("5/minute", routes=("/a",), methods=["GET", "POST"])
        assert limit == other
        assert hash(limit) == hash(other)
        assert limit != Limit("6/minute", routes=["/a"], methods={"GET", "POST"})

    def test_limits_can_be_replaced_field_by_field(self):
        limit = Limit("5/minute", name="a", plans="free")
        assert dataclasses.replace(limit, burst=2) == Limit("5/minute", burst=2, name="a", plans="free")

    @pytest.mark.parametrize("strategy", ["fixed-window", "moving-window", "sliding-window-counter"])
    def test_windows_have_no_burst(self, strategy):
        assert Limit("5/minute", strategy=strategy).burst is None
        with pytest.raises(
            SettingsError, match=rf"^burst: got 5, expected none: the strategy '{strategy}' has no burst"
        ):
            Limit("5/minute", strategy=strategy, burst=5)


class TestBurst:
    def test_is_the_capacity(self):
        bucket = Rule(Limit("600/minute", burst=50)).bucket
        assert (bucket.capacity, bucket.interval_ns) == (50, 100_000_000)

    def test_is_the_amount_by_default(self):
        assert Rule(Limit("90/hour")).bucket.capacity == 90

    def test_may_be_more_than_the_amount(self):
        assert Rule(Limit("1/hour", burst=24)).bucket.capacity == 24


class TestName:
    @pytest.mark.parametrize(
        ("limit", "name"),
        [
            (Limit("600/minute"), "600-per-minute"),
            (Limit("600/minute", burst=50), "600-per-minute"),
            (Limit("90 per 2 hours"), "90-per-2-hours"),
            (Limit("5/hour", unit="tokens"), "5-tokens-per-hour"),
            (Limit("5/hour", unit="messages", plans=["free", "pro"]), "5-messages-per-hour-free-pro"),
            (Limit("5/hour", methods=["post"], routes=["/v1/**"]), "5-per-hour-POST-v1"),
            (Limit("5/hour", routes=["/v1/*/chat"]), "5-per-hour-v1._.chat"),
            (Limit("5/hour", per="address"), "5-per-hour-address"),
            (Limit("5/hour", per="everyone"), "5-per-hour-everyone"),
            (Limit("5/hour", per=str), "5-per-hour"),
            (Limit("5/hour", plans="kostenlos für alle"), "5-per-hour-kostenlos_f_r_alle"),
            (Limit("5/hour", routes="/" + "x" * 100), "5-per-hour-" + "x" * 53),
            (Limit("5/hour", name="My.own_1-a"), "My.own_1-a"),
        ],
    )
    def test_of_a_limit(self, limit, name):
        assert limit.name == name

    def test_is_the_same_in_every_process(self):
        # The order of a set of texts is not.
        limit = Limit("5/hour", methods={"PUT", "POST", "GET", "PATCH"}, plans=frozenset(["b", "c", "a"]))
        assert limit.name == "5-per-hour-GET-PATCH-POST-PUT-a-b-c"

    @given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
    def test_can_stand_in_a_header(self, plan, route):
        name = Limit("5/hour", plans=plan, routes="/" + route).name
        assert 1 <= len(name) <= 64
        assert name.isascii()
        assert not set(name) & set('"\\;,={} \r\n')


class TestFromText:
    @pytest.mark.parametrize(
        ("text", "limit"),
        [
            ("600/minute", Limit("600/minute")),
            ("  600/minute  ", Limit("600/minute")),
            ("90 per 2 hours burst=5", Limit("90 per 2 hours", burst=5)),
            ("600/minute burst=50 unit=tokens", Limit("600/minute", burst=50, unit="tokens")),
            ("5/minute cost=2 name=a", Limit("5/minute", cost=2, name="a")),
            (
                "5/minute routes=/v1/**|/v2/* methods=get|POST",
                Limit("5/minute", routes=["/v1/**", "/v2/*"], methods=["GET", "POST"]),
            ),
            ("5/minute plans=free|pro per=address", Limit("5/minute", plans=["free", "pro"], per="address")),
            ("5/minute strategy=moving-window", Limit("5/minute", strategy="moving-window")),
            ("5/minute\tburst=2", Limit("5/minute", burst=2)),
        ],
    )
    def test_one_line(self, text, limit):
        assert Limit.from_text(text) == limit

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("", "rate"),
            ("burst=5", "rate"),
            ("600/minute burst 50", "rate"),
            ("600/minute burst=", "burst"),
            ("600/minute burst=2.5", "burst"),
            ("600/minute burst=-2", "burst"),
            ("600/minute burst=--2", "burst"),
            ("600/minute burst=²", "burst"),
            ("600/minute burst=" + "9" * 5000, "burst"),
            ("600/minute cost=free", "cost"),
            ("600/minute cost=-1", "cost"),
            ("600/minute routes=", "routes"),
            ("600/minute routes=v1", "routes"),
            ("600/minute methods=GET||PUT", "methods"),
            ("600/minute brust=5", "brust"),
            ("600/minute item=5", "item"),
            ("600/minute rate=5/minute", "rate"),
            ("600/minute burst=5 burst=6", "burst"),
            ("600/minute when=always", "when"),
            ("600/minute per=someone", "per"),
        ],
    )
    def test_what_is_wrong_is_named(self, text, field):
        with pytest.raises(SettingsError) as caught:
            Limit.from_text(text)
        assert caught.value.field == field

    @pytest.mark.parametrize("text", [None, 5, b"5/minute", ["5/minute"], object()])
    def test_what_is_no_text(self, text):
        with pytest.raises(SettingsError) as caught:
            Limit.from_text(text)
        assert caught.value.value is text

    @given(st.text(max_size=60))
    def test_any_text_is_a_limit_or_refused(self, text):
        try:
            assert isinstance(Limit.from_text("5/minute " + text), Limit)
        except SettingsError as error:
            assert str(error)  # noqa: PT017 - both are right


class TestFromMapping:
    def test_fields(self):
        values = {"rate": "5/minute", "burst": 2, "methods": ["get"], "when": len}
        assert Limit.from_mapping(values) == Limit("5/minute", burst=2, methods="GET", when=len)

    @pytest.mark.parametrize("values", [{}, {"burst": 5}])
    def test_a_rate_is_needed(self, values):
        with pytest.raises(SettingsError, match=r"^rate: got None, expected a rate such as"):
            Limit.from_mapping(values)

    @pytest.mark.parametrize("key", ["brust", "item", "RATE", 5, None])
    def test_unknown_fields_are_refused_with_those_that_are_known(self, key):
        with pytest.raises(SettingsError) as caught:
            Limit.from_mapping({"rate": "5/minute", key: 5})
        assert caught.value.field == str(key)
        assert "burst, unit, name" in caught.value.allowed


def test_a_moving_window_is_not_for_tokens():
    # It would keep an entry in Redis for each token.
    with pytest.raises(SettingsError, match="strategy"):
        Limit("200000/hour", unit="tokens", strategy="moving-window")
