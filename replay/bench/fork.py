"""How long twenty forks take until all answer, and how long their parent stands still.

Yardsticks: twenty containers created and restored with `runsc` itself, as many at a time; a plain `runsc checkpoint` of
one that was left to itself since the last turn, as the parent was. Both come after a pause.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from replay.bench.frame import Result, ratio
from replay.bench.stage import stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.machines.machine import GvisorMachine
    from replay.bench.frame import Progress
    from replay.bench.raw import RawContainer
    from replay.bench.stage import Stage

T = TypeVar("T")

_TURNS = 3
_CHILDREN = 20
_TIMES = 1.2
_REST_SECONDS = 3.0


def run(progress: Progress) -> Result:
    """In turns with the yardsticks."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    ours: list[float] = []
    plain: list[float] = []
    held: list[float] = []
    checkpoints: list[float] = []
    async with stage("fork", waiting=0) as scene:
        parent = await scene.driver.start(scene.spec())
        first = f"bench-{secrets.token_hex(6)}"
        await parent.snapshot(first)
        rested = await _raw(scene, first)
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            await asyncio.sleep(_REST_SECONDS)
            checkpoints.append(await rested.checkpoint(scene.folder / "image"))
            await rested.remove()
            await asyncio.sleep(_REST_SECONDS)
            began = time.perf_counter()
            taken = await parent.snapshot(f"bench-{secrets.token_hex(6)}")
            children = await _at_a_time(_CHILDREN, partial(_child, scene, taken.snapshot_id))
            ours.append(time.perf_counter() - began)
            held.append(taken.held_seconds)
            await asyncio.gather(*(child.kill() for child in children))
            began = time.perf_counter()
            raws = await _at_a_time(_CHILDREN, partial(_raw, scene, taken.snapshot_id))
            plain.append(time.perf_counter() - began)
            rested, *others = raws
            for raw in others:
                await raw.remove()
            await scene.driver.drop_snapshot(taken.snapshot_id)
        await rested.remove()
        await scene.driver.drop_snapshot(first)
        await parent.kill()
    result = Result("fork")
    result.figure("forks_20_all_answer_p50", statistics.median(ours) * 1000, "ms")
    result.figure("runsc_restores_20_p50", statistics.median(plain) * 1000, "ms")
    result.figure("parent_held_p50", statistics.median(held) * 1000, "ms")
    result.figure("runsc_checkpoint_p50", statistics.median(checkpoints) * 1000, "ms")
    result.at_most("twenty forks, in times of runsc itself", ratio(ours, plain), _TIMES)
    result.at_most("how long the parent was held, in times of runsc checkpoint", ratio(held, checkpoints), _TIMES)
    return result


async def _child(scene: Stage, snapshot_id: str) -> GvisorMachine:
    machine = await scene.driver.start(scene.spec(), snapshot_id=snapshot_id, fresh=True)
    await machine.guest.ping()
    return machine


async def _raw(scene: Stage, snapshot_id: str) -> RawContainer:
    raw = await scene.raw(snapshot_id)
    await raw.restore(scene.image(snapshot_id))
    return raw


async def _at_a_time(count: int, make: Callable[[], Awaitable[T]]) -> list[T]:
    slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def one() -> T:
        async with slots:
            return await make()

    return list(await asyncio.gather(*(one() for _ in range(count))))
