from __future__ import annotations

import gc
import ipaddress
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abuseguard.addresses import MAX_HOPS, ClientAddresses, TrustedProxies, address_key
from abuseguard.errors import SettingsError
from abuseguard.networks import Networks

PROXY = "10.0.0.2"
CLIENT = "203.0.113.9"
HEADERS = ("x-forwarded-for", "forwarded")
IPV4 = st.ip_addresses(v=4)
# Everything that matters to either grammar, in any arrangement, and anything else.
HEADER_TEXT = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            [*',;="\\[]: \t', "for", "For=", 'for="', "unix:", "10.0.0.2", "10.0.0.9", "192.0.2.66", "::1", "_x"]
        )
    ).map("".join),
    st.binary().map(lambda raw: raw.decode("latin-1")),
)


def behind(*proxies: str, header: str = "x-forwarded-for") -> ClientAddresses:
    return ClientAddresses(trusted_proxies=proxies, header=header)


def reported(address: str, header: str) -> str:
    """What a proxy writes for a client, in the header's own notation."""
    if header == "x-forwarded-for":
        return address
    return f'for="[{address}]:4711";proto=https' if ":" in address else f"for={address}"


# -- without trusted proxies


def test_headers_are_not_believed_by_default() -> None:
    addresses = ClientAddresses()
    assert not addresses.needs_headers
    assert addresses.key(CLIENT, ["192.0.2.66"]) == CLIENT
    assert addresses.ip(CLIENT, ["192.0.2.66"]) == ipaddress.ip_address(CLIENT)


@pytest.mark.parametrize(
    "peer", [None, "", "unix", "unix:", "unix:/run/app.sock", "testclient", "localhost", "x" * 10**6]
)
def test_no_address_at_all(peer) -> None:
    addresses = ClientAddresses()
    assert addresses.key(peer, [CLIENT]) is None
    assert addresses.ip(peer, [CLIENT]) is None


def test_an_untrusted_peer_is_the_client_whatever_it_reports() -> None:
    assert behind(PROXY).key("198.51.100.7", [f"{CLIENT}"]) == "198.51.100.7"


# -- networks


@pytest.mark.parametrize("header", HEADERS)
def test_the_right_most_untrusted_wins(header) -> None:
    addresses = behind("10.0.0.0/8", "2001:db8:ffff::/48", header=header)
    chain = ["192.0.2.66", CLIENT, "10.3.0.1", "2001:db8:ffff::7"]
    assert addresses.key(PROXY, [", ".join(reported(hop, header) for hop in chain)]) == CLIENT


@pytest.mark.parametrize("header", HEADERS)
def test_a_chain_of_trusted_hops_only_ends_at_the_left_most(header) -> None:
    addresses = behind("10.0.0.0/8", header=header)
    assert addresses.key(PROXY, [", ".join(reported(hop, header) for hop in ("10.0.0.4", "10.0.0.3"))]) == "10.0.0.4"
    assert addresses.key(PROXY, []) == PROXY


@pytest.mark.parametrize(
    "garbage", ["", " ", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "01.2.3.4", "for=", "::1::", "é", "\x00"]
)
def test_a_malformed_entry_ends_the_walk_at_the_hop_that_reported_it(garbage) -> None:
    addresses = behind("10.0.0.0/8")
    assert addresses.key(PROXY, [f"{CLIENT}, {garbage}, 10.0.0.3"]) == "10.0.0.3"
    assert addresses.key(PROXY, [f"{CLIENT}, {garbage}"]) == PROXY


def test_only_the_chosen_header_is_read() -> None:
    assert behind(PROXY).header == "x-forwarded-for"
    assert ClientAddresses(header="Forwarded").header == "forwarded"
    assert behind(PROXY).key(PROXY, [f"for={CLIENT}"]) == PROXY
    assert behind(PROXY, header="forwarded").key(PROXY, [CLIENT]) == PROXY


@pytest.mark.parametrize("peer", [None, "", "unix:/run/app.sock"])
def test_a_trusted_unix_socket(peer) -> None:
    addresses = behind("unix")
    assert addresses.needs_headers
    assert addresses.key(peer, [f"192.0.2.66, {CLIENT}"]) == CLIENT
    assert addresses.key(peer, ["garbage"]) is None
    assert addresses.key(peer) is None
    assert behind(PROXY).key(peer, [CLIENT]) is None
    # A name that is not an address is not a Unix socket.
    assert addresses.key("testclient", [CLIENT]) is None


def test_a_unix_socket_between_two_proxies() -> None:
    assert behind(PROXY, "unix").key(PROXY, [f"192.0.2.66, {CLIENT}, unix:"]) == CLIENT
    assert behind(PROXY).key(PROXY, [f"192.0.2.66, {CLIENT}, unix:"]) == PROXY


# -- hop counts


@pytest.mark.parametrize(
    ("hops", "expected"),
    [(0, PROXY), (1, "198.51.100.3"), (2, "198.51.100.2"), (3, "198.51.100.1"), (4, "198.51.100.1")],
)
def test_hop_counts(hops, expected) -> None:
    addresses = ClientAddresses(trusted_proxies=hops)
    assert addresses.needs_headers is (hops > 0)
    assert addresses.key(PROXY, ["198.51.100.1, 198.51.100.2, 198.51.100.3"]) == expected


def test_hop_counts_stop_at_garbage_and_do_not_need_a_peer_with_an_address() -> None:
    addresses = ClientAddresses(trusted_proxies=2)
    assert addresses.key(PROXY, [f"{CLIENT}, garbage"]) == PROXY
    assert addresses.key(PROXY, [f"{CLIENT}, garbage, 198.51.100.3"]) == "198.51.100.3"
    assert addresses.key("testclient", [f"{CLIENT}, 198.51.100.3"]) == CLIENT
    assert addresses.key(None, [f"{CLIENT}, 198.51.100.3"]) == CLIENT
    assert addresses.key(None, ["garbage"]) is None


# -- what an attacker can do


@pytest.mark.parametrize("trusted", [(PROXY,), 1])
@pytest.mark.parametrize("header", HEADERS)
@given(
    spoofed=st.lists(HEADER_TEXT, max_size=4),
    client=st.one_of(IPV4, st.ip_addresses(v=6)).map(str).filter(lambda text: text != PROXY),
    same_field=st.booleans(),
)
@example(spoofed=['for="'], client=CLIENT, same_field=True)
@example(spoofed=['for="\\'], client=CLIENT, same_field=True)
@example(spoofed=[","], client=CLIENT, same_field=True)
@example(spoofed=["x" * 1_000_000], client=CLIENT, same_field=True)
@example(spoofed=["1.2.3.4," * 100_000], client=CLIENT, same_field=False)
def test_what_a_client_sends_never_changes_its_key(trusted, header, spoofed, client, same_field) -> None:
    addresses = ClientAddresses(trusted_proxies=trusted, header=header)
    honest = addresses.key(PROXY, [reported(client, header)])
    appended = reported(client, header)
    if same_field and spoofed:
        values = [*spoofed[:-1], f"{spoofed[-1]}, {appended}"]
    else:
        values = [*spoofed, appended]
    assert honest == address_key(ipaddress.ip_address(client))
    assert addresses.key(PROXY, values) == honest


@pytest.mark.parametrize("trusted", [(PROXY, "10.0.0.0/8"), ("unix",), (), 1, 3, MAX_HOPS])
@pytest.mark.parametrize("header", HEADERS)
@given(peer=st.one_of(st.none(), st.just(PROXY), st.text()), values=st.lists(HEADER_TEXT))
def test_any_text_gives_an_address_or_none(trusted, header, peer, values) -> None:
    addresses = ClientAddresses(trusted_proxies=trusted, header=header)
    key = addresses.key(peer, values)
    assert (key is None) is (addresses.ip(peer, values) is None)
    if peer == PROXY:
        assert key is not None


@pytest.mark.parametrize("header", HEADERS)
@given(values=st.lists(HEADER_TEXT, min_size=1))
def test_several_fields_are_one_field(header, values) -> None:
    addresses = behind("10.0.0.0/8", header=header)
    assert addresses.key(PROXY, values) == addresses.key(PROXY, [",".join(values)])


@pytest.mark.parametrize("header", HEADERS)
def test_a_list_longer_than_is_looked_at_ends_at_a_trusted_hop(header) -> None:
    addresses = behind("10.0.0.0/8", header=header)
    hops = [CLIENT, *[reported("10.0.0.3", header)] * (MAX_HOPS + 1)]
    assert addresses.key(PROXY, [",".join(hops)]) == "10.0.0.3"
    fields = [reported("192.0.2.66", header)] * (MAX_HOPS + 1)
    assert addresses.key(PROXY, [*fields, reported(CLIENT, header)]) == CLIENT


@pytest.mark.parametrize(("header", "start"), [("x-forwarded-for", ""), ("forwarded", "for=")])
def test_an_entry_is_not_read_in_part(header, start) -> None:
    # The right-most 2049 characters are "3.0.113.9" and blanks.
    cut = f"{start}3.0.113.9".ljust(2049)
    addresses = behind(PROXY, header=header)
    assert addresses.key(PROXY, [f"20{cut}"]) == PROXY
    assert addresses.key(PROXY, [cut[:2048]]) == "3.0.113.9"


@pytest.mark.parametrize("trusted", [(), (PROXY,)])
def test_large_texts_are_not_kept(trusted) -> None:
    addresses = ClientAddresses(trusted_proxies=trusted)
    peer, value = "9" * 1_000_000, "1" * 1_000_000
    kept = sys.getrefcount(peer), sys.getrefcount(value)
    addresses.key(peer, [value])
    addresses.key(PROXY, [value])
    assert (sys.getrefcount(peer), sys.getrefcount(value)) == kept


def test_what_an_attacker_varies_is_not_kept() -> None:
    addresses = behind(PROXY)

    def kept_bytes() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    for number in range(12_000):
        addresses.key(PROXY, [f"{number}, {CLIENT}"])
        addresses.key(f"198.51.{number >> 8}.{number & 255}")
    before = kept_bytes()
    for number in range(12_000, 24_000):
        addresses.key(PROXY, [f"{number}, {CLIENT}"])
        addresses.key(f"198.51.{number >> 8}.{number & 255}")
    assert kept_bytes() - before < 6_000


# -- notations


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("203.0.113.9", CLIENT),
        (" \t203.0.113.9 ", CLIENT),
        ("203.0.113.9:4711", CLIENT),
        ("203.0.113.9:_port", CLIENT),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:4711", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2:0:0:0:9", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", CLIENT),
        ("[::ffff:203.0.113.9]:4711", CLIENT),
        ("fe80::1%eth0", "fe80::/64"),
        ("203.0.113.9:", PROXY),
        ("203.0.113.9:123456", PROXY),
        ("[203.0.113.9]", PROXY),
        ("203.0.113.9%eth0", PROXY),
        ("[2001:db8::9", PROXY),
        ("٢٠٣.0.113.9", PROXY),
        ("203.0.113.0/24", PROXY),
        ("3405803785", PROXY),
    ],
)
def test_notations_of_an_address(text, key) -> None:
    assert behind(PROXY).key(PROXY, [text]) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("for=203.0.113.9", CLIENT),
        ("FOR=203.0.113.9;proto=https", CLIENT),
        (' proto=http ; by="[::1]" ; For = "203.0.113.9:80" ', CLIENT),
        ('for="[2001:db8:1:2::9]:4711"', "2001:db8:1:2::/64"),
        ("for=[2001:db8:1:2::9]:4711", "2001:db8:1:2::/64"),
        (r'for="203\.0.113.9"', CLIENT),
        ('for=192.0.2.66, for=203.0.113.9;host="a, for=192.0.2.67"', CLIENT),
        ('host="x\\", for=192.0.2.67";for=203.0.113.9', CLIENT),
        ('for=203.0.113.9;host="x\\\\"', CLIENT),
        ('host="a, for=192.0.2.67\\"";for=203.0.113.9', CLIENT),
        ('for=203.0.113.9;host="x;for=192.0.2.67"', CLIENT),
        ("for=unknown", PROXY),
        ("for=_hidden", PROXY),
        ("for=203.0.113.9;for=192.0.2.66", PROXY),
        ("for=203.0.113.9, proto=https", PROXY),
        ('for="203.0.113.9', PROXY),
        ("by=203.0.113.9", PROXY),
        ("for", PROXY),
        ("", PROXY),
    ],
)
def test_notations_of_forwarded(text, key) -> None:
    assert behind(PROXY, header="forwarded").key(PROXY, [text]) == key


# -- keys


@given(IPV4)
def test_mapped_ipv4_has_the_key_of_ipv4(address) -> None:
    assert address_key(ipaddress.ip_address(f"::ffff:{address}")) == str(address)
    assert ClientAddresses().key(f"::ffff:{address}") == ClientAddresses().key(str(address)) == str(address)
    assert behind(f"::ffff:{address}").key(str(address), [CLIENT]) == CLIENT
    assert behind(str(address)).key(f"::ffff:{address}", [CLIENT]) == CLIENT


@given(st.ip_addresses(v=6), st.integers(1, 128), st.data())
def test_addresses_share_a_key_exactly_within_their_prefix(address, prefix, data) -> None:
    bit = data.draw(st.integers(0, 127))
    other = ipaddress.IPv6Address(int(address) ^ (1 << (127 - bit)))
    if address.ipv4_mapped is None and other.ipv4_mapped is None:
        same = address_key(address, ipv6_prefix=prefix) == address_key(other, ipv6_prefix=prefix)
        assert same is (bit >= prefix)


def test_prefixes() -> None:
    addresses = ClientAddresses(ipv6_prefix=48, ipv4_prefix=24)
    assert addresses.key("2001:db8:1:2::9") == "2001:db8:1::/48"
    assert addresses.key(CLIENT) == "203.0.113.0/24"
    assert ClientAddresses(ipv6_prefix=128).key("2001:db8::9") == "2001:db8::9"


# -- settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"trusted_proxies": "10.0.0.0/8"}, "trusted_proxies"),
        ({"trusted_proxies": b"unix"}, "trusted_proxies"),
        ({"trusted_proxies": None}, "trusted_proxies"),
        ({"trusted_proxies": True}, "trusted_proxies"),
        ({"trusted_proxies": 1.0}, "trusted_proxies"),
        ({"trusted_proxies": -1}, "trusted_proxies"),
        ({"trusted_proxies": MAX_HOPS + 1}, "trusted_proxies"),
        ({"trusted_proxies": {"10.0.0.0/8": 1}}, "trusted_proxies"),
        ({"trusted_proxies": ["unix", "10.0.0.1/8"]}, "trusted_proxies[1]"),
        ({"trusted_proxies": ["*"]}, "trusted_proxies[0]"),
        ({"trusted_proxies": [1]}, "trusted_proxies[0]"),
        ({"trusted_proxies": [None]}, "trusted_proxies[0]"),
        ({"trusted_proxies": [["10.0.0.0/8"]]}, "trusted_proxies[0]"),
        ({"header": "x-real-ip"}, "header"),
        ({"header": None}, "header"),
        ({"header": b"forwarded"}, "header"),
        ({"header": ["forwarded"]}, "header"),
        ({"ipv6_prefix": 0}, "ipv6_prefix"),
        ({"ipv6_prefix": 129}, "ipv6_prefix"),
        ({"ipv6_prefix": "64"}, "ipv6_prefix"),
        ({"ipv6_prefix": True}, "ipv6_prefix"),
        ({"ipv6_prefix": None}, "ipv6_prefix"),
        ({"ipv4_prefix": 33}, "ipv4_prefix"),
        ({"ipv4_prefix": 24.0}, "ipv4_prefix"),
    ],
)
def test_wrong_settings_are_named(settings, field) -> None:
    with pytest.raises(SettingsError) as caught:
        ClientAddresses(**settings)
    assert caught.value.field == field


def test_trusted_proxies_are_a_value() -> None:
    assert TrustedProxies.parse(["unix", "10.0.0.0/8"]) == TrustedProxies(
        networks=Networks(["10.0.0.0/8"]), unix_socket=True
    )
    assert TrustedProxies.parse(2) == TrustedProxies(hops=2)
    assert not TrustedProxies.parse([])
    assert not TrustedProxies.parse(0)
    assert TrustedProxies.parse(["unix"])
