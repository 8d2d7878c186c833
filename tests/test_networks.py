from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abuseguard.errors import SettingsError
from abuseguard.networks import Networks, parse_network, unmapped

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def as_networks(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> st.SearchStrategy[object]:
    return st.integers(0, address.max_prefixlen).map(
        lambda prefix: ipaddress.ip_network((int(address), prefix), strict=False)
    )


@given(st.lists(ADDRESSES.flatmap(as_networks), max_size=8), ADDRESSES)
def test_contains_agrees_with_asking_each_network(networks, address) -> None:
    address = unmapped(address)
    expected = any(address in parse_network(network, field="x") for network in networks)
    assert Networks(networks).contains(address) is expected


@given(ADDRESSES.flatmap(as_networks), st.data())
def test_a_network_contains_its_own_addresses(network, data) -> None:
    inside = network[data.draw(st.integers(0, network.num_addresses - 1))]
    if not (network.version == 6 and network.prefixlen < 96 and unmapped(inside).version == 4):
        assert Networks([str(network)]).contains(inside)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_mapped_and_plain_ipv4_are_the_same(address, prefix) -> None:
    plain = ipaddress.ip_network((int(address), prefix), strict=False)
    mapped = f"::ffff:{plain.network_address}/{96 + prefix}"
    assert Networks([mapped]) == Networks([plain])
    assert Networks([plain]).contains(ipaddress.ip_address(f"::ffff:{address}"))


def test_zones_are_ignored_in_addresses_and_refused_in_networks() -> None:
    assert Networks(["fe80::/10"]).contains(ipaddress.ip_address("fe80::1%eth0"))
    with pytest.raises(SettingsError, match=r"networks\[0\]: got 'fe80::%eth0/10'"):
        Networks(["fe80::%eth0/10"])


def test_empty_set_and_no_address() -> None:
    assert not Networks()
    assert not Networks().contains(ipaddress.ip_address("::1"))
    assert not Networks(["0.0.0.0/0", "::/0"]).contains(None)
    assert len(Networks(["::1", "::1/128"])) == 1


def test_equal_sets_are_equal_and_hash_alike() -> None:
    one, other = Networks(["10.0.0.0/8", "::1"]), Networks(("::1/128", "10.0.0.0/8"))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Networks(["::1"])
    assert one != {"::1"}
    assert repr(one) == "Networks(['10.0.0.0/8', '::1/128'])"


@pytest.mark.parametrize("wrong", ["10.0.0.0/8", b"10.0.0.0/8", None, 5, {"10.0.0.0/8": True}, object(), 1.5])
def test_not_a_list(wrong) -> None:
    with pytest.raises(SettingsError, match=r"exempt: got .*expected a list of networks"):
        Networks(wrong, field="exempt")


@pytest.mark.parametrize(
    "wrong",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "",
        "unix",
        "*",
        "localhost",
        5,
        True,
        None,
        b"\x0a\x00\x00\x00",
        ("10.0.0.0", 8),
        [],
    ],
)
def test_not_a_network(wrong) -> None:
    with pytest.raises(SettingsError) as caught:
        Networks(["::1", wrong], field="exempt")
    assert caught.value.field == "exempt[1]"
    assert caught.value.value == wrong
