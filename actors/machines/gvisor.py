"""The gVisor driver: each machine is a `runsc` container with the guest agent as its PID 1.

Start: a supervisor process begins to boot; meanwhile the sandbox's tree, the control groups and the bundle are made;
then the supervisor is told what to start, listens, and starts it; the agent is greeted through it.

Everything about a machine is found again from the disk and the kernel: a host that starts knows the machines of the
one that died, and `start` begins by clearing away what a half-done start left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines import cgroups
from actors.machines.bundle import host_tasks, oci_config
from actors.machines.container import Orders
from actors.machines.folder import MachineFolder, MachineRecord
from actors.machines.guest import connect
from actors.machines.launch import command_supervisor, dismiss, end_machine, open_supervisor, spawn_supervisor
from actors.machines.locks import locked
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import (
    Finding,
    MachineError,
    MachineGone,
    MachineSpec,
    MachineUnavailable,
)
from actors.machines.runsc import Runsc, find_runsc
from actors.machines.volumes import Kind, Volumes, open_volumes
from actors.template.build import ensure_agent
from actors.template.manifest import TemplateError

if TYPE_CHECKING:
    from actors.machines.protocol import Guest

_log = logging.getLogger(__name__)

DEFAULT_POOL_BYTES = 256 * 1024**3
_START_SECONDS = 60.0
"""Generous: on a busy node twenty machines may start at once."""
_ADOPT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Launched:
    folder: MachineFolder
    record: MachineRecord
    pidfd: int
    new_tree: bool
    """The sandbox had no file tree before."""


class GvisorDriver:
    """Makes gVisor machines on this node. See `actors.machines.protocol.Driver`.

    `storage` is the folder of templates, trees and machines; it may be shared by any number of processes.
    """

    name = "gvisor"

    def __init__(
        self,
        storage: Path,
        *,
        volumes: Kind | Volumes = "auto",
        pool_bytes: int = DEFAULT_POOL_BYTES,
        runsc: str | None = None,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self.storage = storage
        self._volumes_wanted = volumes
        self._pool_bytes = pool_bytes
        self._runsc_path = runsc
        self._runsc_found: Runsc | None = None
        self._start_seconds = start_seconds

    @property
    def volumes(self) -> Volumes:
        """The file trees; not mounted before they are needed."""
        if isinstance(self._volumes_wanted, str):
            self._volumes_wanted = open_volumes(self.storage, self._volumes_wanted, self._pool_bytes)
        return self._volumes_wanted

    async def check(self) -> list[Finding]:
        """`runsc`, control groups, and what the file trees need."""
        return await asyncio.to_thread(self._check)

    async def start(self, spec: MachineSpec) -> GvisorMachine:
        """Start a machine on the sandbox's tree. One that runs for this sandbox already is ended first."""
        launch = asyncio.create_task(asyncio.to_thread(self._launch, spec))
        try:
            launched = await asyncio.shield(launch)
        except asyncio.CancelledError:
            # The thread can't be stopped; what it made must not be left.
            with contextlib.suppress(MachineError):
                await self._abandon(await launch)
            raise
        try:
            guest = await self._greet(launched.folder, launched.record, self._start_seconds)
        except BaseException as error:
            told = await asyncio.to_thread(_account, launched)
            await self._abandon(launched)
            if isinstance(error, (MachineError, OSError)):
                reason = str(error) or f"nothing heard for {self._start_seconds:g} s"
                raise MachineUnavailable(
                    f"the machine of {spec.sandbox_id} was started, but its guest agent does not answer: {reason}; "
                    f"{told}. `hourglass doctor` checks what machines need"
                ) from error
            raise
        return GvisorMachine(launched.folder, launched.record, launched.pidfd, guest)

    async def adopt(self, sandbox_id: str) -> GvisorMachine | None:
        """The running machine of a sandbox. Raises `MachineGone` where it runs and does not answer: start it anew."""
        folder = MachineFolder(self.storage, sandbox_id)
        pidfd = await asyncio.to_thread(open_supervisor, folder)
        record = folder.record()
        if pidfd is None:
            return None
        if record is None:
            os.close(pidfd)
            return None
        try:
            guest = await self._greet(folder, record, _ADOPT_SECONDS)
        except (MachineGone, OSError) as error:
            alive = folder.supervisor() is not None
            os.close(pidfd)
            if not alive:
                return None
            raise MachineGone(f"the machine of {sandbox_id} runs, but does not answer: {error}") from error
        except BaseException:
            os.close(pidfd)
            raise
        return GvisorMachine(folder, record, pidfd, guest)

    async def running(self) -> list[str]:
        """Ids of the sandboxes that have a machine on this node."""
        return await asyncio.to_thread(self._running)

    async def remove(self, sandbox_id: str) -> None:
        """End the sandbox's machine and remove its tree."""
        try:
            await asyncio.to_thread(self._remove, sandbox_id)
        except OSError as error:
            raise MachineError(f"the sandbox {sandbox_id} can't be removed: {error}") from error

    def tree(self, sandbox_id: str) -> Path | None:
        """The sandbox's file tree on the host. Hostile: never follow a link in it."""
        return self.volumes.path(sandbox_id)

    def _check(self) -> list[Finding]:
        findings = [self._check_runsc(), _check_cgroups()]
        findings.extend(self.volumes.check())
        return findings

    def _check_runsc(self) -> Finding:
        try:
            runsc = find_runsc(self._runsc_path)
        except MachineUnavailable as error:
            return Finding("runsc", False, str(error), "every sandbox is a gVisor machine", "make setup")
        return Finding("runsc", ok=True, detail=f"{runsc.path}, release {runsc.release}")

    def _runsc(self) -> Runsc:
        if self._runsc_found is None:
            if os.geteuid() != 0:
                raise MachineUnavailable("machines are started by root; run this as root")
            self._runsc_found = find_runsc(self._runsc_path)
        return self._runsc_found

    def _launch(self, spec: MachineSpec) -> _Launched:
        """Everything up to a running `runsc`; in a thread. Raises `MachineUnavailable`, with nothing left behind."""
        folder = MachineFolder(self.storage, spec.sandbox_id)
        runsc = self._runsc()
        try:
            self.volumes.prepare()
            with locked(folder.start_lock):
                self._end(folder)
                new_tree = spec.sandbox_id not in self.volumes.sandboxes()
                try:
                    record = self._start_supervised(runsc, folder, spec)
                    pidfd = open_supervisor(folder)
                    if pidfd is None:
                        said = folder.last_words() or folder.end(record.machine_id).detail
                        raise OSError(f"runsc ended at once: {said}")
                except BaseException:
                    self._undo(folder, new_tree)
                    raise
                return _Launched(folder, record, pidfd, new_tree)
        except (OSError, TemplateError) as error:
            raise MachineUnavailable(f"the machine of {spec.sandbox_id} can't be started: {error}") from error

    def _start_supervised(self, runsc: Runsc, folder: MachineFolder, spec: MachineSpec) -> MachineRecord:
        """While the supervisor's Python boots, make all that it is to start; then let it."""
        folder.create()
        process = spawn_supervisor(folder)
        try:
            record, root = self._record(folder, spec)
            limits = spec.limits
            rootfs = self.volumes.ensure(spec.sandbox_id, root, limits.disk_bytes)
            tasks = host_tasks(limits)
            cgroups.create(record.machine_id, memory_bytes=limits.memory_bytes, tasks=tasks, cpus=limits.cpus)
            config = oci_config(spec, machine_id=record.machine_id, rootfs=rootfs, agent_root=root)
            folder.write("config.json", config)
        except BaseException:
            dismiss(process)
            raise
        command_supervisor(process, folder, self._orders(runsc, folder, record.machine_id))
        return record

    def _end(self, folder: MachineFolder) -> None:
        """End the machine of a folder, if there is one, and clear the folder."""
        record = folder.record()
        if record is not None:
            end_machine(folder, record.machine_id)
        folder.clear()

    def _undo(self, folder: MachineFolder, new_tree: bool) -> None:
        """Take back a start that failed. What can't be taken back now is cleared away by the next start."""
        try:
            self._end(folder)
            if new_tree:
                self.volumes.remove(folder.sandbox_id)
        except OSError:
            _log.exception("leftovers of a failed start sandbox=%s", folder.sandbox_id)

    def _record(self, folder: MachineFolder, spec: MachineSpec) -> tuple[MachineRecord, Path]:
        """Say on the disk which template root is about to be used, and only then rely on it.

        A template that is replaced at this moment drops its old root, unless the record is there.
        """
        machine_id = f"hg-{secrets.token_hex(8)}"
        for _ in range(2):
            manifest = ensure_agent(self.volumes, spec.template)
            record = MachineRecord(machine_id, spec.sandbox_id, manifest.root, spec.limits)
            folder.write_record(record)
            root = self.volumes.templates / manifest.root
            if root.exists():
                break
        return record, root

    def _orders(self, runsc: Runsc, folder: MachineFolder, machine_id: str) -> Orders:
        state = self.storage / "runsc"
        state.mkdir(mode=0o700, exist_ok=True)
        return {
            "run": runsc.command(state, "run", "--bundle", str(folder.path), machine_id),
            "delete": runsc.command(state, "delete", "--force", machine_id),
            "group": machine_id,
            "state": str(state),
        }

    async def _greet(self, folder: MachineFolder, record: MachineRecord, seconds: float) -> Guest:
        async with asyncio.timeout(seconds):
            # Through the folder's descriptor: a socket's path may have 108 bytes, and a storage folder may have more.
            fd = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/sock")
            finally:
                os.close(fd)
            try:
                return await connect(reader, writer, limits=record.limits, timeout=seconds)
            except BaseException:
                writer.close()
                raise

    async def _abandon(self, launched: _Launched) -> None:
        os.close(launched.pidfd)
        await asyncio.to_thread(self._undo, launched.folder, launched.new_tree)

    def _running(self) -> list[str]:
        machines = self.storage / "machines"
        if not machines.is_dir():
            return []
        folders = (MachineFolder(self.storage, entry.name) for entry in machines.iterdir() if entry.is_dir())
        return sorted(folder.sandbox_id for folder in folders if folder.supervisor() is not None)

    def _remove(self, sandbox_id: str) -> None:
        folder = MachineFolder(self.storage, sandbox_id)
        with locked(folder.start_lock):
            self._end(folder)
            if self.volumes.path(sandbox_id) is not None:
                self.volumes.remove(sandbox_id)
            folder.start_lock.unlink(missing_ok=True)


def _account(launched: _Launched) -> str:
    """What there is to say of a machine that did not come up."""
    folder = launched.folder
    said = f"it said: {folder.last_words() or 'nothing'}"
    if not (folder.path / "exit.json").exists():
        return said
    end = folder.end(launched.record.machine_id)
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
