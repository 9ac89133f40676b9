"""From a name or an address to a connection: resolved here, each address checked, and none but those connected to."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

from actors.egress.addresses import is_own, standing
from actors.egress.names import Unresolvable
from actors.egress.refused import Refused

if TYPE_CHECKING:
    from actors.egress.addresses import Address
    from actors.egress.names import Names
    from events.egress_policy import Policy

TRIED_MAX = 8
"""Addresses of one name that are connected to before it counts as unreachable."""
_LEAST_TRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection to an address that a guest may reach."""

    sock: socket.socket
    address: str


async def dial(host: str | Address, port: int, policy: Policy, names: Names, *, rule: str, timeout: float) -> Reached:
    """Connect to a normalised name, or to an address, within `timeout` seconds. Raises `Refused`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout
    found = [host] if not isinstance(host, str) else await _resolved(host, names, rule)
    good, bad = _sorted(found, port, policy)
    if not good:
        raise Refused("private_address", "; ".join(bad), rule=rule)
    failures: list[str] = []
    tried = good[:TRIED_MAX]
    for index, address in enumerate(tried):
        seconds = max((until - loop.time()) / (len(tried) - index), _LEAST_TRY_SECONDS)
        try:
            return Reached(await _connected(address, port, seconds), str(address))
        except TimeoutError:
            failures.append(f"{address}: no answer within {seconds:.3g} s")
        except OSError as error:
            failures.append(f"{address}: {os.strerror(error.errno) if error.errno else error}")
    raise Refused("unreachable", "; ".join(failures + bad), rule=rule)


async def _resolved(name: str, names: Names, rule: str) -> list[Address]:
    try:
        found = await names.resolve(name)
    except Unresolvable as error:
        raise Refused("unresolvable", str(error), rule=rule) from None
    if not found:
        raise Refused("unresolvable", "it has no address", rule=rule)
    return found


def _sorted(found: list[Address], port: int, policy: Policy) -> tuple[list[Address], list[str]]:
    """The addresses that may be reached, and what stands against the others."""
    good: list[Address] = []
    bad: list[str] = []
    for address in found:
        verdict, word = standing(address)
        if verdict == "listed" and policy.lists_address(str(address), port):
            verdict = "public"
        if verdict == "public" and is_own(address):
            verdict, word = "never", "this host's own"
        if verdict == "public":
            good.append(address)
        else:
            unless = ", and no listed network has it" if verdict == "listed" else ""
            bad.append(f"{address} is {word}{unless}")
    return good, bad


async def _connected(address: Address, port: int, seconds: float) -> socket.socket:
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else one whose server vanished would stay for ever
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


def literal(host: str) -> Address | None:
    """The address that a host is; None for a name. Raises `ValueError` for an address with a zone."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if "%" in host:
        raise ValueError("an address with a zone")
    # The same address has the same entries, however it is written.
    return getattr(address, "ipv4_mapped", None) or address
