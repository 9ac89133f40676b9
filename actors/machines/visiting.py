"""What visitors, people and other programs, ask of a guest beside the tool calls: programs, connections, trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Program:
    """A program to be started in a guest."""

    process_id: str
    argv: Sequence[str]
    """A name without a slash is looked for in the guest's PATH."""
    cwd: str = ""
    """Relative to the work folder of the sandbox."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Beside the guest's own."""
    terminal: tuple[int, int] | None = None
    """(rows, columns) of a terminal of its own; None: pipes, with errors apart from output."""

    def params(self) -> dict[str, object]:
        """As the guest agent is told."""
        return {
            "process_id": self.process_id,
            "argv": list(self.argv),
            "cwd": self.cwd,
            "env": dict(self.env),
            "terminal": list(self.terminal) if self.terminal else None,
        }


class RunningProcess(Protocol):
    """A program that runs in a guest. What it prints waits there until it is read."""

    exit_code: int
    """Once `read` returned None: 128 and the signal's number where a signal ended it."""

    async def read(self) -> tuple[int, bytes] | None:
        """(1 or 2 for output or errors, some bytes) of what it prints; None once it has ended and all is read."""
        ...

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Give it input, as fast as it reads it; with `last` no more follows."""
        ...


class ByteStream(Protocol):
    """Bytes both ways, each direction ended on its own. The methods raise as those of a guest do."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes as fast as they are taken; with `last`, nothing follows."""
        ...


class VisitedGuest(Protocol):
    """What a visitor may ask of a guest agent. An `async with` that is left early ends what it stands for.

    Every method raises `MachineGone` when the stream ends and `GuestProtocolError` when the agent misbehaves.
    """

    def process(self, program: Program) -> AbstractAsyncContextManager[RunningProcess]:
        """Run a program in a session of its own, until it ends or is left: then it gets SIGHUP, and later SIGKILL.

        Raises `OSError` with the guest's reason: ENOENT where there is no such program, EACCES where it can't be
        run, ENOTDIR where there is no such `cwd`.
        """
        ...

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        """Tell a program's terminal its size. No error where it has ended, or has none."""
        ...

    async def signal(self, process_id: str, number: int) -> None:
        """Signal a program's process group. No error where it has ended."""
        ...

    def connect(self, port: int) -> AbstractAsyncContextManager[ByteStream]:
        """Connect to a port of the guest's 127.0.0.1. Raises `OSError` with the guest's reason."""
        ...

    def pack(self, path: str, *, recursive: bool) -> AbstractAsyncContextManager[ByteStream]:
        """A file, or a folder with all below it, as the bytes of a tree (`actors.guest.trees`); links are left out.

        Raises `OSError` with the guest's reason, EISDIR for a folder without `recursive`. The tree is hostile.
        """
        ...

    def unpack(self, path: str, name: str) -> AbstractAsyncContextManager[ByteStream]:
        """Write a tree to `path`, or below it under `name` where it is a folder. Each file is written whole.

        Answers with JSON `{"path"}` once all of it is there. Raises `OSError` with the guest's reason.
        """
        ...
