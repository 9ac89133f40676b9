"""What the gVisor driver has on this node: trees, snapshots, slots, the folders of machines. All of it blocks.

Where a sandbox's tree is, and what has to be cleared away before it may be used, is decided here and nowhere else.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines import cgroups, mounts
from actors.machines.folder import MachineFolder, MachineRecord
from actors.machines.images import IMAGE, Images, check_driver
from actors.machines.launch import Nursery, end_machine, open_supervisor
from actors.machines.listings import Listings
from actors.machines.locks import holder, locked
from actors.machines.protocol import MachineUnavailable, SnapshotBroken, SnapshotRecord
from actors.machines.runsc import Runsc, find_runsc
from actors.machines.slots import clear_away, remove_root
from actors.machines.trial import why_no_ids
from actors.machines.volumes import Kind, Volumes, open_volumes

if TYPE_CHECKING:
    from actors.machines.protocol import FileRecord, MachineSpec
    from actors.machines.slots import Slot

_SLOT_SECONDS = 60.0
_SNAPSHOT_SECONDS = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine is to begin with."""

    template_root: Path
    """Whose agent is mounted in it."""
    snapshot: SnapshotRecord | None
    """None: the guest boots, on the tree that is there."""
    new_tree: bool
    """The sandbox has no file tree yet."""
    tree_root: Path | None = None
    """What a new tree is made from, where that is not `template_root`."""
    verified: bool = True
    """The snapshot's image is known to be what it was; else that is to be found out before the guest runs on."""


@dataclass(frozen=True, slots=True)
class Started:
    """A machine that was begun."""

    folder: MachineFolder
    record: MachineRecord
    pidfd: int
    """Of its supervisor."""
    new_tree: bool


class Node:
    """The storage folder and the programs of one node. May be shared by any number of processes."""

    driver = "gvisor"

    def __init__(self, storage: Path, volumes: Kind | Volumes, pool_bytes: int, runsc: str | None) -> None:
        self.storage = storage
        self.state = storage / "runsc"
        """What `runsc` knows of containers."""
        self.waiting = storage / "machines" / ".waiting"
        """Folders of slots."""
        self.nursery = Nursery()
        self.listings = Listings(storage / "listings")
        self._volumes_wanted = volumes
        self._pool_bytes = pool_bytes
        self._runsc_path = runsc
        self._runsc_found: Runsc | None = None
        self._without_ids: str | None = None

    @property
    def volumes(self) -> Volumes:
        """The file trees; not mounted before they are needed."""
        if isinstance(self._volumes_wanted, str):
            self._volumes_wanted = open_volumes(self.storage, self._volumes_wanted, self._pool_bytes)
        return self._volumes_wanted

    @property
    def images(self) -> Images:
        """The snapshots."""
        return Images(self.volumes.snapshots)

    def runsc(self) -> Runsc:
        """The program. Raises `MachineUnavailable`."""
        if self._runsc_found is None:
            if os.geteuid() != 0:
                raise MachineUnavailable("machines are started by root; run this as root")
            self._runsc_found = find_runsc(self._runsc_path)
        return self._runsc_found

    @property
    def own_ids(self) -> bool:
        """Whether machines have user ids of the host that are nobody's; found out once, of trees that are mounted."""
        if self._without_ids is None:
            self._without_ids = why_no_ids(self.volumes)
            if self._without_ids:
                _log.warning("machines run as root of this node, in their namespaces: %s", self._without_ids)
        return not self._without_ids

    def driver_version(self) -> str:
        """What a snapshot's memory is bound to. Raises `MachineUnavailable`."""
        return f"runsc {self.runsc().release}"

    def check_driver(self, snapshot_id: str, driver: str, driver_version: str) -> None:
        """Raise `SnapshotForeign` for a snapshot that another driver, or another release of it, has taken."""
        check_driver(snapshot_id, (driver, driver_version), (self.driver, self.driver_version()))

    def prepare(self) -> None:
        """Find the program, mount the trees. Quick where it was done. Raises `MachineUnavailable`, `OSError`."""
        self.runsc()
        self.volumes.prepare()

    def folder(self, sandbox_id: str) -> MachineFolder:
        """Of a sandbox's machine."""
        return MachineFolder(self.storage, sandbox_id)

    def make_tree(self, spec: MachineSpec, plan: Plan) -> None:
        """The sandbox's tree as the plan has it, with nothing running on it; the machine that was there is ended."""
        self._end(self.folder(spec.sandbox_id))
        if plan.snapshot is None:
            self.volumes.ensure(spec.sandbox_id, plan.tree_root or plan.template_root, spec.limits.disk_bytes)
        else:
            source = self.images.path(plan.snapshot.snapshot_id)
            self.volumes.bring_back(
                spec.sandbox_id, plan.snapshot.snapshot_id, source, disk_bytes=spec.limits.disk_bytes
            )

    def move_in(self, spec: MachineSpec, plan: Plan, slot: Slot) -> Started:
        """Make the slot this sandbox's. Raises `OSError`, with the slot to be given up and the tree where it was."""
        folder = self.folder(spec.sandbox_id)
        record = MachineRecord(slot.machine_id, spec.sandbox_id, plan.template_root.name, spec.limits)
        with locked(folder.start_lock):
            if self.volumes.places_late:
                self.make_tree(spec, plan)
                self.volumes.place(spec.sandbox_id, slot.live)
            folder.move_in(slot.folder, record)
            pidfd = open_supervisor(folder)
        if pidfd is None:
            raise OSError(f"its container ended while it waited: {folder.last_words() or 'it said nothing'}")
        return Started(folder, record, pidfd, plan.new_tree)

    def undo(self, spec: MachineSpec, *, new_tree: bool) -> None:
        """Take back a start that failed. What can't be taken back now is cleared away by the next start."""
        try:
            self._end(self.folder(spec.sandbox_id))
            if new_tree:
                self.volumes.remove(spec.sandbox_id)
        except OSError:
            _log.exception("leftovers of a failed start sandbox=%s", spec.sandbox_id)

    def settle(self, folder: MachineFolder, machine_id: str, same_as: str) -> None:
        """End a machine and put its tree back; `same_as` as in `Volumes.take_back`."""
        record = folder.record()
        if record is None or record.machine_id != machine_id:
            return  # Another machine took its place, and this one was ended then.
        end_machine(folder, machine_id)
        self._take_back(folder.sandbox_id, same_as)

    def running(self) -> list[str]:
        """Ids of the sandboxes that have a machine."""
        machines = self.storage / "machines"
        if not machines.is_dir():
            return []
        names = [entry.name for entry in machines.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        return sorted(name for name in names if self.folder(name).supervisor() is not None)

    def remove(self, sandbox_id: str) -> None:
        """End the sandbox's machine, and remove its tree and the snapshots of it."""
        self.remove_tree(sandbox_id)
        self.listings.drop(sandbox_id)
        for record in self.images.records():
            if record.sandbox_id == sandbox_id:
                self.drop_snapshot(record.snapshot_id)

    def remove_tree(self, sandbox_id: str) -> None:
        """End the sandbox's machine, and remove its tree; snapshots of it stay."""
        folder = self.folder(sandbox_id)
        with locked(folder.start_lock):
            self._end(folder)
            if self.volumes.path(sandbox_id) is not None:
                self.volumes.remove(sandbox_id)
            folder.start_lock.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what nobody will: slots whose supervisor was killed, groups and snapshots likewise.

        What is younger than a minute may be somebody's who is just making it, an hour for a snapshot.
        """
        for folder in _older(self.waiting, _SLOT_SECONDS):
            if holder(folder / "lock") is None:
                clear_away(folder.name, folder, self.volumes.slots / folder.name / "root")
        used = {self.folder(name.parent.name).record() for name in self.storage.glob("machines/*/machine.json")}
        machines = {record.machine_id for record in used if record is not None}
        for slot in _older(self.volumes.slots, _SLOT_SECONDS):
            if slot.name not in machines and not (self.waiting / slot.name).exists():
                remove_root(slot / "root")
        # A machine that lives has processes, whosever it is on this node; these lost who was to remove them.
        for group in cgroups.names(older=_SLOT_SECONDS):
            if not cgroups.processes(group):
                cgroups.remove(group)
        for half in self.images.unfinished():
            if half in _older(self.images.folder, _SNAPSHOT_SECONDS):
                self.volumes.forget(half)
                self.images.erase(half)

    def copy_snapshot(self, record: SnapshotRecord, snapshot_id: str, sandbox_id: str) -> SnapshotRecord:
        """Another snapshot with the same memory and files, of another sandbox.

        Raises `SnapshotBroken` where its image is not what it was, `OSError`; nothing of the copy is left then.
        """
        images = self.images

        def copied(files: dict[str, FileRecord]) -> SnapshotRecord:
            if files != dict(record.files):
                raise SnapshotBroken(f"the image of {record.snapshot_id} is not what it was")
            return replace(record, snapshot_id=snapshot_id, sandbox_id=sandbox_id, taken_at=time.time(), files=files)

        fresh = images.begin(snapshot_id)
        try:
            mounts.run(["cp", "--reflink=auto", *(record.image / name for name in record.files), fresh / IMAGE])
            self.volumes.copy(images.path(record.snapshot_id), fresh)
            return images.seal(fresh, copied)
        except BaseException:
            self.volumes.forget(fresh)
            images.erase(fresh)
            raise

    def drop_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot; at once out of use, then its files."""
        folder = self.images.retire(snapshot_id)
        if folder is not None:
            self.volumes.forget(folder)
            self.images.erase(folder)

    def _end(self, folder: MachineFolder) -> None:
        """End the machine of a folder, if there is one, and clear the folder."""
        record = folder.record()
        if record is not None:
            end_machine(folder, record.machine_id)
        self._take_back(folder.sandbox_id, "")
        folder.clear()

    def _take_back(self, sandbox_id: str, same_as: str) -> None:
        live = self.volumes.placed(sandbox_id)
        if live is not None:
            # Whoever died between putting it there and writing down whose the machine is.
            cgroups.kill(live.parent.parent.name)
        self.volumes.take_back(sandbox_id, same_as=same_as)
        if live is not None:
            remove_root(live.parent)


def _older(folder: Path, seconds: float) -> list[Path]:
    """Folders in a folder that nobody has changed for that long."""
    if not folder.is_dir():
        return []
    now = time.time()
    found = []
    for path in folder.iterdir():
        try:
            if path.is_dir() and now - path.stat().st_mtime > seconds:
                found.append(path)
        except FileNotFoundError:
            continue  # its owner was quicker
    return found
