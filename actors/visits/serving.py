"""Serving a visit: what a visitor asks for is recorded, then done; how it ended is recorded, then told.

A visitor that leaves ends what it asked for, and so does whoever cancels the task of its visit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shlex
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from actors.guest import frames, trees
from actors.machines.answers import Unpacked, parsed
from actors.machines.guest import REQUEST_S
from actors.machines.protocol import GuestProtocolError
from actors.machines.visiting import Program
from actors.visits.registry import OpenForward
from actors.visits.wire import Connect, Control, CopyIn, CopyOut, Exec, Forward, VisitorGone, VisitRefused
from events import sandbox as fold
from events.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine
    from typing import Any

    from actors.machines.protocol import Guest
    from actors.machines.visiting import ByteStream, RunningProcess
    from actors.sandbox import Sandbox
    from actors.visits.wire import Line, Visit

T = TypeVar("T")

ENTRIES_MAX = 1_000_000
"""Files and folders of one copy out of a sandbox."""
_NOT_FOUND, _NOT_RUNNABLE = 127, 126
_COMMAND_MAX = 4000


async def serve(sandbox: Sandbox, request: Visit, line: Line) -> None:
    """One visit, to its end. Raises `VisitorGone`, `VisitRefused`, `SandboxFailed`, `MachineError`."""
    if isinstance(request, Exec):
        await _exec(sandbox, request, line)
    elif isinstance(request, Forward):
        await _forward(sandbox, request, line)
    elif isinstance(request, Connect):
        await _connect(sandbox, request, line)
    elif isinstance(request, CopyIn):
        await _copy_in(sandbox, request, line)
    else:
        await _copy_out(sandbox, request, line)


async def _first(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs until the first of them is done, or failed; the others are cut off."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _ended(sandbox: Sandbox, told: fold.EndProcess | fold.CloseForward) -> AsyncIterator[None]:
    """Whoever is cut off while its beginning is recorded leaves it open, or not begun: end it where it is open."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(IllegalTransition):
            await sandbox.record_visit(told)
        raise


# --- programs -------------------------------------------------------------------------------------------------------


async def _exec(sandbox: Sandbox, request: Exec, line: Line) -> None:
    process_id = f"prc-{secrets.token_hex(8)}"
    program = Program(process_id, request.argv, request.cwd, request.env, request.terminal)
    command = shlex.join(request.argv)[:_COMMAND_MAX]
    opened = fold.OpenProcess(
        process_id=process_id, command=command, terminal=request.terminal is not None, by=request.by
    )
    cut_off = fold.EndProcess(process_id=process_id, exit_code=None, seconds=0, bytes_out=0)
    async with _ended(sandbox, cut_off), sandbox.visit(opened) as machine:
        began = time.monotonic()
        talk = _Talk(machine.guest, sandbox.turn, program, line)
        try:
            await talk.hold()
        finally:
            await sandbox.record_visit(
                fold.EndProcess(
                    process_id=process_id,
                    exit_code=talk.exit_code,
                    seconds=round(time.monotonic() - began, 6),
                    bytes_out=talk.bytes_out,
                )
            )
        await line.conclude(exit_code=talk.exit_code)


class _Talk:
    """Between a visitor and a program."""

    def __init__(self, guest: Guest, turn: asyncio.Lock, program: Program, line: Line) -> None:
        self.exit_code: int | None = None
        self.bytes_out = 0
        self._guest = guest
        self._turn = turn
        self._program = program
        self._line = line
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._window = frames.WINDOW

    async def hold(self) -> None:
        """Until it has ended. Raises `VisitRefused` where it can't be started."""
        try:
            async with AsyncExitStack() as stack:
                # No snapshot meanwhile: it would stop the program on its way, and with it whoever starts it.
                async with self._turn:
                    process = await stack.enter_async_context(self._guest.process(self._program))
                await self._line.tell(process_id=self._program.process_id)
                await _first(self._print(process), self._listen(), self._feed(process))
        except OSError as error:
            raise self._not_started(error) from error

    def _not_started(self, error: OSError) -> VisitRefused:
        name = self._program.argv[0]
        self.exit_code = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_RUNNABLE
        if error.errno == errno.ENOENT:
            cause, step = f"there is no program {name} in the sandbox", "Name another one, or its whole path."
        elif error.errno == errno.ENOTDIR:
            cause, step = f"there is no folder {self._program.cwd} in the sandbox", "Name another one with --cwd."
        else:
            cause, step = f"{name} can't be run in the sandbox: {os.strerror(error.errno or 0)}", "See to its rights."
        return VisitRefused(cause, step, self.exit_code)

    async def _print(self, process: RunningProcess) -> None:
        while piece := await process.read():
            stream, data = piece
            self.bytes_out += len(data)
            await self._line.send(frames.DATA, stream, data)
        self.exit_code = process.exit_code

    async def _listen(self) -> None:
        """Whatever the program does: a visitor that leaves is noticed, and so is the size of its terminal."""
        while True:
            kind, channel, payload = await self._line.frame()
            if kind == frames.DATA and channel == 0 and payload and len(payload) <= self._window:
                self._window -= len(payload)
                self._input.put_nowait(payload)
            elif kind == frames.END and channel == 0:
                self._input.put_nowait(None)
            elif kind == frames.OPEN:
                await self._control(payload)
            else:
                raise VisitorGone("the visitor sent what it may not")

    async def _control(self, payload: bytes) -> None:
        try:
            control = Control.model_validate_json(payload)
        except ValueError as error:
            raise VisitorGone("the visitor sent what it may not") from error
        # A guest that is held for a snapshot does neither before it goes on, and would seem to stand still.
        async with self._turn:
            if control.resize:
                await self._guest.resize(self._program.process_id, *control.resize)
            if control.signal:
                await self._guest.signal(self._program.process_id, control.signal)

    async def _feed(self, process: RunningProcess) -> None:
        while data := await self._input.get():
            await process.write(data)
            self._window += len(data)
            await self._line.send(frames.CREDIT, 0, frames.CREDIT_PAYLOAD.pack(len(data)))
        await process.write(b"", last=True)
        await asyncio.Event().wait()


# --- forwards -------------------------------------------------------------------------------------------------------


async def _forward(sandbox: Sandbox, request: Forward, line: Line) -> None:
    forward_id = f"fwd-{secrets.token_hex(8)}"
    opened = fold.OpenForward(forward_id=forward_id, port=request.port)
    cut_off = fold.CloseForward(forward_id=forward_id, seconds=0, bytes_in=0, bytes_out=0)
    async with _ended(sandbox, cut_off), sandbox.visit(opened):
        began = time.monotonic()
        forward = sandbox.visits.forwards[forward_id] = OpenForward(request.port)
        try:
            await line.tell(forward_id=forward_id)
            while True:
                await line.frame()  # it says nothing: this ends with the connection
        finally:
            del sandbox.visits.forwards[forward_id]
            for task in forward.connections:
                task.cancel()
            if forward.connections:
                await asyncio.wait(forward.connections)
            await sandbox.record_visit(
                fold.CloseForward(
                    forward_id=forward_id,
                    seconds=round(time.monotonic() - began, 6),
                    bytes_in=forward.bytes_in,
                    bytes_out=forward.bytes_out,
                )
            )


async def _connect(sandbox: Sandbox, request: Connect, line: Line) -> None:
    forward = sandbox.visits.forwards.get(request.forward_id)
    if forward is None:
        raise VisitRefused("the forward is closed")
    task = asyncio.current_task()
    assert task is not None
    forward.connections.add(task)
    try:
        async with (
            sandbox.visits.connections,
            sandbox.visit() as machine,
            machine.guest.connect(forward.port) as stream,
        ):
            await line.tell()
            await _carry(stream, line, forward)
    except OSError as error:
        step = f"Start what is to listen there, on 127.0.0.1 or on all addresses, at port {forward.port}."
        raise VisitRefused(
            f"port {forward.port} of {sandbox.sandbox_id} can't be reached: {os.strerror(error.errno or 0)}", step
        ) from error
    finally:
        forward.connections.discard(task)


async def _carry(stream: ByteStream, line: Line, forward: OpenForward) -> None:
    """Bytes both ways, until both ends have said all."""

    all_said = asyncio.Event()

    async def inwards() -> None:
        while True:
            kind, _, data = await line.frame()
            if all_said.is_set() or kind not in (frames.DATA, frames.END):
                raise VisitorGone("the visitor sent what it may not")
            forward.bytes_in += len(data)
            await stream.send(data, last=kind == frames.END)
            if kind == frames.END:
                all_said.set()

    async def outwards() -> None:
        while data := await stream.receive():
            forward.bytes_out += len(data)
            await line.send(frames.DATA, frames.CONTROL, data)
        await line.send(frames.END, frames.CONTROL)
        await all_said.wait()

    await _first(inwards(), outwards())


# --- copies ---------------------------------------------------------------------------------------------------------


def _failed(path: str, error: OSError) -> VisitRefused:
    if error.errno == errno.EISDIR:
        return VisitRefused(f"{path} in the sandbox is a folder", "Copy a folder with -r, to where there is no file.")
    return VisitRefused(
        f"{path} in the sandbox: {os.strerror(error.errno or 0)}", "See what is there with `hourglass exec`."
    )


async def _copy_out(sandbox: Sandbox, request: CopyOut, line: Line) -> None:
    tree = Judge(request.max_bytes)
    async with sandbox.visit(copies=True) as machine:
        try:
            async with machine.guest.pack(request.path, recursive=request.recursive) as stream:
                data = await _soon(stream.receive())
                await line.tell()
                while data:
                    for frame in tree.judged(data):
                        await line.send(*frame)
                    data = await _soon(stream.receive())
                tree.finished()
        except OSError as error:
            raise _failed(request.path, error) from error
        await sandbox.record_visit(fold.RecordCopy(path=request.path, direction="out", size=tree.bytes))
    await line.conclude(bytes=tree.bytes, files=tree.files)


async def _copy_in(sandbox: Sandbox, request: CopyIn, line: Line) -> None:
    size = files = 0
    # From here on its files differ from what the calls made of them, however far this comes.
    begun = fold.RecordCopy(path=request.path, direction="in", size=None)
    async with sandbox.visit(begun, copies=True) as machine:
        try:
            async with machine.guest.unpack(request.path, request.name) as stream:
                await line.tell()
                while True:
                    kind, _, payload = await line.frame()
                    if kind not in (frames.OPEN, frames.DATA, frames.END):
                        raise VisitorGone("the visitor gave it up")
                    files += kind == frames.OPEN and trees.parse(payload)[0] == trees.FILE
                    size += len(payload) if kind == frames.DATA else 0
                    frame = frames.encode(kind, frames.CONTROL, payload)
                    await _soon(stream.send(frame, last=kind == frames.END))
                    if kind == frames.END:
                        break
                said = bytearray()
                while data := await _soon(stream.receive()):
                    said += data
                    if len(said) > 2 * frames.MAX_PAYLOAD:
                        raise GuestProtocolError("the guest agent says too much of where a tree went")
                parsed(Unpacked, said, "the end of a copy")
        except OSError as error:
            raise _failed(request.path, error) from error
        except ValueError as error:
            raise VisitorGone("the visitor sent no tree") from error
        await sandbox.record_visit(fold.RecordCopy(path=request.path, direction="in", size=size))
    await line.conclude(bytes=size, files=files)


async def _soon(step: Awaitable[T]) -> T:
    """One step of a copy; a guest that stands still is given up."""
    try:
        async with asyncio.timeout(REQUEST_S):
            return await step
    except TimeoutError:
        raise GuestProtocolError(f"a copy stood still for {REQUEST_S:g} s") from None


class Judge:
    """Judges a tree that a guest sends: its frames, and how much it is."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.files = 0
        self._max_bytes = max_bytes
        self._entries = 0
        self._decoder = frames.Decoder()
        self._in_file = False
        self._complete = False

    def judged(self, data: bytes) -> list[frames.Frame]:
        """The frames that a visitor is to have; its end is told otherwise. Raises `GuestProtocolError`."""
        try:
            found = self._decoder.feed(data)
        except frames.FrameError as error:
            raise GuestProtocolError("the guest agent sent no tree") from error
        return [frame for frame in found if self._is_part(frame)]

    def _is_part(self, frame: frames.Frame) -> bool:
        if self._complete or frame.channel != frames.CONTROL:
            raise GuestProtocolError("the guest agent sent no tree")
        if frame.kind == frames.DATA and self._in_file:
            self.bytes += len(frame.payload)
            if self.bytes > self._max_bytes:
                raise VisitRefused(f"it is more than {self._max_bytes:,} bytes", "Allow more with --max-bytes.")
        elif frame.kind == frames.OPEN:
            self._begin(frame.payload)
        elif frame.kind == frames.END:
            self._complete = True
            return False
        else:
            raise GuestProtocolError("the guest agent sent no tree")
        return True

    def _begin(self, payload: bytes) -> None:
        try:
            kind, _, path = trees.parse(payload)
            names = trees.check_path(path)
        except (ValueError, RecursionError) as error:
            raise GuestProtocolError(f"the guest agent sent a bad entry: {error}") from error
        if bool(names) != bool(self._entries):
            raise GuestProtocolError("the guest agent sent a tree that does not begin with itself")
        self._entries += 1
        self._in_file = kind == trees.FILE
        self.files += self._in_file
        if self._entries > ENTRIES_MAX:
            raise VisitRefused(
                f"it is more than {ENTRIES_MAX:,} files and folders", "Copy it in parts, or as an archive."
            )

    def finished(self) -> None:
        """Raises `GuestProtocolError` where it has no end."""
        if not self._complete or self._decoder.pending:
            raise GuestProtocolError("the guest agent sent a tree that has no end")
