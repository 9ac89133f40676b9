"""Programs of a guest, and the inner end of their connections, as the gateway's tests have them: over loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.egress.passage import Traffic
from actors.egress.refused import Broken, Refused

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from actors.egress.gateway import Gateway
    from events.egress_policy import Policy


AT_ONCE = struct.pack("ii", 1, 0)


class Inner:
    """The gateway's end. What it raises is what a machine's channel would, when its program is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.connected = asyncio.Event()

    async def receive(self) -> bytes:
        """At most a frame."""
        try:
            return await self._loop.sock_recv(self._sock, 64 * 1024)
        except OSError as error:
            raise ProgramGone from error

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """The first byte is for the agent, and not for the program."""
        if not self.connected.is_set():
            assert data[:1] == b"c"
            self.connected.set()
            data = data[1:]
        try:
            await self._loop.sock_sendall(self._sock, data)
            if last:
                self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ProgramGone from error

    def reset(self) -> None:
        """As the agent ends a connection that was refused or broke."""
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self._sock.close()

    def close(self) -> None:
        """As the agent closes one whose ends have both said all."""
        self._sock.close()


class ProgramGone(Exception):
    """Raised when the guest's end was reset."""


@dataclass
class Program:
    """A connection of a program, and how the gateway's part of it ended."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    inner: Inner
    served: asyncio.Task[None]
    traffic: Traffic = field(default_factory=Traffic)
    connected: list[tuple[str, str]] = field(default_factory=list)
    """(address, rule), each time that it was said."""

    async def ask(self, data: bytes) -> bytes:
        """Send, end, and take all that comes."""
        self.writer.write(data)
        self.writer.write_eof()
        return await self.reader.read()

    def reset(self) -> None:
        """End as a program that is killed."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.writer.transport.abort()

    async def inner_idle(self) -> None:
        """Let the gateway take what was sent so far."""
        await self.writer.drain()
        for _ in range(5):
            await asyncio.sleep(0)

    async def refused(self) -> Refused:
        """Why it was refused."""
        try:
            await self.served
        except Refused as refused:
            return refused
        raise AssertionError("it was not refused")

    async def broken(self) -> Broken:
        """How it broke."""
        try:
            await self.served
        except Broken as broken:
            return broken
        raise AssertionError("it did not break")


@asynccontextmanager
async def running(
    gateway: Gateway, host: str, port: int, policy: Policy, *, tls: ssl.SSLContext | None = None, name: str = ""
) -> AsyncIterator[Program]:
    """A program that connects; with `tls`, it speaks that, and `name` is the server that it names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        outer = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    for sock in (outer, accepted):
        sock.setblocking(False)
    inner = Inner(accepted)
    traffic = Traffic()
    connected: list[tuple[str, str]] = []

    async def on_connected(address: str, rule: str) -> None:
        assert not inner.connected.is_set()
        connected.append((address, rule))

    async def serve() -> None:
        try:
            await gateway.connect(host, port, policy, inner, on_connected, traffic)
            inner.close()
        finally:
            inner.reset()

    served = asyncio.create_task(serve())
    try:
        reader, writer = await asyncio.open_connection(sock=outer, ssl=tls, server_hostname=name or None)
        try:
            yield Program(reader, writer, inner, served, traffic, connected)
        finally:
            writer.transport.abort()
    finally:
        outer.close()
        served.cancel()
        await asyncio.gather(served, return_exceptions=True)
