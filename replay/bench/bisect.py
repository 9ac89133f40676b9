"""How long a bisect of 64 calls takes with one probe at a time, all of it recorded.

The yardstick is six rebuilds, one after the other and each until all is compared: of the very versions that the bisect
chose, as `hourglass rebuild` makes them.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import TYPE_CHECKING

from actors.machines.gvisor import GvisorDriver
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import SandboxCreated, SandboxSnapshotted, SandboxStarted
from replay.bench.frame import BenchImpossible, Result, ratio
from replay.bench.rebuild import call
from replay.bench.stage import LIMITS, TEMPLATE, stage
from replay.bisect.bisecting import asked, bisect
from replay.bisect.evidence import Evidence
from replay.history.planning import plan
from replay.history.presence import Snapshots
from replay.rebuild.checks import Verdict
from replay.rebuild.ground import Ground
from replay.rebuild.rebuilding import rebuild

if TYPE_CHECKING:
    from events.types import EventData
    from replay.bench.frame import Progress
    from replay.bench.stage import Stage
    from replay.bisect.bisecting import Bisected

_TURNS = 5
_CALLS = 64
_A_TURN = 8
"""Calls of a turn, at whose end a snapshot is taken."""
_BROKEN = 44
"""The call that breaks it, from 1."""
_REBUILDS = 6
_TIMES = 1.2


def run(progress: Progress) -> Result:
    """In turns with the yardstick, on the same history."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    ours: list[float] = []
    rebuilds: list[float] = []
    probes = 0
    async with stage("bisect", waiting=0) as scene:
        progress("making a history")
        stream, ended = await _history(scene)
        snapshots = Snapshots(None, scene.driver.storage)
        # As `hourglass bisect` has it: the next machine's container is made while the last probe is under way.
        ahead = GvisorDriver(scene.driver.storage, volumes=scene.driver.volumes, waiting=1)
        try:
            for turn in range(_TURNS):
                progress(f"turn {turn + 1} of {_TURNS}")
                began = time.perf_counter()
                found = await _bisect(scene, stream, ended, Ground(ahead, snapshots))
                ours.append(time.perf_counter() - began)
                chosen = [one.version for one in found.probes]
                probes = len(found.probes)
                if (found.bad, len(chosen)) != (ended[_BROKEN], _REBUILDS):
                    raise BenchImpossible("bisect", f"it found {found.bad} by {len(chosen)} probes", "See the log.")
                rebuilds.append(await _rebuilds(scene, stream, chosen, Ground(scene.driver, snapshots)))
        finally:
            await ahead.close()
    result = Result("bisect")
    result.figure("bisect_of_64_calls_p50", statistics.median(ours), "s")
    result.figure("machines_of_it", probes, "")
    result.figure("six_rebuilds_p50", statistics.median(rebuilds), "s")
    result.at_most("a bisect of 64 calls, in times of six rebuilds", ratio(ours, rebuilds), _TIMES)
    return result


async def _history(scene: Stage) -> tuple[str, list[int]]:
    """A sandbox of 64 calls with a snapshot after each turn; its stream, and the versions at which calls ended."""
    spec = scene.spec()
    machine = await scene.driver.start(spec)
    told: list[EventData] = [
        SandboxCreated(session_id="sesn_bench", driver="gvisor", template=TEMPLATE, limits=LIMITS),
        SandboxStarted(machine_id=machine.machine_id, node="bench", seconds=0.1, agent_version="bench"),
    ]
    ended = []
    for number in range(_CALLS + 1):
        told += await call(machine, f"call-{number}", f"echo {number} > number; cat number")
        ended.append(len(told))
        if number % _A_TURN == 0:
            snapshot_id = f"bench-{secrets.token_hex(6)}"
            await machine.snapshot(snapshot_id)
            told.append(
                SandboxSnapshotted(
                    snapshot_id=snapshot_id, node="bench", image_bytes=0, seconds=0, of_version=ended[-1]
                )
            )
    await machine.kill()
    stream = f"sandbox-{spec.sandbox_id}"
    with SqliteLog(scene.folder / "log.db") as log:
        log.append(stream, new_events("bench", told, correlation_id="sesn_bench"), expected=0)
    return stream, ended


async def _bisect(scene: Stage, stream: str, ended: list[int], ground: Ground) -> Bisected:
    path = scene.folder / "log.db"
    with SqliteLog(path, read_only=True) as log:
        command = ["sh", "-c", f"[ $(cat number) -lt {_BROKEN} ]"]
        begun = asked(log, stream, ended[0], ended[-1], command, driver=ground.driver.name)
        with Evidence.opened(log, begun, path, anew=True) as evidence:
            return await bisect(log, begun, ground, evidence)


async def _rebuilds(scene: Stage, stream: str, versions: list[int], ground: Ground) -> float:
    began = time.perf_counter()
    with SqliteLog(scene.folder / "log.db", read_only=True) as log:
        for version in versions:
            found = await rebuild(log, plan(log, stream, version, ground.snapshots.where), ground)
            assert found.verdict is Verdict.EQUAL
    return time.perf_counter() - began
