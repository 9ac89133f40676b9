"""The gVisor driver: each machine is a `runsc` container with the guest agent as its PID 1.

A machine begins as a slot (`actors.machines.slots`), a container that waits on an empty root. Start: the sandbox's tree
is made and put into the slot, the slot's folder becomes the machine's, and its supervisor is told to restore an image
into the container, or to boot it. A new sandbox is restored too, from the image of its template's boot.

Everything about a machine is found again from the disk and the kernel: a host that starts knows the machines of the
one that died, and `start` begins by clearing away what a half-done start left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.machines import cgroups
from actors.machines.boots import Boots
from actors.machines.bundle import find_busybox
from actors.machines.exchange import Exchange
from actors.machines.folder import EXIT
from actors.machines.guest import connect
from actors.machines.identity import identity_of
from actors.machines.launch import open_supervisor
from actors.machines.machine import GvisorMachine
from actors.machines.node import Node, Plan, Started
from actors.machines.protocol import (
    Finding,
    MachineError,
    MachineGone,
    MachineUnavailable,
    SnapshotBroken,
    SnapshotForeign,
    SnapshotMissing,
)
from actors.machines.runsc import find_runsc
from actors.machines.slots import Kind, Slots, clear_away
from actors.machines.trial import check_ids
from actors.template.build import ensure_agent
from actors.template.manifest import TemplateError

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from actors.machines.folder import MachineFolder, MachineRecord
    from actors.machines.protocol import Egress, Guest, MachineSpec, SnapshotRecord
    from actors.machines.slots import Slot
    from actors.machines.volumes import Kind as VolumesKind
    from actors.machines.volumes import Volumes
    from events.snapshots import Kept, SnapshotStore

DEFAULT_POOL_BYTES = 256 * 1024**3
_START_SECONDS = 60.0
"""Generous: on a busy node twenty machines may start at once."""
_ADOPT_SECONDS = 10.0


class GvisorDriver:
    """Makes gVisor machines on this node. See `actors.machines.protocol.Driver`.

    `storage` is the folder of templates, trees and machines; it may be shared by any number of processes. `waiting` is
    how many containers wait for a start, from the first one on. `store` has snapshots that this node has not.
    """

    name = "gvisor"

    def __init__(
        self,
        storage: Path,
        *,
        volumes: VolumesKind | Volumes = "auto",
        pool_bytes: int = DEFAULT_POOL_BYTES,
        runsc: str | None = None,
        start_seconds: float = _START_SECONDS,
        waiting: int = 0,
        store: SnapshotStore | None = None,
    ) -> None:
        self.storage = storage
        self._runsc_path = runsc
        self._node = Node(storage, volumes, pool_bytes, runsc)
        self._slots = Slots(self._node, waiting)
        self._boots = Boots(self._node, self._boot)
        self._start_seconds = start_seconds
        self._exchange = Exchange(self._node, store) if store is not None else None

    @property
    def volumes(self) -> Volumes:
        """The file trees; not mounted before they are needed."""
        return self._node.volumes

    async def check(self) -> list[Finding]:
        """`runsc`, control groups, and what the file trees need."""
        return await asyncio.to_thread(self._check)

    async def start(
        self, spec: MachineSpec, *, snapshot_id: str | None = None, fresh: bool = False, egress: Egress | None = None
    ) -> GvisorMachine:
        """Start a machine. One that runs for this sandbox already is ended first."""
        try:
            plan = await self._plan(spec, snapshot_id)
            try:
                return await self._start(spec, plan, fresh=fresh or plan.new_tree, egress=egress)
            except SnapshotBroken:
                if plan.verified or self._exchange is None:
                    raise
                plan = await self._plan(spec, snapshot_id, verified=True)
                return await self._start(spec, plan, fresh=fresh or plan.new_tree, egress=egress)
        except (OSError, TemplateError) as error:
            raise MachineUnavailable(
                f"the machine of {spec.sandbox_id} can't be started: {error}; "
                "`hourglass doctor` checks what machines need"
            ) from error

    async def start_on(self, spec: MachineSpec, tree: Path, agent: Path) -> GvisorMachine:
        """Boot a machine on a new tree of any root, with the agent of another: for templates that are being built.

        Raises `MachineUnavailable`; nothing is left then.
        """
        try:
            await asyncio.to_thread(self._node.prepare)
            return await self._start(spec, Plan(agent, None, new_tree=True, tree_root=tree), fresh=False)
        except OSError as error:
            raise MachineUnavailable(f"no machine can be started on {tree.name}: {error}") from error

    async def prepare(self, spec: MachineSpec) -> None:
        """Boot the template, and create the containers that are to wait."""
        try:
            root = await asyncio.to_thread(self._template_root, spec)
            await self.sweep()
            await self._boots.of(spec, root)
            if self.volumes.places_late:
                self._slots.fill(Kind(root, spec.limits))
                await self._slots.filled()
        except (OSError, TemplateError) as error:
            raise MachineUnavailable(f"machines can't be prepared: {error}") from error

    async def adopt(self, sandbox_id: str, *, egress: Egress | None = None) -> GvisorMachine | None:
        """The running machine of a sandbox. Raises `MachineGone` where it runs and does not answer: start it anew."""
        folder = self._node.folder(sandbox_id)
        pidfd = await asyncio.to_thread(open_supervisor, folder)
        record = folder.record()
        if pidfd is None:
            return None
        if record is None:
            os.close(pidfd)
            return None
        frozen = cgroups.is_frozen(record.machine_id)
        try:
            cgroups.thaw(record.machine_id)  # nothing frozen can be greeted
            guest = await self._greet(folder, record, _ADOPT_SECONDS, egress)
            machine = GvisorMachine(self._node, folder, record, pidfd, guest)
            await machine.wake()  # whoever held it for a snapshot died
            if frozen:
                await machine.freeze()
        except (MachineGone, OSError) as error:
            alive = folder.supervisor() is not None
            os.close(pidfd)
            if not alive:
                return None
            raise MachineGone(f"the machine of {sandbox_id} runs, but does not answer: {error}") from error
        except BaseException:
            os.close(pidfd)
            raise
        return machine

    async def running(self) -> list[str]:
        """Ids of the sandboxes that have a machine on this node."""
        return await asyncio.to_thread(self._node.running)

    async def remove(self, sandbox_id: str) -> None:
        """End the sandbox's machine and remove its tree and snapshots."""
        try:
            await asyncio.to_thread(self._node.remove, sandbox_id)
        except OSError as error:
            raise MachineError(f"the sandbox {sandbox_id} can't be removed: {error}") from error

    async def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots that lie whole on this node; broken ones are left out."""
        return await asyncio.to_thread(self._node.images.records)

    async def store_snapshot(self, snapshot_id: str, *, stream: str, version: int) -> Kept:
        """Put a snapshot into the store that the driver was made with."""
        if self._exchange is None:
            raise MachineError("there is no snapshot store; the setting snapshot_store names one")
        try:
            return await asyncio.to_thread(self._exchange.upload, snapshot_id, stream=stream, version=version)
        except OSError as error:
            raise MachineError(f"the snapshot {snapshot_id} can't be read: {error}") from error

    async def copy_snapshot(self, snapshot_id: str, copy_id: str, *, sandbox_id: str) -> SnapshotRecord:
        """Make another snapshot of the same memory and files, as a sandbox's that has no machine yet."""

        def copy() -> SnapshotRecord:
            self._node.prepare()
            # One that is broken here comes from the store; the copy is compared once more.
            record, _ = self._snapshot(snapshot_id, verified=True)
            return self._node.copy_snapshot(record, copy_id, sandbox_id)

        try:
            return await asyncio.to_thread(copy)
        except OSError as error:
            raise MachineError(f"the snapshot {snapshot_id} can't be copied: {error}") from error

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot from this node."""
        try:
            await asyncio.to_thread(self._node.drop_snapshot, snapshot_id)
        except OSError as error:
            raise MachineError(f"the snapshot {snapshot_id} can't be removed: {error}") from error

    def tree(self, sandbox_id: str) -> Path | None:
        """The sandbox's file tree on the host. Hostile: never follow a link in it."""
        return self.volumes.path(sandbox_id)

    async def sweep(self) -> None:
        """Remove what processes left half-made that were killed."""
        await asyncio.to_thread(self._sweep)

    async def close(self) -> None:
        """End what waits; machines go on."""
        await self._slots.close()
        await asyncio.to_thread(self._node.nursery.close)

    # --- starting ---------------------------------------------------------------------------------------------------

    async def _plan(self, spec: MachineSpec, snapshot_id: str | None, *, verified: bool = False) -> Plan:
        """What to begin with. Raises `MachineUnavailable`, `OSError`, `TemplateError`; `ValueError` for a bad name."""
        self._node.folder(spec.sandbox_id)
        # In one thread at one go: each change of threads takes longer than most of what is done in them.
        plan = await asyncio.to_thread(self._plan_here, spec, snapshot_id, verified=verified)
        if plan.snapshot is None and plan.new_tree:
            return replace(plan, snapshot=await self._boots.of(spec, plan.template_root))
        return plan

    def _plan_here(self, spec: MachineSpec, snapshot_id: str | None, *, verified: bool) -> Plan:
        self._node.prepare()
        new_tree = self.volumes.path(spec.sandbox_id) is None
        if snapshot_id is None:
            return Plan(self._template_root(spec), None, new_tree)
        # A tree is given up only for a snapshot that is whole.
        verified = verified or self.volumes.gives_up(spec.sandbox_id, snapshot_id)
        snapshot, verified = self._snapshot(snapshot_id, verified=verified)
        return Plan(self._root_of(snapshot), snapshot, new_tree, verified=verified)

    def _snapshot(self, snapshot_id: str, *, verified: bool) -> tuple[SnapshotRecord, bool]:
        """A snapshot, from the store where there is none here, or a broken one; and whether it is known to be whole."""
        images, version = self._node.images, self._node.driver_version()
        try:
            if verified:
                return images.verified(snapshot_id, self.name, version), True
            record = images.record(snapshot_id)
            self._node.check_driver(snapshot_id, record.driver, record.driver_version)
            return record, False
        except SnapshotForeign:
            raise
        except (SnapshotMissing, SnapshotBroken):
            if self._exchange is None:
                raise
            return self._exchange.download(snapshot_id), True

    def _root_of(self, snapshot: SnapshotRecord) -> Path:
        root = self.volumes.templates / snapshot.template_root
        if root.is_dir():
            return root
        if self._exchange is None:
            raise SnapshotBroken(
                f"the snapshot {snapshot.snapshot_id} needs the template root {root.name}, which is gone"
            )
        return self._exchange.root(snapshot)

    def _sweep(self) -> None:
        self._node.prepare()
        self._node.sweep()

    def _template_root(self, spec: MachineSpec) -> Path:
        self._node.prepare()
        return self.volumes.templates / ensure_agent(self.volumes, spec.template).root

    async def _boot(self, spec: MachineSpec, root: Path) -> GvisorMachine:
        return await self._start(spec, Plan(root, None, new_tree=True), fresh=False)

    async def _start(
        self, spec: MachineSpec, plan: Plan, *, fresh: bool, egress: Egress | None = None
    ) -> GvisorMachine:
        # While the machine comes to life, since to read all of an image can take as long; nothing of the guest but its
        # agent runs before `restored`.
        verifying = asyncio.create_task(self._verify(plan))
        try:
            return await self._come_to_life(spec, plan, verifying, egress, fresh=fresh)
        except MachineError:
            # Whatever failed, where the image is broken that is why.
            await verifying
            raise
        finally:
            await asyncio.wait([verifying])
            if not verifying.cancelled():
                verifying.exception()  # raised above, or the start was given up

    async def _verify(self, plan: Plan) -> None:
        if plan.snapshot is not None and not plan.verified:
            await asyncio.to_thread(self._node.images.verify, plan.snapshot)

    async def _come_to_life(
        self, spec: MachineSpec, plan: Plan, verifying: asyncio.Task[None], egress: Egress | None, *, fresh: bool
    ) -> GvisorMachine:
        started, line = await self._begin(spec, plan)
        guest: Guest | None = None
        try:
            greet = self._greet(started.folder, started.record, self._start_seconds, egress, line)
            greeting = asyncio.create_task(greet)
            try:
                await asyncio.gather(greeting, verifying)
            finally:
                greeting.cancel()
                await asyncio.wait([greeting])
                if not greeting.cancelled() and greeting.exception() is None:
                    guest = greeting.result()
            assert guest is not None
            machine = GvisorMachine(self._node, started.folder, started.record, started.pidfd, guest)
            await guest.restored(identity_of(spec, fresh=fresh))
        except BaseException as error:
            told = await asyncio.to_thread(_account, started)
            os.close(started.pidfd)
            if guest is None:
                line.close()
            else:
                await guest.close()
            await asyncio.to_thread(self._node.undo, spec, new_tree=plan.new_tree)
            if isinstance(error, (MachineUnavailable, asyncio.CancelledError)):
                raise
            if isinstance(error, (MachineError, OSError)):
                reason = str(error) or f"nothing heard for {self._start_seconds:g} s"
                raise MachineUnavailable(
                    f"the machine of {spec.sandbox_id} was started, but its guest agent does not answer: {reason}; "
                    f"{told}. `hourglass doctor` checks what machines need"
                ) from error
            raise
        return machine

    async def _begin(self, spec: MachineSpec, plan: Plan) -> tuple[Started, socket.socket]:
        """A slot that has become the sandbox's, and is coming to life. Nothing is left where it fails."""
        kind = Kind(plan.template_root, spec.limits)
        slot = None
        moving: asyncio.Task[Started] | None = None
        try:
            if self.volumes.places_late:
                slot = await self._slots.take(kind)
            else:
                slot = await self._slots.make(
                    kind, lambda live, own_ids: self._place(spec, plan, live, own_ids=own_ids)
                )
            moving = asyncio.create_task(asyncio.to_thread(self._node.move_in, spec, plan, slot))
            started = await asyncio.shield(moving)
        except BaseException:
            if moving is not None:
                # The thread can't be stopped; what it made must not be left.
                with contextlib.suppress(BaseException):
                    os.close((await moving).pidfd)
            await asyncio.to_thread(self._give_up, spec, plan, slot)
            raise
        image = str(plan.snapshot.image) if plan.snapshot is not None else None
        await asyncio.get_running_loop().sock_sendall(slot.line, json.dumps({"image": image}).encode() + b"\n")
        return started, slot.line

    def _place(self, spec: MachineSpec, plan: Plan, live: Path, *, own_ids: bool) -> list[Path]:
        self._node.make_tree(spec, plan)
        return self.volumes.place(spec.sandbox_id, live, own_ids=own_ids)

    def _give_up(self, spec: MachineSpec, plan: Plan, slot: Slot | None) -> None:
        self._node.undo(spec, new_tree=plan.new_tree)
        if slot is not None:
            slot.line.close()
            clear_away(slot.machine_id, slot.folder, slot.root)

    async def _greet(
        self,
        folder: MachineFolder,
        record: MachineRecord,
        seconds: float,
        egress: Egress | None,
        line: socket.socket | None = None,
    ) -> Guest:
        """Greet the agent, on the line to its supervisor or, later, through the supervisor's socket."""
        async with asyncio.timeout(seconds):
            if line is not None:
                reader, writer = await asyncio.open_unix_connection(sock=line)
            else:
                # Through the folder's descriptor: a socket's path may have 108 bytes, and a storage folder may have
                # more.
                fd = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/sock")
                finally:
                    os.close(fd)
            try:
                return await connect(reader, writer, limits=record.limits, timeout=seconds, egress=egress)
            except BaseException:
                writer.close()
                raise

    # --- what the node needs ----------------------------------------------------------------------------------------

    def _check(self) -> list[Finding]:
        findings = [self._check_runsc(), _check_busybox(), _check_cgroups()]
        findings.extend(self.volumes.check())
        findings.append(check_ids(self.volumes))
        return findings

    def _check_runsc(self) -> Finding:
        try:
            runsc = find_runsc(self._runsc_path)
        except MachineUnavailable as error:
            return Finding("runsc", False, str(error), "every sandbox is a gVisor machine", "make setup")
        return Finding("runsc", ok=True, detail=f"{runsc.path}, release {runsc.release}")


def _account(started: Started) -> str:
    """What there is to say of a machine that did not come up."""
    folder = started.folder
    said = f"it said: {folder.last_words() or 'nothing'}"
    if not (folder.path / EXIT).exists():
        return said
    end = folder.end(started.record.machine_id)
    return f"it ended ({end.reason}, exit code {end.exit_code}{end.detail and ', '}{end.detail}) and {said[3:]}"


def _check_cgroups() -> Finding:
    why = "they bound what a sandbox may use"
    if cgroups.version() == 0:
        return Finding("cgroups", False, "none at /sys/fs/cgroup", why, "mount -t cgroup2 none /sys/fs/cgroup")
    missing = cgroups.missing_controllers()
    if missing:
        remedy = "boot with these controllers enabled (cgroup_enable=memory)"
        return Finding("cgroups", False, f"version {cgroups.version()} without {', '.join(missing)}", why, remedy)
    return Finding("cgroups", ok=True, detail=f"version {cgroups.version()}, {', '.join(cgroups.CONTROLLERS)}")


def _check_busybox() -> Finding:
    try:
        return Finding("busybox", ok=True, detail=f"{find_busybox()}, static")
    except FileNotFoundError as error:
        why = "it puts a sandbox's files in place before the guest agent starts"
        return Finding("busybox", False, str(error), why, "apt-get install busybox-static")
