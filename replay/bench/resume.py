"""How long a suspended sandbox takes until its agent answers, beside `runsc restore` into a container that is there.

Both come after a pause, and find the image in the kernel's memory. What a resume takes where it must be read from the
disk is measured apart, in every third turn, and printed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from replay.bench.frame import Result, ratio
from replay.bench.stage import stage

if TYPE_CHECKING:
    from replay.bench.frame import Progress

_TURNS = 21
_COLD_EVERY = 3
_TIMES = 1.2
_AIM_MS = 100.0


def run(progress: Progress) -> Result:
    """In turns with the yardstick, on the same snapshot."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    ours: dict[bool, list[float]] = {False: [], True: []}
    plain: dict[bool, list[float]] = {False: [], True: []}
    async with stage("resume") as scene:
        spec = scene.spec()
        snapshot_id = await scene.suspend(await scene.driver.start(spec))
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            cold = turn % _COLD_EVERY == _COLD_EVERY - 1
            await scene.ready()
            await scene.at_rest(snapshot_id, cold=cold)
            began = time.perf_counter()
            machine = await scene.driver.start(spec, snapshot_id=snapshot_id)
            await machine.guest.ping()
            ours[cold].append(time.perf_counter() - began)
            snapshot_id, older = await scene.suspend(machine), snapshot_id
            await scene.driver.drop_snapshot(older)
            raw = await scene.raw(snapshot_id)
            await scene.at_rest(snapshot_id, cold=cold)
            plain[cold].append(await raw.restore(scene.image(snapshot_id)))
            await raw.remove()
    result = Result("resume")
    result.figure("resume_to_answer_p50", statistics.median(ours[False]) * 1000, "ms")
    result.figure("runsc_restore_to_answer_p50", statistics.median(plain[False]) * 1000, "ms")
    result.figure("resume_from_disk_p50", statistics.median(ours[True]) * 1000, "ms")
    result.figure("runsc_restore_from_disk_p50", statistics.median(plain[True]) * 1000, "ms")
    result.figure("aim", _AIM_MS, "ms")
    result.at_most("a resume, in times of runsc restore", ratio(ours[False], plain[False]), _TIMES)
    return result
