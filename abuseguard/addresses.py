"""The client's address, found behind trusted proxies, and the bucket key made of it.

Every proxy appends the address it was called from to a header: ``X-Forwarded-For``, or ``Forwarded`` (RFC 7239).
A client can write anything into that header before the first proxy sees it, so only what our own proxies wrote
can be believed, and that is the right-hand end. The walk therefore starts at the connection's peer and goes left
while the hop it stands on is a trusted proxy. The first hop that is not trusted is the client.

Four rules keep a client from choosing its bucket, or escaping from one:

- The header is read from the right, also inside quoted strings: an unbalanced quote that a client sent cannot
  swallow what a proxy appended to it.
- An entry that is not an address (garbage, nothing, ``unknown``, ``_hidden``) ends the walk at the hop that reported
  it, which is a trusted proxy's own address: never at something further left, and never at no address.
- One header is read and the other ignored. A proxy that maintains one of them passes on the other as the client
  wrote it.
- Work and memory are bounded whatever is sent: the right-most 2048 characters and 32 entries are looked at, and the
  results are kept in caches of fixed size.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from abuseguard.errors import SettingsError
from abuseguard.networks import Address, Networks, parse_network, unmapped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

MAX_HOPS: Final = 32
_MAX_CHARACTERS: Final = 2048
_MAX_ADDRESS_CHARACTERS: Final = 80
_CACHED_PEERS: Final = 8192
_CACHED_CHAINS: Final = 2048

_UNIX: Final = "unix"
_WITH_PORT: Final = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def address_key(address: Address, *, ipv6_prefix: int = 64, ipv4_prefix: int = 32) -> str:
    """The bucket key of an address: the address itself, or the network that one subscriber is given as a whole.

    An IPv6 subscriber has at least a /64 (RFC 6177, RFC 7421) and can use a new address for each request.

    >>> address_key(ipaddress.ip_address("203.0.113.9"))
    '203.0.113.9'
    >>> address_key(ipaddress.ip_address("2001:db8:1:2:3:4:5:6"))
    '2001:db8:1:2::/64'
    """
    address = unmapped(address)
    prefix = ipv4_prefix if isinstance(address, IPv4Address) else ipv6_prefix
    shift = address.max_prefixlen - prefix
    if shift == 0:
        return str(address)
    return f"{type(address)(int(address) >> shift << shift)}/{prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProxies:
    """Which hops in front of this server may be believed about the hop before them.

    Args:
        networks: where our proxies are.
        unix_socket: whether a peer without an address, on a Unix socket, is a proxy of ours.
        hops: how many proxies of ours every request passes, whatever their addresses; the peer is the first. Only safe
            where the server cannot be reached around them.
    """

    networks: Networks = field(default_factory=Networks)
    unix_socket: bool = False
    hops: int = 0

    @classmethod
    def parse(cls, setting: int | Collection[str], *, field: str = "trusted_proxies") -> TrustedProxies:
        """The trusted proxies of a setting: a hop count, or networks, where ``"unix"`` means a Unix socket's peer.

        Raises:
            SettingsError: for anything else; names the item.

        >>> TrustedProxies.parse(["10.0.0.0/8", "unix"])
        TrustedProxies(networks=Networks(['10.0.0.0/8']), unix_socket=True, hops=0)
        """
        if isinstance(setting, int) and not isinstance(setting, bool):
            if not 0 <= setting <= MAX_HOPS:
                raise SettingsError(field, setting, f"a number of proxies from 0 to {MAX_HOPS}")
            return cls(hops=setting)
        if not isinstance(setting, list | tuple | set | frozenset):
            allowed = 'a list of networks, such as ["10.0.0.0/8", "unix"], or a number of proxies, such as 1'
            raise SettingsError(field, setting, allowed)
        items = [(f"{field}[{index}]", item) for index, item in enumerate(setting)]
        networks = [parse_network(item, field=name) for name, item in items if item != _UNIX]
        return cls(networks=Networks(networks), unix_socket=len(networks) < len(items))

    def __bool__(self) -> bool:
        return bool(self.hops or self.networks or self.unix_socket)

    def client(self, peer: str | None, entries: Iterable[str]) -> Address | None:
        """The client's address: the right-most that is not a trusted proxy's.

        Args:
            peer: the connection's other end; None, ``""`` and ``unix:...`` mean a Unix socket.
            entries: what the proxies reported, right-most first.

        >>> proxies = TrustedProxies.parse(["10.0.0.0/8"])
        >>> proxies.client("10.0.0.2", ["10.0.0.1", "203.0.113.9", "192.0.2.66"])
        IPv4Address('203.0.113.9')
        >>> proxies.client("198.51.100.7", ["203.0.113.9"])   # not our proxy: what it reports is not believed
        IPv4Address('198.51.100.7')
        >>> proxies.client("10.0.0.2", ["10.0.0.1", "garbage", "203.0.113.9"])
        IPv4Address('10.0.0.1')
        """
        hop = _hop(peer or _UNIX)
        nearest = None if hop == _UNIX else hop
        # A hop count believes the peer whatever it is called, such as the "testclient" of a test client.
        if self.hops == 0 and not self._trusts(hop):
            return nearest
        for distance, entry in enumerate(entries, start=1):
            hop = _hop(entry)
            if hop is None:
                break
            if hop != _UNIX:
                nearest = hop
            if distance >= self.hops and not self._trusts(hop):
                break
        return nearest

    def _trusts(self, hop: Address | Literal["unix"] | None) -> bool:
        return self.unix_socket if hop == _UNIX else self.networks.contains(hop)


class ClientAddresses:
    """Finds whose request it is by address: one cached lookup for a peer, one for a peer and what proxies reported.

    Args:
        trusted_proxies: networks of our own proxies (``"unix"`` for a Unix socket's peer), or how many of them every
            request passes. None by default, so that no header is believed.
        header: which header our proxies maintain, ``"x-forwarded-for"`` or ``"forwarded"``. The other is ignored.
        ipv6_prefix: how many bits of an IPv6 address tell clients apart, 1 to 128.
        ipv4_prefix: the same for IPv4, 1 to 32.

    Raises:
        SettingsError: a setting is wrong; names it.

    >>> addresses = ClientAddresses(trusted_proxies=["10.0.0.0/8"])
    >>> addresses.key("10.0.0.2", ["192.0.2.66, 2001:db8:1:2:3:4:5:6"])
    '2001:db8:1:2::/64'
    >>> addresses.ip("203.0.113.9", ["192.0.2.66"])
    IPv4Address('203.0.113.9')
    >>> print(addresses.key(None))
    None
    """

    __slots__ = ("_of_chain", "_of_peer", "_trusted", "header", "ipv4_prefix", "ipv6_prefix", "needs_headers")

    def __init__(
        self,
        *,
        trusted_proxies: int | Collection[str] = (),
        header: str = "x-forwarded-for",
        ipv6_prefix: int = 64,
        ipv4_prefix: int = 32,
    ) -> None:
        self._trusted = TrustedProxies.parse(trusted_proxies)
        self.header = _checked_header(header)
        self.ipv6_prefix = _checked_prefix("ipv6_prefix", ipv6_prefix, most=128)
        self.ipv4_prefix = _checked_prefix("ipv4_prefix", ipv4_prefix, most=32)
        #: Whether any header matters: if not, callers need not look for it.
        self.needs_headers = bool(self._trusted)
        self._of_peer = lru_cache(maxsize=_CACHED_PEERS)(self._find)
        self._of_chain = lru_cache(maxsize=_CACHED_CHAINS)(self._find)

    def key(self, peer: str | None, values: Sequence[str] = ()) -> str | None:
        """The bucket key of the client's address; None where there is no address at all.

        Args:
            peer: the connection's other end as the server names it, without a port.
            values: the values of the fields named ``header``, in the order received; one field or several is the same.
        """
        return self._client(peer, values)[1]

    def ip(self, peer: str | None, values: Sequence[str] = ()) -> Address | None:
        """The client's address itself, for telling whether it is in some ``Networks``; arguments as for ``key``."""
        return self._client(peer, values)[0]

    def _client(self, peer: str | None, values: Sequence[str]) -> tuple[Address | None, str | None]:
        # Servers that rewrite the peer from a header may pass on anything; what is cached has to be small.
        if peer and len(peer) > _MAX_ADDRESS_CHARACTERS:
            peer = "too long"
        if values and self.needs_headers:
            return self._of_chain(peer, _tail(values))
        return self._of_peer(peer)

    def _find(self, peer: str | None, tail: str | None = None) -> tuple[Address | None, str | None]:
        entries: Iterator[str] = iter(())
        if tail is not None:
            entries = _forwarded(tail) if self.header == "forwarded" else _from_right(tail, ",", quoting=False)
        address = self._trusted.client(peer, islice(entries, MAX_HOPS))
        if address is None:
            return None, None
        return address, address_key(address, ipv6_prefix=self.ipv6_prefix, ipv4_prefix=self.ipv4_prefix)


def _checked_header(value: object) -> str:
    if not isinstance(value, str) or value.lower() not in ("x-forwarded-for", "forwarded"):
        raise SettingsError("header", value, '"x-forwarded-for" or "forwarded"')
    return value.lower()


def _checked_prefix(field: str, value: object, *, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise SettingsError(field, value, f"a whole number from 1 to {most}")
    return value


def _tail(values: Sequence[str]) -> str:
    """The fields as one list, without what lies too far left to matter; one character too many if it was cut."""
    if len(values) == 1 and len(values[0]) <= _MAX_CHARACTERS:
        return values[0]
    return ",".join([value[-_MAX_CHARACTERS - 1 :] for value in values[-MAX_HOPS:]])[-_MAX_CHARACTERS - 1 :]


def _from_right(text: str, separator: str, *, quoting: bool) -> Iterator[str]:
    """The items of a list, last one first, each without the blanks around it.

    Inside a quoted string, a separator is text, and so is a quote behind an odd number of backslashes (RFC 9110,
    section 5.6.4). Of a text that was cut the left-most item is not whole, and is left out.
    """
    end = len(text)
    inside = False
    marks = list(re.finditer(rf'\\+"?|"|{separator}' if quoting else separator, text))
    for mark in reversed(marks):
        if mark[0] == separator:
            if not inside:
                yield text[mark.end() : end].strip(" \t")
                end = mark.start()
        elif mark[0].endswith('"'):
            inside = not inside or len(mark[0]) % 2 == 0
    if len(text) <= _MAX_CHARACTERS:
        yield text[:end].strip(" \t")


def _forwarded(text: str) -> Iterator[str]:
    r"""The nodes that a ``Forwarded`` field names as clients (``for=``), last one first; ``""`` where it names none.

    >>> list(_forwarded('for=_hidden, For="[2001:db8::1]:4711";proto=https;by="a,b;c\\"", proto=http'))
    ['', '[2001:db8::1]:4711', '_hidden']
    """
    for element in _from_right(text, ",", quoting=True):
        nodes = []
        for pair in _from_right(element, ";", quoting=True):
            name, _, value = pair.partition("=")
            if name.rstrip(" \t").lower() == "for":
                nodes.append(value.lstrip(" \t"))
        node = nodes[0] if len(nodes) == 1 else ""
        if len(node) >= 2 and node[0] == node[-1] == '"':
            node = _ESCAPED.sub(r"\1", node[1:-1])
        yield node


def _hop(text: str) -> Address | Literal["unix"] | None:
    """What a proxy reported, or a server calls its peer: an address, a Unix socket, or neither."""
    if len(text) > _MAX_ADDRESS_CHARACTERS:
        return None
    with_port = _WITH_PORT.fullmatch(text)
    try:
        return unmapped(ipaddress.ip_address(with_port[1] or with_port[2] if with_port else text))
    except ValueError:
        return _UNIX if text == _UNIX or text.startswith(f"{_UNIX}:") else None
