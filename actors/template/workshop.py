"""Machines in which templates are built: each step's command runs in one of its own, and so does the look at the end.

A root that is not ours is never run on the host. The machine has no network, the limits of a sandbox, and the agent of
another root; its tree becomes the next layer once the command has succeeded and nothing runs on it any more.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Self

from actors.guest.toolbox import NO_OUTPUT
from actors.machines.gvisor import GvisorDriver
from actors.machines.protocol import EndReason, MachineError, MachineSpec
from actors.template.manifest import StepFailed, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actors.machines.machine import GvisorMachine
    from actors.machines.protocol import ToolResult
    from actors.machines.volumes import Volumes
    from events.types import Limits

PREFIX = "build-"
"""Of the ids of these machines' trees."""
_GRACE_SECONDS = 10.0
"""What a call may take beyond its command's own time."""


class Workshop:
    """Makes the machines, one after the other. Not to be used in a running event loop."""

    def __init__(self, volumes: Volumes, limits: Limits, driver: GvisorDriver | None = None) -> None:
        self._volumes = volumes
        self._limits = limits
        self._driver = driver or GvisorDriver(volumes.storage, volumes=volumes)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._driver.close())
        self._runner.close()

    def sweep(self) -> None:
        """Remove what builds that died have left. Whoever holds the lock of the layers may: no other build runs."""
        for sandbox_id in self._volumes.sandboxes():
            if sandbox_id.startswith(PREFIX):
                self._runner.run(self._driver.remove(sandbox_id))

    def run(
        self,
        tree: Path,
        agent: Path,
        command: str,
        *,
        seconds: float,
        on_output: Callable[[bytes], None] | None = None,
        keep: str = "",
    ) -> str:
        """Run a command on a new tree of the root `tree`, and return the last 100 KiB of what it printed.

        Args:
            agent: the root whose agent the machine has.
            keep: the name of a root to be made of the tree that the command leaves; "": the tree is thrown away.

        Raises:
            StepFailed: the command failed, took too long, or its machine ended; no root is made.
            TemplateError: no machine could be started.
        """
        return self._runner.run(self._run(tree, agent, command, seconds, on_output, keep))

    async def _run(
        self,
        tree: Path,
        agent: Path,
        command: str,
        seconds: float,
        on_output: Callable[[bytes], None] | None,
        keep: str,
    ) -> str:
        spec = MachineSpec(f"{PREFIX}{secrets.token_hex(8)}", "", self._limits)
        try:
            try:
                machine = await self._driver.start_on(spec, tree, agent)
            except MachineError as error:
                raise TemplateError(f"no machine comes up on {tree.name}: {error}") from error
            try:
                result = await self._call(machine, command, seconds, on_output)
                # What its processes have in memory of their files is written out.
                await machine.guest.quiesce()
            finally:
                await machine.kill()
            said = "".join(str(block.get("text", "")) for block in result.content).removeprefix(NO_OUTPUT)
            if result.is_error:
                how = f"exit code {result.exit_code}" if result.exit_code is not None else "no exit code"
                raise StepFailed(f"failed with {how}", said)
            if keep:
                await asyncio.to_thread(self._volumes.root_of, spec.sandbox_id, keep)
            return said
        finally:
            await self._driver.remove(spec.sandbox_id)

    async def _call(
        self, machine: GvisorMachine, command: str, seconds: float, on_output: Callable[[bytes], None] | None
    ) -> ToolResult:
        given = {"command": command, "timeout_ms": int(seconds * 1000)}
        try:
            return await machine.guest.run_tool(
                "step", "bash", given, timeout=seconds + _GRACE_SECONDS, on_output=on_output
            )
        except MachineError as error:
            await machine.kill()
            end = await machine.wait_ended()
            if end.reason is EndReason.OUT_OF_MEMORY:
                mib = self._limits.memory_bytes // 1024**2
                raise StepFailed(
                    f"needs more memory than its machine has, {mib} MiB; set HOURGLASS_LIMITS__MEMORY_BYTES", ""
                ) from error
            raise StepFailed(f"lost its machine: {error}", "") from error
