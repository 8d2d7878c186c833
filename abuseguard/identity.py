"""Who is asking: the key of an account, from what a request carries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from abuseguard._validation import require_plain_function
from abuseguard.errors import SettingsError
from abuseguard.facts import RequestFacts

# A source of account keys. None, or anything that is no usable key: the request has no account, and its client
# address stands in for one.
AccountSource = Callable[[RequestFacts], object]

_LONGEST_KEY = 128
# What keys begin with that are not texts of a source as they were.
_PREFIXES = ("ip:", "long:", "account:")
_KEYS_REMEMBERED = 16_384


@dataclass(frozen=True, slots=True)
class Header:
    """The account is the value of a header that a gateway in front has set and clients cannot.

    >>> from abuseguard.facts import PlainHeaders
    >>> Header("x-user-id")(RequestFacts("GET", "/", PlainHeaders([("X-User-Id", "42")])))
    '42'
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isascii():
            raise SettingsError("account", self.name, "the name of a header")
        object.__setattr__(self, "name", self.name.lower())

    def __call__(self, facts: RequestFacts) -> str | None:
        return facts.headers.first(self.name)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The account is an API key, kept only as a hash: ``Authorization: Bearer KEY``, or the whole of another header.

    The key is not checked here. Let requests with invalid keys be refused in front of the guard, or limit them by
    address as well: a client could otherwise make up a key for each request.

    Args:
        header: where the key is.
        secret: keys the hash, so that no one who sees the hashes can test guesses against them.
    """

    header: str = "authorization"
    secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.header, str) or not self.header or not self.header.isascii():
            raise SettingsError("account", self.header, "the name of a header")
        if not isinstance(self.secret, bytes):
            raise SettingsError("account", self.secret, "a secret in bytes")
        object.__setattr__(self, "header", self.header.lower())

    def __call__(self, facts: RequestFacts) -> str | None:
        value = facts.headers.first(self.header)
        if not value:
            return None
        if self.header == "authorization":
            _, space, credentials = value.partition(" ")
            value = credentials.strip() if space else value
        if len(value) > _LONGEST_KEY:
            return keyed_hash.__wrapped__(value, self.secret)  # not remembered: whoever calls chooses how long it is
        return keyed_hash(value, self.secret) if value else None


@dataclass(frozen=True, slots=True)
class User:
    """The account is the user that the framework's authentication found, by one of its attributes.

    Args:
        attribute: what identifies the user. Default: the first there is of ``pk``, ``id``, ``identity``,
            ``username`` and ``display_name``.
    """

    attribute: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.attribute, str):
            raise SettingsError("account", self.attribute, "the name of an attribute")

    def __call__(self, facts: RequestFacts) -> object:
        user = facts.user()
        if user is None or getattr(user, "is_authenticated", True) is False:
            return None
        if self.attribute:
            return getattr(user, self.attribute, None)
        if isinstance(user, (str, int)):
            return user
        for attribute in ("pk", "id", "identity", "username", "display_name"):
            try:
                value = getattr(user, attribute, None)
            except NotImplementedError:  # Starlette's BaseUser raises it for what a user class left out
                continue
            if value:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Address:
    """The account is the client's address: the default."""

    def __call__(self, facts: RequestFacts) -> str | None:
        return None


def account_source(value: object) -> AccountSource:
    """The source that a setting names.

    Args:
        value: a source or any function of the facts; or text: ``"address"``, ``"api-key"``, ``"api-key:x-api-key"``,
            ``"header:x-user-id"``, ``"user"``, ``"user:email"``, or ``"package.module:function"``.

    Raises:
        SettingsError: it is none of these.
    """
    if isinstance(value, type):
        raise SettingsError("account", value, "an instance, not a class: ApiKey(), not ApiKey")
    if callable(value):
        require_plain_function("account", value)
        return value
    if isinstance(value, str):
        kind, _, name = value.partition(":")
        if value == "address":
            return Address()
        if kind == "api-key":
            return ApiKey(name) if name else ApiKey()
        if kind == "header" and name:
            return Header(name)
        if kind == "user":
            return User(name)
        if name.isidentifier():
            return imported("account", value)
    raise SettingsError(
        "account",
        value,
        "a function of the facts, 'address', 'api-key', 'api-key:HEADER', 'header:NAME', 'user', 'user:ATTRIBUTE' "
        "or 'package.module:function'",
    )


def imported(field: str, path: str) -> Callable[..., object]:
    """The function at ``"package.module:function"``.

    Raises:
        SettingsError: there is none.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything when it is imported
        raise SettingsError(field, path, f"a function that can be imported ({error!r})") from error
    if not callable(found):
        raise SettingsError(field, path, "a function")
    require_plain_function(field, found)
    return found  # type: ignore[no-any-return]


def account_key(value: object) -> str | None:
    """A usable key from what a source returned: text of 1 to 128 characters; None if it holds no account.

    Whole numbers, bytes and objects with a ``hex`` text (a UUID) are turned into text, longer text into its hash.
    A key that could be taken for an address or a hash is marked as one that is not.

    >>> account_key(42), account_key(""), account_key(["a list"])
    ('42', None, None)
    """
    if isinstance(value, str):
        key = value
    else:
        try:
            key = _text_of(value)
        except Exception:  # noqa: BLE001 - an object of the user's, or a number of 5,000 digits
            return None
    if not key:
        return None
    if len(key) <= _LONGEST_KEY and key.startswith(_PREFIXES):
        return "account:" + key
    return short_key(key)


def _text_of(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if (isinstance(value, int) and not isinstance(value, bool)) or isinstance(getattr(value, "hex", None), str):
        return str(value)
    return ""


def short_key(text: str) -> str:
    """The text, or its hash if it has more than 128 characters: what a client sends must not fill a store.

    >>> short_key("x" * 129)
    'long:b9ee96f69e8210c624fee55d71d5a54f'
    """
    if len(text) <= _LONGEST_KEY:
        return text
    return "long:" + keyed_hash.__wrapped__(text, b"")  # not remembered: whoever calls chooses how long it is


@lru_cache(_KEYS_REMEMBERED)
def keyed_hash(text: str, secret: bytes) -> str:
    """32 hexadecimal digits that stand for ``text``, for a deployment's ``secret`` (BLAKE2b, RFC 7693).

    Remembered for the last 16,384 texts: hashing anew would cost a request more than its bucket does.
    """
    import hashlib  # loads OpenSSL: only those who hash wait for it

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=secret[:64], digest_size=16).hexdigest()
