"""How long a new sandbox takes until its agent answers, beside `runsc create` and `start` of the same template."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from replay.bench.frame import Result, ratio
from replay.bench.stage import stage

if TYPE_CHECKING:
    from replay.bench.frame import Progress

_TURNS = 9
_TIMES = 1.0


def run(progress: Progress) -> Result:
    """In turns with the yardstick."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    ours: list[float] = []
    plain: list[float] = []
    async with stage("create") as scene:
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            await scene.ready()
            began = time.perf_counter()
            machine = await scene.driver.start(scene.spec())
            await machine.guest.ping()
            ours.append(time.perf_counter() - began)
            await machine.kill()
            began = time.perf_counter()
            raw = await scene.raw()
            await raw.start()
            plain.append(time.perf_counter() - began)
            await raw.remove()
    result = Result("create")
    result.figure("create_to_answer_p50", statistics.median(ours) * 1000, "ms")
    result.figure("runsc_create_and_start_p50", statistics.median(plain) * 1000, "ms")
    result.at_most("a new sandbox, in times of runsc itself", ratio(ours, plain), _TIMES)
    return result
