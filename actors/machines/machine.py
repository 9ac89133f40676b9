"""A running gVisor machine, as its host holds it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from actors.machines.launch import end_machine
from actors.machines.protocol import MachineError

if TYPE_CHECKING:
    from actors.machines.folder import MachineFolder, MachineRecord
    from actors.machines.protocol import Guest, MachineEnd


class GvisorMachine:
    """A running gVisor machine, as its host holds it. See `actors.machines.protocol.Machine`."""

    def __init__(self, folder: MachineFolder, record: MachineRecord, pidfd: int, guest: Guest) -> None:
        self.machine_id = record.machine_id
        self.sandbox_id = record.sandbox_id
        self.guest = guest
        self._folder = folder
        self._supervisor = _Watched(pidfd)

    async def wait_ended(self) -> MachineEnd:
        """Return when the machine has ended, and say how."""
        await self._supervisor.ended()
        return await asyncio.to_thread(self._folder.end, self.machine_id)

    async def kill(self) -> None:
        """End the machine now; its file tree is kept."""
        await asyncio.to_thread(end_machine, self._folder, self.machine_id)
        await self._supervisor.ended()
        await self.guest.close()

    async def release(self) -> None:
        """Let go of it without ending it."""
        await self.guest.close()
        self._supervisor.close()


class _Watched:
    """A process that is not our child, watched through its pidfd."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._done: asyncio.Future[None] | None = None

    async def ended(self) -> None:
        if self._done is None:
            if self._pidfd < 0:
                raise MachineError("this machine was released; adopt it to wait for it")
            loop = asyncio.get_running_loop()
            self._done = loop.create_future()
            loop.add_reader(self._pidfd, self._on_end)
        await asyncio.shield(self._done)

    def _on_end(self) -> None:
        self._forget()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        """Stop watching; who waits is told that the machine was let go of."""
        self._forget()
        if self._done is not None and not self._done.done():
            self._done.cancel()

    def _forget(self) -> None:
        if self._pidfd >= 0:
            if self._done is not None:
                self._done.get_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
