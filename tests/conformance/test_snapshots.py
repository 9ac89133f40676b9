"""Freezing, snapshots, resuming and forking, for every driver: what survives, what must differ, what is refused."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.machines import cgroups, control
from actors.machines.gvisor import GvisorDriver
from actors.machines.images import RECORD
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import (
    GuestBusy,
    IdentityRefused,
    Machine,
    SnapshotBroken,
    SnapshotFailed,
    SnapshotMissing,
)
from events.types import Limits
from tests.conformance.conftest import NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]

BEGIN = """
name=remembered
(while :; do date +%s%N > /tmp/tick; sleep 0.02; done) &
echo on disk > /root/file; exec 7>>/root/file; echo in memory > /tmp/file
"""
LOOK = "echo $name; cat /root/file /tmp/file; echo added >&7; tail -n 1 /root/file; kill -0 %1 && echo ticking"
SEEN = "remembered\non disk\nin memory\nadded\nticking"


async def bash(machine: Machine, command: str) -> str:
    result = await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=60)
    assert not result.is_error, result
    return "".join(str(block["text"]) for block in result.content)


def snapshot_id() -> str:
    return f"snap-{secrets.token_hex(8)}"


async def suspend(machine: GvisorMachine) -> str:
    taken = await machine.snapshot(snapshot_id(), hold=True)
    await machine.kill()
    return taken.snapshot_id


async def test_a_frozen_machine_stands_still_and_goes_on(machine: GvisorMachine) -> None:
    await bash(machine, "(while :; do echo >> /tmp/tock; sleep 0.01; done) & tock=$!")
    await machine.freeze()
    assert machine.frozen
    used = (await machine.usage()).cpu_seconds
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(machine.guest.ping(), timeout=0.2)
    assert (await machine.usage()).cpu_seconds - used < 0.05
    await machine.thaw()
    moved = "a=$(wc -l < /tmp/tock); sleep 0.2; [ $a != $(wc -l < /tmp/tock) ] && echo on; kill $tock"
    assert await bash(machine, moved) == "on"
    assert not cgroups.is_frozen(machine.machine_id)


async def test_a_release_that_is_not_known_is_asked_by_its_command(
    driver: GvisorDriver, new_sandbox: NewSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "KNOWN", frozenset())
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    snapshot = await suspend(machine)
    machine = await driver.start(spec, snapshot_id=snapshot)
    assert await bash(machine, LOOK) == SEEN
    await machine.kill()


async def test_what_is_in_a_shared_mapping_is_in_the_tree_of_the_snapshot(
    driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    machine = await driver.start(new_sandbox())
    token = secrets.token_hex(16)
    write = (
        "import mmap, os, time\n"
        "fd = os.open('/root/mapped', os.O_RDWR | os.O_CREAT)\n"
        "os.ftruncate(fd, 8192)\n"
        "memory = mmap.mmap(fd, 8192)\n"
        f"memory[4096:4128] = b'{token}'\n"
        "open('/root/ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    await bash(
        machine, f"cat > /root/map.py <<'E'\n{write}E\npython3 /root/map.py & while [ ! -e /root/ready ]; do :; done"
    )
    taken = await machine.snapshot(snapshot_id())
    kept = driver.volumes.snapshots / taken.snapshot_id
    [tree] = [*kept.glob("*/root/mapped"), *kept.glob("tree.img")]
    assert token.encode() in tree.read_bytes()
    await machine.kill()


async def test_a_template_boots_again_where_its_image_is_gone(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = replace(new_sandbox(), limits=Limits(memory_bytes=400 * 1024**2))
    for _ in range(2):
        machine = await driver.start(spec)
        assert await bash(machine, "echo here") == "here"
        [boot] = [one for one in await driver.snapshots() if one.limits == spec.limits]
        await driver.drop_snapshot(boot.snapshot_id)
        await driver.remove(spec.sandbox_id)


async def test_memory_processes_and_files_survive_a_suspend(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    snapshot = await suspend(machine)
    try:
        assert spec.sandbox_id not in await driver.running()
        machine = await driver.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        # Once more, now that what it said is part of it.
        again = await suspend(machine)
        machine = await driver.start(spec, snapshot_id=again)
        assert await bash(machine, "echo $name; tail -n 1 /root/file") == "remembered\nadded"
        await machine.kill()
        # The older one is as it was: not the tree that was written since.
        machine = await driver.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
        await driver.drop_snapshot(again)
    finally:
        await driver.drop_snapshot(snapshot)


async def test_forks_share_no_identity_and_no_entropy(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    parent_spec = new_sandbox()
    parent = await driver.start(parent_spec)
    await bash(parent, BEGIN)
    taken = await parent.snapshot(snapshot_id())
    assert await bash(parent, "echo $name") == "remembered"
    children = await asyncio.gather(
        *(driver.start(new_sandbox(), snapshot_id=taken.snapshot_id, fresh=True) for _ in range(3))
    )
    await driver.drop_snapshot(taken.snapshot_id)
    draw = (
        "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1;"
        "python3 -c 'import uuid, ssl, os; print(uuid.uuid4(), uuid.uuid1(), ssl.RAND_bytes(16).hex())';"
        "openssl rand -hex 16; openssl ecparam -genkey -name prime256v1 -noout | md5sum"
    )
    drawn = await asyncio.gather(*(bash(machine, draw) for machine in (parent, *children)))
    for line in zip(*(text.split("\n") for text in drawn), strict=True):
        assert len(set(line)) == 4, line
    assert await asyncio.gather(*(bash(child, LOOK) for child in children)) == [SEEN] * 3
    # What one writes, no other sees.
    await bash(children[0], "echo mine > /root/file")
    assert await bash(parent, "head -n 1 /root/file") == "on disk"
    for machine in (parent, *children):
        await machine.kill()


async def test_a_fork_of_a_fork_of_a_fork(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    await bash(machine, "depth=0")
    sizes = []
    for depth in range(1, 4):
        taken = await machine.snapshot(snapshot_id())
        sizes.append(taken.image_bytes)
        child = await driver.start(new_sandbox(), snapshot_id=taken.snapshot_id, fresh=True)
        await driver.drop_snapshot(taken.snapshot_id)
        await machine.kill()
        assert await bash(child, "depth=$((depth + 1)); echo $depth") == str(depth)
        machine = child
    # The cost does not grow with the depth.
    assert max(sizes) < 1.5 * min(sizes)
    await machine.kill()


async def test_a_machine_in_a_call_is_not_snapshotted(machine: GvisorMachine) -> None:
    heard = asyncio.Event()
    call = asyncio.create_task(
        machine.guest.run_tool(
            secrets.token_hex(8),
            "bash",
            {"command": "echo on; sleep 1; echo off"},
            timeout=60,
            on_output=lambda _: heard.set(),
        )
    )
    await heard.wait()
    with pytest.raises(GuestBusy, match="tool call runs"):
        await machine.snapshot(snapshot_id())
    assert (await call).content == [{"type": "text", "text": "on\noff"}]


async def test_what_is_no_whole_snapshot_is_never_used(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    snapshot = await suspend(machine)
    folder = driver.volumes.snapshots / snapshot
    pages = folder / "image" / "pages.img"
    whole = pages.read_bytes()
    try:
        with pytest.raises(SnapshotMissing, match="snap-none is not on this node"):
            await driver.start(spec, snapshot_id="snap-none")
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        pages.write_bytes(flipped)
        with pytest.raises(SnapshotBroken, match=r"pages\.img is not what it was"):
            await driver.start(spec, snapshot_id=snapshot)
        pages.unlink()
        with pytest.raises(SnapshotBroken, match=r"pages\.img can't be read"):
            await driver.start(spec, snapshot_id=snapshot)
        pages.write_bytes(whole)
        record = (folder / RECORD).read_text()
        (folder / RECORD).write_text(record.replace('"driver_version": "runsc ', '"driver_version": "runsc 1'))
        with pytest.raises(SnapshotBroken, match="memory can't be brought back by another release"):
            await driver.start(spec, snapshot_id=snapshot)
        (folder / RECORD).write_text(record[:40])
        with pytest.raises(SnapshotBroken, match="can't be read"):
            await driver.start(spec, snapshot_id=snapshot)
        (folder / RECORD).write_text(record)
        # The last good state is intact.
        machine = await driver.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
    finally:
        await driver.drop_snapshot(snapshot)


async def test_a_full_disk_fails_the_snapshot_and_not_the_sandbox(
    driver: GvisorDriver, machine: GvisorMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in driver.volumes.snapshots.iterdir())
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024**2))
        with pytest.raises(SnapshotFailed, match=r"no room on the disk: .* has 1 MiB free"):
            await machine.snapshot(snapshot_id())
    with monkeypatch.context() as patch:
        # Later than that look, while the image is written.
        patch.setattr(machine._node, "state", Path("/dev/full"))
        with pytest.raises(SnapshotFailed, match="the sandbox runs on"):
            await machine.snapshot(snapshot_id())
    assert sorted(path.name for path in driver.volumes.snapshots.iterdir()) == before
    assert await bash(machine, "echo here") == "here"


async def test_one_that_can_not_be_made_itself_is_refused(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    parent = await driver.start(new_sandbox())
    # Its hostile root keeps the file from being replaced.
    await bash(parent, "rm -f /etc/machine-id; mkdir -p /etc/machine-id/x")
    taken = await parent.snapshot(snapshot_id())
    spec = new_sandbox()
    with pytest.raises(IdentityRefused, match="could not be made itself"):
        await driver.start(spec, snapshot_id=taken.snapshot_id, fresh=True)
    assert spec.sandbox_id not in await driver.running()
    assert spec.sandbox_id not in driver.volumes.sandboxes()
    await driver.drop_snapshot(taken.snapshot_id)
    await parent.kill()


async def test_a_machine_that_a_dead_host_held_is_woken(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    taken = await machine.snapshot(snapshot_id(), hold=True)
    await machine.release()  # as a host that died at that moment
    again = await driver.adopt(spec.sandbox_id)
    assert again is not None
    assert await bash(again, LOOK) == SEEN
    await again.freeze()
    await again.release()
    frozen = await driver.adopt(spec.sandbox_id)
    assert frozen is not None
    assert frozen.frozen
    await frozen.kill()
    await driver.drop_snapshot(taken.snapshot_id)


async def test_unfinished_snapshots_are_none(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    half = driver.volumes.snapshots / "snap-half.new"
    (half / "image").mkdir(parents=True)
    try:
        assert "snap-half" not in {one.snapshot_id for one in await driver.snapshots()}
        with pytest.raises(SnapshotMissing):
            await driver.start(new_sandbox(), snapshot_id="snap-half")
    finally:
        shutil.rmtree(half)
    await machine.kill()


async def test_containers_wait_for_sandboxes(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    if not driver.volumes.places_late:
        pytest.skip("without btrfs a container is made for its sandbox")
    spec = new_sandbox()
    eager = GvisorDriver(driver.storage, volumes=driver.volumes, waiting=2)
    try:
        await eager.prepare(spec)
        waiting = [slot.machine_id for slot in eager._slots._ready]
        assert len(waiting) == 2
        machine = await eager.start(spec)
        assert machine.machine_id in waiting
        await machine.kill()
    finally:
        await eager.close()
    async with asyncio.timeout(20):
        folders = (driver.storage / "machines" / ".waiting", driver.volumes.slots)
        while any(set(os.listdir(folder)) & set(waiting) for folder in folders):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)


async def test_what_killed_processes_left_is_swept(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await driver.start(spec)
    left = "hg-0123456789abcdef"
    folders = [
        driver.storage / "machines" / ".waiting" / left,
        driver.volumes.slots / left / "root" / "init",
        driver.volumes.snapshots / "snap-left.new" / "image",
    ]
    hour_ago = time.time() - 4000
    for folder in folders:
        folder.mkdir(parents=True)
    for folder in (folders[0], folders[1].parent.parent, folders[2].parent):
        os.utime(folder, (hour_ago, hour_ago))
    young = driver.volumes.slots / "hg-fedcba9876543210" / "root"
    young.mkdir(parents=True)
    cgroups.create(left, memory_bytes=1024**2, tasks=10, cpus=1)
    for group in cgroups._folders(left):
        os.utime(group, (hour_ago, hour_ago))
    try:
        await asyncio.to_thread(driver._node.sweep)
        assert left not in cgroups.names()
        assert not [folder for folder in folders if folder.exists()]
        assert young.exists()
        # What lives is left alone.
        assert await bash(machine, "echo here") == "here"
    finally:
        shutil.rmtree(young.parent)
    await machine.kill()


async def test_a_copy_of_a_snapshot_is_another_sandboxes_and_outlives_the_first(
    driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    spec, other = new_sandbox(), new_sandbox()
    machine = await driver.start(spec)
    await bash(machine, BEGIN)
    first, copy = await suspend(machine), snapshot_id()
    record = await driver.copy_snapshot(first, copy, sandbox_id=other.sandbox_id)
    assert (record.snapshot_id, record.sandbox_id) == (copy, other.sandbox_id)
    await driver.remove(spec.sandbox_id)
    machine = await driver.start(other, snapshot_id=copy, fresh=True)
    assert await bash(machine, f"{LOOK}; hostname") == f"{SEEN}\n{other.sandbox_id}"
    await machine.kill()
    image = max(record.image.iterdir(), key=lambda path: path.stat().st_size)
    with image.open("r+b") as file:
        file.write(b"damaged!")
    second = snapshot_id()
    with pytest.raises(SnapshotBroken, match="is not what it was"):
        await driver.copy_snapshot(copy, second, sandbox_id=other.sandbox_id)
    with pytest.raises(SnapshotMissing):
        await driver.copy_snapshot(second, snapshot_id(), sandbox_id=other.sandbox_id)
    assert not list(driver.volumes.snapshots.glob(f"{second}*"))
