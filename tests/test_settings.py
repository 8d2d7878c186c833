"""Everything an operator can set: what is taken, what is refused and how it is said."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest

from abuseguard import Address, ApiKey, Header, Limit, Settings, SettingsError, User
from abuseguard.settings import STORE_SCHEMES, limit_from, setting_names
from tests.identifiers import shown


async def asynchronous(*_):
    return None


async def asynchronous_generator(*_):
    yield None


class AsynchronousCall:
    async def __call__(self, *_):
        return None


ASYNCHRONOUS = [
    asynchronous,
    asynchronous_generator,
    AsynchronousCall(),
    functools.partial(asynchronous),
    AsynchronousCall().__call__,
]
HUGE = 10**5000  # has no text: Python refuses to convert it

NO_TEXT = [None, 5, 1.5, b"bytes", ["a list"], object(), True, ""]
NO_WHOLE_NUMBER = [None, "5", 1.5, 10.0, math.nan, math.inf, [1], object(), True, -1, HUGE, -HUGE]
NO_NUMBER = [None, "0.5", math.nan, math.inf, -math.inf, [1], object(), True, -0.1, HUGE]
NO_FUNCTION = ["text", 5, 0, [], {}, object(), math.nan, True, *ASYNCHRONOUS]
NO_TEXTS = [None, 5, math.nan, object(), True, b"bytes", "", [""], [None], [5], {"a": 1}, lambda: None]

WRONG = {
    "limits": [None, 5, "600/minute", object(), math.nan, True, b"600/minute", lambda facts: None, (x for x in "a")],
    "store": [*NO_TEXT, "memory", "localhost:6379", "mysql://a", "redis+tls://a", "REDIS", "redis://[", "//a", ":"],
    "store_options": [None, 5, "text", [("a", 1)], object(), math.nan],
    "key_prefix": [*NO_TEXT, "a{b", "a}b"],
    "max_keys": [*NO_WHOLE_NUMBER, 0, 10**9 + 1],
    "account": [
        *[None, 5, "", "text", "header", "header:", "header:é", "api-key:é", ":", object(), math.nan, True, ["user"]],
        *[Header, ApiKey, User, Address, str, "json:nothing", "no_such_module:f", "json:__name__", "a b:c"],
        *ASYNCHRONOUS,
    ],
    "plan": ["", "text", "header:", "header:é", "no_such_module:f", "json:nothing", "json:__name__", *NO_FUNCTION],
    "trusted_proxies": [
        *[None, "10.0.0.0/8", -1, 33, 1.5, math.nan, True, object(), {"a": 1}, HUGE],
        *[["10.0.0.1/8"], ["nonsense"], [5], [None], [""], ["10.0.0.0/8", "fe80::1%eth0"]],
    ],
    "forwarded_header": [*NO_TEXT, "x-real-ip", "X-Forwarded"],
    "ipv6_prefix": [*NO_WHOLE_NUMBER, 0, 129],
    "missing_address": [*NO_TEXT, "maybe", "ALLOW"],
    "exempt_paths": [*NO_TEXTS, "healthz", ["/healthz", "static/**"]],
    "exempt_accounts": NO_TEXTS,
    "exempt_networks": [
        *[None, 5, math.nan, object(), True, b"10.0.0.1", {"10.0.0.0/8": 1}, "", "nonsense", "10.0.0.1/8"],
        *[[""], [None], [5], ["10.0.0.0/8", "10.0.0.1/8"]],
    ],
    "exempt": NO_FUNCTION,
    "mode": [*NO_TEXT, "dry-run", "OBSERVE"],
    "on_store_failure": [*NO_TEXT, "ignore"],
    "workers": [*NO_WHOLE_NUMBER, 0, 100_001],
    "store_timeout_seconds": [*NO_NUMBER, 0, 0.0009, 61],
    "headers": [*NO_TEXT, "draft-11", "DRAFT-10"],
    "response": NO_FUNCTION,
    "retry_after_jitter": [*NO_NUMBER, 10.1],
    "max_delay_seconds": [*NO_NUMBER, 60.1],
    "estimate": NO_FUNCTION,
    "default_output_tokens": [*NO_WHOLE_NUMBER, 10**9 + 1],
    "max_body_bytes": [*NO_WHOLE_NUMBER, 0, 1023, 2**30 + 1],
    "secret": [None, 5, 1.5, ["a"], object(), True, bytearray(b"a")],
    "observer": NO_FUNCTION,
}
MAY_BE_NONE = ("plan", "exempt", "response", "estimate", "observer")


def test_no_setting_is_left_out_here():
    assert tuple(WRONG) == setting_names()


def name_of(value):
    return "HUGE" if value is HUGE else "-HUGE" if value == -HUGE else shown(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [pytest.param(field, value, id=f"{field}={name_of(value)}") for field in WRONG for value in WRONG[field]],
)
def test_what_is_wrong_is_refused_by_name_and_value(field, value):
    with pytest.raises(SettingsError) as caught:
        Settings(**{field: value})
    assert caught.value.field.partition("[")[0] == field
    message = str(caught.value)
    assert message.startswith(f"{caught.value.field}: got ")
    assert caught.value.allowed in message
    if field != "store":  # which may hold a password
        culprit = caught.value.value
        # an item of a sequence, what a name stands for, or the value itself
        assert culprit is value or culprit == value or field in ("account", "plan") or culprit in list(value)


@pytest.mark.parametrize("field", MAY_BE_NONE)
def test_functions_may_be_none(field):
    assert getattr(Settings(**{field: None}), field) is None


@pytest.mark.parametrize("function", ASYNCHRONOUS)
@pytest.mark.parametrize("field", ["account", "plan", "exempt", "response", "estimate", "observer"])
def test_async_functions_are_refused_in_so_many_words(field, function):
    with pytest.raises(SettingsError, match=rf"^{field}: .*not an async one$"):
        Settings(**{field: function})


@pytest.mark.parametrize("function", ASYNCHRONOUS)
def test_async_functions_are_no_limits(function):
    with pytest.raises(SettingsError, match=r"^limits\[1\]: .*not an async one$"):
        Settings(limits=["5/minute", function])


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("max_keys", 1, 10**9),
        ("ipv6_prefix", 1, 128),
        ("workers", 1, 100_000),
        ("store_timeout_seconds", 0.001, 60),
        ("retry_after_jitter", 0, 10),
        ("max_delay_seconds", 0, 60),
        ("default_output_tokens", 0, 10**9),
        ("max_body_bytes", 1024, 2**30),
        ("trusted_proxies", 0, 32),
    ],
)
def test_bounds_are_allowed(field, least, most):
    for value in (least, most):
        assert getattr(Settings(**{field: value}), field) == value


def test_the_defaults():
    settings = Settings()
    assert settings.limits == ()
    assert settings.store == "memory://"
    assert settings.account == Address()
    assert settings.missing_address == "allow"
    assert settings.mode == "enforce"
    assert settings.on_store_failure == "allow"
    assert settings.headers == "draft-10"
    assert settings.store_timeout_seconds == 0.05
    assert settings.ipv6_prefix == 64
    assert settings.max_delay_seconds == 0
    assert not settings.addresses.needs_headers


def test_only_keywords():
    with pytest.raises(TypeError):
        Settings(["5/minute"])
    with pytest.raises(TypeError):
        Settings(limit=["5/minute"])


def test_settings_do_not_change():
    settings = Settings(limits=["5/minute"])
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        settings.another = 1


def test_what_was_given_may_change_afterwards():
    limits, options, paths = ["5/minute"], {"health_check_interval": 5}, ["/a"]
    settings = Settings(limits=limits, store_options=options, exempt_paths=paths)
    limits.append("6/minute")
    options.clear()
    paths.clear()
    assert len(settings.limits) == 1
    assert settings.store_options == {"health_check_interval": 5}
    assert settings.exempt_paths == ("/a",)


def test_settings_can_be_replaced_one_by_one():
    settings = Settings(
        limits=["5/minute", {"rate": "7/hour"}],
        account="api-key",
        secret="s3cret",
        trusted_proxies=["10.0.0.0/8"],
        exempt_networks="192.0.2.0/24",
        plan="header:x-plan",
    )
    observing = dataclasses.replace(settings, mode="observe")
    assert observing.mode == "observe"
    assert dataclasses.replace(observing, mode="enforce") == settings
    assert observing.limits == settings.limits
    assert observing.exempt_hosts == settings.exempt_hosts


class TestLimits:
    def test_every_form(self):
        def dynamic(facts):
            return None

        limit = Limit("5/minute")
        settings = Settings(limits=[limit, "7/hour burst=3", {"rate": "9/day", "unit": "tokens"}, dynamic])
        assert settings.limits == (limit, Limit("7/hour", burst=3), Limit("9/day", unit="tokens"), dynamic)

    @pytest.mark.parametrize("collection", [list, tuple, set, frozenset])
    def test_any_collection(self, collection):
        settings = Settings(limits=collection(["5/minute", "7/hour"]))
        assert {limit.name for limit in settings.limits} == {"5-per-minute", "7-per-hour"}

    @pytest.mark.parametrize("wrong", [None, 5, math.nan, object(), [], ("5/minute",), b"5/minute", True])
    def test_an_item_that_is_none(self, wrong):
        with pytest.raises(SettingsError) as caught:
            Settings(limits=["5/minute", wrong])
        assert caught.value.field == "limits[1]"
        assert caught.value.value is wrong
        assert "mapping, or a function" in str(caught.value)

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ("often", "limits[1].rate"),
            ("5/minute burst=0", "limits[1].burst"),
            ("5/minute brust=3", "limits[1].brust"),
            ({"burst": 5}, "limits[1].rate"),
            ({"rate": "5/minute", "unit": "tonnes"}, "limits[1].unit"),
            ({"rate": "5/minute", 7: 1}, "limits[1].7"),
        ],
    )
    def test_a_field_of_an_item_is_named_with_its_position(self, wrong, field):
        with pytest.raises(SettingsError) as caught:
            Settings(limits=["7/minute", wrong])
        assert caught.value.field == field

    def test_names_are_unique(self):
        with pytest.raises(SettingsError) as caught:
            Settings(limits=[Limit("5/minute"), lambda facts: None, Limit("5/minute", burst=2)])
        assert caught.value.field == "limits[2].name"
        assert caught.value.value == "5-per-minute"
        settings = Settings(limits=[Limit("5/minute"), Limit("5/minute", burst=2, name="burst")])
        assert [limit.name for limit in settings.limits] == ["5-per-minute", "burst"]


class TestStore:
    @pytest.mark.parametrize("scheme", STORE_SCHEMES)
    def test_every_scheme(self, scheme):
        assert Settings(store=f"{scheme}://localhost").store == f"{scheme}://localhost"

    @pytest.mark.parametrize("uri", ["reddis://user:pass/word@host", "http://:pass/word@[::1", "a://b@c:pass/word@d"])
    def test_a_password_is_not_shown(self, uri):
        with pytest.raises(SettingsError) as caught:
            Settings(store=uri)
        assert "word" not in str(caught.value)
        assert "word" not in repr(caught.value)

    def test_nothing_secret_is_shown(self):
        settings = Settings(
            store="redis://:hidden@localhost", store_options={"password": "hidden"}, secret="hidden", account=ApiKey()
        )
        assert "hidden" not in repr(settings)
        assert "hidden" not in repr(ApiKey(secret=b"hidden"))


class TestSecret:
    @pytest.mark.parametrize("secret", ["schlüssel", "schlüssel".encode()])
    def test_text_or_bytes(self, secret):
        assert Settings(secret=secret).secret == "schlüssel".encode()

    def test_keys_the_hashes_of_api_keys(self):
        assert Settings(account="api-key", secret="a").account == ApiKey(secret=b"a")
        assert Settings(account=ApiKey("x-api-key"), secret="a").account == ApiKey("x-api-key", b"a")

    def test_leaves_an_api_key_its_own(self):
        assert Settings(account=ApiKey(secret=b"own"), secret="a").account == ApiKey(secret=b"own")

    def test_leaves_a_subclass_what_it_is(self):
        class Longer(ApiKey):
            def __call__(self, facts):
                return "longer"

        account = Settings(account=Longer("x-key"), secret="a").account
        assert type(account) is Longer
        assert (account.header, account.secret) == ("x-key", b"a")


class TestPlan:
    def test_a_header(self):
        assert Settings(plan="header:X-Plan").plan == Header("x-plan")

    def test_a_function(self):
        assert Settings(plan=len).plan is len
        assert Settings(plan="builtins:len").plan is len


class TestNetworks:
    def test_one_text_or_several(self):
        assert (
            Settings(exempt_networks="10.0.0.0/8").exempt_hosts == Settings(exempt_networks=["10.0.0.0/8"]).exempt_hosts
        )
        assert len(Settings(exempt_networks=["10.0.0.0/8", "::1"]).exempt_hosts) == 2

    def test_the_item_is_named(self):
        with pytest.raises(SettingsError) as caught:
            Settings(exempt_networks=["10.0.0.0/8", "nonsense"])
        assert caught.value.field == "exempt_networks[1]"
        with pytest.raises(SettingsError) as caught:
            Settings(trusted_proxies=["10.0.0.0/8", "nonsense"])
        assert caught.value.field == "trusted_proxies[1]"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "FORWARDED"])
def test_header_names_have_no_case(header):
    assert Settings(forwarded_header=header).forwarded_header == header.lower()


def test_one_text_stands_for_a_sequence_of_one():
    settings = Settings(exempt_paths="/healthz", exempt_accounts="root")
    assert settings.exempt_paths == ("/healthz",)
    assert settings.exempt_accounts == {"root"}


def test_limit_from_gives_back_what_is_a_limit():
    limit = Limit("5/minute")
    assert limit_from(limit) is limit
