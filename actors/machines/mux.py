"""Many channels on one stream to a guest agent: the host's end. Everything that comes in is hostile.

A frame that the agent had no right to send (a channel that never was, more than it had credit for, a ping of its own)
ends the connection with `GuestProtocolError`; the end of the stream ends it with `MachineGone`. Memory is bounded: a
channel holds what its window allows (11 MiB at the worst, sent byte by byte to somebody who does not read), and what
waits for a guest that does not read is counted.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections import deque
from typing import TYPE_CHECKING, Self

from actors.guest import frames
from actors.machines.protocol import GuestProtocolError, MachineError, MachineGone

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNELS_MAX = 64
"""Channels open at once; the agent allows as many."""
UNREAD_MAX = 4 * 1024 * 1024
"""Bytes that may wait for a guest that does not read its stream. Bulk data waits before it is handed to the stream."""
RESET_MAX = 16 * 1024
"""Bytes of a RESET's reason."""
GUEST_CHANNELS_MAX = 320
"""Channels open at once that the guest asked for."""
LATE_MAX = 4 * GUEST_CHANNELS_MAX
"""Frames that may wait to be said on these while the guest is quiet."""
REQUEST_MAX = 4096
"""Bytes of what a guest asks for."""
_READ_BYTES = 256 * 1024


class ChannelRefused(Exception):
    """Raised when the agent ended a channel with an error of its own."""

    def __init__(self, payload: bytes) -> None:
        super().__init__("the guest agent ended the channel with an error")
        self.payload = payload
        """What it said; not parsed yet."""


class ChannelLeft(Exception):
    """Raised when a channel is used that we ended."""


class Channel:
    """One conversation with the agent. An async context manager: left early, it is reset."""

    def __init__(self, mux: Mux, number: int) -> None:
        self.number = number
        self._mux = mux
        self._credit = frames.WINDOW
        self._allowed = frames.WINDOW
        """What the guest may still send."""
        self._consumed = 0
        self._inbox: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._they_ended = False
        self._we_ended = False

    async def __aenter__(self) -> Self:
        """The channel itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Forget the channel."""
        self._mux.leave(self)

    @property
    def settled(self) -> bool:
        """Whether both sides have said all, or the agent reset it: nothing more comes."""
        return self._error is not None or (self._they_ended and self._we_ended)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes as fast as the agent takes them; with `last`, nothing follows.

        Raises `ChannelRefused`, `MachineGone`, `GuestProtocolError`.
        """
        view = memoryview(data)
        while view:
            while self._credit == 0:
                await self._wait()
            size = min(len(view), self._credit, frames.MAX_PAYLOAD)
            self._credit -= size
            await self._mux.send_bulk(self, frames.DATA, bytes(view[:size]))
            view = view[size:]
        if last and not self._we_ended:
            self._we_ended = True
            await self._mux.send_bulk(self, frames.END)

    async def receive(self) -> bytes:
        """The next bytes; empty at the end. Raises as `send` does."""
        while not self._inbox:
            if self._they_ended:
                return b""
            await self._wait()
        data = self._inbox.popleft()
        self._consumed += len(data)
        # Many bytes at once, so that a guest can't make us send more than it does.
        if self._consumed >= frames.WINDOW // 2:
            self._allowed += self._consumed
            self._mux.send_now(frames.CREDIT, self.number, frames.CREDIT_PAYLOAD.pack(self._consumed))
            self._consumed = 0
        return data

    def check(self) -> None:
        """Raise what ended the channel, if anything did."""
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self.check()
        self._changed.clear()
        await self._changed.wait()
        if not self._inbox:
            self.check()

    def leave(self) -> None:
        """Let go of it; the guest is told where it may still use it."""
        self._mux.leave(self)

    def accept(self) -> None:
        """End a channel that the guest asked for by saying yes, where that is all that there is to say."""
        self._mux.send_now(frames.END, self.number)
        self._mux.forget(self)

    def refuse(self, reason: str) -> None:
        """End a channel that the guest asked for; it is told nothing but that, and the reason."""
        if not self.settled:
            self._mux.send_now(frames.RESET, self.number, json.dumps({"error": reason[:200]}).encode())
            self.fail(ChannelLeft())
        self._mux.forget(self)

    def fail(self, error: Exception) -> None:
        """Nothing more will come, because of this."""
        if self._error is None:
            self._error = error
        self._changed.set()

    def deliver(self, kind: int, payload: bytes) -> None:
        """A frame came. Raises `GuestProtocolError`."""
        if kind == frames.DATA:
            if self._they_ended or not payload or len(payload) > self._allowed:
                raise GuestProtocolError("the guest agent sent data that it had no credit for")
            self._allowed -= len(payload)
            self._inbox.append(payload)
        elif kind == frames.CREDIT:
            if len(payload) != frames.CREDIT_PAYLOAD.size:
                raise GuestProtocolError("the guest agent sent a malformed credit")
            (more,) = frames.CREDIT_PAYLOAD.unpack(payload)
            if not 0 < more <= frames.WINDOW - self._credit:
                raise GuestProtocolError(f"the guest agent gave back {more} bytes of credit that were not taken")
            self._credit += more
        elif kind == frames.END:
            if self._they_ended:
                raise GuestProtocolError("the guest agent ended a channel twice")
            self._they_ended = True
        else:
            if len(payload) > RESET_MAX:
                raise GuestProtocolError("the guest agent sent an oversized reason")
            self.fail(ChannelRefused(payload))
        self._changed.set()


class Mux:
    """The stream. `start` greets; `close` or any violation ends it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_violation: Callable[[GuestProtocolError], None] | None = None,
        on_request: Callable[[Channel, bytes], None] | None = None,
    ) -> None:
        """`on_request` hears what the guest wants a channel for; without it none is served."""
        self._on_request = on_request
        self._reader = reader
        self._writer = writer
        self._on_violation = on_violation
        self._decoder = frames.Decoder()
        self._channels: dict[int, Channel] = {}
        self._next = 1
        self._asked: dict[int, Channel] = {}
        """Channels that the guest opened."""
        self._late: list[tuple[int, int, bytes]] = []
        """What is to be said on channels of the guest's once it may be."""
        self._going = asyncio.Event()
        self._going.set()
        self._last_guest_channel = 0
        self._pings: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._greeting: asyncio.Future[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self.error: MachineError | None = None
        """Why the stream is of no use any more."""

    async def start(self, hello: bytes, is_answer: Callable[[bytes], bool], *, timeout: float) -> bytes:
        """Greet, pass over whatever an earlier host was owed, and return the answer's payload.

        Raises `MachineGone` where there is none within `timeout` seconds, `GuestProtocolError` for what is no frame.
        """
        self._is_answer = is_answer
        self._greeting = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read(), name="guest-stream")
        self.send_now(frames.HELLO, frames.CONTROL, hello)
        try:
            async with asyncio.timeout(timeout):
                return await self._greeting
        except TimeoutError:
            error = MachineGone(f"the guest agent did not answer within {timeout:g} s")
            self._end(error)
            raise error from None
        except BaseException:
            await self.close()
            raise

    def open(self, kind: str, **params: object) -> Channel:
        """Open a channel. Raises `MachineGone`, `GuestProtocolError`, `MachineError` where too many are open.

        `OSError` E2BIG where the parameters are longer than a frame.
        """
        self.check()
        if len(self._channels) >= CHANNELS_MAX:
            raise MachineError(f"{CHANNELS_MAX} requests to the guest agent are under way; wait for one to end")
        # As it is, and not as escapes: what a request may hold is bounded in bytes of UTF-8.
        said = json.dumps({"kind": kind, **params}, ensure_ascii=False, separators=(",", ":"))
        payload = said.encode("utf-8", "surrogatepass")
        if len(payload) > frames.MAX_PAYLOAD:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        channel = self._channels[self._next] = Channel(self, self._next)
        self._next += 2
        self.send_now(frames.OPEN, channel.number, payload)
        return channel

    def forget(self, channel: Channel) -> bool:
        """Hear no more of a channel; whether it was there."""
        return (self._channels if channel.number % 2 else self._asked).pop(channel.number, None) is not None

    def leave(self, channel: Channel) -> None:
        """Forget a channel; the agent is told where it may still be busy with it."""
        if self.forget(channel) and not channel.settled and self.error is None:
            self.send_now(frames.RESET, channel.number, b"{}")

    async def ping(self, payload: bytes) -> None:
        """Return when the agent echoed the payload."""
        self.check()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings.append((payload, answered))
        self.send_now(frames.PING, frames.CONTROL, payload)
        await answered

    def check(self) -> None:
        """Raise what ended the stream, if anything did."""
        if self.error is not None:
            raise self.error

    def send_now(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Queue a small frame. A guest that lets too much pile up is cut off."""
        if self.error is not None:
            return
        if number and number % 2 == 0 and not self._going.is_set():
            self._late.append((kind, number, payload))
            if len(self._late) > LATE_MAX:
                self.violated(GuestProtocolError("the guest agent asks for more while it says that it is quiet"))
            return
        self._writer.write(frames.encode(kind, number, payload))
        if self._writer.transport.get_write_buffer_size() > UNREAD_MAX:
            self.violated(GuestProtocolError(f"the guest agent left {UNREAD_MAX} bytes unread"))

    def hold(self) -> None:
        """Send nothing more on channels that the guest opened, until `go_on`: no frame of theirs may lie in the stream
        half while its memory is written."""
        self._going.clear()

    def go_on(self) -> None:
        """Undo `hold`."""
        self._going.set()
        late, self._late = self._late, []
        for frame in late:
            self.send_now(*frame)

    async def send_bulk(self, channel: Channel, kind: int, payload: bytes = b"") -> None:
        """Send a frame of a channel, waiting while the guest is slow to read."""
        if not channel.number % 2:
            await self._going.wait()
        self.check()
        channel.check()
        self._writer.write(frames.encode(kind, channel.number, payload))
        try:
            await self._writer.drain()
        except OSError as error:
            self._end(MachineGone(f"the guest's stream ended: {error.strerror or 'closed'}"))
            self.check()

    async def close(self) -> None:
        """Let go of the stream."""
        self._end(MachineGone("the connection to the guest agent was closed"))
        if self._task and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(_READ_BYTES):
                for frame in self._decoder.feed(data):
                    self._frame(*frame)
                # One guest that floods must not keep the others from being heard.
                await asyncio.sleep(0)
            self._end(MachineGone("the guest's stream ended"))
        except GuestProtocolError as error:
            self.violated(error)
        except frames.FrameError as error:
            self.violated(GuestProtocolError(f"the guest agent sent no frame: {error}"))
        except OSError as error:
            self._end(MachineGone(f"the guest's stream ended: {error.strerror or 'closed'}"))

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        assert self._greeting is not None
        if not self._greeting.done():
            # Until the answer, what comes was meant for the host before us.
            if kind == frames.HELLO and number == frames.CONTROL and self._is_answer(payload):
                self._greeting.set_result(payload)
            return
        if self._greeting.cancelled():
            return
        if kind == frames.PONG and number == frames.CONTROL and self._pings and self._pings[0][0] == payload:
            _, answered = self._pings.popleft()
            if not answered.done():
                answered.set_result(None)
        elif kind in (frames.HELLO, frames.PING, frames.PONG) or number == frames.CONTROL:
            raise GuestProtocolError(f"the guest agent sent a frame of kind {kind} that nobody asked for")
        elif kind == frames.OPEN:
            self._request(number, payload)
        elif channel := (self._channels if number % 2 else self._asked).get(number):
            channel.deliver(kind, payload)
        elif number >= self._next if number % 2 else number > self._last_guest_channel:
            raise GuestProtocolError(f"the guest agent spoke on channel {number}, which was never opened")

    def _request(self, number: int, payload: bytes) -> None:
        if number % 2 or number <= self._last_guest_channel:
            raise GuestProtocolError(f"the guest agent opened channel {number}, which is not its to open")
        if len(payload) > REQUEST_MAX:
            raise GuestProtocolError(f"the guest agent asked for something in {len(payload)} bytes")
        self._last_guest_channel = number
        channel = Channel(self, number)
        if self._on_request is None or len(self._asked) >= GUEST_CHANNELS_MAX:
            channel.refuse("this host serves no channel of that kind" if self._on_request is None else "too many")
            return
        self._asked[number] = channel
        self._on_request(channel, payload)

    def violated(self, error: GuestProtocolError) -> None:
        """The agent is not to be spoken to again."""
        if self.error is None and self._on_violation:
            self._on_violation(error)
        self._end(error)

    def _end(self, error: MachineError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._writer.close()
        if self._task and not self._task.done():
            self._task.cancel()
        if self._greeting and not self._greeting.done():
            self._greeting.set_exception(error)
        self._going.set()
        for channel in [*self._channels.values(), *self._asked.values()]:
            channel.fail(error)
        while self._pings:
            _, answered = self._pings.popleft()
            if not answered.done():
                answered.set_exception(error)
