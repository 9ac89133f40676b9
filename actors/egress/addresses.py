"""Which addresses a guest may reach, by what they are, whoever's name led to them.

By the special-purpose registries of IANA (RFC 6890 and its successors) and the metadata addresses of the large clouds.
An IPv4 address inside an IPv6 one counts as what it is.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Standing = Literal["public", "listed", "never"]
"""`listed`: reachable where an administrator listed a network that has it. `never`: not even then."""

_DISCARD_PORT = 9
_NO_WAY = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES))


def _networks(**named: str) -> tuple[tuple[Network, str], ...]:
    return tuple((ip_network(text), name.replace("_", " ")) for name, texts in named.items() for text in texts.split())


_NEVER = _networks(
    unspecified="0.0.0.0/8 ::/128",
    loopback="127.0.0.0/8 ::1/128",
    link_local="169.254.0.0/16 fe80::/10",
    multicast="224.0.0.0/4 ff00::/8",
    reserved="240.0.0.0/4",
    metadata="168.63.129.16/32 100.100.100.200/32 192.0.0.192/32 "
    "fd00:ec2::/32 fd00:c1::/32 fd00:42::42/128 fd20:ce::254/128",
)
_LISTED = _networks(
    private="10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
    shared="100.64.0.0/10",
    documentation="192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
    benchmarking="198.18.0.0/15 2001:2::/48",
    special="192.0.0.0/24 192.88.99.0/24 2001::/23 64:ff9b:1::/48",
)
_GLOBAL_6 = IPv6Network("2000::/3")
_TRANSLATED = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def standing(address: Address) -> tuple[Standing, str]:
    """What an address is to a guest, and the word for it: ("never", "loopback"), ("listed", "private"), ("public", "").

    Of an address with others inside it, the worst of them counts.
    """
    worst = _own_standing(address)
    for inner in _inside(address):
        found = _own_standing(inner)
        if _RANK[found[0]] > _RANK[worst[0]]:
            worst = found
    return worst


_RANK: dict[Standing, int] = {"public": 0, "listed": 1, "never": 2}


def _own_standing(address: Address) -> tuple[Standing, str]:
    for network, word in _NEVER:
        if address in network:
            return "never", word
    for network, word in _LISTED:
        if address in network:
            return "listed", word
    if isinstance(address, IPv6Address) and address not in _GLOBAL_6 and not _is_wrapping(address):
        return "never", "reserved"
    return "public", ""


def _is_wrapping(address: IPv6Address) -> bool:
    return address.ipv4_mapped is not None or address in _TRANSLATED or address in _COMPATIBLE


def _inside(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 one stands for, by any of the ways to say so."""
    if isinstance(address, IPv4Address):
        return []
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    found = [last] if _is_wrapping(address) else []
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(last)
    return found


def is_own(address: Address) -> bool:
    """Whether this host has the address: the kernel would then speak to it from itself. Nothing is sent."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
            source: str = probe.getsockname()[0]
    except OSError as error:
        # No way there, so it is not this host, and connecting will say what stands against it. Of any other failure
        # nothing follows.
        return error.errno not in _NO_WAY
    return ip_address(source.partition("%")[0]) == address
