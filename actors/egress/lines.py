"""The server's end of a connection, and what both ends are carried with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

READ_BYTES = 256 * 1024
"""Most that is taken from a server at once: as much as a guest's channel has room for."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""A `linger` of no seconds: socket(7)."""

T = TypeVar("T")


class Guest(Protocol):
    """The guest's end of a connection; hostile. Each method raises what ended it, a reset by the guest among it."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end of what the guest sends."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes as fast as the guest takes them; with `last`, nothing follows."""
        ...


class Line(Protocol):
    """The server's end. Each method raises `OSError` where it is gone."""

    async def receive(self) -> bytes:
        """The next bytes, at most `READ_BYTES`; empty at the end of what the server sends."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes as fast as the server takes them."""
        ...

    def end(self) -> None:
        """Nothing follows; the server may go on."""
        ...

    def close(self, *, at_once: bool = False) -> None:
        """Let go of it; `at_once`: as a connection ends that is reset."""
        ...


class Plain:
    """A TCP connection. The kernel alone buffers, so what it has is read even where the server is gone."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock`: connected, and not blocking."""
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def receive(self) -> bytes:
        """See `Line.receive`."""
        return await self._loop.sock_recv(self.sock, READ_BYTES)

    async def send(self, data: bytes) -> None:
        """See `Line.send`."""
        await self._loop.sock_sendall(self.sock, data)

    def end(self) -> None:
        """See `Line.end`."""
        with contextlib.suppress(OSError):  # one that is gone says so to whoever reads
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, at_once: bool = False) -> None:
        """See `Line.close`."""
        if at_once and self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.sock.close()


class Encrypted:
    """A TLS connection, as asyncio has it; it can't be ended in one direction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """See `Line.receive`."""
        return await self._reader.read(READ_BYTES)

    async def send(self, data: bytes) -> None:
        """See `Line.send`."""
        self._writer.write(data)
        await self._writer.drain()

    def end(self) -> None:
        """See `Line.end`."""

    def close(self, *, at_once: bool = False) -> None:
        """See `Line.close`."""
        if at_once:
            self._writer.transport.abort()
        else:
            self._writer.close()


class Ahead:
    """Reads one piece ahead when asked to, so that an end is noticed while nobody has a use for more."""

    def __init__(self, receive: Callable[[], Coroutine[None, None, bytes]]) -> None:
        self._receive = receive
        self._next: asyncio.Task[bytes] | None = None

    def begin(self) -> asyncio.Task[bytes]:
        """Read ahead; done when there is something, or the end, or an error."""
        if self._next is None:
            self._next = asyncio.create_task(self._receive())
        return self._next

    async def ready(self) -> None:
        """Return when there is something, or the end; raises what `receive` would. Cancelled, it loses nothing."""
        await asyncio.wait([self.begin()])
        self.begin().result()

    @property
    def is_ready(self) -> bool:
        """Whether `receive` returns at once."""
        return self._next is not None and self._next.done()

    async def receive(self) -> bytes:
        """The next piece. Where `is_ready`, at once; else what comes is lost if this is cancelled."""
        if self._next is None:
            return await self._receive()
        await asyncio.wait([self._next])
        piece, self._next = self._next, None
        return piece.result()

    async def close(self) -> None:
        """Give up what is being read."""
        if self._next is not None:
            await _ended(self._next)
            self._next = None


async def beside(first: Awaitable[T], second: Awaitable[object], *, both: bool = False) -> T:
    """What `first` returns, while `second` goes on beside it; with `both`, when the two are done.

    Whatever either raises ends both and is raised; cancelled, it cancels both.
    """
    main, side = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait([main, side], return_when=asyncio.FIRST_COMPLETED)
        if side.done():
            side.result()
        if not main.done():
            await asyncio.wait([main])
        elif both and main.exception() is None and not side.done():
            await asyncio.wait([side])
            side.result()
        return main.result()
    finally:
        await _ended(main, side)


async def _ended(*tasks: asyncio.Future[T] | asyncio.Future[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
