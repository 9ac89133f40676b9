"""Whether a resume grows with what lies on the sandbox's disk: 2 GB in 20,000 files, beside an empty sandbox."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import TYPE_CHECKING

from replay.bench.frame import Result, ratio
from replay.bench.stage import stage

if TYPE_CHECKING:
    from actors.machines.protocol import MachineSpec
    from replay.bench.frame import Progress
    from replay.bench.stage import Stage

_TURNS = 9
_TIMES = 1.2
_FILL = """python3 -c '
import os
data = os.urandom(100 * 1024)
for folder in range(200):
    os.makedirs(f"/workspace/tree/{folder}")
    for file in range(100):
        with open(f"/workspace/tree/{folder}/{file}", "wb") as out:
            out.write(data)
'"""


def run(progress: Progress) -> Result:
    """In turns, each from its own snapshot."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    full: list[float] = []
    empty: list[float] = []
    async with stage("resume-tree") as scene:
        progress("writing 20,000 files")
        specs = scene.spec(), scene.spec()
        snapshots = [await _prepared(scene, spec, command) for spec, command in zip(specs, (_FILL, ":"), strict=True)]
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            for place, times in enumerate((full, empty)):
                took, snapshots[place] = await _resume(scene, specs[place], snapshots[place])
                times.append(took)
    result = Result("resume-tree")
    result.figure("resume_with_2_gb_p50", statistics.median(full) * 1000, "ms")
    result.figure("resume_empty_p50", statistics.median(empty) * 1000, "ms")
    result.at_most("a resume with 2 GB on the disk, in times of one without", ratio(full, empty), _TIMES)
    return result


async def _prepared(scene: Stage, spec: MachineSpec, command: str) -> str:
    """A suspended sandbox in whose shell a command ran: both have one, so that nothing but the tree differs."""
    machine = await scene.driver.start(spec)
    done = await machine.guest.run_tool(secrets.token_hex(4), "bash", {"command": command}, timeout=600)
    if done.is_error:
        raise OSError(f"the tree could not be made: {done.content}")
    return await scene.suspend(machine)


async def _resume(scene: Stage, spec: MachineSpec, snapshot_id: str) -> tuple[float, str]:
    await scene.ready()
    began = time.perf_counter()
    machine = await scene.driver.start(spec, snapshot_id=snapshot_id)
    await machine.guest.ping()
    took = time.perf_counter() - began
    newer = await scene.suspend(machine)
    await scene.driver.drop_snapshot(snapshot_id)
    return took, newer
