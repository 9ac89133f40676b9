"""A sandbox with a real machine whose history is a real log: what a host would write, call by call."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.machines.protocol import MachineSpec
from events import types
from events.types import Limits
from events.work_tree import digest_of, lines_on_disk
from replay.history.planning import plan
from replay.history.presence import Snapshots
from replay.rebuild.ground import Ground
from tests.replay.history.boxes import begin, put, started, taken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actors.machines.gvisor import GvisorDriver
    from actors.machines.machine import GvisorMachine
    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog
    from replay.history.planned import Plan

MIB = 1024**2
LIMITS = Limits(memory_bytes=512 * MIB, processes=100, disk_bytes=96 * MIB, cpus=2.0, tool_seconds=20.0)


@dataclass
class Live:
    """The sandbox."""

    log: SqliteLog
    driver: GvisorDriver
    machine: GvisorMachine
    store: SnapshotStore | None = None
    version: int = 0
    digests: dict[int, str] = field(default_factory=dict)
    """Of the work tree, by version."""

    @classmethod
    async def begin(
        cls, log: SqliteLog, driver: GvisorDriver, store: SnapshotStore | None = None, limits: Limits = LIMITS
    ) -> Live:
        """A new sandbox on the base template, with its machine."""
        sandbox_id = f"sbx-{secrets.token_hex(8)}"
        machine = await driver.start(MachineSpec(sandbox_id, "base", limits))
        made = cls(log, driver, machine, store)
        made.put(
            types.SandboxCreated(session_id="sesn_01live", driver="gvisor", template="base", limits=limits),
            started(machine.machine_id),
        )
        return made

    @property
    def sandbox_id(self) -> str:
        return self.machine.sandbox_id

    @property
    def stream(self) -> str:
        return f"sandbox-{self.sandbox_id}"

    @property
    def ground(self) -> Ground:
        return Ground(self.driver, Snapshots(self.store, self.driver.storage))

    def put(self, *events: types.EventData) -> int:
        self.version = put(self.log, self.sandbox_id, events)
        return self.version

    async def call(
        self, tool: str, input_: dict[str, Any], meanwhile: Sequence[types.EventData] = (), **changed: Any
    ) -> int:
        """Run a call as a host does; the version of its end. What is recorded may be changed, or happen meanwhile."""
        id_ = f"sevt_{secrets.token_hex(6)}"
        self.put(begin(id_, tool, input_), *meanwhile)
        began = time.monotonic()
        result = await self.machine.guest.run_tool(id_, tool, input_, timeout=LIMITS.tool_seconds)
        told: dict[str, Any] = {"content": list(result.content), "is_error": result.is_error} | changed
        return self.put(types.ToolCallCompleted(tool_use_id=id_, seconds=time.monotonic() - began, **told))

    async def bash(self, command: str, meanwhile: Sequence[types.EventData] = (), **changed: Any) -> int:
        return await self.call("bash", {"command": command}, meanwhile, **changed)

    async def snapshot(self) -> str:
        """On the node."""
        snapshot_id = f"turn-{secrets.token_hex(8)}"
        of_version = self.version
        await self.machine.snapshot(snapshot_id)
        self.put(taken(snapshot_id, of_version))
        return snapshot_id

    async def look(self) -> str:
        """The digest of the work tree now, kept under the version."""
        await self.machine.guest.quiesce()
        tree = self.driver.tree(self.sandbox_id)
        assert tree is not None
        self.digests[self.version] = digest_of(await asyncio.to_thread(lines_on_disk, tree))
        await self.machine.guest.wake()
        return self.digests[self.version]

    def plan(self, version: int | None = None) -> Plan:
        return plan(self.log, self.stream, version or self.version, self.ground.snapshots.where)

    async def end(self) -> None:
        """Nothing of it is left."""
        await self.machine.kill()
        await self.driver.remove(self.sandbox_id)


def everything(*paths: Path) -> dict[str, str]:
    """Digests of all files below some paths, by name, and when each was changed."""
    found = {}
    for path in paths:
        for one in [path] if path.is_file() else sorted(path.rglob("*")):
            if one.is_file() and not one.is_symlink():
                status = one.stat()
                found[str(one)] = f"{hashlib.sha256(one.read_bytes()).hexdigest()} {status.st_ctime_ns}"
    return found
