"""Every driver of this node, behind the same fixtures. The machines are real: run as root, after `make setup`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from actors.machines import cgroups
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import MachineSpec
from actors.machines.slots import Kind
from actors.template.build import ensure_agent
from events.types import Limits
from tests.conformance import drivers

MIB = 1024**2
LIMITS = Limits(memory_bytes=512 * MIB, processes=100, disk_bytes=96 * MIB, cpus=2.0)

NewSandbox = Callable[[], MachineSpec]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=drivers.NAMES)
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[GvisorDriver]:
    volumes = drivers.node_volumes()
    if request.param == "gvisor-btrfs" and volumes.kind != "btrfs":
        pytest.skip("this kernel has no btrfs")
    volumes.prepare()
    ensure_agent(volumes, "base")
    made = drivers.make(request.param)
    yield made
    await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def new_sandbox(driver: GvisorDriver) -> AsyncIterator[NewSandbox]:
    """Makes names of sandboxes, and sees to it that nothing of them is left on this node."""
    names: list[str] = []
    machines: set[str] = set()
    lay_out = driver._slots._lay_out

    def recorded(
        kind: Kind, machine_id: str, folder: Path, root: Path, place: Callable[[Path, bool], list[Path]] | None
    ) -> None:
        machines.add(machine_id)
        lay_out(kind, machine_id, folder, root, place)

    with pytest.MonkeyPatch.context() as patch:
        # Every machine that is begun, come what may.
        patch.setattr(driver._slots, "_lay_out", recorded)

        def new() -> MachineSpec:
            names.append(f"sbx-{secrets.token_hex(8)}")
            return MachineSpec(names[-1], "base", LIMITS)

        yield new
    for name in names:
        await driver.remove(name)
    assert machines, "no test of this module started a machine"
    await no_trace(driver.storage, names, machines)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(driver: GvisorDriver, new_sandbox: NewSandbox) -> AsyncIterator[GvisorMachine]:
    """A machine for all tests that leave it as it was."""
    machine = await driver.start(new_sandbox())
    yield machine
    await machine.release()


async def no_trace(storage: Path, sandboxes: list[str], machines: set[str]) -> None:
    """Fail where a sandbox or a machine has left anything on the host."""
    for name in sandboxes:
        assert not (storage / "machines" / name).exists()
        assert not (storage / "machines" / f"{name}.lock").exists()
        assert name not in Path("/proc/self/mountinfo").read_text()
        assert not (storage / "pool" / "sandboxes" / name).exists()
        assert not (storage / "overlay" / "sandboxes" / name).exists()
    async with asyncio.timeout(20):
        # A supervisor clears up after a container that nobody wanted any more in its own time.
        while left := processes_of(machines) + state_of(storage, machines) + sorted(cgroups.names() & machines):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.1)
    assert not left


def processes_of(machines: set[str]) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            found.extend(f"{entry.name}: {machine}" for machine in machines if machine in command)
    return found


def state_of(storage: Path, machines: set[str]) -> list[str]:
    return [path.name for path in (storage / "runsc").glob("*") if any(name in path.name for name in machines)]
