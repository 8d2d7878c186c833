"""Sets of IP networks, asked at run time whether they contain an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from abuseguard.errors import SettingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# ::ffff:0:0/96, the IPv4-mapped addresses (RFC 4291, section 2.5.5.2).
_MAPPED_PREFIX = 96
_MAPPED_BASE = 0xFFFF << 32


def unmapped(address: Address) -> Address:
    """The same host in its plainest form: IPv4-mapped IPv6 as IPv4, and without a zone.

    A server that listens on ``::`` reports IPv4 clients as ``::ffff:203.0.113.9``; without this the same client
    would have two buckets, and networks written in IPv4 would not match.

    >>> unmapped(IPv6Address("::ffff:203.0.113.9")), unmapped(IPv6Address("fe80::1%eth0"))
    (IPv4Address('203.0.113.9'), IPv6Address('fe80::1'))
    """
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or (IPv6Address(int(address)) if address.scope_id else address)


def parse_network(item: object, *, field: str) -> Network:
    """The network that a setting's item means: text or an ``ipaddress`` object, an address standing for itself.

    Raises:
        SettingsError: for anything else, with this field; also for host bits that are set, since ``"10.1.2.3/8"`` is
            more often a slip than a wish.

    >>> parse_network("::ffff:10.0.0.0/104", field="networks[0]")
    IPv4Network('10.0.0.0/8')
    """
    wrong = SettingsError(
        field, item, 'a network without host bits, such as "10.0.0.0/8", or an address, such as "::1"'
    )
    # ip_network also takes integers, packed bytes and pairs; in a list of networks those are slips. A zone would be
    # ignored, and so mean more than was written.
    if not isinstance(item, str | IPv4Address | IPv6Address | IPv4Network | IPv6Network) or "%" in str(item):
        raise wrong
    try:
        network = ipaddress.ip_network(item)
    except ValueError:
        raise wrong from None
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        base = int(network.network_address) - _MAPPED_BASE
        if 0 <= base < 1 << 32:
            return IPv4Network((base, network.prefixlen - _MAPPED_PREFIX))
    return network


class Networks:
    """A set of IP networks that is asked whether it contains an address, in time that depends on the number of
    different prefix lengths only: a cloud provider's list of thousands costs as much as a handful.

    Args:
        networks: what ``parse_network`` takes.
        field: the setting's name, for errors.

    Raises:
        SettingsError: names the item that is wrong.

    >>> private = Networks(["10.0.0.0/8", "::1"])
    >>> private.contains(IPv4Address("10.1.2.3")), private.contains(IPv6Address("::ffff:10.1.2.3"))
    (True, True)
    >>> private.contains(IPv6Address("2001:db8::1")), private.contains(None)
    (False, False)
    """

    __slots__ = ("_networks", "_v4", "_v6")

    def __init__(self, networks: Collection[str | Address | Network] = (), *, field: str = "networks") -> None:
        if isinstance(networks, str | bytes | bytearray | Mapping) or not isinstance(networks, Collection):
            raise SettingsError(field, networks, 'a list of networks, such as ["10.0.0.0/8", "::1"]')
        parsed = [parse_network(item, field=f"{field}[{index}]") for index, item in enumerate(networks)]
        self._networks = frozenset(parsed)
        self._v4 = _by_shift(network for network in parsed if isinstance(network, IPv4Network))
        self._v6 = _by_shift(network for network in parsed if isinstance(network, IPv6Network))

    def contains(self, address: Address | None) -> bool:
        """Whether one of the networks contains the address; no address is in no network."""
        if address is None:
            return False
        address = unmapped(address)
        number = int(address)
        for shift, prefixes in self._v4 if isinstance(address, IPv4Address) else self._v6:
            if number >> shift in prefixes:
                return True
        return False

    def __len__(self) -> int:
        return len(self._networks)

    def __eq__(self, other: object) -> bool:
        return self._networks == other._networks if isinstance(other, Networks) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._networks)

    def __repr__(self) -> str:
        return f"Networks({sorted(str(network) for network in self._networks)})"


def _by_shift(networks: Iterable[Network]) -> tuple[tuple[int, frozenset[int]], ...]:
    prefixes: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        prefixes.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(numbers)) for shift, numbers in prefixes.items())
