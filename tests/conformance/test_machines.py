"""What every driver's machines do: tools, streams, isolation, endings."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from actors.machines.gvisor import GvisorDriver
from actors.machines.launch import open_supervisor
from actors.machines.locks import holder
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import EndReason, Machine, MachineGone, MachineSpec
from tests.conformance.conftest import LIMITS, NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]


async def bash(machine: Machine, command: str, *, timeout: float = 60.0) -> str:
    result = await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=timeout)
    assert not result.is_error, result
    return "".join(str(block["text"]) for block in result.content)


async def test_tools_run_in_the_machine_and_not_on_the_host(machine: GvisorMachine) -> None:
    told = await bash(machine, "pwd; hostname; id -u; cat /proc/1/comm; test -e /var/lib/hourglass || echo nothing")
    assert told.split("\n") == ["/workspace", machine.sandbox_id, "0", "python3", "nothing"]


async def test_a_failed_command_is_a_result_and_not_an_exception(machine: GvisorMachine) -> None:
    result = await machine.guest.run_tool(secrets.token_hex(8), "read", {"file_path": "/nowhere"}, timeout=10)
    assert result.is_error


async def test_output_is_heard_while_the_command_runs(machine: GvisorMachine) -> None:
    heard = asyncio.Event()
    pieces: list[bytes] = []

    def hear(data: bytes) -> None:
        pieces.append(data)
        if b"first" in b"".join(pieces):
            heard.set()

    command = "echo first; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo second"
    call = asyncio.create_task(
        machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=60, on_output=hear)
    )
    await heard.wait()
    assert not call.done()
    await machine.guest.write_file("/tmp/go", b"")
    assert (await call).content == [{"type": "text", "text": "first\nsecond"}]


async def test_there_is_no_network_but_loopback(machine: GvisorMachine) -> None:
    assert (await bash(machine, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")).split() == ["lo"]


async def test_the_memory_that_it_sees_is_its_own(machine: GvisorMachine) -> None:
    kib = int(await bash(machine, "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert kib * 1024 == LIMITS.memory_bytes


async def test_the_agent_cannot_be_changed_from_inside(machine: GvisorMachine) -> None:
    said = await bash(machine, "touch /opt/hourglass/x 2>&1; echo '#' >> /opt/hourglass/actors/guest/agent.py; true")
    assert said.count("Read-only file system") == 2


async def test_nothing_of_the_host_shows_in_the_supervisor(machine: GvisorMachine, driver: GvisorDriver) -> None:
    pid = holder(driver.storage / "machines" / machine.sandbox_id / "lock")
    assert pid is not None
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != os.getpid()
    assert os.getsid(pid) != os.getsid(0)


async def test_two_machines_share_nothing(
    machine: GvisorMachine, driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    other = await driver.start(new_sandbox())
    await bash(machine, "echo mine > /workspace/private; echo mine > /tmp/private; sleep 300 & disown")
    told = await bash(other, "ls /workspace /tmp; pgrep -c sleep; true")
    assert "private" not in told
    assert told.split("\n")[-1] == "0"
    assert {machine.sandbox_id, other.sandbox_id} <= set(await driver.running())
    await bash(machine, "pkill sleep; rm /workspace/private")
    await other.kill()


async def test_files_outlive_the_machine(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, "echo kept > /workspace/file; mkdir -p /etc/deep/er; ln -s / /workspace/link")
    await machine.kill()
    assert (await machine.wait_ended()).reason is EndReason.KILLED
    assert spec.sandbox_id not in await driver.running()
    assert await driver.adopt(spec.sandbox_id) is None
    tree = driver.tree(spec.sandbox_id)
    assert tree is not None
    assert (tree / "workspace/file").read_text() == "kept\n"
    again = await driver.start(spec)
    assert await bash(again, "cat /workspace/file") == "kept"
    assert again.machine_id != machine.machine_id
    await again.kill()


async def test_kill_ends_what_is_asked_of_it(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    heard = asyncio.Event()
    call = asyncio.create_task(
        machine.guest.run_tool(
            "c", "bash", {"command": "echo on; sleep 600"}, timeout=600, on_output=lambda _: heard.set()
        )
    )
    await heard.wait()
    await machine.kill()
    with pytest.raises(MachineGone):
        await call
    await machine.kill()
    assert (await machine.wait_ended()).reason is EndReason.KILLED


async def test_a_machine_whose_supervisor_dies_is_over_and_starts_again(
    driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, "echo kept > file")
    pid = holder(driver.storage / "machines" / spec.sandbox_id / "lock")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    end = await machine.wait_ended()
    assert end.reason is EndReason.EXITED
    assert "supervisor" in end.detail
    with pytest.raises(MachineGone):
        await bash(machine, "true")
    assert await driver.adopt(spec.sandbox_id) is None
    again = await driver.start(spec)
    assert await bash(again, "cat file") == "kept"
    await again.kill()


async def test_an_agent_that_leaves_ends_the_machine(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    with pytest.raises(MachineGone):
        # PID 1 is shielded from signals of its own, as on Linux, but not from root with a debugger's rights.
        await bash(machine, "exec 3>/dev/tcp/127.0.0.1/9 2>/dev/null; kill -9 1; sleep 600")
    assert (await machine.wait_ended()).reason is EndReason.EXITED


HOST = """
    import asyncio, sys
    from actors.machines.protocol import MachineSpec
    from events.types import Limits
    from tests.conformance import drivers

    name, sandbox = sys.argv[1:]

    async def main():
        driver = drivers.make(name)
        machine = await driver.start(MachineSpec(sandbox, "base", Limits(memory_bytes=512 * 1024**2)))
        wait = "while [ ! -e /tmp/go ]; do sleep 0.02; done"
        command = f"echo once >> /workspace/ran; echo begun; {wait}; cat /workspace/ran"
        hear = lambda data: print("begun", flush=True)
        await machine.guest.run_tool("call-1", "bash", {"command": command}, timeout=100, on_output=hear)

    asyncio.run(main())
"""


async def test_a_call_outlives_its_host_and_is_answered_once(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    arguments = [f"gvisor-{driver.volumes.kind}", spec.sandbox_id]
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOST), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    assert await asyncio.to_thread(host.stdout.readline) == "begun\n"
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    assert spec.sandbox_id in await driver.running()
    machine = await driver.adopt(spec.sandbox_id)
    assert machine is not None
    asked = {"command": "echo this must never run"}
    call = asyncio.create_task(machine.guest.run_tool("call-1", "bash", asked, timeout=60))
    await machine.guest.write_file("/tmp/go", b"")
    assert (await call).content == [{"type": "text", "text": "begun\nonce"}]
    # It was delivered, and may be asked for again for as long as nobody says otherwise; it is never run twice.
    assert await bash(machine, "cat ran") == "once"
    await machine.kill()


async def test_a_new_host_takes_the_place_of_the_old(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    first = await driver.start(spec)
    second = await driver.adopt(spec.sandbox_id)
    assert second is not None
    assert await bash(second, "echo hello") == "hello"
    with pytest.raises(MachineGone):
        await bash(first, "true")
    await second.kill()
    assert (await first.wait_ended()).reason is EndReason.KILLED


async def test_start_ends_a_machine_that_still_runs(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    first = await driver.start(spec)
    second = await driver.start(spec)
    assert (await first.wait_ended()).reason is EndReason.KILLED
    assert await bash(second, "echo here") == "here"
    await second.kill()


async def test_a_cancelled_start_leaves_nothing(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    start = asyncio.create_task(driver.start(spec))
    await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert spec.sandbox_id not in await driver.running()
    assert spec.sandbox_id not in driver.volumes.sandboxes()


async def test_removing_a_hostile_tree_leaves_the_host_alone(
    driver: GvisorDriver, new_sandbox: NewSandbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(
        machine,
        f"""ln -s {tmp_path} out; ln -s {victim} vic; mkdir -p a/b; touch $'a/b/\\n-rf *' a/b/"'"; chmod 0 a
        rm -rf /home && ln -s {tmp_path} /home; mkdir -p $(printf 'd/%.0s' $(seq 400)); chmod 4755 /usr/bin/env""",
    )
    await driver.remove(spec.sandbox_id)
    assert driver.tree(spec.sandbox_id) is None
    assert victim.read_text() == "untouched"
    assert list(tmp_path.iterdir()) == [victim]


async def test_what_is_not_there_is_removed_without_complaint(driver: GvisorDriver) -> None:
    await driver.remove("sbx-never")
    assert driver.tree("sbx-never") is None
    assert await driver.adopt("sbx-never") is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", "UPPER", "x" * 41, "a b", "-\n"])
async def test_a_name_that_could_be_a_path_is_refused(driver: GvisorDriver, name: str) -> None:
    with pytest.raises(ValueError, match="can't name a sandbox"):
        await driver.start(MachineSpec(name, "base", LIMITS))


async def test_released_machines_go_on(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = dataclasses.replace(new_sandbox(), hostname="renamed")
    machine = await driver.start(spec)
    await machine.release()
    again = await driver.adopt(spec.sandbox_id)
    assert again is not None
    assert again.machine_id == machine.machine_id
    assert await bash(again, "hostname") == "renamed"
    await again.kill()
    assert open_supervisor(again._folder) is None
