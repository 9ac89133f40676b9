"""Running a program in a sandbox, from outside: input and output through descriptors, or into memory."""

from __future__ import annotations

import json
import os
import select
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.guest import frames
from actors.visits.client import find, lost, visit
from actors.visits.wire import Exec, VisitRefused, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actors.settings import Settings
    from actors.visits.client import Place, Wire

OUTPUT_MAX = 64 * 1024**2
"""Bytes of output that `execute` holds."""
_READ_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ran in a sandbox."""

    sandbox_id: str
    session_id: str
    process_id: str
    exit_code: int
    """128 and the signal's number where a signal ended it."""
    stdout: bytes
    stderr: bytes
    seconds: float


def execute(
    settings: Settings,
    target: str,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: str = "",
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run a program in the sandbox of a running service, and return when it has ended.

    `target` is a session's or a sandbox's id, or a beginning of one. Raises `CannotServe`, and `VisitRefused`: where it
    can't be started, where it prints more than `OUTPUT_MAX`, and where the sandbox fails under it.
    """
    place = find(settings, target)
    request = checked(Exec, sandbox_id=place.sandbox_id, argv=list(argv), cwd=cwd, env=dict(env or {}), by="api")
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        return collect(place, request, given.fileno() if stdin else None)


def collect(place: Place, request: Exec, stdin: int | None) -> Ran:
    """Run a program, with its output into memory. Raises `VisitRefused`."""
    said = {1: bytearray(), 2: bytearray()}

    def hear(stream: int, data: bytes) -> None:
        said[stream] += data
        if len(said[1]) + len(said[2]) > OUTPUT_MAX:
            step = "Let it write to a file in the sandbox, and `hourglass cp` that."
            raise VisitRefused(f"it printed more than {OUTPUT_MAX:,} bytes", step)

    began = time.monotonic()
    with visit(place) as wire:
        process_id = str(wire.ask(request)["process_id"])
        code = Conversation(wire, hear, stdin=stdin).hold()
    seconds = time.monotonic() - began
    return Ran(place.sandbox_id, place.session_id, process_id, code, bytes(said[1]), bytes(said[2]), round(seconds, 6))


class Conversation:
    """With a program that runs; the visit has begun. Input is read only as fast as the program takes it."""

    def __init__(
        self,
        wire: Wire,
        hear: Callable[[int, bytes], None],
        *,
        stdin: int | None,
        told: int | None = None,
        on_told: Callable[[Wire], None] | None = None,
        edit: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`on_told` is called when there is something to read from the descriptor `told`; `edit` sees all input."""
        self._wire = wire
        self._hear = hear
        self._stdin = stdin
        self._told = told
        self._on_told = on_told
        self._edit = edit
        self._window = frames.WINDOW

    def hold(self) -> int:
        """Until it has ended; its exit code. Raises `VisitRefused`."""
        if self._stdin is None:
            self._wire.send(frames.END, 0)
        while True:
            for fd in self._ready():
                if fd == self._told and self._on_told:
                    self._on_told(self._wire)
                elif fd == self._stdin:
                    self._feed(fd)
                elif fd == self._wire.socket.fileno():
                    for kind, channel, payload in self._wire.arrived():
                        code = self._frame(kind, channel, payload)
                        if code is not None:
                            return code

    def _ready(self) -> list[int]:
        if self._wire.pending:
            return [self._wire.socket.fileno()]
        poll = select.poll()
        poll.register(self._wire.socket.fileno(), select.POLLIN)
        if self._told is not None:
            poll.register(self._told, select.POLLIN)
        if self._stdin is not None and self._window > 0:
            poll.register(self._stdin, select.POLLIN)
        return [fd for fd, _ in poll.poll()]

    def _feed(self, fd: int) -> None:
        try:
            data = os.read(fd, min(_READ_BYTES, self._window))
        except OSError:
            # A terminal that was taken away.
            data = b""
        if not data:
            self._stdin = None
            self._wire.send(frames.END, 0)
            return
        if self._edit:
            data = self._edit(data)
        if data:
            self._window -= len(data)
            self._wire.send(frames.DATA, 0, data)

    def _frame(self, kind: int, channel: int, payload: bytes) -> int | None:
        if kind == frames.DATA and channel in (1, 2):
            self._hear(channel, payload)
        elif kind == frames.CREDIT:
            self._window += frames.CREDIT_PAYLOAD.unpack(payload)[0]
        elif kind == frames.END:
            return int(json.loads(payload)["exit_code"])
        else:
            raise lost()
        return None


def write_out(stream: int, data: bytes) -> None:
    """Print what a program prints."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(stream, rest) :]


def run_attached(place: Place, request: Exec, *, stdin: int | None) -> int:
    """Run a program with this process's output, and with `stdin` as its input; its exit code.

    SIGINT and SIGTERM go to the program; a second one ends the visit, which hangs the program up. Raises
    `VisitRefused`.
    """
    with ExitStack() as stack:
        wire = stack.enter_context(visit(place))
        wire.ask(request)
        told, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, told)
        stack.callback(os.close, wake)
        seen: set[int] = set()

        def on_signal(number: int, _: object) -> None:
            if number in seen:
                raise SystemExit(128 + number)
            seen.add(number)
            os.write(wake, bytes([number]))

        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, on_signal))

        def pass_on(to: Wire) -> None:
            for number in os.read(told, 16):
                to.send(frames.OPEN, frames.CONTROL, json.dumps({"signal": number}).encode())

        return Conversation(wire, write_out, stdin=stdin, told=told, on_told=pass_on).hold()
