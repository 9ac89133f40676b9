"""What a session may ask of its host for the forks of its sandbox: one that runs, one that rests, some that end.

A fork takes the room of a sandbox of its own: while a session uses it, it counts as busy, and where the node runs as
many as it may, whoever wants one more waits for a bounded time. Afterwards it rests, and is put to disk as any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from actors.branches import adopt
from actors.entity import Replaced
from actors.handle import SandboxFailed
from actors.machines.protocol import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.handle import SandboxHandle
    from actors.host import Host

log = logging.getLogger(__name__)

_LOOK_S = 0.1


class Forks(Protocol):
    """Of one session, while it is served."""

    async def begin(self, sandbox_id: str, seconds: float) -> SandboxHandle:
        """See to it that a fork runs, and count it as busy until `rest` or `end`.

        Args:
            sandbox_id: of the fork, or of the session's sandbox after `let_go`.
            seconds: how long to wait for room on the node and for the machine.

        Raises:
            SandboxFailed: there is no room, or no machine can be had.
        """
        ...

    async def rest(self, sandbox_id: str) -> None:
        """It is used no more for now."""
        ...

    async def end(self, sandbox_ids: Sequence[str]) -> None:
        """Remove forks that were not kept; those that are gone already are none to worry about."""
        ...

    async def let_go(self, sandbox_ids: Sequence[str]) -> None:
        """Nobody but the session writes their streams from here on; their machines run on."""
        ...

    async def kept(self, sandbox_id: str, ended: Sequence[str]) -> None:
        """The session goes on in this one, and the log says that the others are over: remove them."""
        ...

    async def adopt(self, named: str) -> SandboxHandle | None:
        """See `branches.adopt`: the session's stream was written to where it gives a sandbox."""
        ...


class HostForks:
    """In the host's process."""

    def __init__(self, host: Host, session_id: str, user: str) -> None:
        """`user` is whoever they are lent to: a claim's id, or a word where a person asks."""
        self._host = host
        self._session_id = session_id
        self._user = user

    async def begin(self, sandbox_id: str, seconds: float) -> SandboxHandle:
        """See `Forks`."""
        host = self._host
        until = time.monotonic() + seconds
        while not await host.suspender.make_room(sandbox_id):
            if time.monotonic() >= until:
                allowed = host.settings.max_sandboxes
                raise SandboxFailed(f"there is no room: this node runs {allowed} sandboxes at a time, and all are busy")
            await asyncio.sleep(_LOOK_S)
        # Nothing is awaited between the room and this, so nobody else takes it.
        host.lent[sandbox_id] = self._user
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds):
                handle = await host.sandbox(sandbox_id, self._session_id)
                await handle.start()
        except asyncio.CancelledError:
            host.lent.pop(sandbox_id, None)
            raise
        except Exception as error:
            # One that does not run takes no room.
            host.lent.pop(sandbox_id, None)
            await host.drop(sandbox_id)
            if isinstance(error, TimeoutError):
                raise SandboxFailed(f"sandbox {sandbox_id} did not start within {seconds:g} s") from error
            raise
        return handle

    async def rest(self, sandbox_id: str) -> None:
        """See `Forks`."""
        self._host.lent.pop(sandbox_id, None)
        kept = self._host.kept.get(sandbox_id)
        if kept is not None:
            kept.used_at = time.monotonic()
            try:
                await kept.handle.rest("idle")
            except SandboxFailed as error:
                # It costs CPU, and that is all.
                log.warning("fork not frozen sandbox_id=%s %s", sandbox_id, error)

    async def end(self, sandbox_ids: Sequence[str]) -> None:
        """See `Forks`."""
        for one in sandbox_ids:
            self._host.lent.pop(one, None)
            try:
                await self._host.end(one, self._session_id, "not_kept")
            except (SandboxFailed, MachineError, Replaced) as error:
                log.warning("fork not removed, its session's end does sandbox_id=%s %s", one, error)

    async def let_go(self, sandbox_ids: Sequence[str]) -> None:
        """See `Forks`."""
        for one in sandbox_ids:
            await self._host.drop(one)

    async def adopt(self, named: str) -> SandboxHandle | None:
        """See `Forks`."""
        return await adopt(self._host, self._session_id, self._user, named)

    async def kept(self, sandbox_id: str, ended: Sequence[str]) -> None:
        """See `Forks`."""
        self._host.serves(self._user, sandbox_id)
        self._host.lent.pop(sandbox_id, None)
        for one in ended:
            self._host.lent.pop(one, None)
            try:
                await self._host.actors.remove(one)
            except MachineError as error:
                log.warning("not removed, the next start does sandbox_id=%s %s", one, error)
