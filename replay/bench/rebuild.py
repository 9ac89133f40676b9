"""How long a rebuild takes, until all is compared: of a version that is a snapshot, and of one ten cheap calls later.

The yardstick is `runsc create` and `runsc restore` of the same snapshot until its agent answers, with no container in
waiting on either side, and for the calls the same commands sent to that agent.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import TYPE_CHECKING

from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import SandboxCreated, SandboxSnapshotted, SandboxStarted, ToolCallCompleted, ToolCallStarted
from replay.bench.frame import Result, ratio
from replay.bench.stage import LIMITS, TEMPLATE, stage
from replay.history.planning import plan
from replay.history.presence import Snapshots
from replay.rebuild.checks import Verdict
from replay.rebuild.ground import Ground
from replay.rebuild.rebuilding import rebuild

if TYPE_CHECKING:
    from actors.machines.machine import GvisorMachine
    from events.types import EventData
    from replay.bench.frame import Progress
    from replay.bench.stage import Stage

_TURNS = 9
_CALLS = 10
_TIMES = 1.3
_CALL_SECONDS = 60.0
_MS = 1000.0


def run(progress: Progress) -> Result:
    """In turns with the yardstick, on the same snapshot."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    at_snapshot: list[float] = []
    raw_restore: list[float] = []
    after_calls: list[float] = []
    raw_calls: list[float] = []
    async with stage("rebuild", waiting=0) as scene:
        with SqliteLog(scene.folder / "log.db") as log:
            progress("making a history")
            stream, snapshot_id, first, last = await _history(scene, log)
            ground = Ground(scene.driver, Snapshots(None, scene.driver.storage))
            for turn in range(_TURNS):
                progress(f"turn {turn + 1} of {_TURNS}")
                at_snapshot.append(await _ours(log, stream, first, ground))
                raw_restore.append(await _raw(scene, snapshot_id, 0))
                after_calls.append(await _ours(log, stream, last, ground))
                raw_calls.append(await _raw(scene, snapshot_id, _CALLS))
    result = Result("rebuild")
    result.figure("rebuild_at_a_snapshot_p50", statistics.median(at_snapshot) * _MS, "ms")
    result.figure("runsc_create_and_restore_p50", statistics.median(raw_restore) * _MS, "ms")
    result.figure("rebuild_ten_calls_later_p50", statistics.median(after_calls) * _MS, "ms")
    result.figure("runsc_and_the_same_commands_p50", statistics.median(raw_calls) * _MS, "ms")
    result.at_most("a rebuild at a snapshot, in times of a raw restore", ratio(at_snapshot, raw_restore), _TIMES)
    result.at_most(
        "a rebuild ten calls later, in times of a raw restore and the same commands",
        ratio(after_calls, raw_calls),
        _TIMES,
    )
    return result


def _command(number: int) -> str:
    return f"echo {number} >> numbers; tail -n 1 numbers"


async def _history(scene: Stage, log: SqliteLog) -> tuple[str, str, int, int]:
    """A sandbox with a snapshot and ten calls after it: stream, snapshot, its version, and the last one."""
    spec = scene.spec()
    machine = await scene.driver.start(spec)
    stream, snapshot_id = f"sandbox-{spec.sandbox_id}", f"bench-{secrets.token_hex(6)}"
    told: list[EventData] = [
        SandboxCreated(session_id="sesn_bench", driver="gvisor", template=TEMPLATE, limits=LIMITS),
        SandboxStarted(machine_id=machine.machine_id, node="bench", seconds=0.1, agent_version="bench"),
    ]
    # The shell is there, as in a sandbox that was at work.
    told += await call(machine, "first", _command(0))
    await machine.snapshot(snapshot_id)
    first = len(told)
    told.append(SandboxSnapshotted(snapshot_id=snapshot_id, node="bench", image_bytes=0, seconds=0, of_version=first))
    for number in range(_CALLS):
        told += await call(machine, f"call-{number}", _command(number))
    await machine.kill()
    log.append(stream, new_events("bench", told, correlation_id="sesn_bench"), expected=0)
    return stream, snapshot_id, first, len(told)


async def call(machine: GvisorMachine, call_id: str, command: str) -> list[EventData]:
    """Run a command as a host does; the two events of it."""
    given = {"command": command}
    began = time.monotonic()
    result = await machine.guest.run_tool(call_id, "bash", given, timeout=_CALL_SECONDS)
    took = time.monotonic() - began
    return [
        ToolCallStarted(tool_use_id=call_id, tool="bash", input=given),
        ToolCallCompleted(tool_use_id=call_id, content=list(result.content), is_error=result.is_error, seconds=took),
    ]


async def _ours(log: SqliteLog, stream: str, version: int, ground: Ground) -> float:
    began = time.perf_counter()
    made = plan(log, stream, version, ground.snapshots.where)
    planned = time.perf_counter() - began
    found = await rebuild(log, made, ground)
    assert found.verdict is Verdict.EQUAL
    return planned + found.seconds


async def _raw(scene: Stage, snapshot_id: str, calls: int) -> float:
    began = time.perf_counter()
    raw = await scene.raw(snapshot_id)
    await raw.restore(scene.image(snapshot_id))
    if calls:
        await raw.guest.wake()
    for number in range(calls):
        given = {"command": _command(number)}
        await raw.guest.run_tool(f"call-{number}", "bash", given, timeout=_CALL_SECONDS)
    took = time.perf_counter() - began
    await raw.remove()
    return took
