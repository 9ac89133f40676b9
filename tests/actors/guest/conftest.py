"""A guest agent as a plain process of this machine, in a folder of its own, and the connection to it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import actors.guest
from actors.machines.guest import GuestConnection, connect
from actors.machines.protocol import Guest, ToolResult
from events.types import Limits

AGENT = Path(actors.guest.__file__).parent / "__main__.py"
Connect = Callable[..., AbstractAsyncContextManager[GuestConnection]]


@contextmanager
def running_agent(workdir: Path, *, path: str = "/usr/bin:/bin") -> Iterator[socket.socket]:
    """The host's end of the stream of a new agent."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(AGENT), "--workdir", str(workdir)],
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        env={**os.environ, "PATH": path, "HOME": str(workdir)},
    )
    theirs.close()
    with ours:
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(20)


@asynccontextmanager
async def greeted(stream: socket.socket, limits: Limits | None = None) -> AsyncIterator[GuestConnection]:
    """A connection over a copy of the descriptor, so that another can follow."""
    reader, writer = await asyncio.open_connection(sock=stream.dup())
    guest = await connect(reader, writer, limits=limits or Limits())
    try:
        yield guest
    finally:
        await guest.close()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "hglass"
    folder.mkdir()
    return folder


@pytest.fixture
def stream(workdir: Path) -> Iterator[socket.socket]:
    with running_agent(workdir) as stream:
        yield stream


@pytest.fixture
async def guest(stream: socket.socket) -> AsyncIterator[GuestConnection]:
    async with greeted(stream) as guest:
        yield guest


def alive(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def text(result: ToolResult) -> str:
    (block,) = result.content
    assert block["type"] == "text"
    return str(block["text"])


class Bash:
    """Runs commands, each with an id of its own."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.last = ""
        self._count = 0

    async def __call__(self, command: str, **options: Any) -> ToolResult:
        self._count += 1
        self.last = f"{id(self)}-{self._count}"
        return await self._guest.run_tool(self.last, "bash", {"command": command}, timeout=30, **options)


@pytest.fixture
def bash(guest: GuestConnection) -> Bash:
    return Bash(guest)


async def begun(path: Path) -> None:
    """Wait for a file that a command makes."""
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110 (another process makes it)
            await asyncio.sleep(0.005)
