"""What a snapshot after one small tool call adds to the node's disk and to the store, beside image and tree, whole.

On the disk: what the file system of the snapshots has less, once all is written: image, tree, and what it needs to know
of them. In the store: what its files take on its disk. Whole: the image's bytes, and those of the tree's files.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
from typing import TYPE_CHECKING

from actors.machines import subvolume
from actors.machines.gvisor import GvisorDriver
from events.snapshots import SnapshotStore
from replay.bench.frame import Result
from replay.bench.stage import stage
from replay.local import storage

if TYPE_CHECKING:
    from pathlib import Path

    from replay.bench.frame import Progress
    from replay.bench.stage import Stage

_TURNS = 9
_SHARE = 0.05
_CALL = "echo {} >> /workspace/notes; wc -l /workspace/notes; git --version"


def run(progress: Progress) -> Result:
    """One machine, a snapshot after each call; the first, which brings the template, counts apart."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    disk: list[int] = []
    store: list[int] = []
    whole: list[int] = []
    images: list[int] = []
    async with stage("storage") as scene:
        folder = scene.folder / "store"
        storing = GvisorDriver(storage(), store=SnapshotStore.open(str(folder)))
        machine = await scene.driver.start(scene.spec())
        for turn in range(_TURNS + 1):
            progress(f"snapshot {turn} of {_TURNS}")
            call = await machine.guest.run_tool(
                secrets.token_hex(4), "bash", {"command": _CALL.format(turn)}, timeout=60
            )
            if call.is_error:
                raise OSError(f"the call failed: {call.content}")
            snapshot_id = f"bench-{secrets.token_hex(6)}"
            before = _used(scene)
            taken = await machine.snapshot(snapshot_id)
            disk.append(_used(scene) - before)
            had = _allocated(folder)
            kept = await storing.store_snapshot(snapshot_id, stream=f"sandbox-{machine.sandbox_id}", version=turn + 1)
            store.append(_allocated(folder) - had)
            whole.append(kept.bytes)
            images.append(taken.image_bytes)
            await scene.driver.drop_snapshot(snapshot_id)
        await machine.kill()
        await storing.close()
    return _result(disk, store, whole, images)


def _result(disk: list[int], store: list[int], whole: list[int], images: list[int]) -> Result:
    result = Result("storage")
    mib = 1024**2
    result.figure("image_and_tree_whole", statistics.median(whole) / mib, "MiB")
    result.figure("image", statistics.median(images) / mib, "MiB")
    result.figure("added_to_the_disk_p50", statistics.median(disk[1:]) / mib, "MiB")
    result.figure("added_to_the_store_p50", statistics.median(store[1:]) / mib, "MiB")
    result.figure("added_to_the_store_by_the_first", store[0] / mib, "MiB")
    shares = [one / other for one, other in zip(disk[1:], whole[1:], strict=True)]
    result.at_most("added to the disk, of image and tree, whole", statistics.median(shares), _SHARE)
    shares = [one / other for one, other in zip(store[1:], whole[1:], strict=True)]
    result.at_most("added to the store, of image and tree, whole", statistics.median(shares), _SHARE)
    return result


def _used(scene: Stage) -> int:
    """Bytes that the file system of the snapshots has given away, once all is written."""
    place = scene.driver.volumes.snapshots
    if scene.driver.volumes.kind == "btrfs":
        subvolume.sync(place)
    else:
        os.sync()
    told = os.statvfs(place)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def _allocated(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    if not folder.exists():
        return 0
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
