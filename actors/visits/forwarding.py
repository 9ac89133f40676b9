"""Reaching a port in a sandbox from this machine: a listener on 127.0.0.1, and a connection inside for each outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.guest import frames
from actors.visits.client import find, lost
from actors.visits.wire import (
    Connect,
    Forward,
    Line,
    VisitorGone,
    VisitRefused,
    address,
    checked,
    encode_request,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.settings import Settings
    from actors.visits.client import Place
    from actors.visits.wire import Request

LOOPBACK = "127.0.0.1"
_READ_BYTES = 64 * 1024
_AT_ONCE = struct.pack("ii", 1, 0)
"""A `linger` of no seconds: socket(7)."""


@dataclass(slots=True)
class Forwarding:
    """An open forward."""

    sandbox_id: str
    session_id: str
    forward_id: str
    port: int
    """In the sandbox."""
    local_port: int
    bytes_in: int = 0
    """Into the sandbox."""
    bytes_out: int = 0
    connections: int = 0
    """So far."""
    trouble: str = ""
    """Why the last connection could not be made; "" where it could."""
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Fails with `VisitRefused` where the service ends the forward."""

    @property
    def address(self) -> str:
        """Where to connect to, on this machine."""
        return f"{LOOPBACK}:{self.local_port}"


@asynccontextmanager
async def forwarded(
    settings: Settings, target: str, port: int, *, local_port: int | None = None
) -> AsyncIterator[Forwarding]:
    """Connections to `Forwarding.address` reach `port` of a sandbox of a running service, until this is left.

    `local_port` 0 is any that is free; None is the same as inside. Raises `CannotServe`, and `VisitRefused` also where
    the local port is taken.
    """
    place = await asyncio.to_thread(find, settings, target)
    request = checked(Forward, sandbox_id=place.sandbox_id, port=port)
    line, told = await _ask(place, request)
    try:
        forwarding = Forwarding(place.sandbox_id, place.session_id, str(told["forward_id"]), port, 0)
        server = await _listen(place, forwarding, port if local_port is None else local_port)
        watch = asyncio.create_task(_watch(line, forwarding))
        try:
            yield forwarding
        finally:
            watch.cancel()
            server.close()
            forwarding.ended.cancel()
    finally:
        # The service ends what is left of its connections.
        line.writer.close()


async def _listen(place: Place, forwarding: Forwarding, local_port: int) -> asyncio.Server:
    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _carry(place, forwarding, reader, writer)

    try:
        server = await asyncio.start_server(accepted, LOOPBACK, local_port)
    except (OSError, OverflowError) as error:
        raise VisitRefused(
            f"port {local_port} of this machine can't be listened at: {error}",
            f"Name another one, as in {local_port + 1}:{forwarding.port}; 0:{forwarding.port} takes any that is free.",
        ) from error
    forwarding.local_port = server.sockets[0].getsockname()[1]
    return server


async def _ask(place: Place, request: Request) -> tuple[Line, dict[str, object]]:
    try:
        with address(place.door) as where:
            line = Line(*await asyncio.open_unix_connection(where))
    except OSError as error:
        raise lost(f"the door of {place.sandbox_id} can't be reached: {error}") from error
    try:
        await line.send_raw(encode_request(request))
        kind, _, payload = await line.frame()
        if kind == frames.RESET:
            raise refused(payload)
        if kind != frames.OPEN:
            raise lost()
    except VisitorGone as error:
        line.writer.close()
        raise lost() from error
    except BaseException:
        line.writer.close()
        raise
    return line, json.loads(payload)


async def _watch(line: Line, forwarding: Forwarding) -> None:
    """Nothing is said on it but why it ends."""
    error = lost()
    with contextlib.suppress(VisitorGone):
        kind, _, payload = await line.frame()
        if kind == frames.RESET:
            error = refused(payload)
    if not forwarding.ended.done():
        forwarding.ended.set_exception(error)


async def _carry(
    place: Place, forwarding: Forwarding, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One connection, to its end; one that breaks is broken off at the other end too."""
    forwarding.connections += 1
    inner: Line | None = None
    try:
        inner, _ = await _ask(place, Connect(sandbox_id=place.sandbox_id, forward_id=forwarding.forward_id))
        forwarding.trouble = ""
        both = [
            asyncio.create_task(_inwards(reader, inner, forwarding)),
            asyncio.create_task(_outwards(inner, writer, forwarding)),
        ]
        try:
            await asyncio.gather(*both)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
    except VisitRefused as error:
        forwarding.trouble = f"{error} {error.advice}"
        _break_off(writer)
    except (OSError, VisitorGone):
        _break_off(writer)
    finally:
        writer.close()
        if inner is not None:
            inner.writer.close()


def _break_off(writer: asyncio.StreamWriter) -> None:
    """Reset a connection: closed, it would look as if all had been said."""
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


async def _inwards(reader: asyncio.StreamReader, inner: Line, forwarding: Forwarding) -> None:
    while data := await reader.read(_READ_BYTES):
        forwarding.bytes_in += len(data)
        await inner.send(frames.DATA, frames.CONTROL, data)
    await inner.send(frames.END, frames.CONTROL)


async def _outwards(inner: Line, writer: asyncio.StreamWriter, forwarding: Forwarding) -> None:
    """Until its end is told. Raises `VisitRefused` and `VisitorGone` where it breaks instead."""
    while True:
        kind, _, data = await inner.frame()
        if kind == frames.END:
            break
        if kind != frames.DATA:
            raise refused(data)
        forwarding.bytes_out += len(data)
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
