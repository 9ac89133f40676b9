"""How soon a session is served: from its claim to the first heartbeat, and to the first tool result.

The heartbeat is what the controller measures, from the work item in its hand to the queue's answer; the result is the
log's, from the claim to Anthropic having the first result. Yardstick: a plain `runsc run` of the same template, on a
file tree that is there already, until its agent answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import statistics
import time
from typing import TYPE_CHECKING

from actors.machines.bundle import LIVE, make_root, oci_config
from actors.machines.guest import connect
from actors.machines.runsc import find_runsc
from actors.machines.slots import remove_root
from actors.machines.volumes import open_volumes
from actors.template.build import ensure_agent
from events.types import Limits
from replay.bench.frame import BenchImpossible, Result, percentile, scratch
from replay.local import LocalHourglass, storage
from replay.timeline.model import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from replay.bench.frame import Progress
    from replay.timeline import Timeline

_TURNS = 5
_CROWD = 20
_CROWDS = 3
_RECORDING = "bash-true"
_TEMPLATE = "base"
_POOL_BYTES = 256 * 1024**3
_SECONDS = 120.0
_HEARTBEAT = re.compile(rb"claimed session_id=(\S+) heartbeat_after=([0-9.]+)")
_LOG_SECONDS = 10.0
"""Ray brings the controller's log to `up` with some delay."""
_HEARTBEAT_MS = 200.0
_TIMES = 2.0


def run(progress: Progress) -> Result:
    """One session at a time in turns with the yardstick, then crowds."""
    singles: list[float] = []
    plain: list[float] = []
    crowds: list[float] = []
    ids: list[str] = []
    with scratch("start") as folder:
        progress("starting the service")
        local = LocalHourglass(folder / "home", max_idle=0.0, max_sandboxes=_CROWD)
        try:
            with local, local.client() as client:
                for turn in range(_TURNS):
                    progress(f"one session, turn {turn + 1} of {_TURNS}")
                    ids.append(local.create_session(client, _RECORDING))
                    local.wait_ended(client, ids[-1:], _SECONDS)
                    singles.append(_first_result(local.timeline(ids[-1])))
                    plain.append(asyncio.run(_plain_runsc(folder)))
                for crowd in range(_CROWDS):
                    progress(f"{_CROWD} sessions at once, crowd {crowd + 1} of {_CROWDS}")
                    together = [local.create_session(client, _RECORDING) for _ in range(_CROWD)]
                    local.wait_ended(client, together, _SECONDS)
                    crowds += [_first_result(local.timeline(session_id)) for session_id in together]
                    ids += together
                heartbeats = _heartbeats(local.home / "up.err", ids)
        finally:
            local.close()
            local.remove_sandboxes()
    in_crowds = [heartbeats[session_id] for session_id in ids[_TURNS:]]
    result = Result("start")
    result.figure("heartbeat_1_p50", statistics.median(heartbeats[one] for one in ids[:_TURNS]), "ms")
    result.figure("heartbeat_20_p50", statistics.median(in_crowds), "ms")
    result.figure("heartbeat_20_p99", percentile(in_crowds, 0.99), "ms")
    result.figure("first_result_1_p50", statistics.median(singles), "ms")
    result.figure("runsc_run_until_agent_answers", statistics.median(plain), "ms")
    result.figure("first_result_20_p50", statistics.median(crowds), "ms")
    result.figure("first_result_20_max", max(crowds), "ms")
    result.at_most("ms to the first heartbeat at p99, 1 and 20 at once", max(heartbeats.values()), _HEARTBEAT_MS)
    times = statistics.median(one / other for one, other in zip(singles, plain, strict=True))
    result.at_most("first result of 1, in times of a plain runsc run", times, _TIMES)
    return result


def _first_result(timeline: Timeline) -> float:
    """From the claim until the first result is posted, in milliseconds."""
    posted = min(call.posted_us for call in timeline.calls if call.posted_us is not None)
    return (posted - timeline.claims[0].began_us) * 1000 / MICROSECONDS


def _heartbeats(path: Path, session_ids: Sequence[str]) -> dict[str, float]:
    """From the item in hand to the answer to its first heartbeat, in milliseconds, by session."""
    deadline = time.monotonic() + _LOG_SECONDS
    while True:
        found = {id_.decode(): float(seconds) * 1000 for id_, seconds in _HEARTBEAT.findall(path.read_bytes())}
        if found.keys() >= set(session_ids):
            return found
        if time.monotonic() > deadline:
            raise BenchImpossible(
                bench="start",
                reason=f"the service logged {len(found)} first heartbeats of {len(session_ids)}",
                remedy="unset what changes Ray's logging (RAY_LOG_TO_DRIVER, RAY_DEDUP_LOGS) and run it again",
            )
        time.sleep(0.1)


async def _plain_runsc(folder: Path) -> float:
    """From `runsc run` to the agent's first answer, in milliseconds."""
    volumes = open_volumes(storage(), "auto", _POOL_BYTES)
    volumes.prepare()
    sandbox_id, machine_id = f"bench-{secrets.token_hex(6)}", f"hg-{secrets.token_hex(8)}"
    limits = Limits()
    agent_root = volumes.templates / ensure_agent(volumes, _TEMPLATE).root
    volumes.ensure(sandbox_id, agent_root, limits.disk_bytes)
    bundle, state = folder / machine_id, folder / "runsc"
    bundle.mkdir()
    root = volumes.slots / machine_id / "root"
    make_root(root)
    volumes.place(sandbox_id, root / LIVE)
    config = oci_config(limits, machine_id=machine_id, root=root, agent_root=agent_root, own_ids=False)
    (bundle / "config.json").write_text(json.dumps(config))
    runsc = find_runsc()
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *runsc.command(state, "run", "--bundle", str(bundle), machine_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        guest = await connect(process.stdout, process.stdin, limits=limits)
        took = (time.perf_counter() - began) * 1000
        await guest.close()
    finally:
        await _end(runsc.command(state, "kill", machine_id, "KILL"))
        await process.wait()
        await _end(runsc.command(state, "delete", "--force", machine_id))
        volumes.remove(sandbox_id)
        remove_root(root)
    return took


async def _end(command: Sequence[str]) -> None:
    """Run a command whose failure means that there was nothing left to do."""
    ending = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    with contextlib.suppress(ProcessLookupError):
        await ending.wait()
