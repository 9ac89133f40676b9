"""How long a tool call takes from its dispatch to its result, the log included.

A served session makes the calls one after the other; times are the log's own. From `tool_call.requested` to
`tool_call.completed` lie two durable appends (what was asked for, what is about to start), the way to the machine and
back, and the tool. Yardstick: the SDK's own toolset, called in this process, in a folder of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

from replay.bench.frame import Result, scratch
from replay.local import LocalHourglass
from replay.recording import FORMAT, SUFFIX, Header, write

if TYPE_CHECKING:
    from pathlib import Path

    from events.payload import JsonObject
    from replay.bench.frame import Progress
    from replay.timeline import Call, Timeline

_TURNS = 5
_EACH = 30
_RECORDING = "bench-tool"
_SESSION_SECONDS = 120.0
_ABOVE_MS = 25.0
_TEXT = "".join(f"line {number} of a file of some size\n" for number in range(200))
_KINDS = ("bash", "read", "edit")


def run(progress: Progress) -> Result:
    """In turns with the yardstick."""
    ours: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    theirs: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    posted: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with scratch("tool") as folder:
        write(folder / f"{_RECORDING}{SUFFIX}", _header(), list(_recording()))
        progress("starting the service")
        local = LocalHourglass(folder / "home", recordings=[folder], max_idle=0.0)
        try:
            with local, local.client() as client:
                for turn in range(_TURNS):
                    progress(f"turn {turn + 1} of {_TURNS}")
                    session_id = local.create_session(client, _RECORDING)
                    local.wait_ended(client, [session_id], _SESSION_SECONDS)
                    calls = _calls(local.timeline(session_id))
                    (folder / f"sdk-{turn}").mkdir()
                    sdk = asyncio.run(_sdk(folder / f"sdk-{turn}"))
                    for kind in _KINDS:
                        ours[kind].append(statistics.median(_until_ended(call) for call in calls[kind]))
                        posted[kind].append(statistics.median(_until_posted(call) for call in calls[kind]))
                        theirs[kind].append(statistics.median(sdk[kind]))
        finally:
            local.close()
            local.remove_sandboxes()
    result = Result("tool")
    for kind in _KINDS:
        result.figure(f"{kind}_p50", statistics.median(ours[kind]), "ms")
        result.figure(f"{kind}_sdk_p50", statistics.median(theirs[kind]), "ms")
        result.figure(f"{kind}_posted_p50", statistics.median(posted[kind]), "ms")
        above = statistics.median(one - other for one, other in zip(ours[kind], theirs[kind], strict=True))
        result.at_most(f"{kind}: ms above the SDK's toolset at p50", above, _ABOVE_MS)
    return result


def _inputs() -> list[tuple[str, JsonObject]]:
    """The calls: a file, then each kind in turn. The edits go there and back."""
    words = itertools.cycle([("line 7 of", "LINE 7 of"), ("LINE 7 of", "line 7 of")])
    calls: list[tuple[str, JsonObject]] = [("write", {"file_path": "text.txt", "content": _TEXT})]
    for _ in range(_EACH):
        old, new = next(words)
        calls += [
            ("bash", {"command": "true"}),
            ("read", {"file_path": "text.txt"}),
            ("edit", {"file_path": "text.txt", "old_string": old, "new_string": new}),
        ]
    return calls


def _header() -> Header:
    agent = {"name": "Bench", "model": {"id": "claude-opus-4-8"}, "tools": [{"type": "agent_toolset_20260401"}]}
    return Header(recording=FORMAT, name=_RECORDING, agent=agent)


def _recording() -> list[JsonObject]:
    events: list[JsonObject] = [{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}]
    for number, (tool, given) in enumerate(_inputs()):
        call = f"call-{number}"
        waits = {"type": "requires_action", "event_ids": [call]}
        answer = [{"type": "text", "text": "(not compared)"}]
        events += [
            {"type": "agent.tool_use", "id": call, "name": tool, "input": given, "evaluated_permission": "allow"},
            {"type": "session.status_idle", "stop_reason": waits},
            {"type": "user.tool_result", "tool_use_id": call, "content": answer},
        ]
    events.append({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}})
    return [{"id": f"event-{number}"} | event for number, event in enumerate(events)]


def _calls(timeline: Timeline) -> dict[str, list[Call]]:
    """By kind, without the first one of each: it starts the shell, or warms a cache."""
    calls = timeline.calls
    failed = [call for call in calls if call.status != "ok"]
    assert not failed, f"{failed[0].tool}: {failed[0].content}"
    return {kind: [call for call in calls if call.tool == kind][1:] for kind in _KINDS}


def _until_ended(call: Call) -> float:
    """From dispatch to result, in milliseconds."""
    return ((call.ended_us or 0) - (call.requested_us or 0)) / 1000


def _until_posted(call: Call) -> float:
    """From dispatch until the server has the result, in milliseconds."""
    return ((call.posted_us or 0) - (call.requested_us or 0)) / 1000


async def _sdk(folder: Path) -> dict[str, list[float]]:
    """How long each call takes in the SDK's toolset, in milliseconds; the first one of each is left out."""
    from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401

    took: dict[str, list[float]] = {kind: [] for kind in ("write", *_KINDS)}
    context = AgentToolContext(workdir=folder)
    tools: dict[str, Any] = {tool.name: tool for tool in beta_agent_toolset_20260401(context)}
    try:
        for name, given in _inputs():
            began = time.perf_counter()
            await tools[name].call(given)
            took[name].append((time.perf_counter() - began) * 1000)
    finally:
        await context.close()
    return {kind: took[kind][1:] for kind in _KINDS}
