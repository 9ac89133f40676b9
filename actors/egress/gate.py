"""The first bytes of a connection, before any of the guest's is passed on: an allowed name is no bridge to another.

Behind one address there are often many names, and the server believes the one that the client writes: in TLS's
ClientHello, or in a request's Host. So that must be the name that was asked for. What is inside TLS is not looked at: a
server that serves other names there to whoever asks is the one that was allowed.

On the ports of the web there is nothing else; on another port, which an entry has to name, other protocols pass as they
are. The server may speak first: what it says passes at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from actors.egress.hello import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    RECORD_HEADER,
    Hello,
    HelloInvalid,
    HelloReader,
    asks_again,
)
from actors.egress.lines import beside
from actors.egress.opening import kind_of
from actors.egress.refused import Broken, Refused
from actors.egress.relay import Relay
from events.egress_policy import DEFAULT_PORTS, normal_name

if TYPE_CHECKING:
    from actors.egress.passage import Passage
    from actors.egress.relay import Desk

_ALERT = b"\x15\x03\x03\x00\x02\x02"
"""A fatal alert of TLS, but for what it says."""
_DECODE_ERROR = _ALERT + bytes([50])
_UNRECOGNIZED_NAME = _ALERT + bytes([112])


class _SpeaksHttp(Exception):
    """Raised when the guest turns out to speak HTTP: what follows is the relay's."""

    def __init__(self, data: bytes, passed: int) -> None:
        super().__init__()
        self.data = data
        self.passed = passed


class Gate:
    """Looks at one connection's first bytes, and carries it. `run` once."""

    def __init__(self, passage: Passage, name: str | None, port: int, desk: Desk) -> None:
        """`name`: what was asked for; None for an address, of which no name is known. `desk`: for its requests."""
        self._passage = passage
        self._name = name
        self._on_web_port = port in DEFAULT_PORTS
        self._desk = desk
        self._server_spoke = False
        self._server_ended = False
        self._answer = bytearray()
        self._asks_again: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Carry until both ends have ended. Raises `Refused`, `Broken`, `OSError`, and what ended the guest's end."""
        try:
            await beside(self._down(), self._up(), both=True)
        except _SpeaksHttp as found:
            if self._server_ended:
                raise Broken("the server closed the connection before the first request") from None
            if self._server_spoke:
                raise Refused("protocol", "the server spoke first, as none of HTTP does") from None
            await Relay(self._passage, self._desk, passed=found.passed).run(found.data)

    async def _down(self) -> None:
        server = self._passage.from_server
        # Until it is known whether a relay is to have them, the server's bytes are waited for so that none is lost.
        while not self._asks_again.done():
            await server.ready()
            data = await server.receive()
            self._server_spoke = True
            self._hear(data)
            if not data:
                self._server_ended = True
                await self._passage.end_guest()
                return
            await self._passage.to_guest(data)
        await self._passage.down()

    def _hear(self, data: bytes) -> None:
        """Find out whether the server asks for another ClientHello."""
        if self._asks_again.done():
            return
        self._answer += data[:100]
        asks = asks_again(self._answer) if data else False
        if asks is not None:
            self._asks_again.set_result(asks)

    async def _up(self) -> None:
        try:
            await self._speak()
        except OSError as error:
            self._passage.lose(error)

    async def _speak(self) -> None:
        kind, data = await self._first()
        if kind == "tls" and self._name is not None:
            await self._tls(data)
        elif data:
            if kind == "other" and self._on_web_port:
                raise Refused("protocol", "it is neither TLS nor HTTP, and nothing else is on ports 80 and 443")
            await self._passage.to_server(data)
        await self._passage.up()

    async def _first(self) -> tuple[str, bytes]:
        """What the guest speaks, and what came of it and was not passed on. Raises `_SpeaksHttp`."""
        held = bytearray()
        passed = 0
        while True:
            data = await self._passage.from_guest.receive()
            ended = not data
            if not held:
                # Servers skip empty lines before a request. What is not the web may begin with one, and wait.
                blank, data = _blank(data)
                if blank and not self._on_web_port:
                    await self._passage.to_server(blank)
            held += data
            kind, may_pass = kind_of(held)
            if kind is None and ended:
                kind = "other"
            if kind == "http":
                raise _SpeaksHttp(bytes(held), passed)
            if kind is not None:
                return kind, bytes(held[passed:])
            if may_pass > passed and not self._on_web_port:
                await self._passage.to_server(bytes(held[passed:may_pass]))
                passed = may_pass

    async def _tls(self, data: bytes) -> None:
        """Check the ClientHello that begins with `data`, pass it on, and see to it that no other one follows it."""
        held, hello = await self._hello(data)
        await self._passage.to_server(held[: hello.length])
        rest = held[hello.length :]
        # A server may ask for another ClientHello, and then goes by the name in that.
        if await self._asks_again:
            rest = await self._second(rest)
        if rest:
            await self._passage.to_server(rest)

    async def _hello(self, data: bytes) -> tuple[bytes, Hello]:
        """A whole ClientHello with the right name, and all bytes that came. Raises `Refused`."""
        reader, held = HelloReader(), bytearray()
        try:
            while (hello := reader.feed(data)) is None:
                held += data
                data = await self._passage.from_guest.receive()
                if not data:
                    raise HelloInvalid("its ClientHello is cut short")
        except HelloInvalid as error:
            raise Refused("malformed", str(error), farewell=_DECODE_ERROR) from None
        self._check(hello)
        return bytes(held + data), hello

    def _check(self, hello: Hello) -> None:
        outer = " (of an encrypted ClientHello the outer name counts)" if hello.encrypted else ""
        if hello.name is None:
            raise Refused("no_name", f"its ClientHello names no server{outer}", farewell=_UNRECOGNIZED_NAME)
        try:
            fits = normal_name(hello.name) == self._name
        except ValueError:
            fits = False
        if not fits:
            detail = f"its ClientHello names {hello.name[:253]!r}, and the connection is to {self._name}{outer}"
            raise Refused("wrong_name", detail, farewell=_UNRECOGNIZED_NAME)

    async def _second(self, data: bytes) -> bytes:
        """Check the second ClientHello; what comes with it and was not passed on. Raises `Refused`."""
        held = bytearray(data)
        while True:
            # Early data that the server will not have, and a record that means nothing, may stand before it.
            while len(held) >= RECORD_HEADER and held[0] in (CHANGE_CIPHER_SPEC, APPLICATION_DATA):
                size = RECORD_HEADER + int.from_bytes(held[3:5], "big")
                if len(held) < size:
                    break
                await self._passage.to_server(bytes(held[:size]))
                del held[:size]
            if held and held[0] not in (CHANGE_CIPHER_SPEC, APPLICATION_DATA):
                break
            if not (more := await self._passage.from_guest.receive()):
                return bytes(held)
            held += more
        if held[0] != HANDSHAKE:
            return bytes(held)  # an alert: it gives up
        held_all, _ = await self._hello(bytes(held))
        return held_all


def _blank(data: bytes) -> tuple[bytes, bytes]:
    """The line ends at the front, and what is behind them."""
    behind = data.lstrip(b"\r\n")
    return data[: len(data) - len(behind)], behind
