"""Plain HTTP/1 between a guest and a server: each request is looked at, each message is written anew.

Written anew, by `h11`, since two readers of the same bytes may see two different requests: what the server gets is what
was looked at. Bodies are passed on as they come. Requests of one connection go one after the other; those that a guest
sends ahead wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import h11

from actors.egress.lines import beside
from actors.egress.refused import Broken, Refused
from actors.egress.requests import refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.egress.passage import Passage
    from actors.egress.requests import Headers

REQUEST_HEAD_MAX = 64 * 1024
"""Bytes of a request's line and headers."""
RESPONSE_HEAD_MAX = 256 * 1024
"""Bytes of a response's line and headers."""
_SWITCHING = 101
_EVENTS_AT_ONCE = 64
"""Pieces of a body after which others get a turn: a chunk may be one byte."""


class Desk(Protocol):
    """What is done to the requests and responses of one connection, which go one after the other."""

    def request(self, request: h11.Request) -> h11.Request:
        """The request as it goes on. Raises `Refused`, with the response that says so."""
        ...

    def headers(self, headers: Headers) -> Headers:
        """Headers of a response, or those behind its body, as they go on. Raises `Refused`, as above."""
        ...

    def reason(self, reason: bytes) -> bytes:
        """A response's reason phrase as it goes on."""
        ...

    def body(self, data: bytes) -> bytes:
        """What may go on now of a response's body, of which this came."""
        ...

    def rest(self) -> bytes:
        """What was kept back of a body that has ended."""
        ...


class Relay:
    """One connection that speaks HTTP/1. `run` once."""

    def __init__(self, passage: Passage, desk: Desk, *, passed: int = 0) -> None:
        """`passed`: how many bytes of the first request the server has already."""
        self._passage = passage
        self._desk = desk
        self._passed = passed
        self._method = b""
        self._all_passed = False
        """Whether the server has the whole request. `h11` knows only what was written down for it."""
        self._guest = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_HEAD_MAX)
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=RESPONSE_HEAD_MAX)

    async def run(self, first: bytes) -> None:
        """Relay until one of the two ends it; `first` came already.

        Raises `Refused` for a request that is none, or not to go on; `Broken` and `OSError` where the server's answer
        is none or breaks off.
        """
        if first:  # nothing would be the end
            self._guest.receive_data(first)
        try:
            while (request := await self._next_request()) is not None:
                if not await self._exchange(request):
                    break
        except h11.LocalProtocolError:
            raise Broken("the server's answer does not fit the request") from None
        except Refused as refused:
            if self._guest.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                refused.farewell = b""  # in the middle of an answer it would be taken for a part of that
            raise
        await self._passage.hang_up()
        await self._passage.to_guest(b"", last=True)
        await self._passage.discard()

    async def _next_request(self) -> h11.Request | None:
        """The next request; None where the guest or the server has ended."""
        guest, server = self._passage.from_guest, self._passage.from_server
        while True:
            event = self._from_guest()
            if isinstance(event, h11.Request):
                return event
            if isinstance(event, h11.ConnectionClosed):
                return None
            await asyncio.wait([guest.begin(), server.begin()], return_when=asyncio.FIRST_COMPLETED)
            if server.is_ready:
                await server.receive()
                return None  # it is tired of waiting, and has said so or not; nobody asked
            self._guest.receive_data(await guest.receive())

    async def _exchange(self, request: h11.Request) -> bool:
        """One request and its answer; whether others may follow."""
        self._method, self._all_passed = request.method, False
        head = self._server.send(self._desk.request(request))
        await self._passage.to_server(head[self._passed :])
        self._passed = 0
        if await beside(self._response(), self._body()):
            await self._switched()
            return False
        done = {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
        if self._guest.states != done or self._server.states != done or not self._all_passed:
            return False
        self._guest.start_next_cycle()
        self._server.start_next_cycle()
        return True

    async def _body(self) -> None:
        """Pass the request's body on, then see to it that a guest that goes is noticed."""
        out: list[bytes] = []
        events = 0
        try:
            while not isinstance(event := self._from_guest(), h11.EndOfMessage):
                if isinstance(event, h11.Data):
                    out.append(self._server.send(h11.Data(data=event.data)))
                    events += 1
                    if events % _EVENTS_AT_ONCE == 0:
                        await asyncio.sleep(0)
                    continue
                await self._flush_up(out)
                self._guest.receive_data(await self._passage.from_guest.receive())
            # What a request has behind its body is left out: some servers take it for headers.
            out.append(self._server.send(h11.EndOfMessage()))
            await self._flush_up(out)
            self._all_passed = True
        except OSError:
            return  # the server may have answered before it went; whoever reads from it knows
        await self._passage.from_guest.ready()

    async def _response(self) -> bool:
        """Pass the answer on; whether the connection is HTTP no more."""
        out: list[bytes] = []
        events = 0
        while True:
            event = self._from_server()
            if event is h11.NEED_DATA:
                await self._flush_down(out)
                data = await self._passage.from_server.receive()
                if not data and self._server.their_state is h11.SEND_RESPONSE:
                    raise Broken("the server closed the connection without an answer")
                self._server.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                if self._guest.their_http_version != b"1.0":
                    out.append(self._guest.send(self._informational(event)))
                if event.status_code == _SWITCHING:
                    await self._flush_down(out)
                    return True
            elif isinstance(event, h11.Response):
                out.append(self._guest.send(self._final(event)))
            elif isinstance(event, h11.Data):
                out.append(self._guest.send(h11.Data(data=self._desk.body(bytes(event.data)))))
            elif isinstance(event, h11.EndOfMessage):
                out += self._end(event)
                await self._flush_down(out)
                return False
            else:
                raise Broken("the server's answer is cut short")
            events += 1
            if events % _EVENTS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _informational(self, event: h11.InformationalResponse) -> h11.InformationalResponse:
        headers = self._desk.headers(event.headers.raw_items())
        return h11.InformationalResponse(
            status_code=event.status_code, headers=headers, reason=self._desk.reason(bytes(event.reason))
        )

    def _final(self, event: h11.Response) -> h11.Response:
        headers = self._desk.headers(event.headers.raw_items())
        framed = {name for name, _ in event.headers} & {b"content-length", b"transfer-encoding"}
        bodiless = event.status_code in (204, 304) or self._method == b"HEAD"
        # A guest that waits to be told to send its body will send it now or not, and what comes could be either.
        undecided = self._guest.they_are_waiting_for_100_continue
        if event.http_version < b"1.1" or undecided or not (framed or bodiless):
            headers = [(name, value) for name, value in headers if name.lower() not in (b"connection", b"keep-alive")]
            headers.append((b"Connection", b"close"))
        return h11.Response(
            status_code=event.status_code, headers=headers, reason=self._desk.reason(bytes(event.reason))
        )

    def _end(self, event: h11.EndOfMessage) -> Iterable[bytes]:
        if rest := self._desk.rest():
            yield self._guest.send(h11.Data(data=rest))
        headers: Headers = []
        if self._guest.their_http_version != b"1.0":
            headers = self._desk.headers(event.headers.raw_items())
        yield self._guest.send(h11.EndOfMessage(headers=headers))

    async def _switched(self) -> None:
        """Carry what follows as it is."""
        await self._passage.to_guest(self._server.trailing_data[0])
        await self._passage.to_server(self._guest.trailing_data[0])
        await self._passage.carry()

    def _from_guest(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._guest.next_event()
        except h11.RemoteProtocolError as error:
            # What follows in h11's words is the guest's, and may be a token of its own.
            why = str(error).partition(": b")[0]
            raise refusal("malformed", f"it is no HTTP request: {why}") from None

    def _from_server(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._server.next_event()
        except h11.RemoteProtocolError:
            # h11 would quote what may be a credential, told back.
            raise Broken("the server's answer is not HTTP, or cut short") from None

    async def _flush_up(self, out: list[bytes]) -> None:
        if data := b"".join(out):
            out.clear()
            await self._passage.to_server(data)

    async def _flush_down(self, out: list[bytes]) -> None:
        if data := b"".join(out):
            out.clear()
            await self._passage.to_guest(data)
