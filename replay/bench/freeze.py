"""How long it takes to freeze a machine, and to thaw it until its agent answers, beside a plain answer of the agent."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from replay.bench.frame import Result
from replay.bench.stage import stage

if TYPE_CHECKING:
    from replay.bench.frame import Progress

_TURNS = 40
_ABOVE_MS = 5.0


def run(progress: Progress) -> Result:
    """One machine, frozen and thawed again and again."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    freezes: list[float] = []
    thaws: list[float] = []
    answers: list[float] = []
    async with stage("freeze", waiting=0) as scene:
        machine = await scene.driver.start(scene.spec())
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            answers.append(await machine.guest.ping() * 1000)
            began = time.perf_counter()
            await machine.freeze()
            freezes.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            await machine.thaw()
            await machine.guest.ping()
            thaws.append((time.perf_counter() - began) * 1000)
        await machine.kill()
    result = Result("freeze")
    result.figure("answer_p50", statistics.median(answers), "ms")
    result.figure("freeze_p50", statistics.median(freezes), "ms")
    result.figure("thaw_to_answer_p50", statistics.median(thaws), "ms")
    result.at_most("ms to freeze", statistics.median(freezes), _ABOVE_MS)
    above = statistics.median(thaws) - statistics.median(answers)
    result.at_most("ms to thaw, above the answer's own time", above, _ABOVE_MS)
    return result
