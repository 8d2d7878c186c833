"""Who is asking: sources of account keys, and the keys made of what they give."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abuseguard import Address, ApiKey, Header, SettingsError, User
from abuseguard.facts import PlainHeaders, RequestFacts
from abuseguard.identity import account_key, account_source, imported, keyed_hash, short_key


def facts_with(*headers):
    return RequestFacts("GET", "/", PlainHeaders(headers))


@dataclasses.dataclass
class UserFacts(RequestFacts):
    found: object = None

    def user(self):
        return self.found


class Person:
    """A user as some framework has it."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class BaseUser:
    """As Starlette's: what a user class leaves out raises."""

    is_authenticated = True
    display_name = "Ada"

    @property
    def identity(self):
        raise NotImplementedError


class TestHeader:
    def test_is_the_value(self):
        assert Header("X-User")(facts_with(("x-user", "42"))) == "42"

    def test_of_several_the_first(self):
        assert Header("x-user")(facts_with(("X-User", "42"), ("x-user", "43"))) == "42"

    def test_none_if_there_is_none(self):
        assert Header("x-user")(facts_with(("x-other", "42"))) is None

    @pytest.mark.parametrize("name", [None, 5, "", "é", b"x-user", object()])
    def test_what_is_no_name(self, name):
        with pytest.raises(SettingsError) as caught:
            Header(name)
        assert caught.value.value is name


class TestApiKey:
    def test_is_a_hash(self):
        key = ApiKey(secret=b"s3cret")(facts_with(("Authorization", "Bearer sk-1")))
        assert key == hashlib.blake2b(b"sk-1", key=b"s3cret", digest_size=16).hexdigest()

    def test_depends_on_key_and_secret(self):
        facts = facts_with(("authorization", "Bearer sk-1"))
        keys = {
            ApiKey()(facts),
            ApiKey(secret=b"a")(facts),
            ApiKey(secret=b"b")(facts),
            ApiKey()(facts_with(("authorization", "Bearer sk-2"))),
        }
        assert len(keys) == 4

    @pytest.mark.parametrize("value", ["Bearer sk-1", "bearer sk-1", "Token sk-1", "sk-1", "Bearer   sk-1 "])
    def test_whatever_the_scheme(self, value):
        assert ApiKey()(facts_with(("authorization", value))) == keyed_hash("sk-1", b"")

    @pytest.mark.parametrize("value", ["", "Bearer ", "Bearer    ", " "])
    def test_no_key_is_none(self, value):
        assert ApiKey()(facts_with(("authorization", value))) is None
        assert ApiKey()(facts_with()) is None

    def test_another_header_is_taken_whole(self):
        assert ApiKey("X-Api-Key")(facts_with(("x-api-key", "a b"))) == keyed_hash("a b", b"")
        assert ApiKey("X-Api-Key")(facts_with(("authorization", "a b"))) is None

    @pytest.mark.parametrize("length", [1, 128, 129, 1_000_000])
    def test_of_any_length_is_as_long_and_long_ones_are_not_kept(self, length):
        keyed_hash.cache_clear()
        key = ApiKey(secret=b"a")(facts_with(("authorization", "Bearer " + "k" * length)))
        assert key == hashlib.blake2b(b"k" * length, key=b"a", digest_size=16).hexdigest()
        assert keyed_hash.cache_info().currsize == (length <= 128)

    @pytest.mark.parametrize("secret", [None, "text", 5, bytearray(b"a"), object()])
    def test_what_is_no_secret(self, secret):
        with pytest.raises(SettingsError, match="a secret in bytes"):
            ApiKey(secret=secret)

    @pytest.mark.parametrize("header", [None, 5, "", "é", b"x-key"])
    def test_what_is_no_header(self, header):
        with pytest.raises(SettingsError, match="the name of a header"):
            ApiKey(header)


class TestUser:
    @pytest.mark.parametrize(
        ("user", "expected"),
        [
            (None, None),
            (Person(pk=7, id=8), 7),
            (Person(pk=None, id=8), 8),
            (Person(id="a", username="b"), "a"),
            (Person(identity="i", username="b"), "i"),
            (Person(username="b", display_name="c"), "b"),
            (Person(display_name="c"), "c"),
            (Person(is_authenticated=False, pk=7), None),
            (Person(is_authenticated=True, pk=7), 7),
            (Person(), None),
            (BaseUser(), "Ada"),
            ("ada", "ada"),
            (42, 42),
        ],
    )
    def test_is_the_first_attribute_there_is(self, user, expected):
        assert User()(UserFacts("GET", "/", found=user)) == expected

    def test_or_the_one_that_is_named(self):
        user = Person(pk=7, email="ada@example.com")
        assert User("email")(UserFacts("GET", "/", found=user)) == "ada@example.com"
        assert User("phone")(UserFacts("GET", "/", found=user)) is None
        assert User("email")(UserFacts("GET", "/", found=Person(is_authenticated=False, email="a"))) is None

    @pytest.mark.parametrize("attribute", [None, 5, b"email", object()])
    def test_what_is_no_attribute(self, attribute):
        with pytest.raises(SettingsError, match="the name of an attribute"):
            User(attribute)


@pytest.mark.parametrize("source", [Address(), ApiKey(), Header("x"), User()])
def test_sources_do_not_change(source):
    assert hash(source) == hash(dataclasses.replace(source))
    for name in ("header", "name", "attribute", "another"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            setattr(source, name, "y")


class TestAccountSource:
    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("address", Address()),
            ("api-key", ApiKey()),
            ("api-key:x-api-key", ApiKey("x-api-key")),
            ("header:x-user", Header("x-user")),
            ("user", User()),
            ("user:email", User("email")),
            ("builtins:len", len),
        ],
    )
    def test_texts(self, text, source):
        assert account_source(text) == source

    @pytest.mark.parametrize("source", [Address(), ApiKey(), Header("x"), User(), len, lambda facts: "x"])
    def test_functions_are_taken_as_they_are(self, source):
        assert account_source(source) is source

    def test_an_address_is_left_to_the_guard(self):
        assert Address()(RequestFacts("GET", "/", peer="192.0.2.1")) is None

    @pytest.mark.parametrize("source", [Header, ApiKey, User, Address, type("Mine", (), {"__call__": len})])
    def test_classes_are_refused(self, source):
        with pytest.raises(SettingsError, match="an instance, not a class"):
            account_source(source)


def test_functions_by_name():
    assert imported("account", "json:dumps").__name__ == "dumps"
    with pytest.raises(SettingsError) as caught:
        imported("account", "json:nothing")
    assert (caught.value.field, caught.value.value) == ("account", "json:nothing")


class Faulty:
    """An object that raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError(name)


class FaultyText(uuid.UUID):
    def __str__(self):
        raise RuntimeError("no")


_TEXTS = st.builds(
    str.__add__,
    st.sampled_from(["", "ip:", "long:", "account:", "account:ip:"]),
    st.text("ab", min_size=1, max_size=140),
)


class TestAccountKey:
    @pytest.mark.parametrize(
        ("value", "key"),
        [
            ("alice", "alice"),
            (42, "42"),
            (0, "0"),
            (-1, "-1"),
            (b"alice", "alice"),
            (b"\xff", "\\xff"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            ("x" * 128, "x" * 128),
            ("ip:192.0.2.1", "account:ip:192.0.2.1"),
            (b"ip:192.0.2.1", "account:ip:192.0.2.1"),
            ("ip:", "account:ip:"),
            ("account:ip:", "account:account:ip:"),
            ("IP:192.0.2.1", "IP:192.0.2.1"),
            ("a\r\nb\0", "a\r\nb\0"),
            ("\ud800", "\ud800"),
        ],
    )
    def test_usable(self, value, key):
        assert account_key(value) == key

    @pytest.mark.parametrize(
        "value",
        [
            *[None, "", b"", True, False, 1.5, float("nan"), [], ["alice"], {}, {"a": 1}, {1}, (), object()],
            *[bytearray(b"a"), Faulty(), FaultyText(int=1), 10**5000],
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_not_usable(self, value):
        assert account_key(value) is None

    @pytest.mark.parametrize("value", ["x" * 129, b"x" * 1_000_000, "ip:" + "x" * 1_000_000, "é" * 1_000_000])
    def test_long_ones_become_hashes(self, value):
        key = account_key(value)
        assert len(key) == len("long:") + 32
        assert key.startswith("long:")

    @given(st.one_of(st.text(), st.binary(), st.integers(), st.uuids(), st.none(), st.floats(), st.lists(st.text())))
    def test_any_value_is_a_short_text_or_none(self, value):
        key = account_key(value)
        assert key is None or (isinstance(key, str) and 0 < len(key) <= 128 + len("account:"))
        # Only the guard itself names addresses.
        assert key is None or not key.startswith("ip:")

    @given(_TEXTS, _TEXTS)
    @example("ip:192.0.2.1", "account:ip:192.0.2.1")
    @example("x" * 129, short_key("x" * 129))
    def test_different_texts_are_different_accounts(self, one, other):
        assert (account_key(one) == account_key(other)) == (one == other)


class TestHashes:
    def test_short_texts_stay(self):
        assert short_key("x" * 128) == "x" * 128
        assert short_key("x" * 129) != short_key("x" * 130)

    def test_long_texts_are_not_remembered(self):
        keyed_hash.cache_clear()
        short_key("x" * 129)
        assert keyed_hash.cache_info().currsize == 0

    def test_what_is_remembered_is_bounded(self):
        assert keyed_hash.cache_info().maxsize == 16_384

    @given(st.text(), st.binary(max_size=100))
    @example("", b"s" * 64)
    @example("", b"s" * 65)
    def test_any_text_and_secret(self, text, secret):
        digest = keyed_hash(text, secret)
        assert len(digest) == 32
        assert set(digest) <= set("0123456789abcdef")
