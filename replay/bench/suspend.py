"""How long a suspend takes, until its snapshot is durable and the process gone, beside a plain `runsc checkpoint`.

Both come after a pause, as they do in service: a sandbox is suspended that nobody has used for a while.
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

_TURNS = 15
_TIMES = 1.3
_REST_SECONDS = 1.0


def run(progress: Progress) -> Result:
    """In turns with the yardstick."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    ours: list[float] = []
    plain: list[float] = []
    async with stage("suspend") as scene:
        spec = scene.spec()
        snapshot_id = await scene.suspend(await scene.driver.start(spec))
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            await scene.ready()
            machine = await scene.driver.start(spec, snapshot_id=snapshot_id)
            await asyncio.sleep(_REST_SECONDS)
            began = time.perf_counter()
            newer = await scene.suspend(machine)
            ours.append(time.perf_counter() - began)
            await scene.driver.drop_snapshot(snapshot_id)
            snapshot_id = newer
            raw = await scene.raw(snapshot_id)
            await raw.restore(scene.image(snapshot_id))
            await asyncio.sleep(_REST_SECONDS)
            plain.append(await raw.checkpoint(scene.folder / "image"))
            await raw.remove()
    result = Result("suspend")
    result.figure("suspend_p50", statistics.median(ours) * 1000, "ms")
    result.figure("runsc_checkpoint_p50", statistics.median(plain) * 1000, "ms")
    result.at_most("a suspend, in times of runsc checkpoint", ratio(ours, plain), _TIMES)
    return result
