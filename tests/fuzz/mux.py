"""The host's end of a guest's stream: greeted well, then anything, while channels are open and callers wait.

Every caller gets what came or one of the errors that are promised, whatever the agent says; nothing grows beyond what
the windows allow; and once the stream has ended, nobody waits any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

from actors.guest import frames
from actors.machines import mux as mux_module
from actors.machines.mux import Channel, ChannelRefused, Mux
from actors.machines.protocol import GuestProtocolError, MachineError
from tests.fuzz.script import Script, said, step

if TYPE_CHECKING:
    from collections.abc import Coroutine

ANSWER = b"hello"
_TURNS = 6
"""Turns of the loop until what was sent has been read and whoever waits for it has run."""
_PATIENCE_S = 10.0
_FRAME = frames.HEADER_BYTES + frames.MAX_PAYLOAD

FRAME, BYTES, LISTEN, OPEN, SEND, LEAVE, PING, READ, RECEIVE = range(9)
SEEDS = (
    step(LISTEN) + step(FRAME, said(frames.DATA, 1, b"text")) + step(FRAME, said(frames.END, 1)),
    step(OPEN) + step(FRAME, said(frames.DATA, 1, b"text")) + step(RECEIVE, 0) + step(LEAVE, 0),
    step(OPEN) + step(SEND, 0, 255, 255) + step(FRAME, said(frames.CREDIT, 1, b"\0\0\xff\xff")) + step(READ),
    step(LISTEN) + step(FRAME, said(frames.RESET, 1, b'{"error": "no"}')) + step(FRAME, said(frames.END, 1)),
    step(PING, 1, 65) + step(FRAME, said(frames.PONG, 0, b"A")) + step(FRAME, said(frames.PONG, 0, b"A")),
    step(FRAME, said(frames.OPEN, 2, b"{}")) + step(FRAME, said(frames.OPEN, 4, b"{}")) + step(FRAME, said(2, 4)),
    step(BYTES, 9, b"\0" * 9),
    step(LISTEN) + step(FRAME, said(frames.CREDIT, 1, b"\xff\xff\xff\xff")),
    step(OPEN) * 3 + step(LEAVE, 1) + step(FRAME, said(frames.DATA, 3, b"late")) + step(FRAME, said(frames.DATA, 11)),
    # More than a window, to a channel that nobody reads.
    step(OPEN) + step(FRAME, bytes([frames.DATA, 1, 250]), b"oooo") * 5,
)


def run(data: bytes) -> None:
    """Each step begins with a byte that says what it is."""
    asyncio.run(_Play(Script(data)).play())


class _Play:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._violations: list[GuestProtocolError] = []
        self._channels: list[Channel] = []
        self._tasks: dict[Channel | None, list[asyncio.Task[None]]] = defaultdict(list)
        """Callers that wait, by their channel."""

    async def play(self) -> None:
        ours, self._guest = socket.socketpair()
        self._guest.setblocking(False)
        with ours, self._guest:
            reader, writer = await asyncio.open_connection(sock=ours)
            self._mux = Mux(reader, writer, on_violation=self._violations.append, on_request=self._requested)
            greeting = asyncio.create_task(self._mux.start(b"{}", lambda payload: payload == ANSWER, timeout=5))
            await self._say(frames.encode(frames.DATA, 7, b"for the host before us") + _hello())
            assert await greeting == ANSWER
            try:
                while self._script and self._mux.error is None:
                    await self._step(self._script.byte() % 9)
                    await self._settle()
            finally:
                await self._finish()

    async def _step(self, number: int) -> None:
        script = self._script
        if number == FRAME:
            await self._say(script.frame())
        elif number == BYTES:
            await self._say(script.take(script.byte()))
        elif number in (LISTEN, OPEN) and len(self._channels) < mux_module.CHANNELS_MAX:
            self._channels.append(channel := self._mux.open("anything", number=number))
            if number == LISTEN:
                self._begin(_listen(channel), channel)
        elif number == SEND and self._channels:
            channel = self._chosen()
            self._begin(channel.send(bytes(script.byte() << 8 | script.byte()), last=bool(script.byte() % 2)), channel)
        elif number == LEAVE and self._channels:
            channel = self._chosen()
            self._channels.remove(channel)
            for task in (tasks := self._tasks.pop(channel, [])):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._mux.leave(channel)
        elif number == PING:
            self._begin(self._mux.ping(script.take(script.byte() % 16)))
        elif number == READ:
            self._read()
        elif number == RECEIVE and self._channels:
            channel = self._chosen()
            self._begin(channel.receive(), channel)

    def _requested(self, channel: Channel, request: bytes) -> None:
        """Served as the guest's request has it: let be, refused, accepted, heard, or spoken to."""
        manner = request[0] % 5 if request else 0
        if manner == 1:
            channel.refuse("no")
        elif manner == 2:
            channel.accept()
        elif manner == 3:
            self._begin(_listen(channel), channel)
        elif manner == 4:
            self._begin(channel.send(request * 300, last=True), channel)

    def _chosen(self) -> Channel:
        return self._channels[self._script.byte() % len(self._channels)]

    def _begin(self, call: Coroutine[object, object, object], channel: Channel | None = None) -> None:
        self._tasks[channel].append(asyncio.create_task(_promised(call)))

    def _read(self) -> None:
        """The guest reads what waits for it."""
        try:
            while self._guest.recv(1 << 20):
                pass
        except (BlockingIOError, ConnectionResetError):
            return

    async def _say(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._guest.send(data) :]
            except BlockingIOError:
                await self._settle()
            except (BrokenPipeError, ConnectionResetError):
                return

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            self._check()

    def _check(self) -> None:
        mux = self._mux
        for channel in mux._channels.values():
            assert sum(map(len, channel._inbox)) <= frames.WINDOW, "a channel holds more than its window"
            assert 0 <= channel._credit <= frames.WINDOW, "more credit than was ever given"
        assert mux.error or mux._decoder.pending < _FRAME, "more than a frame waits for its end"
        assert mux._writer.transport.get_write_buffer_size() <= mux_module.UNREAD_MAX + _FRAME, "too much is unread"
        assert len(mux._asked) <= mux_module.GUEST_CHANNELS_MAX
        for channel in mux._asked.values():
            assert sum(map(len, channel._inbox)) <= frames.WINDOW, "a channel of the guest's holds more than its window"
            assert 0 <= channel._credit <= frames.WINDOW, "more credit than was ever given"
        assert len(self._violations) <= 1, "a violation is told twice"

    async def _finish(self) -> None:
        """The stream ends: nobody may wait any more, and whoever asks again hears why."""
        self._guest.close()
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*chain.from_iterable(self._tasks.values()))
            task = self._mux._task
            assert task is not None
            await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None, f"reading broke: {task}"
        assert isinstance(self._mux.error, MachineError)
        assert isinstance(self._mux.error, GuestProtocolError) == bool(self._violations), "a violation is not told"
        for channel in self._channels:
            try:
                while await channel.receive():
                    pass
            except (MachineError, ChannelRefused):
                continue
        await self._mux.close()


async def _listen(channel: Channel) -> None:
    while await channel.receive():
        pass


async def _promised(call: Coroutine[object, object, object]) -> None:
    try:
        await call
    except (MachineError, ChannelRefused):
        return


def _hello() -> bytes:
    return frames.encode(frames.HELLO, frames.CONTROL, ANSWER)
