"""The connection to a guest agent: `connect` greets, `GuestConnection` is the `Guest` of a machine.

What the agent must do is in `actors.guest.agent`; what it may not, in `actors.machines.mux`.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from errno import EBUSY, ETIMEDOUT
from typing import TYPE_CHECKING

from actors.machines.answers import HELLO_MAX, RESULT_MAX, Hello, Itself, Refusal, Result, parsed
from actors.machines.mux import ChannelRefused, Mux
from actors.machines.programs import GuestProcess
from actors.machines.protocol import (
    GuestBusy,
    GuestInfo,
    GuestProtocolError,
    IdentityRefused,
    MachineError,
    Restored,
    ToolResult,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from actors.machines.mux import Channel
    from actors.machines.protocol import Egress, Identity
    from actors.machines.visiting import Program
    from events.types import JsonObject, Limits

PROTOCOL = 1
HANDSHAKE_S = 30.0
"""How long an agent may take to answer: a machine that is just starting, twenty at once."""
SILENCE_S = 10.0
"""How long past its timeout a call may be silent before it is interrupted, and again before the agent is given up."""
REQUEST_S = 60.0
"""How long a request that moves no bytes may take; and how long a transfer may stand still."""
LIVE_MAX = 1024 * 1024 + 4096
"""Bytes of live output that are taken of one call: the agent's own limit, and its remarks on it."""
CLOCK_NS = 2_000_000_000
"""How far a guest's clock may be off."""
_INLINE_BYTES = 1024 * 1024
"""A result above this is parsed in a thread: an image takes tens of milliseconds."""


async def connect(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    limits: Limits,
    timeout: float = HANDSHAKE_S,
    on_violation: Callable[[GuestProtocolError], None] | None = None,
    egress: Egress | None = None,
) -> GuestConnection:
    """Greet the agent at the other end of a stream, and tell it what its tools may use.

    Returns once it answered. Any host before us is forgotten by it; calls that it began go on. Raises `MachineGone`
    where the stream ends or nothing is heard for `timeout` seconds, `GuestProtocolError` for a malformed answer; the
    stream is closed then. `on_violation` hears, once, why the agent is not to be spoken to again; `egress`, what the
    guest wants of the network: without it nothing is served.
    """
    nonce = secrets.token_hex(16)
    hello = {
        "protocol": PROTOCOL,
        "nonce": nonce,
        "limits": {"processes": limits.processes, "memory_bytes": limits.memory_bytes},
    }

    def is_answer(payload: bytes) -> bool:
        # Whatever else it says: an answer to an earlier host does not hold this nonce.
        return nonce.encode() in payload

    mux = Mux(reader, writer, on_violation=on_violation, on_request=egress.requested if egress else None)
    payload = await mux.start(json.dumps(hello).encode(), is_answer, timeout=timeout)
    try:
        if len(payload) > HELLO_MAX:
            raise GuestProtocolError("the greeting of the guest agent is oversized")
        answer = parsed(Hello, payload, "the greeting")
        if answer.nonce != nonce:
            raise GuestProtocolError("the guest agent answered another greeting")
    except GuestProtocolError as error:
        mux.violated(error)
        raise
    return GuestConnection(mux, answer.info())


class GuestConnection:
    """A `Guest` (actors.machines.protocol), over one stream."""

    def __init__(self, mux: Mux, info: GuestInfo) -> None:
        """Made by `connect`."""
        self.info = info
        self._mux = mux
        self._late: asyncio.Future[None] | None = None

    async def run_tool(
        self,
        call_id: str,
        tool: str,
        input_: JsonObject,
        *,
        timeout: float,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ToolResult:
        """See `Guest.run_tool`. At most `LIVE_MAX` bytes reach `on_output`."""
        with self._judged(refusable=False):
            async with self._mux.open("tool", call_id=call_id, tool=tool, timeout=timeout) as channel:
                answer = _ToolAnswer(on_output)
                task = asyncio.ensure_future(self._converse(channel, input_, answer))
                try:
                    await self._patiently(task, call_id, timeout)
                finally:
                    task.cancel()
                    await asyncio.wait([task])
            if len(answer.result) > _INLINE_BYTES:
                result = await asyncio.to_thread(parsed, Result, answer.result, "a result")
            else:
                result = parsed(Result, answer.result, "a result")
            return result.tool_result()

    @staticmethod
    async def _converse(channel: Channel, input_: JsonObject, answer: _ToolAnswer) -> None:
        await channel.send(json.dumps(input_).encode(), last=True)
        while data := await channel.receive():
            answer.take(data)

    async def _patiently(self, task: asyncio.Future[None], call_id: str, timeout: float) -> None:
        """Wait for a call as long as it may take, then interrupt it, then give the agent up."""
        for patience, interrupt in ((timeout + SILENCE_S, True), (SILENCE_S, False)):
            done, _ = await asyncio.wait([task], timeout=patience)
            if done:
                return task.result()
            if interrupt:
                # In a task of its own: an agent that is stuck does not answer this either.
                self._late = asyncio.ensure_future(self._interrupt_silently(call_id))
        raise GuestProtocolError(f"the guest agent kept silent {SILENCE_S:g} s past the timeout of a call")

    async def _interrupt_silently(self, call_id: str) -> None:
        with suppress(ChannelRefused, MachineError, TimeoutError):
            async with self._mux.open("interrupt", call_id=call_id) as channel, asyncio.timeout(SILENCE_S):
                await channel.send(b"", last=True)
                await channel.receive()

    async def interrupt(self, call_id: str) -> None:
        """See `Guest.interrupt`. Returns when the agent has taken note; no error for a call that is over."""
        await self._request("interrupt", refusable=False, call_id=call_id)

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Guest.write_file`. The file is there whole, or as it was before."""
        await self._request("put", data, path=path, mode=mode)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """See `Guest.read_file`."""
        return await self._request("get", path=path, max_bytes=max_bytes, bound=max_bytes)

    async def remove_tree(self, path: str) -> None:
        """See `Guest.remove_tree`."""
        await self._request("remove", path=path)

    @asynccontextmanager
    async def process(self, program: Program) -> AsyncIterator[GuestProcess]:
        """See `VisitedGuest.process`."""
        with self._judged(program.argv[0]):
            async with self._mux.open("process", **program.params()) as channel:
                running = GuestProcess(channel)
                await self._soon("process", running.begun())
                yield running

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        """See `VisitedGuest.resize`."""
        await self._request("resize", process_id=process_id, rows=rows, columns=columns)

    async def signal(self, process_id: str, number: int) -> None:
        """See `VisitedGuest.signal`."""
        await self._request("signal", process_id=process_id, signal=number)

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Channel]:
        """See `VisitedGuest.connect`."""
        with self._judged():
            async with self._mux.open("connect", port=port) as channel:
                try:
                    async with asyncio.timeout(REQUEST_S):
                        said = await channel.receive()
                except TimeoutError:
                    raise OSError(ETIMEDOUT, os.strerror(ETIMEDOUT)) from None
                if said != b"c":
                    raise GuestProtocolError("the guest agent did not say that it connected")
                yield channel

    @asynccontextmanager
    async def pack(self, path: str, *, recursive: bool) -> AsyncIterator[Channel]:
        """See `VisitedGuest.pack`."""
        with self._judged(path):
            async with self._mux.open("pack", path=path, recursive=recursive) as channel:
                await channel.send(b"", last=True)
                yield channel

    @asynccontextmanager
    async def unpack(self, path: str, name: str) -> AsyncIterator[Channel]:
        """See `VisitedGuest.unpack`."""
        with self._judged(path):
            async with self._mux.open("unpack", path=path, name=name) as channel:
                yield channel

    @staticmethod
    async def _soon(kind: str, answer: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                await answer
        except TimeoutError:
            raise GuestProtocolError(f"a {kind!r} of the guest agent stood still for {REQUEST_S:g} s") from None

    async def stats(self) -> JsonObject:
        """What the agent says of its machine: processes, memory in use, the call that runs. For display."""
        said = await self._request("stats", bound=HELLO_MAX, refusable=False)
        with self._judged():
            try:
                value = json.loads(said)
            except (ValueError, RecursionError):
                raise GuestProtocolError("the statistics of the guest agent are no JSON") from None
            if not isinstance(value, dict):
                raise GuestProtocolError("the statistics of the guest agent are no object")
            return value

    async def quiesce(self) -> None:
        """See `Guest.quiesce`."""
        self._mux.hold()
        try:
            await self._request("quiesce", bound=HELLO_MAX)
        except (OSError, MachineError) as error:
            self._mux.go_on()
            if isinstance(error, MachineError):
                raise
            if error.errno == EBUSY:
                raise GuestBusy("a tool call runs in the sandbox") from None
            raise MachineError(f"the guest could not be made quiet: {error.strerror}") from None

    async def wake(self) -> None:
        """See `Guest.wake`."""
        try:
            await self._request("wake", bound=HELLO_MAX, refusable=False)
        finally:
            self._mux.go_on()

    async def restored(self, identity: Identity) -> Restored:
        """See `Guest.restored`."""
        try:
            said = await self._request("restored", bound=HELLO_MAX, **asdict(identity))
        except OSError as error:
            raise IdentityRefused(f"the guest could not be made itself: {error.strerror}") from None
        with self._judged():
            itself = parsed(Itself, said, "the identity")
        wrong = [
            name
            for name, holds in (
                ("hostname", itself.hostname == identity.hostname),
                ("machine-id", not identity.fresh or itself.machine_id == identity.machine_id),
                ("clock", abs(itself.clock_offset_ns) < CLOCK_NS),
            )
            if not holds
        ]
        if wrong:
            raise IdentityRefused(f"the guest did not become itself: its {', '.join(wrong)} is another's")
        return Restored(itself.hostname, itself.machine_id, itself.clock_offset_ns)

    async def ping(self) -> float:
        """See `Guest.ping`."""
        began = time.monotonic()
        with self._judged():
            try:
                async with asyncio.timeout(REQUEST_S):
                    await self._mux.ping(secrets.token_bytes(8))
            except TimeoutError:
                raise GuestProtocolError(f"the guest agent did not answer a ping for {REQUEST_S:g} s") from None
        return time.monotonic() - began

    async def close(self) -> None:
        """See `Guest.close`."""
        await self._mux.close()

    async def _request(
        self, kind: str, data: bytes = b"", *, bound: int = 0, refusable: bool = True, **params: object
    ) -> bytes:
        """Send `data`, take at most `bound` bytes. Raises `OSError` with the guest's reason where `refusable`."""
        taken = bytearray()
        with self._judged(str(params.get("path", "")), refusable=refusable):
            async with self._mux.open(kind, **params) as channel:
                # A transfer may take as long as it moves; what is no transfer may not be drawn out.
                whole = None if data or bound > HELLO_MAX else REQUEST_S
                try:
                    async with asyncio.timeout(whole):
                        for begin in range(0, len(data), _INLINE_BYTES):
                            async with asyncio.timeout(REQUEST_S):
                                await channel.send(data[begin : begin + _INLINE_BYTES])
                        async with asyncio.timeout(REQUEST_S):
                            await channel.send(b"", last=True)
                        while True:
                            async with asyncio.timeout(REQUEST_S):
                                piece = await channel.receive()
                            if not piece:
                                return bytes(taken)
                            taken += piece
                            if len(taken) > bound:
                                raise GuestProtocolError(f"the guest agent sent more than the {bound} bytes asked for")
                except TimeoutError:
                    raise GuestProtocolError(f"a {kind!r} of the guest agent stood still for {REQUEST_S:g} s") from None

    @contextmanager
    def _judged(self, path: str = "", *, refusable: bool = True) -> Iterator[None]:
        """Turn what the agent refused into `OSError`, and end the connection with an agent that misbehaves.

        What is not `refusable` has no reason that its caller would know what to do with: refused, it is a
        `GuestProtocolError`.
        """
        try:
            yield
        except ChannelRefused as refused:
            try:
                refusal = parsed(Refusal, refused.payload, "a refusal")
            except GuestProtocolError as error:
                self._mux.violated(error)
                raise
            number = refusal.errno
            if number is not None and refusable:
                # In the host's own words for that number, not the guest's.
                raise OSError(number, os.strerror(number), path) from None
            raise GuestProtocolError(f"the guest agent refused: {refusal.error[:200]!r}") from None
        except GuestProtocolError as error:
            self._mux.violated(error)
            raise


class _ToolAnswer:
    """Collects what comes on a tool's channel: frames that begin with `o` are output, with `r` the result."""

    def __init__(self, on_output: Callable[[bytes], None] | None) -> None:
        self.result = bytearray()
        self._on_output = on_output
        self._shown = 0

    def take(self, data: bytes) -> None:
        tag, rest = data[:1], data[1:]
        if tag == b"r":
            self.result += rest
            if len(self.result) > RESULT_MAX:
                raise GuestProtocolError(f"a result of the guest agent is above {RESULT_MAX} bytes")
        elif tag == b"o":
            rest = rest[: LIVE_MAX - self._shown]
            self._shown += len(rest)
            if rest and self._on_output:
                self._on_output(rest)
        else:
            raise GuestProtocolError("the guest agent sent data of an unknown sort")
