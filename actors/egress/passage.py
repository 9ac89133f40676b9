"""One connection, made: both its ends, and the carrying of bytes between them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.egress.lines import Ahead, beside

if TYPE_CHECKING:
    from actors.egress.lines import Guest, Line

DISCARDED_MAX = 1024 * 1024
"""Bytes of a guest that are taken and forgotten after the last was said to it. Cut off at once, it would lose that."""
FAREWELL_SECONDS = 5.0
"""How long a guest that was refused may take to read why, in seconds."""


@dataclass(slots=True)
class Traffic:
    """What a connection has carried so far; its maker may look at any time."""

    sent: int = 0
    """Bytes that went to the server."""
    received: int = 0
    """Bytes that went to the guest."""
    seconds: float = field(default=0.0)
    """How long it was connected, once it has ended."""


class Passage:
    """Both ends of a connection. What one does not take is not read from the other, and waits there."""

    def __init__(self, guest: Guest, line: Line, traffic: Traffic) -> None:
        self._guest = guest
        self._line = line
        self._traffic = traffic
        self.from_guest = Ahead(guest.receive)
        self.from_server = Ahead(line.receive)
        self._guest_told = False
        """Whether the guest heard that nothing follows."""
        self._lost: OSError | None = None
        """Why the server takes no more."""

    async def to_guest(self, data: bytes, *, last: bool = False) -> None:
        """Pass bytes on; with `last`, nothing follows, and what does is dropped."""
        if self._guest_told:
            return
        self._guest_told = last
        await self._guest.send(data, last=last)
        self._traffic.received += len(data)

    async def to_server(self, data: bytes) -> None:
        """Pass bytes on. Raises `OSError`."""
        await self._line.send(data)
        self._traffic.sent += len(data)

    async def hang_up(self, *, at_once: bool = False) -> None:
        """Let go of the server; `at_once`: as a connection ends that is reset."""
        await self.from_server.close()
        self._line.close(at_once=at_once)

    async def up(self) -> None:
        """Carry to the server until the guest's end. Where the server takes no more, `down` says so."""
        try:
            while data := await self.from_guest.receive():
                await self.to_server(data)
        except OSError as error:
            self.lose(error)
        else:
            self._line.end()

    def lose(self, error: OSError) -> None:
        """The server takes no more. What it sent before it went is still to be read, and is the guest's."""
        self._lost = error

    async def down(self) -> None:
        """Carry to the guest until the server's end. Raises `OSError`."""
        while data := await self.from_server.receive():
            await self.to_guest(data)
        await self.end_guest()

    async def end_guest(self) -> None:
        """Tell the guest that nothing follows. Raises `OSError` where the server did not end, but break."""
        # An error is told once, to whoever meets it first: the reader then sees an end like any other.
        if self._lost is not None:
            raise self._lost
        await self.to_guest(b"", last=True)

    async def carry(self) -> None:
        """Carry both ways until both have ended. Raises `OSError`."""
        await beside(self.down(), self.up(), both=True)

    async def discard(self) -> None:
        """Take what the guest still sends, until its end or `DISCARDED_MAX`."""
        left = DISCARDED_MAX
        while left > 0 and (data := await self.from_guest.receive()):
            left -= len(data)

    async def say_farewell(self, words: bytes) -> None:
        """Tell a guest's program why it is refused, and give it the time to read that."""
        await self.hang_up(at_once=True)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.to_guest(words, last=True)
                await self.discard()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Give up both ends, at once; no error where they have ended."""
        await self.from_guest.close()
        await self.hang_up(at_once=True)
