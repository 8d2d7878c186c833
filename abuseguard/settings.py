"""Everything an operator decides, checked when it is made and never changed after."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from abuseguard._validation import (
    each,
    path_patterns,
    require_choice,
    require_function,
    require_number,
    require_plain_function,
    require_text,
    require_whole,
    texts,
)
from abuseguard.addresses import ClientAddresses
from abuseguard.errors import SettingsError
from abuseguard.identity import AccountSource, Address, account_source
from abuseguard.limit import Limit
from abuseguard.networks import Networks

if TYPE_CHECKING:
    from abuseguard.decision import Decision
    from abuseguard.facts import RequestFacts
    from abuseguard.headers import Answer

Mode = Literal["enforce", "observe"]
FailurePolicy = Literal["allow", "deny", "local"]
MissingAddress = Literal["allow", "deny", "shared"]
HeaderDialect = Literal["draft-10", "legacy", "both", "none"]
ForwardedHeader = Literal["x-forwarded-for", "forwarded"]
# A limit that depends on the request: what it returns applies, be it one, several, or none.
DynamicLimit = Callable[["RequestFacts"], "Limit | str | Sequence[Limit | str] | None"]

# Functions may return the same texts at every request, and reading one takes longer than the decision.
_LONGEST_REMEMBERED = 256

STORE_SCHEMES = (
    "memory",
    "redis",
    "rediss",
    "redis+unix",
    "redis+cluster",
    "redis+sentinel",
    "valkey",
    "valkeys",
    "valkey+unix",
    "valkey+cluster",
    "valkey+sentinel",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the guard does, for whom, and what it does when something fails.

    Args:
        limits: ``Limit``s, texts such as ``"600/minute burst=50"``, mappings of a limit's fields, or functions of the
            facts that return limits. All that match a request are taken together, or none is.
        store: where buckets are kept: ``memory://``, ``redis://HOST:PORT/DB``, ``rediss://`` (TLS),
            ``redis+cluster://``, ``redis+sentinel://HOST:PORT/SERVICE``, or ``valkey`` in place of ``redis``.
        store_options: further arguments of the Redis client.
        key_prefix: what every key in Redis begins with.
        max_keys: the most buckets kept for a limit in memory.
        account: who is asking: see ``account_source``. Default: the client's address.
        plan: the account's plan: ``"header:NAME"`` or a function of the facts.
        trusted_proxies: networks of proxies in front (``"unix"`` for a Unix socket's peer), or how many there are.
        forwarded_header: the header in which those proxies pass on the client's address; the other is ignored.
        ipv6_prefix: how many bits of an IPv6 address make a client, 1 to 128.
        missing_address: what to do with a request that has neither account nor address: ``"allow"`` it, ``"deny"``
            it, or count all such in one ``"shared"`` account.
        exempt_paths, exempt_accounts, exempt_networks: what is never limited.
        exempt: any other exemption, a function of the facts.
        mode: ``"enforce"``, or ``"observe"``: decide and count everything, refuse nothing, say nothing.
        on_store_failure: the answer while the store does not: ``"allow"``, ``"deny"``, or ``"local"``: limit in this
            process's memory, to the rate divided by ``workers``.
        workers: how many processes share the limits; only used by ``"local"``.
        store_timeout_seconds: how long a request may wait for the store.
        headers: which fields tell clients their limits: ``"draft-10"`` (``RateLimit``, ``RateLimit-Policy``),
            ``"legacy"`` (``X-RateLimit-*``), ``"both"`` or ``"none"``.
        response: makes the answer to a denied request from the facts, the decision and the default answer.
        retry_after_jitter: the share of the waiting time that is added to ``Retry-After`` at random at the most, so
            that clients denied together do not return together.
        max_delay_seconds: a request that could be allowed within so long is held back instead of denied, by servers
            on an event loop. 0: never.
        estimate: the tokens a request will need, a function of the facts; None from it means "not a model call". What
            it says is charged, unless the response reports its usage.
            Default: from ``max_tokens`` and the input's length, in the shapes of the common model APIs.
        default_output_tokens: what the default estimate reserves for an answer whose length the request leaves open.
        max_body_bytes: the most of a body that is read for an estimate, or kept to find the tokens used.
        secret: keys all hashes; the same in every process of a deployment.
        observer: is called with the facts and the decision of every request, for metrics and logs.

    Raises:
        SettingsError: a field is wrong; names it, the value, and what is allowed.

    >>> Settings(limits=["600/minute burst=50"]).limits[0].burst
    50
    >>> Settings(limits=["600/minute", "1000/fortnight"])
    Traceback (most recent call last):
        ...
    abuseguard.errors.SettingsError: limits[1].rate: got '1000/fortnight', expected a rate such as '600/minute' or \
'90 per 2 hours'
    """

    limits: Sequence[Limit | DynamicLimit | str | Mapping[str, Any]] = ()
    # Not shown, as they may hold passwords.
    store: str = field(default="memory://", repr=False)
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    key_prefix: str = "abuseguard"
    max_keys: int = 1_000_000
    account: AccountSource | str = field(default_factory=Address)
    plan: Callable[[RequestFacts], str | None] | str | None = None
    trusted_proxies: Collection[str] | int = ()
    forwarded_header: ForwardedHeader = "x-forwarded-for"
    ipv6_prefix: int = 64
    missing_address: MissingAddress = "allow"
    exempt_paths: Sequence[str] = ()
    exempt_accounts: Collection[str] = ()
    exempt_networks: Collection[str] = ()
    exempt: Callable[[RequestFacts], bool] | None = None
    mode: Mode = "enforce"
    on_store_failure: FailurePolicy = "allow"
    workers: int = 1
    store_timeout_seconds: float = 0.05
    headers: HeaderDialect = "draft-10"
    response: Callable[[RequestFacts, Decision, Answer], Answer] | None = None
    retry_after_jitter: float = 0.1
    max_delay_seconds: float = 0.0
    estimate: Callable[[RequestFacts], int | None] | None = None
    default_output_tokens: int = 1024
    max_body_bytes: int = 65_536
    secret: bytes | str = field(default=b"", repr=False)
    observer: Callable[[RequestFacts, Decision], object] | None = None
    addresses: ClientAddresses = field(init=False, repr=False, compare=False)
    exempt_hosts: Networks = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "limits", each("limits", self.limits, limit_from))
        _require_unique_names(self.limits)
        _require_store(self.store)
        if not isinstance(self.store_options, Mapping):
            raise SettingsError("store_options", self.store_options, "a mapping")
        put(self, "store_options", dict(self.store_options))
        require_text("key_prefix", self.key_prefix)
        if "{" in self.key_prefix or "}" in self.key_prefix:
            raise SettingsError("key_prefix", self.key_prefix, "a text without braces, which mark the cluster slot")
        require_whole("max_keys", self.max_keys, least=1, most=10**9)
        put(self, "secret", _secret(self.secret))
        put(self, "account", _with_secret(account_source(self.account), self.secret))
        put(self, "plan", _plan_source(self.plan))
        if isinstance(self.forwarded_header, str) and self.forwarded_header.lower() in get_args(ForwardedHeader):
            put(self, "forwarded_header", self.forwarded_header.lower())
        require_choice("forwarded_header", self.forwarded_header, get_args(ForwardedHeader))
        addresses = ClientAddresses(
            trusted_proxies=self.trusted_proxies, header=self.forwarded_header, ipv6_prefix=self.ipv6_prefix
        )
        put(self, "addresses", addresses)
        require_choice("missing_address", self.missing_address, get_args(MissingAddress))
        put(self, "exempt_paths", path_patterns("exempt_paths", self.exempt_paths))
        put(self, "exempt_accounts", frozenset(texts("exempt_accounts", self.exempt_accounts)))
        put(self, "exempt_hosts", _networks("exempt_networks", self.exempt_networks))
        require_function("exempt", self.exempt, of="the facts of a request")
        require_choice("mode", self.mode, get_args(Mode))
        require_choice("on_store_failure", self.on_store_failure, get_args(FailurePolicy))
        require_whole("workers", self.workers, least=1, most=100_000)
        require_number("store_timeout_seconds", self.store_timeout_seconds, least=0.001, most=60)
        require_choice("headers", self.headers, get_args(HeaderDialect))
        require_function("response", self.response, of="the facts, the decision and the default answer")
        require_number("retry_after_jitter", self.retry_after_jitter, least=0, most=10)
        require_number("max_delay_seconds", self.max_delay_seconds, least=0, most=60)
        require_function("estimate", self.estimate, of="the facts of a request")
        require_whole("default_output_tokens", self.default_output_tokens, least=0, most=10**9)
        require_whole("max_body_bytes", self.max_body_bytes, least=1024, most=2**30)
        require_function("observer", self.observer, of="the facts and the decision")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from a mapping of field names in any case: a framework's configuration, a parsed file.

        Functions may be given as ``"package.module:function"``.

        >>> Settings.from_mapping({"LIMITS": ["90/hour"], "MODE": "observe"}).mode
        'observe'
        """
        from abuseguard.settings_sources import settings_from_mapping

        return settings_from_mapping(values)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from the variables ``ABUSEGUARD_*`` of the environment, or of the mapping given.

        Items of a sequence are separated by ``;`` or, but for limits, by commas.

        >>> settings = Settings.from_environment({"ABUSEGUARD_LIMITS": "600/minute burst=50; 9000/day"})
        >>> [limit.name for limit in settings.limits]
        ['600-per-minute', '9000-per-day']
        """
        from abuseguard.settings_sources import settings_from_environment

        return settings_from_environment(environ)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Settings:
        """Settings from a TOML file: its table ``abuseguard`` or ``tool.abuseguard`` if there is one, else all of it.

        Raises:
            SettingsError: the file cannot be read, is not TOML, or a field in it is wrong.
        """
        from abuseguard.settings_sources import settings_from_toml

        return settings_from_toml(path)


def setting_names() -> tuple[str, ...]:
    """The names of all settings that can be given."""
    return tuple(f.name for f in fields(Settings) if f.init)


_remembered_limit = lru_cache(1024)(Limit.from_text)


def limit_from(value: object) -> Limit | DynamicLimit:
    """A limit from any of the forms in which ``Settings.limits`` takes one."""
    if isinstance(value, Limit):
        return value
    if isinstance(value, str):
        return _remembered_limit(value) if len(value) <= _LONGEST_REMEMBERED else Limit.from_text(value)
    if isinstance(value, Mapping):
        return Limit.from_mapping(value)
    if callable(value):
        require_plain_function("", value)
        return value
    raise SettingsError("", value, "a Limit, a text such as '600/minute burst=50', a mapping, or a function")


def _require_unique_names(limits: Sequence[object]) -> None:
    seen = set()
    for position, limit in enumerate(limits):
        if isinstance(limit, Limit):
            if limit.name in seen:
                raise SettingsError(f"limits[{position}].name", limit.name, "a name that no other limit has")
            seen.add(limit.name)


def _require_store(store: object) -> None:
    require_text("store", store)
    shown = re.sub(r"(?<=//).*@", "...@", str(store))  # without the password
    try:
        scheme = urlsplit(str(store)).scheme
    except ValueError as error:
        raise SettingsError("store", shown, f"a URI ({error})") from None
    if scheme not in STORE_SCHEMES:
        raise SettingsError("store", shown, f"a URI of the scheme {', '.join(STORE_SCHEMES)}")


def _secret(value: object) -> bytes:
    secret = value.encode() if isinstance(value, str) else value
    if not isinstance(secret, bytes):
        raise SettingsError("secret", value, "bytes or text")
    return secret


def _with_secret(source: AccountSource, secret: bytes | str) -> AccountSource:
    from abuseguard.identity import ApiKey

    if isinstance(source, ApiKey) and not source.secret and isinstance(secret, bytes):
        return replace(source, secret=secret)
    return source


def _plan_source(value: object) -> Callable[[RequestFacts], str | None] | None:
    from abuseguard.identity import Header, imported

    if value is None or callable(value):
        require_function("plan", value, of="the facts of a request")
        return value
    if isinstance(value, str):
        kind, _, name = value.partition(":")
        if kind == "header" and name.isascii() and name:
            return Header(name)
        if name:
            return imported("plan", value)  # type: ignore[return-value]
    raise SettingsError("plan", value, "'header:NAME', a function of the facts of a request, or None")


def _networks(name: str, value: Collection[str]) -> Networks:
    if isinstance(value, str):
        value = [value]
    return Networks(value, field=name)
