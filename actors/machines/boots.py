"""A template's boot: a snapshot of a machine that has booted it and done nothing since, which new sandboxes begin with.

Memory is bound to the template's root, to limits that the guest's kernel holds, and to the release of `runsc`; the id
of a boot tells all three. One is made when it is first needed, which takes about a second, once for a node.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.machines.locks import locked
from actors.machines.protocol import SnapshotBroken, SnapshotMissing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from actors.machines.machine import GvisorMachine
    from actors.machines.node import Node
    from actors.machines.protocol import MachineSpec, SnapshotRecord

PREFIX = "boot-"


class Boots:
    """The boots of this node's templates."""

    def __init__(self, node: Node, boot: Callable[[MachineSpec, Path], Awaitable[GvisorMachine]]) -> None:
        """`boot` starts a machine on a new tree of a template's root, without an image."""
        self._node = node
        self._boot = boot

    async def of(self, spec: MachineSpec, root: Path) -> SnapshotRecord:
        """The boot for a new sandbox, made where there is none, or a broken one. Raises `MachineError`, `OSError`."""
        node = self._node
        limits = spec.limits
        bound = f"{limits.memory_bytes} {limits.processes} {node.driver_version()}"
        boot_id = f"{PREFIX}{root.name}-{hashlib.sha256(bound.encode()).hexdigest()[:8]}"
        try:
            return await asyncio.to_thread(node.images.verified, boot_id, node.driver, node.driver_version())
        except (SnapshotMissing, SnapshotBroken):
            async with _locked(node.storage / "machines" / f"{boot_id}.lock"):
                return await self._make(boot_id, spec, root)

    async def _make(self, boot_id: str, spec: MachineSpec, root: Path) -> SnapshotRecord:
        node = self._node
        try:
            return await asyncio.to_thread(node.images.verified, boot_id, node.driver, node.driver_version())
        except (SnapshotMissing, SnapshotBroken):
            await asyncio.to_thread(node.drop_snapshot, boot_id)
        scratch = f"{PREFIX}{secrets.token_hex(8)}"
        try:
            machine = await self._boot(replace(spec, sandbox_id=scratch), root)
            try:
                await machine.snapshot(boot_id, hold=True)
            finally:
                await machine.kill()
        finally:
            await asyncio.to_thread(node.remove_tree, scratch)
        await asyncio.to_thread(self._drop_outdated)
        return await asyncio.to_thread(node.images.record, boot_id)

    def _drop_outdated(self) -> None:
        """Boots of roots that are a template's no longer: no new sandbox will need them."""
        templates = self._node.volumes.templates
        current = {path.read_text(encoding="utf-8") for path in templates.glob("*.json")}
        for snapshot_id in self._node.images.ids():
            if snapshot_id.startswith(PREFIX):
                root = snapshot_id.removeprefix(PREFIX).rpartition("-")[0]
                if not any(f'"{root}"' in manifest for manifest in current):
                    self._node.drop_snapshot(snapshot_id)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """`locked` without holding up the loop."""
    lock = locked(path)
    taking = asyncio.create_task(asyncio.to_thread(lock.__enter__))
    try:
        await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(lambda _: lock.__exit__(None, None, None))
        raise
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
