"""The host's requests to a guest agent that answers each with anything.

One request for each input, of every kind that the host makes. It returns what was asked for, within its bounds, or
raises an error that is promised for it: callers handle no others, and a guest could break its host with one.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

from actors.guest import frames
from actors.machines.guest import LIVE_MAX, GuestConnection, connect
from actors.machines.protocol import Identity, MachineError
from actors.machines.visiting import Program
from actors.visits.serving import Judge
from actors.visits.wire import VisitRefused
from events.types import Limits
from tests.fuzz.script import Script, raw, said, step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_PATIENCE_S = 10.0
_MOST = 1000
_IDENTITY = Identity(time_ns=0, hostname="h", machine_id="m", entropy="00", fresh=True)


async def _run_tool(guest: GuestConnection) -> None:
    shown = 0

    def show(data: bytes) -> None:
        nonlocal shown
        shown += len(data)

    result = await guest.run_tool("id", "bash", {"command": "x"}, timeout=60, on_output=show)
    assert result.content
    assert shown <= LIVE_MAX


async def _read_file(guest: GuestConnection) -> None:
    assert len(await guest.read_file("/x", max_bytes=_MOST)) <= _MOST


async def _process(guest: GuestConnection) -> None:
    async with guest.process(Program("id", ["x"])) as running:
        while piece := await running.read():
            assert piece[0] in (1, 2)
            assert piece[1]
        assert 0 <= running.exit_code <= 255


async def _connect(guest: GuestConnection) -> None:
    async with guest.connect(80) as stream:
        await stream.send(b"x", last=True)
        while await stream.receive():
            pass


async def _pack(guest: GuestConnection) -> None:
    tree = Judge(_MOST)
    async with guest.pack("x", recursive=True) as stream:
        while data := await stream.receive():
            tree.judged(data)
        tree.finished()
    assert tree.bytes <= _MOST


REQUESTS: tuple[tuple[Callable[[GuestConnection], Awaitable[object]], tuple[type[Exception], ...]], ...] = (
    (_run_tool, (MachineError,)),
    (lambda guest: guest.interrupt("id"), (MachineError,)),
    (lambda guest: guest.stats(), (MachineError,)),
    (lambda guest: guest.quiesce(), (MachineError,)),
    (lambda guest: guest.wake(), (MachineError,)),
    (lambda guest: guest.restored(_IDENTITY), (MachineError,)),
    (lambda guest: guest.ping(), (MachineError,)),
    (_read_file, (MachineError, OSError)),
    (lambda guest: guest.write_file("/x", b"x" * 100), (MachineError, OSError)),
    (lambda guest: guest.remove_tree("/x"), (MachineError, OSError)),
    (_process, (MachineError, OSError)),
    (lambda guest: guest.resize("id", 1, 1), (MachineError, OSError)),
    (lambda guest: guest.signal("id", 1), (MachineError, OSError)),
    (_connect, (MachineError, OSError)),
    (_pack, (MachineError, OSError, VisitRefused)),
)
"""What the host asks, and what that may raise."""

_RESULT = json.dumps({"content": [{"type": "text", "text": "x"}], "is_error": False, "output_bytes": 1}).encode()
_ERROR = b'{"error": "no", "errno": 2}'
_END = step(0, said(frames.END, 1))


def _seed(request: int, *steps: bytes) -> bytes:
    return bytes([request]) + b"".join(steps)


SEEDS = (
    _seed(0, step(0, said(frames.DATA, 1, b"o" + b"text")), step(0, said(frames.DATA, 1, b"r" + _RESULT)), _END),
    _seed(10, step(0, said(frames.DATA, 1, b"bb")), step(0, said(3, 1, b'x{"exit_code": 0}')), _END),
    _seed(5, step(0, said(3, 1, b'{"hostname":"h","machine_id":"m","clock_offset_ns":0}')), _END),
    _seed(2, step(0, said(3, 1, b'{"running": "1"}')), _END),
    _seed(2, step(0, bytes([frames.DATA, 1, 205]), b"[[[["), _END),
    _seed(2, step(2, 200, b"["), _END),
    _seed(13, step(0, said(3, 1, b"c")), step(0, said(3, 1, b"text")), _END),
    _seed(14, step(0, said(3, 1, raw(2, 0, b'{"kind": "file", "mode": 0}\n') + raw(3, 0, b"x") + raw(5, 0))), _END),
    _seed(6, step(0, said(frames.PONG, 0, b"x"))),
    *(_seed(number, step(0, said(frames.RESET, 1, _ERROR))) for number in range(len(REQUESTS))),
    *(_seed(number, step(0, said(frames.RESET, 1, b"no JSON"))) for number in range(0, len(REQUESTS), 3)),
)


def run(data: bytes) -> None:
    """The first byte says what is asked; then each step begins with a byte that says how the agent answers."""
    asyncio.run(_ask(Script(data)))


async def _ask(script: Script) -> None:
    request, promised = REQUESTS[script.byte() % len(REQUESTS)]
    ours, theirs = socket.socketpair()
    theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)
    agent = asyncio.create_task(_answer(theirs_reader, theirs_writer, script))
    guest = await connect(*await asyncio.open_connection(sock=ours), limits=Limits(), timeout=_PATIENCE_S)
    told = ""
    try:
        async with asyncio.timeout(_PATIENCE_S) as patience:
            await request(guest)
    except promised as error:
        told = str(error)
    finally:
        await guest.close()
        agent.cancel()
        await asyncio.wait([agent])
        theirs_writer.close()
    assert not patience.expired(), "somebody waits for a stream that has ended"
    assert len(told) < 1000, "the error is as long as the guest likes"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: Script) -> None:
    """Greet well, wait for what is asked, then say what the script says, and leave."""
    _, _, length = frames.header(await reader.readexactly(frames.HEADER_BYTES))
    nonce = json.loads(await reader.readexactly(length))["nonce"]
    hello = {"protocol": 1, "nonce": nonce, "agent_version": "0", "python": "3"}
    writer.write(frames.encode(frames.HELLO, frames.CONTROL, json.dumps(hello).encode()))
    await reader.read(1)
    while script:
        kind = script.byte() % 3
        if kind == 0:
            data = script.frame()
        elif kind == 1:
            data = script.take(script.byte())
        else:
            # One piece many times: what nests deeply.
            times = script.byte() * 64
            data = raw(frames.DATA, 1, (script.take(1) * times)[: frames.MAX_PAYLOAD])
        writer.write(data)
        try:
            await writer.drain()
        except OSError:
            break
    writer.close()
