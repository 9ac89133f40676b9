"""What a sandbox does to excess ends in a clear result, or in a clear end of its machine; never in harm to the host."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from actors.machines import cgroups
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import EndReason, MachineGone, ToolResult
from tests.conformance.conftest import LIMITS, MIB, NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]

RESULT_BYTES = 1024 * 1024
"""Far above what a tool result may hold, and far below what these commands print."""


async def run(machine: GvisorMachine, command: str, *, timeout: float = 60.0) -> tuple[ToolResult, str]:
    call = secrets.token_hex(8)
    result = await machine.guest.run_tool(call, "bash", {"command": command}, timeout=timeout)
    text = "".join(str(block["text"]) for block in result.content)
    assert len(text) < RESULT_BYTES
    return result, text


async def assert_alive(machine: GvisorMachine) -> None:
    result, text = await run(machine, "echo alive")
    if result.is_error:
        # As in the SDK's toolset: the shell that was ended is to be restarted by whoever uses it.
        await machine.guest.run_tool(secrets.token_hex(8), "bash", {"restart": True}, timeout=10)
        result, text = await run(machine, "echo alive")
    assert (result.is_error, text) == (False, "alive")


def lower_memory_limit(machine_id: str, limit: int) -> None:
    v1 = Path(cgroups.ROOT, "memory", cgroups.PARENT, machine_id, "memory.limit_in_bytes")
    v2 = Path(cgroups.ROOT, cgroups.PARENT, machine_id, "memory.max")
    (v2 if cgroups.version() == 2 else v1).write_text(str(limit))


async def test_a_memory_hog_is_ended_and_the_sandbox_lives(machine: GvisorMachine) -> None:
    result, text = await run(machine, "python3 -c 'x = [bytearray(1 << 22) for _ in range(1000)]'")
    assert result.is_error, text
    await assert_alive(machine)


async def test_a_fork_bomb_is_ended_and_the_sandbox_lives(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    result, text = await run(machine, "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done", timeout=60)
    assert result.is_error
    # Its first words are those of a shell that may not fork; its last ones say what was done about it.
    assert "process limit" in text or text == "tool 'bash' timed out"
    await assert_alive(machine)
    await machine.kill()


async def test_a_full_disk_is_said_and_the_sandbox_lives(machine: GvisorMachine) -> None:
    result, text = await run(machine, "head -c 200M /dev/zero > big; echo $?; sync; stat -c %s big; rm big; sync")
    assert "Disk quota exceeded" in text or "No space left on device" in text
    size = int(text.split()[-1])
    assert size <= LIMITS.disk_bytes
    assert not result.is_error
    result, text = await run(machine, "echo room again > small && cat small")
    assert text == "room again"


async def test_ten_gigabytes_of_output_are_bounded(machine: GvisorMachine) -> None:
    heard = 0

    def hear(data: bytes) -> None:
        nonlocal heard
        heard += len(data)

    result = await machine.guest.run_tool(
        secrets.token_hex(8), "bash", {"command": "yes | head -c 10G"}, timeout=5, on_output=hear
    )
    assert sum(len(str(block["text"])) for block in result.content) < RESULT_BYTES
    assert heard <= 2 * MIB
    await assert_alive(machine)


async def test_two_hours_of_sleep_end_at_the_timeout(machine: GvisorMachine) -> None:
    result, text = await run(machine, "sleep 7200", timeout=1)
    assert result.is_error
    assert text == "tool 'bash' timed out"
    await assert_alive(machine)


async def test_a_temporary_folder_is_bounded(machine: GvisorMachine) -> None:
    _, text = await run(machine, "head -c 400M /dev/zero > /tmp/fill; rm /tmp/fill")
    assert "No space left on device" in text
    await assert_alive(machine)


async def test_a_machine_out_of_memory_ends_and_says_so(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    # Less than the guest was told, so that its own watch over memory does not see it coming.
    lower_memory_limit(machine.machine_id, 96 * MIB)
    with pytest.raises(MachineGone):
        await run(machine, "echo kept > /workspace/file; sync; head -c 300M /dev/zero > /dev/fill; echo survived")
    end = await machine.wait_ended()
    assert end.reason is EndReason.OUT_OF_MEMORY
    again = await driver.start(spec)
    result, text = await run(again, "cat /workspace/file")
    assert (result.is_error, text) == (False, "kept")
    await again.kill()
