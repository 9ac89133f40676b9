"""What the log alone tells of all that led to a version: tool calls and what was done to the sandbox, by session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from events import types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.envelope import Event
    from events.log import EventLog
    from events.payload import JsonObject
    from replay.history.lineage import Line

Outcome = Literal["completed", "failed", "interrupted", "denied", "open"]
"""`open`: it had none at the version. `failed`: completed, with an error as its result."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as it is recorded."""

    tool_use_id: str
    tool: str
    input: JsonObject
    outcome: Outcome
    content: tuple[JsonObject, ...] = ()
    """Content blocks of the result, or what the agent was told instead."""
    where: str = ""
    """Which versions of which stream it is; "" where it ran in no sandbox of the line."""
    reason: str = ""
    """Of an interrupted or denied one: why."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened and that no agent and no user said."""

    text: str


@dataclass(slots=True)
class Part:
    """What happened while one session used the sandbox; of a branch that none used yet, what ran in it."""

    session_id: str
    """"" where none did."""
    sandbox_id: str
    """Where it ended."""
    steps: list[Call | Note] = field(default_factory=list)
    last_position: int = 0
    """Of the log: the last event of it on the line."""


def parts_of(log: EventLog, line: Line) -> list[Part]:
    """In order. Raises `LogError`."""
    found: list[Part] = []
    if line.missing:
        found.append(Part("", "", [Note(f"What was before is not in this log: it does not have {line.missing}.")]))
    for segment, events in zip(line.segments, line.events, strict=True):
        sandbox_id = segment.stream.removeprefix("sandbox-")
        session_id = ""
        ends = _ends(events)
        for event in events:
            data = event.data
            if isinstance(data, types.SandboxCreated | types.SandboxBranched | types.SandboxAdopted):
                session_id = data.session_id
            if not found or found[-1].session_id != session_id:
                found.append(Part(session_id, sandbox_id))
            part = found[-1]
            part.sandbox_id, part.last_position = sandbox_id, event.position
            step = _step(event, ends, segment.stream)
            if step is not None:
                part.steps.append(step)
    told = [one for one in found if one.session_id or one.steps]
    for part in told:
        _add_denied(log, part)
    return told


def _ends(events: tuple[Event, ...]) -> dict[str, Event]:
    return {
        event.data.tool_use_id: event
        for event in events
        if isinstance(event.data, types.ToolCallCompleted | types.ToolCallInterrupted)
    }


def _step(event: Event, ends: dict[str, Event], stream: str) -> Call | Note | None:
    data = event.data
    if isinstance(data, types.ToolCallStarted):
        return _call(data, event.version, ends.get(data.tool_use_id), stream)
    text = _noted(data)
    return Note(text) if text else None


def _call(data: types.ToolCallStarted, version: int, end: Event | None, stream: str) -> Call:
    outcome: Outcome = "open"
    content: list[JsonObject] = []
    reason = ""
    if end is not None and isinstance(end.data, types.ToolCallCompleted):
        outcome, content = "failed" if end.data.is_error else "completed", end.data.content
    elif end is not None and isinstance(end.data, types.ToolCallInterrupted):
        outcome, content, reason = "interrupted", end.data.content, end.data.reason
    until = f"-{end.version}" if end is not None else ""
    where = f"{stream.removeprefix('sandbox-')}@{version}{until}"
    return Call(data.tool_use_id, data.tool, data.input, outcome, tuple(content), where, reason)


def _noted(data: types.EventData) -> str:
    """Of what changed the sandbox without a call."""
    match data:
        case types.SandboxCrashed():
            return f"The sandbox's machine ended by itself ({data.reason})."
        case types.SandboxStopped():
            return "The sandbox's machine was stopped; its files were kept, its processes were not."
        case types.SandboxRecovered(kept="files"):
            return "The sandbox was started again on its files; its processes were gone."
        case types.SandboxProcessStarted():
            return f"Beside the agent, {data.by} ran a program in the sandbox: {data.command}"
        case types.SandboxFileCopied(direction="in"):
            return f"A file was copied into the sandbox from outside: {data.path}"
    return ""


def _add_denied(log: EventLog, part: Part) -> None:
    """Calls that were asked for and never run stand in the session's stream."""
    if not part.session_id:
        return
    placed = {one.tool_use_id: number for number, one in enumerate(part.steps) if isinstance(one, Call)}
    before = 0
    added: list[tuple[int, Call]] = []
    asked: dict[str, types.ToolCallRequested] = {}
    for event in log.read(f"session-{part.session_id}"):
        data = event.data
        if event.position > part.last_position:
            break
        if isinstance(data, types.ToolCallRequested):
            asked[data.tool_use_id] = data
            before = max(before, placed.get(data.tool_use_id, -1) + 1)
        elif isinstance(data, types.ToolCallDenied) and data.tool_use_id in asked:
            of = asked[data.tool_use_id]
            content = ({"type": "text", "text": data.message},) if data.message else ()
            added.append((before, Call(of.tool_use_id, of.tool, of.input, "denied", content, reason=data.by)))
    for at, call in reversed(added):
        part.steps.insert(at, call)


def calls_of(part: Part) -> Iterator[Call]:
    """Its calls, in order."""
    return (one for one in part.steps if isinstance(one, Call))
