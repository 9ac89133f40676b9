"""The yardstick of everything that is done to machines: `runsc` itself, with the same container, tree and agent.

A container is created from the same bundle as ours, with a file tree in its place; what is timed is the bare command,
and the agent's first answer on its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Self

from actors.machines.bundle import LIVE, make_root, oci_config
from actors.machines.guest import connect
from actors.machines.runsc import find_runsc
from actors.machines.slots import remove_root
from events.types import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from actors.machines.guest import GuestConnection
    from actors.machines.volumes import Volumes


class RawContainer:
    """One container, made by hand. Create it with `create`, and `remove` it."""

    def __init__(self, volumes: Volumes, folder: Path) -> None:
        self._volumes = volumes
        self.id = f"hg-{secrets.token_hex(8)}"
        self._sandbox_id = f"bench-{secrets.token_hex(6)}"
        self._state = folder / "runsc"
        self._bundle = folder / self.id
        self._root = volumes.slots / self.id / "root"
        self._runsc = find_runsc()
        self._limits = Limits()
        self._to_guest = self._from_guest = -1
        self._guest: GuestConnection | None = None

    @classmethod
    async def create(
        cls, volumes: Volumes, folder: Path, agent_root: Path, limits: Limits, snapshot: tuple[str, Path] | None = None
    ) -> Self:
        """A container on a new tree of the template's root, or on the tree of a snapshot (id and folder)."""
        made = cls(volumes, folder)
        made._bundle.mkdir()
        make_root(made._root)
        if snapshot is None:
            volumes.ensure(made._sandbox_id, agent_root, limits.disk_bytes)
        else:
            volumes.bring_back(made._sandbox_id, snapshot[0], snapshot[1], limits.disk_bytes)
        volumes.place(made._sandbox_id, made._root / LIVE)
        config = oci_config(limits, machine_id=made.id, root=made._root, agent_root=agent_root, own_ids=False)
        (made._bundle / "config.json").write_text(json.dumps(config))
        made._limits = limits
        command = made._runsc.command(made._state, "create", "--bundle", str(made._bundle), made.id)
        stdin, made._to_guest = os.pipe()
        made._from_guest, stdout = os.pipe()
        with open(os.devnull, "w") as null:  # noqa: ASYNC230 - a device
            creating = await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=stdout, stderr=null)
        os.close(stdin)
        os.close(stdout)
        if await creating.wait() != 0:
            raise OSError("runsc create failed")
        return made

    async def start(self) -> float:
        """From `runsc start` to the agent's first answer, in seconds."""
        return await self._until_it_answers("start", self.id)

    async def restore(self, image: Path) -> float:
        """From `runsc restore` to the agent's first answer, in seconds."""
        return await self._until_it_answers("restore", "--detach", "--image-path", str(image), self.id)

    @property
    def guest(self) -> GuestConnection:
        """Its agent, once it answered; one that was restored is quiet until it is woken."""
        if self._guest is None:
            raise OSError("the container was not started")
        return self._guest

    async def checkpoint(self, image: Path) -> float:
        """A plain `runsc checkpoint`, in seconds; the container ends with it."""
        shutil.rmtree(image, ignore_errors=True)
        os.mkdir(image)
        began = time.perf_counter()
        await self._run("checkpoint", "--compression=none", "--image-path", str(image), self.id)
        return time.perf_counter() - began

    async def _until_it_answers(self, *command: str) -> float:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await loop.connect_read_pipe(lambda: protocol, os.fdopen(self._from_guest, "rb", 0))
        transport, flow = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(self._to_guest, "wb", 0)
        )
        writer = asyncio.StreamWriter(transport, flow, None, loop)
        began = time.perf_counter()
        running = asyncio.create_task(self._run(*command))
        self._guest = await connect(reader, writer, limits=self._limits)
        took = time.perf_counter() - began
        await running
        return took

    async def _run(self, *command: str) -> None:
        running = await asyncio.create_subprocess_exec(
            *self._runsc.command(self._state, *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        code = await running.wait()
        if code != 0:
            raise OSError(f"runsc {command[0]} failed with exit code {code}")

    async def remove(self) -> None:
        """End it, whatever it does, and take away what it left."""
        for command in (("kill", self.id, "KILL"), ("delete", "--force", self.id)):
            # What has ended already can't be ended.
            with contextlib.suppress(OSError):
                await self._run(*command)
        if self._guest is not None:
            await self._guest.close()
        self._volumes.remove(self._sandbox_id)
        remove_root(self._root)
        shutil.rmtree(self._bundle, ignore_errors=True)
