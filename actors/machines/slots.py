"""Slots: containers that are created and wait for the sandbox that they will be.

A container's root is opened when it is created, and creating takes longer than bringing a machine to life. So it is
created ahead, on an empty root, and a sandbox's tree is put into that root at the last moment. What a container is
bound to is the template's agent and the limits; a few of the kind that was asked for last are kept waiting.

A slot dies with its host: its supervisor sees the line end, and removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.machines import cgroups
from actors.machines.bundle import LIVE, host_tasks, make_root, oci_config
from actors.machines.control import KNOWN, control_socket
from actors.machines.launch import ORDERS
from actors.template.agent import AGENT_FOLDER

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from actors.machines.node import Node
    from events.types import Limits

_REFILL_PAUSE_S = 0.3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a container is bound to."""

    agent_root: Path
    """Of the template."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Slot:
    """A container that waits."""

    machine_id: str
    kind: Kind
    folder: Path
    """What its supervisor reads and writes; becomes the machine's folder."""
    root: Path
    """Of the container; in a folder that is its bundle."""
    line: socket.socket
    """To its supervisor."""

    @property
    def live(self) -> Path:
        """Where the sandbox's tree goes."""
        return self.root / LIVE


class Slots:
    """Makes containers, and keeps `size` of them waiting."""

    def __init__(self, node: Node, size: int) -> None:
        self._node = node
        self._size = size
        self._ready: list[Slot] = []
        self._asked = 0
        self._unasked = asyncio.Event()
        self._unasked.set()
        self._refill: asyncio.Task[None] | None = None

    async def take(self, kind: Kind) -> Slot:
        """A container of this kind: one that waits, or a new one. Raises `OSError`."""
        for slot in [slot for slot in self._ready if slot.kind != kind or not _waits(slot)]:
            self._ready.remove(slot)
            slot.line.close()
        self._asked += 1
        self._unasked.clear()
        try:
            return self._ready.pop(0) if self._ready else await self.make(kind)
        finally:
            self._asked -= 1
            if not self._asked:
                self._unasked.set()
            self.fill(kind)

    async def make(self, kind: Kind, place: Callable[[Path, bool], list[Path]] | None = None) -> Slot:
        """A new container; `place` puts the tree into its root before, where it can't be put there later: see
        `Volumes.place`, whose `own_ids` it is told.

        Raises `OSError`, with nothing left but what `place` did.
        """
        machine_id = f"hg-{secrets.token_hex(8)}"
        folder, root = self._node.waiting / machine_id, self._node.volumes.slots / machine_id / "root"
        laying_out = asyncio.create_task(asyncio.to_thread(self._lay_out, kind, machine_id, folder, root, place))
        try:
            await asyncio.shield(laying_out)
            # From here on its supervisor clears up after it, where we do not go on.
            line = await self._node.nursery.supervise(folder)
        except OSError:
            await asyncio.to_thread(clear_away, machine_id, folder, root)
            raise
        except asyncio.CancelledError:
            if not laying_out.done():
                # The thread can't be stopped; what it made must not be left.
                await asyncio.wait([laying_out])
                await asyncio.to_thread(clear_away, machine_id, folder, root)
            raise
        return Slot(machine_id, kind, folder, root, line)

    def fill(self, kind: Kind) -> None:
        """Have as many as are to wait, once nobody waits for one."""
        if self._size and (self._refill is None or self._refill.done()):
            self._refill = asyncio.create_task(self._keep_full(kind), name="slots")

    async def filled(self) -> None:
        """Wait until as many wait as are to."""
        if self._refill is not None:
            await asyncio.wait([self._refill])

    async def close(self) -> None:
        """Let go of all that wait; their supervisors remove them."""
        if self._refill is not None:
            self._refill.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refill
        while self._ready:
            self._ready.pop().line.close()

    async def _keep_full(self, kind: Kind) -> None:
        try:
            # What the last container was taken for comes first.
            await asyncio.sleep(_REFILL_PAUSE_S)
            while len(self._ready) < self._size:
                await self._unasked.wait()
                slot = await self.make(kind)
                self._ready.append(slot)
        except OSError as error:
            # Whoever needs one makes it, and hears the reason.
            _log.warning("no container could be made ahead: %s", error)

    def _lay_out(
        self, kind: Kind, machine_id: str, folder: Path, root: Path, place: Callable[[Path, bool], list[Path]] | None
    ) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self._node.state.mkdir(mode=0o700, exist_ok=True)
        make_root(root)
        limits = kind.limits
        cgroups.create(machine_id, memory_bytes=limits.memory_bytes, tasks=host_tasks(limits), cpus=limits.cpus)
        own_ids = self._node.own_ids
        config = oci_config(limits, machine_id=machine_id, root=root, agent_root=kind.agent_root, own_ids=own_ids)
        # Beside the root, which stays where it is: `runsc` reads it again when the machine comes to life.
        (root.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
        layers = place(root / LIVE, own_ids) if place is not None else []
        mapped = [root, kind.agent_root / AGENT_FOLDER, *layers] if own_ids else []
        runsc, state = self._node.runsc(), self._node.state
        orders = {
            "create": runsc.command(state, "create", "--bundle", str(root.parent), "--pid-file", "pid", machine_id),
            "mapped": [str(folder) for folder in mapped],
            "start": runsc.command(state, "start", machine_id),
            "restore": runsc.command(state, "restore", "--detach", machine_id),
            "control": str(control_socket(state, machine_id)) if runsc.release in KNOWN else "",
            "group": machine_id,
            "state": str(state),
            "slot": str(root.parent),
        }
        (folder / ORDERS).write_text(json.dumps(orders), encoding="utf-8")


def clear_away(machine_id: str, folder: Path, root: Path) -> None:
    """Remove what there is of a container that never was a machine. A tree in its root stays, and the root with it."""
    cgroups.kill(machine_id)
    cgroups.remove(machine_id)
    shutil.rmtree(folder, ignore_errors=True)
    remove_root(root)


def remove_root(root: Path) -> None:
    """Remove a slot's root, unless there is a tree in it."""
    live = root / LIVE
    if os.path.ismount(live) or (live.is_dir() and any(live.iterdir())):
        return
    shutil.rmtree(root.parent, ignore_errors=True)


def _waits(slot: Slot) -> bool:
    """Whether its supervisor is there: it says nothing more before it is told what to do."""
    try:
        return bool(slot.line.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False
