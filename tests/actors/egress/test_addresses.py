"""Which addresses may be reached."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.egress import names
from actors.egress.addresses import is_own, standing
from tests.internet import Internet

NEVER = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "169.254.169.254": "link local",
    "224.0.0.1": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "168.63.129.16": "metadata",
    "100.100.100.200": "metadata",
    "192.0.0.192": "metadata",
    "::": "unspecified",
    "::1": "loopback",
    "fe80::1": "link local",
    "ff02::1": "multicast",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "100::1": "reserved",
    "4000::1": "reserved",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "link local",
    "::127.0.0.1": "loopback",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link local",
    "2002:7f00:1::1": "loopback",
    "2002:a9fe:a9fe::": "link local",
    "2001:0:7f00:1::": "loopback",  # a Teredo server
    "2001:0:808:808::80ff:fffe": "loopback",  # a Teredo client, whose bits are turned
    "2a00::5efe:7f00:1": "loopback",  # ISATAP
    "2a00::200:5efe:a9fe:a9fe": "link local",
}
LISTED = {
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "shared",
    "192.0.2.1": "documentation",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "198.18.0.1": "benchmarking",
    "192.0.0.1": "special",
    "192.88.99.1": "special",
    "fc00::1": "private",
    "fd12::1": "private",
    "fec0::1": "private",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "64:ff9b:1::1": "special",
    "::ffff:10.0.0.1": "private",
    "::10.0.0.1": "private",
    "64:ff9b::a00:1": "private",
    "2002:a00:1::": "private",
    "2a00::5efe:c0a8:1": "private",
}
PUBLIC = ["8.8.8.8", "44.128.0.2", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", NEVER)
def test_these_are_never_reached(address: str) -> None:
    assert standing(ip_address(address)) == ("never", NEVER[address])


@pytest.mark.parametrize("address", LISTED)
def test_these_are_reached_where_they_are_listed(address: str) -> None:
    assert standing(ip_address(address)) == ("listed", LISTED[address])


@pytest.mark.parametrize("address", PUBLIC)
def test_these_are_reached(address: str) -> None:
    assert standing(ip_address(address)) == ("public", "")


@settings(deadline=None)  # of a machine that others keep busy
@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_what_the_standard_library_holds_for_special_is_not_public(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert standing(address)[0] != "public"


@settings(deadline=None)  # of a machine that others keep busy
@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_address_inside_another_counts_as_what_it_is(address: IPv4Address) -> None:
    rank = ["public", "listed", "never"]
    plain = rank.index(standing(address)[0])
    number = int(address)
    for wrapped in (
        (0xFFFF << 32) | number,
        (0x64FF9B << 96) | number,
        (0x2002 << 112) | (number << 80),
        (0x20010000 << 96) | (number << 64),
        (0x20010000 << 96) | (number ^ 0xFFFFFFFF),
        (0x2A00 << 112) | (0x5EFE << 32) | number,
    ):
        assert rank.index(standing(IPv6Address(wrapped))[0]) >= plain


def test_the_hosts_own_addresses_are_known() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("8.8.8.8"))
    assert not is_own(ip_address("255.255.255.255"))


def test_an_address_of_this_host_is_its_own_in_other_clothes_too(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(10, 1, 6, "", (f"::ffff:{internet.own}", 0, 0, 0))]

    monkeypatch.setattr("actors.egress.names.socket.getaddrinfo", mapped)
    (address,) = names._look_up("rebind.example.com")
    assert str(address) == internet.own
    assert is_own(address)
    assert is_own(ip_address(f"::ffff:{internet.own}"))


def test_where_it_can_not_be_told_an_address_counts_as_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_descriptors(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr("actors.egress.addresses.socket.socket", out_of_descriptors)
    assert is_own(ip_address("9.9.9.9"))
