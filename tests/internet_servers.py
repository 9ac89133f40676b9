"""Servers of a small internet, each on the ports that programs expect. Run in a network namespace of its own.

usage: python -m tests.internet_servers CERTIFICATE KEY

Writes "ready" once it listens, and ends with its input. Which port is what: see `SERVERS`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

import h11

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def http(reader: Reader, writer: Writer) -> None:
    """HTTP/1, with as many requests on one connection as the client likes."""
    connection = h11.Connection(h11.SERVER)

    async def send(*events: h11.Event) -> None:
        for event in events:
            writer.write(connection.send(event) or b"")
        await writer.drain()

    async def event() -> h11.Event:
        while (got := connection.next_event()) is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await send(h11.InformationalResponse(status_code=100, headers=[]))
            connection.receive_data(await reader.read(256 * 1024))
        assert not isinstance(got, type)
        return got

    while isinstance(request := await event(), h11.Request):
        url = urlsplit(request.target.decode())
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/websocket":
            await _websocket(request, connection, reader, writer)
            return
        if url.path == "/raw":
            # Whatever the test says, as it is; then the end.
            writer.write(base64.urlsafe_b64decode(asked["base64"]))
            return
        if url.path == "/early":
            await send(h11.Response(status_code=413, headers=[(b"Content-Length", b"3")]), h11.Data(data=b"no\n"))
            return
        await _answer(request, url.path, asked, await _body(event), send)
        if connection.our_state is not h11.DONE:
            return
        connection.start_next_cycle()


Send: TypeAlias = Callable[..., Awaitable[None]]


async def _answer(request: h11.Request, path: str, asked: dict[str, str], body: dict[str, object], send: Send) -> None:
    if path == "/big":
        await _big(int(asked["bytes"]), "chunked" in asked, send)
    elif path == "/bare":
        await send(h11.Response(status_code=int(asked["status"]), headers=[]), h11.EndOfMessage())
    else:
        await _tell(request, body, send)


async def _body(event: Callable[[], Awaitable[h11.Event]]) -> dict[str, object]:
    digest, size, text = hashlib.sha256(), 0, b""
    while not isinstance(got := await event(), h11.EndOfMessage):
        assert isinstance(got, h11.Data)
        digest.update(got.data)
        size += len(got.data)
        text = text + got.data if size < 10_000 else b""
    return {"bytes": size, "sha256": digest.hexdigest(), "text": text.decode("latin-1")}


async def _tell(request: h11.Request, body: dict[str, object], send: Send) -> None:
    """Say back what was asked."""
    said = {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "headers": [[name.decode(), value.decode()] for name, value in request.headers.raw_items()],
        **body,
    }
    text = b"" if request.method == b"HEAD" else json.dumps(said).encode()
    headers = [(b"Content-Length", str(len(text)).encode()), (b"X-Target", request.target)]
    await send(h11.Response(status_code=200, headers=headers), h11.Data(data=text), h11.EndOfMessage())


async def _big(size: int, chunked: bool, send: Send) -> None:
    headers = [(b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", str(size).encode())]
    await send(h11.Response(status_code=200, headers=headers))
    piece = bytes(64 * 1024)
    while size:
        await send(h11.Data(data=piece[:size]))
        size -= min(size, len(piece))
    await send(h11.EndOfMessage())


async def _websocket(request: h11.Request, connection: h11.Connection, reader: Reader, writer: Writer) -> None:
    """Upgrades, and then echoes as it is."""
    key = dict(request.headers)[b"sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET, usedforsecurity=False).digest())
    headers = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept)]
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass
    writer.write(connection.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
    writer.write(connection.trailing_data[0])
    await echo(reader, writer)


async def echo(reader: Reader, writer: Writer) -> None:
    """Says back what it hears, then ends."""
    while data := await reader.read(256 * 1024):
        writer.write(data)
        await writer.drain()


async def greet(reader: Reader, writer: Writer) -> None:
    """Speaks first, as ssh and mail servers do, then echoes."""
    writer.write(b"220 ready\r\n")
    await echo(reader, writer)


async def never_read(reader: Reader, writer: Writer) -> None:
    """Takes nothing, until the client is gone."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def pour(reader: Reader, writer: Writer) -> None:
    """Sends without an end."""
    while True:
        writer.write(bytes(64 * 1024))
        await writer.drain()


async def count(reader: Reader, writer: Writer) -> None:
    """Says how many bytes came, once the client has ended."""
    total = 0
    while data := await reader.read(256 * 1024):
        total += len(data)
    writer.write(f"{total}\n".encode())


async def reset(reader: Reader, writer: Writer) -> None:
    """Says a little, and breaks off when it hears something."""
    writer.write(b"half of it")
    await writer.drain()
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def retry(reader: Reader, writer: Writer) -> None:
    """Asks each client for another ClientHello, then says what it got of it, raw."""
    await reader.read(1)
    random = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    body = b"\x03\x03" + random + b"\x00\x13\x01\x00\x00\x00"
    message = b"\x02" + len(body).to_bytes(3, "big") + body
    writer.write(b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message)
    await echo(reader, writer)


SERVERS: dict[int, Callable[[Reader, Writer], Awaitable[None]]] = {
    7: echo,
    22: greet,
    80: http,
    443: http,
    5000: never_read,
    5001: pour,
    5002: count,
    5003: reset,
    5004: retry,
    5005: echo,
    8080: http,
    8443: http,
}
WITH_TLS = (443, 8443)
ONLY_IPV4 = (5005,)


async def main(certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for port, serve in SERVERS.items():
        tls = context if port in WITH_TLS else None

        async def served(reader: Reader, writer: Writer, serve: Callable[..., Awaitable[None]] = serve) -> None:
            # A client that goes, or speaks otherwise, is the test's.
            with contextlib.closing(writer), contextlib.suppress(OSError, h11.RemoteProtocolError):
                await serve(reader, writer)
                if writer.can_write_eof():
                    writer.write_eof()

        hosts = ["0.0.0.0"] if port in ONLY_IPV4 else ["0.0.0.0", "::"]
        await asyncio.start_server(served, hosts, port, ssl=tls, backlog=512)
    print("ready", flush=True)
    # Its end is that of the process that started this one.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
