"""A short story of two sessions, as a log has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from actors.trace import trace_id_of
from events.envelope import new_events
from events.log import Expect
from events.types import (
    Limits,
    SandboxCrashed,
    SandboxCreated,
    SandboxFrozen,
    SandboxRecovered,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionIdled,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    ToolCallCompleted,
    ToolCallDenied,
    ToolCallInterrupted,
    ToolCallRequested,
    ToolCallStarted,
)

if TYPE_CHECKING:
    from events.envelope import Event
    from events.log import EventLog
    from events.types import EventData


def claimed(claim_id: str) -> SessionClaimed:
    """A claim."""
    return SessionClaimed(
        environment_id="env_1", work_id="w", claim_id=claim_id, worker_id="me", credential="environment_key"
    )


def requested(tool_use_id: str, tool: str) -> ToolCallRequested:
    """The agent asks."""
    return ToolCallRequested(tool_use_id=tool_use_id, tool=tool, input={})


def completed(tool_use_id: str, seconds: float, *, is_error: bool = False) -> ToolCallCompleted:
    """The machine answers."""
    return ToolCallCompleted(tool_use_id=tool_use_id, content=[], is_error=is_error, seconds=seconds)


CREATED = SandboxCreated(session_id="s1", driver="gvisor", template="base", limits=Limits())
STORY: list[tuple[float, str, EventData]] = [
    (0, "session-s1", claimed("c1")),
    (0, "sandbox-x", CREATED),
    (1, "sandbox-x", SandboxStarted(machine_id="m1", node="n", seconds=0.5, agent_version="1")),
    (2, "session-s1", SessionAttached(claim_id="c1", sandbox_id="x", history_events=3)),
    (3, "session-s1", requested("t1", "bash")),
    (4, "sandbox-x", ToolCallStarted(tool_use_id="t1", tool="bash", input={})),
    (6, "sandbox-x", completed("t1", 2.0)),
    (7, "session-s1", SessionResultPosted(tool_use_id="t1")),
    (8, "session-s1", requested("t2", "an invention of the model")),
    (9, "sandbox-x", ToolCallStarted(tool_use_id="t2", tool="an invention of the model", input={})),
    (9, "sandbox-x", completed("t2", 0.01, is_error=True)),
    (9, "session-s1", SessionResultPosted(tool_use_id="t2")),
    (10, "session-s1", requested("t3", "bash")),
    (10, "sandbox-x", ToolCallStarted(tool_use_id="t3", tool="bash", input={})),
    (11, "sandbox-x", ToolCallInterrupted(tool_use_id="t3", reason="out_of_memory")),
    (11, "sandbox-x", SandboxCrashed(reason="out_of_memory", cpu_seconds=2.5)),
    (12, "sandbox-x", SandboxRecovered(machine_id="m2", node="n", kept="files", seconds=1.0)),
    (12, "session-s1", SessionResultPosted(tool_use_id="t3")),
    (13, "session-s1", requested("t4", "read")),
    (13, "session-s1", ToolCallDenied(tool_use_id="t4", by="user")),
    (14, "session-s1", SessionIdled(stop_reason="end_turn")),
    (14, "sandbox-x", SandboxFrozen(reason="idle", cpu_seconds=1.0)),
    (20, "session-s1", SessionReleased(claim_id="c1", reason="idle")),
    (24, "sandbox-x", SandboxSnapshotted(snapshot_id="a", node="n", image_bytes=9, seconds=0.1, reason="suspend")),
    (24, "sandbox-x", SandboxSuspended(reason="idle", snapshot_id="a", seconds=0.2, cpu_seconds=1.5)),
    # A fork lies suspended on another's snapshot.
    (25, "sandbox-y", CREATED.model_copy(update={"parent": "x"})),
    (25, "sandbox-y", SandboxSuspended(reason="fork", snapshot_id="a")),
    (30, "session-s2", claimed("c2")),
    (31, "session-s2", SessionFailed(reason="api_error", detail="HTTP 500")),
    (31, "session-s2", SessionLeaseLost(claim_id="c2", reason="no_heartbeat_succeeded")),
    (32, "session-s2", claimed("c3")),
]
SECOND = 1_000_000
"""In microseconds."""
BEGAN = 1_800_000_000
"""Seconds since the epoch of the story's first event."""
TRACE = int(trace_id_of("c1"), 16)


def tell(log: EventLog) -> list[Event]:
    """Append the story; its events, at the moments of the story."""
    events = []
    for number, (at, stream, data) in enumerate(STORY):
        (event,) = log.append(stream, new_events(f"{number}", [data]), expected=Expect.ANY)
        events.append(replace(event, recorded_at_us=(BEGAN + int(at)) * SECOND))
    return events
