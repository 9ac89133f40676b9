"""What goes wrong while a snapshot is taken or brought back: a full disk, a killed process, much memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from actors.machines import cgroups, mounts
from actors.machines.gvisor import GvisorDriver
from actors.machines.images import IMAGE, Images
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import MachineError, MachineGone, MachineSpec, MachineUnavailable, SnapshotFailed
from events.types import Limits
from tests.conformance.conftest import MIB, NewSandbox
from tests.conformance.test_snapshots import BEGIN, LOOK, SEEN, bash, snapshot_id, suspend

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]


async def test_a_disk_that_is_full_half_way_fails_the_snapshot_alone(
    driver: GvisorDriver, new_sandbox: NewSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await driver.start(new_sandbox())
    await bash(machine, BEGIN)
    small: list[Path] = []
    begin = Images.begin

    def begin_on_a_small_disk(self: Images, wanted: str) -> Path:
        fresh = begin(self, wanted)
        small.append(fresh / IMAGE)
        # Room for the processes, not for their memory.
        mounts.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small[-1]])
        return fresh

    forget = driver.volumes.forget

    def unmounted(folder: Path) -> None:
        mounts.unmount(folder / IMAGE)
        forget(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "begin", begin_on_a_small_disk)
        patch.setattr(driver.volumes, "forget", unmounted)
        with pytest.raises(SnapshotFailed, match=r"no space left on device.*the sandbox runs on"):
            await machine.snapshot(snapshot_id())
    assert len(small) == 1
    assert not small[0].parent.exists()
    assert await bash(machine, LOOK) == SEEN
    # And once there is room, it goes.
    machine = await again(driver, machine)
    assert "ticking" in await bash(machine, LOOK)
    await machine.kill()


async def again(driver: GvisorDriver, machine: GvisorMachine) -> GvisorMachine:
    spec = MachineSpec(machine.sandbox_id, "base", machine._record.limits)
    return await driver.start(spec, snapshot_id=await suspend(machine))


@pytest.mark.parametrize("after", [0.0, 0.01, 0.02, 0.04])
async def test_a_machine_that_is_killed_in_its_checkpoint_leaves_no_half_snapshot(
    driver: GvisorDriver, new_sandbox: NewSandbox, after: float
) -> None:
    spec = new_sandbox()
    machine = await again(driver, await driver.start(spec))
    good = await machine.snapshot(snapshot_id())
    await bash(machine, "echo later > /root/file")
    taken_id = snapshot_id()
    taking = asyncio.create_task(machine.snapshot(taken_id, hold=True))
    begun = driver.volumes.snapshots / f"{taken_id}.new" / IMAGE / "checkpoint.img"
    while not begun.exists():  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.001)
    began = begun.parent.stat().st_mtime
    await asyncio.sleep(after)
    for pid in cgroups.processes(machine.machine_id):
        cgroups.end_process(pid)  # the others may end with the first of them
    # Of a busy machine's time, more may have passed than was slept.
    passed = time.time() - began
    try:
        await taking
    except (SnapshotFailed, MachineGone):
        pass  # it was in time
    else:
        assert passed >= 0.02, "a checkpoint takes longer than this"
    await machine.kill()
    assert not begun.parent.parent.exists()
    # The files are as they were left, and so is the snapshot before.
    machine = await driver.start(spec)
    assert await bash(machine, "cat /root/file") == "later"
    await machine.kill()
    machine = await driver.start(spec, snapshot_id=good.snapshot_id)
    assert await bash(machine, "cat /root/file 2>&1 | tail -c 10") != "later"
    await machine.kill()


@pytest.mark.parametrize("after", [0.0, 0.02, 0.04])
async def test_a_machine_that_is_killed_in_its_restore_can_be_restored(
    driver: GvisorDriver, new_sandbox: NewSandbox, after: float
) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    snapshot = await suspend(machine)
    groups = cgroups.names()
    starting = asyncio.create_task(driver.start(spec, snapshot_id=snapshot))
    mine: list[str] = []
    while not mine and not starting.done():  # nobody tells us
        await asyncio.sleep(0.001)
        mine = [one for one in cgroups.names() - groups if cgroups.processes(one)]
    await asyncio.sleep(after)
    for one in mine:
        for pid in cgroups.processes(one):
            cgroups.end_process(pid)
    try:
        machine = await starting
    except (MachineUnavailable, MachineError):
        assert spec.sandbox_id not in await driver.running()
    else:
        await machine.kill()  # another container was taken, or it was there before the signal
    machine = await driver.start(spec, snapshot_id=snapshot)
    assert await bash(machine, LOOK) == SEEN
    await machine.kill()


async def test_six_hundred_megabytes_of_memory_come_back(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = MachineSpec(new_sandbox().sandbox_id, "base", Limits(memory_bytes=1100 * MIB, disk_bytes=96 * MIB))
    machine = await driver.start(spec)
    hold = (
        "import hashlib, os, signal, time\n"
        "memory = os.urandom(1 << 20) * 1\n"
        "kept = [memory + bytes([n % 256]) for n in range(600)]\n"
        "def tell(*_):\n"
        "    digest = hashlib.blake2b()\n"
        "    for one in kept: digest.update(one)\n"
        "    open('/root/digest', 'w').write(digest.hexdigest())\n"
        "    os.rename('/root/digest', '/root/told')\n"
        "signal.signal(signal.SIGUSR1, tell)\n"
        "tell()\n"
        "while True: time.sleep(1)\n"
    )
    await bash(
        machine,
        f"cat > /root/hold.py <<'E'\n{hold}E\npython3 /root/hold.py & while [ ! -e /root/told ]; do sleep 0.1; done",
    )
    told = await bash(machine, "cat /root/told; rm /root/told")
    taken = await machine.snapshot(snapshot_id(), hold=True)
    await machine.kill()
    assert taken.image_bytes > 600 * MIB
    machine = await driver.start(spec, snapshot_id=taken.snapshot_id)
    assert await bash(machine, "kill -USR1 %1; while [ ! -e /root/told ]; do sleep 0.1; done; cat /root/told") == told
    await machine.kill()
