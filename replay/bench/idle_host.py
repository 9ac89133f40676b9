"""A host of its own for the bench `idle`, in a process of its own: what it holds is what its process holds.

Reads nothing, and prints what it found as one JSON object. Sessions come to it as to any host: claimed, served, given
back, every event appended to the log; only the machines of most of them are rows alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from actors.claim import Claim
from actors.host import Host
from actors.life import sandbox_entity
from actors.settings import Settings
from events import sandbox, session

_NODE = "bench"
_CALLS = 10
"""Of each session: what would be kept of them is more than what is promised."""
_AT_A_TIME = 20
_LOOKS, _LOOK_S = 1200, 0.05
_LINES = "".join(f"line {number} of what a command printed\n" for number in range(20))


async def main(home: Path, sessions: int, warm: int, real: int) -> dict[str, Any]:
    """What idle sessions cost; `warm` of them come and go before, `real` have machines that start and are suspended."""
    settings = Settings(home=home, suspend_after=0.0, waiting_containers=0, durability="normal", snapshot_store="none")
    host = Host(settings, node=_NODE)
    try:
        await host.recover()
        await _serve(host, warm)
        before = _resident()
        await _serve(host, sessions)
        after = _resident()
        machines = await _suspend_real(host, real)
        return {
            "sessions": sum(name.startswith("session-") for name in host.streams()),
            "handles": len(host.kept),
            "bytes_each": (after - before) / sessions,
            "host_bytes": after,
            **machines,
        }
    finally:
        await host.close()


async def _serve(host: Host, count: int) -> None:
    """Sessions that come, work, and go, some at a time; returns once the host has let go of all of them."""
    for first in range(0, count, _AT_A_TIME):
        await asyncio.gather(*(_live(host) for _ in range(min(_AT_A_TIME, count - first))))
    await _until_let_go(host)


async def _live(host: Host) -> None:
    """One session's life, as a host that serves it writes it, but for the machine."""
    session_id = f"sesn_{secrets.token_hex(12)}"
    claim = Claim(f"claim_{secrets.token_hex(12)}", session_id, session_id, "env_bench", "bench", "session_token")
    await host.claim(claim)
    sandbox_id = await host.sandbox_of(session_id)
    handle = await host.sandbox(sandbox_id, session_id)
    talk = host.session(session_id)
    await talk.load()
    await talk.execute("attach", session.Attach(claim_id=claim.claim_id, sandbox_id=sandbox_id, history_events=1))
    await _work(host, sandbox_id, session_id, talk)
    await talk.execute("idle", session.Idle(stop_reason="end_turn"))
    await host.drop(sandbox_id)
    # As it is for any host after this one: the handle is made anew, from the log.
    handle = await host.sandbox(sandbox_id, session_id)
    assert (await handle.view())["phase"] == "suspended"
    await host.release(claim, "idle")


async def _work(host: Host, sandbox_id: str, session_id: str, talk: Any) -> None:
    machine = sandbox_entity(sandbox_id, session_id, host.journal, epoch=host.epoch, metadata=host.metadata)
    await machine.load()
    machine_id, snapshot_id = f"hg-{secrets.token_hex(8)}", f"rest-{secrets.token_hex(8)}"
    await machine.execute("start", sandbox.Start(machine_id=machine_id, node=_NODE, seconds=0.1, agent_version="bench"))
    for number in range(_CALLS):
        call: dict[str, Any] = {"tool_use_id": f"sevt_{secrets.token_hex(12)}", "tool": "bash"}
        await talk.execute(f"ask-{number}", session.RequestToolCall(**call, input={"command": f"echo {number}"}))
        await machine.execute(f"start-{number}", sandbox.StartCall(**call, input={"command": f"echo {number}"}))
        done = sandbox.CompleteCall(
            tool_use_id=call["tool_use_id"], content=[{"type": "text", "text": _LINES}], is_error=False, seconds=0.01
        )
        await machine.execute(f"end-{number}", done)
        await talk.execute(f"post-{number}", session.RecordPosted(tool_use_id=call["tool_use_id"]))
    taken = sandbox.Snapshot(
        snapshot_id=snapshot_id, node=_NODE, image_bytes=8 * 1024**2, held_seconds=0.05, reason="suspend"
    )
    await machine.execute("rest", taken, sandbox.Suspend(reason="idle", snapshot_id=snapshot_id, seconds=0.1))


async def _suspend_real(host: Host, count: int) -> dict[str, Any]:
    """Machines that run, then go to disk: how many processes they are, before and after."""
    handles = []
    for _ in range(count):
        session_id = f"sesn_{secrets.token_hex(12)}"
        handles.append(await host.sandbox(await host.sandbox_of(session_id), session_id))
    streams = [f"sandbox-{handle.sandbox_id}" for handle in handles]
    try:
        await asyncio.gather(*(handle.start() for handle in handles))
        machines = [
            data.machine_id
            for stream in streams
            for data in [event.data for event in await host.journal.read(stream)]
            if data.type == "sandbox.started"
        ]
        running = _processes_of(machines)
        # The host itself puts them to disk: nobody uses them.
        await _until_let_go(host)
        return {"machines": len(machines), "processes_running": running, "processes_suspended": _processes_of(machines)}
    finally:
        for handle in handles:
            await host.actors.remove(handle.sandbox_id)


async def _until_let_go(host: Host) -> None:
    for _ in range(_LOOKS):
        if not host.kept:
            return
        await asyncio.sleep(_LOOK_S)
    raise TimeoutError(f"the host still holds {len(host.kept)} sandboxes")


def _processes_of(machine_ids: list[str]) -> int:
    """Processes of this node that belong to these machines: by command line, working directory or control group."""
    found = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            told = (
                f"{(process / 'cmdline').read_text()} {os.readlink(process / 'cwd')} {(process / 'cgroup').read_text()}"
            )
        except OSError:
            continue  # it ended meanwhile
        found += any(machine_id in told for machine_id in machine_ids)
    return found


def _resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    numbers = [int(one) for one in sys.argv[2:]]
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), *numbers))) + "\n")
