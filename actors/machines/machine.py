"""A running gVisor machine, as its host holds it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines import cgroups, control
from actors.machines.cradle import inside
from actors.machines.images import IMAGE
from actors.machines.protocol import (
    GuestBusy,
    MachineError,
    MachineGone,
    MachineUsage,
    SnapshotFailed,
    SnapshotRecord,
    Taken,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.machines.folder import MachineFolder, MachineRecord
    from actors.machines.node import Node
    from actors.machines.protocol import FileRecord, Guest, MachineEnd

_log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 300.0
_ROOM_BYTES = 64 * 1024**2
"""Beside the machine's memory, what must be free on the disk before a snapshot is begun."""


class GvisorMachine:
    """A running gVisor machine, as its host holds it. See `actors.machines.protocol.Machine`."""

    def __init__(self, node: Node, folder: MachineFolder, record: MachineRecord, pidfd: int, guest: Guest) -> None:
        self.machine_id = record.machine_id
        self.sandbox_id = record.sandbox_id
        self.guest = guest
        self._node = node
        self._folder = folder
        self._record = record
        self._supervisor = _Watched(pidfd)
        self._held = ""
        """The snapshot that nothing of the guest has run after."""

    async def wait_ended(self) -> MachineEnd:
        """Return when the machine has ended, and say how."""
        await self._supervisor.ended()
        return await asyncio.to_thread(self._folder.end, self.machine_id)

    async def kill(self) -> None:
        """End the machine now; its file tree is kept."""
        await asyncio.to_thread(self._node.settle, self._folder, self.machine_id, self._held)
        await self._supervisor.ended()
        await self.guest.close()

    async def release(self) -> None:
        """Let go of it without ending it."""
        await self.guest.close()
        self._supervisor.close()

    @property
    def frozen(self) -> bool:
        """Whether it gets no CPU."""
        return cgroups.is_frozen(self.machine_id)

    async def freeze(self) -> None:
        """Give it no CPU."""
        try:
            await asyncio.to_thread(cgroups.freeze, self.machine_id)
        except FileNotFoundError as error:
            raise MachineGone(f"the machine of {self.sandbox_id} ended") from error
        except OSError as error:
            raise MachineError(f"the machine of {self.sandbox_id} could not be frozen: {error}") from error

    async def thaw(self) -> None:
        """Let it run again."""
        # In the loop's own thread: two writes to a file of the kernel, where a change of threads costs as much.
        try:
            cgroups.thaw(self.machine_id)
        except OSError as error:
            raise MachineError(f"the machine of {self.sandbox_id} could not be thawed: {error}") from error

    async def wake(self) -> None:
        """Let a guest that a snapshot holds run on."""
        self._held = ""
        await self.guest.wake()

    async def usage(self) -> MachineUsage:
        """By its control group."""
        now, most = cgroups.memory_bytes(self.machine_id)
        return MachineUsage(cgroups.cpu_seconds(self.machine_id), most, now)

    async def snapshot(self, snapshot_id: str, *, hold: bool = False, awake: Callable[[], None] | None = None) -> Taken:
        """Quiet, checkpoint, tree, wake; then, with the guest running again, digests and durability."""
        began, images = time.monotonic(), self._node.images
        await self.thaw()
        fresh: Path | None = None
        runs_on = False
        try:
            fresh = await self._begin_quietly(snapshot_id)
            quiet = time.monotonic()
            await self._take(fresh)
            usage = await self.usage()
            if not hold:
                await self.guest.wake()
                runs_on = True
            held = time.monotonic() - quiet
            if awake is not None:
                awake()
            record_of = partial(self._snapshot_record, snapshot_id, fresh)
            record = await asyncio.to_thread(images.seal, fresh, record_of)
        except BaseException as error:
            # One that runs on may have been frozen since, and would not answer.
            if not runs_on and not isinstance(error, (GuestBusy, MachineGone)):
                await self._wake_after_failure()
            if fresh is not None:
                await asyncio.to_thread(self._discard, fresh)
            if not isinstance(error, (OSError, MachineError)) or isinstance(error, (GuestBusy, MachineGone)):
                raise
            raise SnapshotFailed(
                f"no snapshot of {self.sandbox_id} could be taken: {error}; the sandbox runs on"
            ) from error
        self._held = snapshot_id if hold else ""
        return Taken(snapshot_id, record.image_bytes, held, time.monotonic() - began, usage)

    async def _begin_quietly(self, snapshot_id: str) -> Path:
        """A folder for it, and nothing that runs in the guest; where one fails, the folder is gone again."""
        fresh, quiet = await asyncio.gather(
            asyncio.to_thread(self._begin, snapshot_id), self.guest.quiesce(), return_exceptions=True
        )
        # The guest's first: it says whether there is one to be woken.
        if isinstance(quiet, BaseException):
            if isinstance(fresh, Path):
                await asyncio.to_thread(self._discard, fresh)
            raise quiet
        if isinstance(fresh, BaseException):
            raise fresh
        return fresh

    def _begin(self, snapshot_id: str) -> Path:
        """A folder for it, where there is room for what it may need. Raises `OSError`."""
        memory, _ = cgroups.memory_bytes(self.machine_id)
        for place in {self._node.images.folder, self._folder.path}:
            free = shutil.disk_usage(place).free
            if free < memory + _ROOM_BYTES:
                raise OSError(
                    f"no room on the disk: {place} has {free // 1024**2} MiB free, and the sandbox has "
                    f"{memory // 1024**2} MiB in memory; free some there, end sandboxes "
                    "with `hourglass kill`, or lower snapshots_local"
                )
        return self._node.images.begin(snapshot_id)

    async def _take(self, fresh: Path) -> None:
        """Image and tree, of one moment: nothing runs in the guest, and its files are written out."""
        parts = (
            self._checkpoint(fresh / IMAGE),
            asyncio.to_thread(self._node.volumes.keep, self.sandbox_id, fresh),
        )
        # Both to their end, also where one fails: what is left of them is to be removed.
        for failed in await asyncio.gather(*parts, return_exceptions=True):
            if failed is not None:
                raise failed

    async def _checkpoint(self, image: Path) -> None:
        runsc, state = self._node.runsc(), self._node.state
        address = control.control_socket(state, self.machine_id)
        if runsc.release in control.KNOWN and address.is_socket():
            await control.checkpoint(address, image, timeout=_CHECKPOINT_SECONDS)
            return
        how = ("checkpoint", "--image-path", str(image), "--leave-running", "--compression=none", self.machine_id)
        command = inside(self._folder.cradle(), runsc.command(state, *how))
        await self._node.nursery.run(command, timeout=_CHECKPOINT_SECONDS)

    def _snapshot_record(self, snapshot_id: str, fresh: Path, files: dict[str, FileRecord]) -> SnapshotRecord:
        return SnapshotRecord(
            snapshot_id=snapshot_id,
            sandbox_id=self.sandbox_id,
            template_root=self._record.template_root,
            driver=self._node.driver,
            driver_version=self._node.driver_version(),
            limits=self._record.limits,
            taken_at=time.time(),
            files=files,
            image=fresh / IMAGE,
            tree=fresh / "tree",
        )

    async def _wake_after_failure(self) -> None:
        try:
            await self.guest.wake()
        except MachineError as error:
            # Whoever uses the machine next finds out; the reason of the failure is the one to tell.
            _log.warning("guest not woken sandbox=%s %s", self.sandbox_id, error)

    def _discard(self, fresh: Path) -> None:
        self._node.volumes.forget(fresh)
        self._node.images.erase(fresh)


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
