"""The host's resolver: pins first, then the system's, off the event loop."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from actors.egress.addresses import Address

LOOKUPS_MAX = 32
"""Lookups at once; more wait. A lookup can last as long as the system's resolver waits for a server."""
ADDRESSES_MAX = 32
"""Addresses of one name that are looked at."""


class Unresolvable(Exception):
    """Raised when a name has no address, or nobody says in time."""


class Names:
    """Resolves names. Pins are the administrator's, by name: the addresses it has, whatever the DNS says.

    Who asks for a name that is being asked for shares the answer. Nothing is kept: the system's resolver knows how long
    an answer lasts, and here nobody does.
    """

    def __init__(self, pins: Mapping[str, Iterable[str]] | None = None, *, timeout: float = 10.0) -> None:
        """`pins`: normalised names, and their addresses. Raises `ValueError` for what is no address."""
        self._pins: dict[str, list[Address]] = {
            name: [ip_address(text) for text in texts] for name, texts in (pins or {}).items()
        }
        self._timeout = timeout
        self._asking: dict[str, asyncio.Future[list[Address]]] = {}
        # Not the loop's own threads: names whose servers never answer would keep files and everything else waiting.
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="names")

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of a normalised name, best first. Raises `Unresolvable`."""
        if name in self._pins:
            return list(self._pins[name])
        asked = self._asking.get(name)
        if asked is None:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, name)
            self._asking[name] = asked
            asked.add_done_callback(lambda done: self._answered(name, done))
        try:
            # Shielded, since others may wait for the same.
            async with asyncio.timeout(self._timeout):
                return list(await asyncio.shield(asked))
        except TimeoutError:
            raise Unresolvable(f"no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Unresolvable(error.strerror or "it can't be resolved") from None

    def _answered(self, name: str, done: asyncio.Future[list[Address]]) -> None:
        self._asking.pop(name, None)
        if not done.cancelled():
            done.exception()  # seen, should nobody wait for it any more

    def close(self) -> None:
        """Ask nobody any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(name: str) -> list[Address]:
    # With the final dot it is this name, and never one of the host's own domains that begins like it.
    found = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    texts = dict.fromkeys(str(where[0]) for *_, where in found)
    addresses = (ip_address(text.partition("%")[0]) for text in texts)
    # One in IPv6's clothes is the IPv4 address that the kernel would connect to.
    return [getattr(one, "ipv4_mapped", None) or one for one in addresses][:ADDRESSES_MAX]
