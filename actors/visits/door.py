"""The door of a process that runs sandboxes: a unix socket in the home, for the owner of the home alone.

Bytes of terminals and connections go through it and not through Ray: each visit has a connection of its own, which the
kernel holds back where either end is slow, and which ends with the visitor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from actors.guest import frames
from actors.handle import SandboxFailed
from actors.machines.protocol import MachineError
from actors.visits import serving
from actors.visits.wire import Find, Line, Request, VisitorGone, VisitRefused, address, parse_request, refusal
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from actors.sandbox import Sandbox

log = logging.getLogger(__name__)

_LAST_WORDS_S = 2.0


class Door:
    """Of one process. Opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.find: Callable[[str], Awaitable[dict[str, Any]]] | None = None
        """What tells where a target is; the host's."""
        self._sandboxes: dict[str, Sandbox] = {}
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._visits: set[asyncio.Task[None]] = set()
        self._closed = False

    def admit(self, sandbox: Sandbox) -> None:
        """Visitors may come to a sandbox of this process."""
        self._sandboxes[sandbox.sandbox_id] = sandbox

    def dismiss(self, sandbox: Sandbox) -> None:
        """They may not any more."""
        if self._sandboxes.get(sandbox.sandbox_id) is sandbox:
            del self._sandboxes[sandbox.sandbox_id]

    async def open(self) -> str:
        """Where it is, open. Raises `OSError`, and `VisitRefused` once it was closed."""
        async with self._opening:
            if self._closed:
                raise VisitRefused("the service is being stopped")
            if self._server is None:
                self._server = await asyncio.start_unix_server(self._visited, sock=self._listener())
        return str(self.path)

    def _listener(self) -> socket.socket:
        # The folder keeps others out before the socket has its own mode.
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.parent.chmod(0o700)
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with address(self.path) as place:
                listener.bind(place)
            self.path.chmod(0o600)
        except BaseException:
            listener.close()
            raise
        return listener

    async def close(self) -> None:
        """Send everybody away; what they did is recorded when it returns."""
        self._closed = True
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        visits = [task for task in self._visits if task is not asyncio.current_task()]
        for task in visits:
            task.cancel()
        if visits:
            await asyncio.wait(visits)

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        line = Line(reader, writer)
        try:
            if _may_enter(writer):
                await self._answer(line)
        except VisitorGone as gone:
            log.debug("visitor left: %s", gone)
        except (HourglassError, SandboxFailed, MachineError) as error:
            await _refuse(line, error)
        except asyncio.CancelledError:
            # On purpose, by whoever needs the sandbox: the visitor is told, and the task is over.
            await _refuse(line, VisitRefused("the visit was ended, since the sandbox is to rest or to end"))
        except Exception as error:
            # A bug in one visit must not stay unseen, nor end the others.
            log.exception("visit broke")
            await _refuse(line, VisitRefused(f"the service could not do it: {type(error).__name__}: {error}"))
        finally:
            self._visits.discard(task)
            writer.close()

    async def _answer(self, line: Line) -> None:
        kind, _, payload = await line.frame()
        if kind != frames.OPEN:
            raise VisitRefused("the request is not understood")
        request: Request = parse_request(payload)
        if isinstance(request, Find):
            if self.find is None:
                raise VisitRefused("this process knows its own sandboxes alone")
            await line.tell(**await self.find(request.target))
            return
        sandbox = self._sandboxes.get(request.sandbox_id)
        if sandbox is None:
            raise VisitRefused(f"sandbox {request.sandbox_id} was let go of just now", "Try again.")
        await serving.serve(sandbox, request, line)


async def _refuse(line: Line, error: Exception) -> None:
    with contextlib.suppress(VisitorGone, TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            await line.send(frames.RESET, frames.CONTROL, refusal(error))


def _may_enter(writer: asyncio.StreamWriter) -> bool:
    """Whether it is the same user, or root: the mode of the socket says so too, where the file system keeps modes."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())
