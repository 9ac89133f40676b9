"""The gateway: one connection of a guest's, from what it asks for to its end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from actors.egress.addresses import standing
from actors.egress.credentials import INTERNAL, INTERNAL_PORT, REAL_PORT, CredentialDesk, read
from actors.egress.dialing import dial, literal
from actors.egress.gate import Gate
from actors.egress.lines import READ_BYTES, Encrypted, Plain
from actors.egress.passage import Passage
from actors.egress.refused import Broken, Refused
from actors.egress.relay import Relay
from actors.egress.requests import PlainDesk
from events.egress_policy import normal_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.egress.addresses import Address
    from actors.egress.credentials import Credentials
    from actors.egress.dialing import Reached
    from actors.egress.lines import Guest, Line
    from actors.egress.names import Names
    from actors.egress.passage import Traffic
    from actors.egress_settings import EgressCredential
    from events.egress_policy import Entry, Policy

CONNECTED = b"c"
"""The first byte that a guest gets of a connection that was made."""
NAME_MAX = 300
"""Characters of a name that are looked at."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a guest asked for and may have."""

    host: str | Address
    """A normalised name, or an address."""
    port: int
    entry: Entry
    real: str = ""
    """The name that is connected to, where the one asked for is internal."""
    credential: EgressCredential | None = None


class Gateway:
    """Serves the connections of any number of guests."""

    def __init__(self, *, names: Names, credentials: Credentials, connect_timeout: float = 10.0) -> None:
        """`connect_timeout`: for resolving and for connecting, in seconds."""
        self._names = names
        self._credentials = credentials
        self._connect_timeout = connect_timeout

    def name_allowed(self, name: str, policy: Policy) -> Entry:
        """The entry by which a name may be reached at some port; for a guest's resolver. Raises `Refused`."""
        host = _host(name)
        if not isinstance(host, str):
            raise Refused("malformed", "an address is not a name")
        if host.endswith(INTERNAL):
            return self._internal(host, INTERNAL_PORT, policy).entry
        entry = policy.name_allowed(host)
        if entry is None:
            raise Refused("not_allowed", "no entry lists it")
        return entry

    def decide(self, host: str, port: int, policy: Policy) -> Wish:
        """What a guest may have of what it asked for, before anything is resolved. Raises `Refused`."""
        if not 0 < port < 65536:
            raise Refused("malformed", "there is no such port")
        where = _host(host)
        if isinstance(where, str) and where.endswith(INTERNAL):
            return self._internal(where, port, policy)
        entry = policy.allowed(str(where), port)
        if entry is None:
            raise Refused("not_allowed", "no entry lists it" if isinstance(where, str) else "no network lists it")
        return Wish(where, port, entry)

    def check(self, host: str, port: int, address: str, policy: Policy) -> None:
        """Raise `Refused` where a policy does not allow what was asked for, or to reach the address that it led to."""
        wish = self.decide(host, port, policy)
        if not address:
            return
        verdict, word = standing(ip_address(address))
        if verdict == "listed" and not policy.lists_address(address, REAL_PORT if wish.credential else port):
            raise Refused("private_address", f"{address} is {word}, and no listed network has it")

    async def connect(
        self,
        host: str,
        port: int,
        policy: Policy,
        guest: Guest,
        on_connected: Callable[[str, str], Awaitable[None]],
        traffic: Traffic,
    ) -> None:
        """Serve one connection to its end, both ways.

        `on_connected` gets the address and the text of the entry; no byte passes before it returns. Then the guest gets
        `CONNECTED`, and the server's bytes. `traffic` is counted as it goes. Cancelled, both ends are let go at once.

        Raises:
            Refused: it is not allowed, could not be made, or turned out to be something else; then the guest's program
                was told so where its protocol has a way. The guest's end is to be reset.
            Broken: the server's end failed. The guest's is to be reset.
            Exception: whatever the guest's end raises, and `on_connected`.
        """
        wish = self.decide(host, port, policy)
        rule = wish.entry.text
        if wish.credential is not None:
            self._check_credential(wish)
        target, at = (wish.real, REAL_PORT) if wish.credential else (wish.host, wish.port)
        reached = await dial(target, at, policy, self._names, rule=rule, timeout=self._connect_timeout)
        line: Line = Plain(reached.sock)
        try:
            if wish.credential is not None:
                line = await self._encrypted(reached, wish)
            await on_connected(reached.address, rule)
            await self._serve(wish, guest, line, traffic)
        except Refused as refused:
            refused.rule = rule
            raise
        finally:
            line.close(at_once=True)

    async def _serve(self, wish: Wish, guest: Guest, line: Line, traffic: Traffic) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        passage = Passage(guest, line, traffic)
        try:
            await guest.send(CONNECTED)
            await self._carry(wish, passage)
            await passage.hang_up()
        except Refused as refused:
            if refused.farewell:
                # Whatever the guest makes of it, and should this task be cancelled: it was refused, and that is told.
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await passage.say_farewell(refused.farewell)
            raise
        except OSError as error:
            raise Broken(f"the server's end failed: {error.strerror or error}") from None
        finally:
            traffic.seconds = loop.time() - began
            await passage.close()

    async def _carry(self, wish: Wish, passage: Passage) -> None:
        if wish.credential is not None:
            desk = CredentialDesk(str(wish.host), wish.real, wish.credential)
            await Relay(passage, desk).run(b"")
            return
        name = wish.host if isinstance(wish.host, str) else None
        await Gate(passage, name, wish.port, PlainDesk(name, wish.port)).run()

    def _internal(self, name: str, port: int, policy: Policy) -> Wish:
        found = self._credentials.of(name)
        if found is None:
            raise Refused("not_allowed", f"{INTERNAL} names are those of credentials, and none is set for it")
        real, credential = found
        if port != INTERNAL_PORT:
            raise Refused("not_allowed", f"an {INTERNAL} name is reached by plain HTTP, at port {INTERNAL_PORT}")
        entry = policy.allowed(real, REAL_PORT)
        if entry is None:
            raise Refused("not_allowed", f"no entry lists {real} at port {REAL_PORT}, where its credential is for")
        return Wish(name, port, entry, real, credential)

    def _check_credential(self, wish: Wish) -> None:
        assert wish.credential is not None
        try:
            read(wish.credential)
        except Refused as refused:
            refused.rule = wish.entry.text
            raise

    async def _encrypted(self, reached: Reached, wish: Wish) -> Line:
        try:
            async with asyncio.timeout(self._connect_timeout):
                reader, writer = await asyncio.open_connection(
                    sock=reached.sock, ssl=self._credentials.tls, server_hostname=wish.real, limit=READ_BYTES // 2
                )
        except TimeoutError:
            raise Refused("unreachable", f"{reached.address}: no TLS within {self._connect_timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Refused("unreachable", f"{reached.address}: its certificate: {error.verify_message}") from None
        except OSError as error:
            raise Refused("unreachable", f"{reached.address}: no TLS: {error.strerror or error}") from None
        return Encrypted(reader, writer)


def _host(said: str) -> str | Address:
    """A guest's word for a host, normalised. Raises `Refused`."""
    try:
        if len(said) > NAME_MAX:
            raise ValueError("it is too long")
        return literal(said) or normal_name(said)
    except ValueError as error:
        raise Refused("malformed", f"it is no name: {error}") from None
