"""A start that fails says why, and leaves nothing behind but the files that were there before."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.machines import cgroups
from actors.machines.gvisor import GvisorDriver
from actors.machines.protocol import MachineUnavailable
from tests.conformance.conftest import NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]


def runsc_that(tmp_path: Path, does: str) -> str:
    """A `runsc` of the right version, whose containers do something else."""
    program = tmp_path / "runsc"
    program.write_text(
        f"""#!/bin/sh
        [ "$1" = --version ] && exec echo "runsc version release-20990101.0"
        case "$*" in
            *" create "*) exec 3<&0; (exec <&3 3<&-; {does}) & echo $! > pid; {"wait $!" if "exit 1" in does else ""} ;;
        esac
        """
    )
    program.chmod(0o755)
    return str(program)


@asynccontextmanager
async def broken(driver: GvisorDriver, runsc: str) -> AsyncIterator[GvisorDriver]:
    made = GvisorDriver(driver.storage, volumes=driver.volumes, runsc=runsc, start_seconds=2)
    yield made
    await made.close()


async def assert_nothing_left(driver: GvisorDriver, sandbox_id: str, groups: set[str]) -> None:
    assert not (driver.storage / "machines" / sandbox_id).exists()
    assert sandbox_id not in driver.volumes.sandboxes()
    async with asyncio.timeout(10):
        # A supervisor leaves this to a child, and nobody tells us.
        while {name for name in cgroups.names() - groups if not cgroups.processes(name)}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_template_that_is_not_there(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = dataclasses.replace(new_sandbox(), template="no-such")
    groups = cgroups.names()
    with pytest.raises(MachineUnavailable, match=r"no template 'no-such'.*hourglass template build"):
        await driver.start(spec)
    await assert_nothing_left(driver, spec.sandbox_id, groups)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'cannot create sandbox: out of luck' >&2; exit 128", "out of luck"),
        ("echo 'no frame at all, but long enough'; cat >/dev/null", "broke the protocol: frame"),
        ("exec cat >/dev/null", "nothing heard for 2 s"),
    ],
    ids=["ends", "babbles", "is silent"],
)
async def test_a_machine_that_does_not_come_up(
    driver: GvisorDriver, new_sandbox: NewSandbox, tmp_path: Path, does: str, said: str
) -> None:
    spec = new_sandbox()
    groups = cgroups.names()
    async with broken(driver, runsc_that(tmp_path, does)) as that:
        with pytest.raises(MachineUnavailable) as raised:
            await that.start(spec)
    assert "hourglass doctor" in str(raised.value)
    assert said in str(raised.value)
    await assert_nothing_left(driver, spec.sandbox_id, groups)


async def test_files_that_were_there_survive_a_failed_start(
    driver: GvisorDriver, new_sandbox: NewSandbox, tmp_path: Path
) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await machine.guest.write_file("/workspace/file", b"kept")
    await machine.kill()
    async with broken(driver, runsc_that(tmp_path, "exit 1")) as that:
        with pytest.raises(MachineUnavailable):
            await that.start(spec)
    again = await driver.start(spec)
    assert await again.guest.read_file("/workspace/file", max_bytes=100) == b"kept"
    await again.kill()
