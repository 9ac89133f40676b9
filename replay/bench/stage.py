"""What the benches of machines share: a driver of this node, and sandboxes that are gone afterwards."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.machines.gvisor import GvisorDriver
from actors.machines.protocol import MachineSpec
from actors.template.build import ensure_agent
from events.types import Limits
from replay.bench.frame import scratch
from replay.bench.raw import RawContainer
from replay.local import storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from actors.machines.machine import GvisorMachine

TEMPLATE = "base"
_REST_SECONDS = 0.3
LIMITS = Limits(memory_bytes=1024**3)


@dataclass
class Stage:
    """A driver with containers in waiting, and what was made with it."""

    driver: GvisorDriver
    folder: Path
    sandboxes: list[str] = field(default_factory=list)

    def spec(self) -> MachineSpec:
        """Of a new sandbox."""
        self.sandboxes.append(f"bench-{secrets.token_hex(6)}")
        return MachineSpec(self.sandboxes[-1], TEMPLATE, LIMITS)

    async def ready(self) -> None:
        """Wait until containers wait."""
        await self.driver.prepare(MachineSpec("bench", TEMPLATE, LIMITS))

    async def suspend(self, machine: GvisorMachine) -> str:
        """To disk; the snapshot's id."""
        snapshot_id = f"bench-{secrets.token_hex(6)}"
        await machine.snapshot(snapshot_id, hold=True)
        await machine.kill()
        return snapshot_id

    def image(self, snapshot_id: str) -> Path:
        """The folder of a snapshot's image."""
        return self.driver.volumes.snapshots / snapshot_id / "image"

    async def at_rest(self, snapshot_id: str, *, cold: bool = False) -> None:
        """The moment before a resume, the same for whoever is measured: nothing has run for a while.

        With the snapshot's image in the kernel's memory, or with `cold` on the disk alone.
        """
        await asyncio.sleep(_REST_SECONDS)
        for path in self.image(snapshot_id).iterdir():
            if cold:
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            else:
                path.read_bytes()

    async def raw(self, snapshot_id: str | None = None) -> RawContainer:
        """A container made by hand, on a new tree or on a snapshot's."""
        volumes = self.driver.volumes
        agent_root = volumes.templates / ensure_agent(volumes, TEMPLATE).root
        snapshot = None if snapshot_id is None else (snapshot_id, volumes.snapshots / snapshot_id)
        return await RawContainer.create(volumes, self.folder, agent_root, LIMITS, snapshot)


@asynccontextmanager
async def stage(name: str, *, waiting: int = 1) -> AsyncIterator[Stage]:
    """A stage; everything that was made on it is gone afterwards."""
    with scratch(name) as folder:
        made = Stage(GvisorDriver(storage(), waiting=waiting), folder)
        try:
            await made.ready()
            yield made
        finally:
            for sandbox_id in made.sandboxes:
                await made.driver.remove(sandbox_id)
            await made.driver.close()
