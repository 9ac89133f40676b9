"""The stream of a branch: what it begins with, appended at once, by us or by the service that writes the log.

All of it is one append, made when memory, processes and files of the branch are durable: there is a whole branch in
the log, or none. Whoever removes what dead processes left asks the log first; see `replay.rebuild.throwaway`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from events.envelope import new_events
from events.errors import EventNotStorable, HourglassError
from events.log import Append, Expect
from events.sandbox_state import SandboxState, evolve
from events.sqlite_log import SqliteLog
from events.types import (
    SandboxBranched,
    SandboxSnapshotStored,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
    ToolCallCompleted,
    ToolCallStarted,
)
from replay.branching.errors import NotAppended
from replay.rebuild import findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.envelope import NewEvent
    from events.log import EventLog
    from events.types import EventData
    from replay.branching.running import Run
    from replay.rebuild.throwaway import Place

_DISTRIBUTION = "hourglass-agents"


@dataclass(frozen=True, slots=True)
class Resting:
    """The snapshot in which a branch lies."""

    snapshot_id: str
    image_bytes: int
    held_seconds: float = 0.0
    seconds: float = 0.0
    """From the call until it was durable."""
    cpu_seconds: float | None = None
    memory_high_bytes: int | None = None
    tree_digest: str = ""
    """Of the work tree, where that is known."""


def beginning(
    branched: SandboxBranched, started: SandboxStarted | None, runs: Sequence[Run], resting: Resting
) -> list[EventData]:
    """The events of a branch that lies suspended; those of a machine only where it ran calls of its own."""
    told: list[EventData] = [branched]
    if started is not None:
        told.append(started)
    for run in runs:
        told += [run.started, run.completed]
    told += [
        SandboxSnapshotted(
            snapshot_id=resting.snapshot_id,
            node=socket.gethostname(),
            image_bytes=resting.image_bytes,
            tree_digest=resting.tree_digest,
            seconds=resting.held_seconds,
            reason="suspend",
        ),
        SandboxSuspended(
            reason="requested",
            snapshot_id=resting.snapshot_id,
            seconds=resting.seconds,
            cpu_seconds=resting.cpu_seconds,
            memory_high_bytes=resting.memory_high_bytes,
        ),
    ]
    return told


async def append(log: EventLog, place: Place, sandbox_id: str, target: str, told: Sequence[EventData]) -> bool:
    """Make it a branch, durably; whether the service appended it. The caller holds its name in `place`.

    Raises `NotAppended`. Whether the log has it all the same, as where a service was asked and did not answer, is found
    out by whoever sweeps a minute later.
    """
    state = SandboxState(sandbox_id)
    for data in told:
        state = evolve(state, data)
    write = Append(state.stream, _new(f"branch-{sandbox_id}", told), Expect.NO_STREAM)
    path = Path(getattr(log, "path", ""))
    await asyncio.to_thread(place.promise, sandbox_id, path)
    try:
        return await _append(log, path, write)
    except HourglassError as error:
        if isinstance(error, EventNotStorable):
            # Of all others, some leave open what the log has in the end.
            await asyncio.to_thread(place.withdraw, sandbox_id)
        raise NotAppended(target=target, detail=str(error).rstrip(".")) from error


async def append_stored(log: EventLog, sandbox_id: str, after: int, stored: SandboxSnapshotStored) -> None:
    """Record that the store has a branch's snapshot, where nothing else has happened to it. Raises `LogError`."""
    write = Append(f"sandbox-{sandbox_id}", _new(f"branch-{sandbox_id}-stored", [stored]), after)
    await _append(log, Path(getattr(log, "path", "")), write)


async def _append(log: EventLog, path: Path, write: Append) -> bool:
    if not isinstance(log, SqliteLog) or not log.read_only:
        await log.append_many_async([write])
        return False
    return await asyncio.to_thread(findings.append, path, write)


def _new(command_id: str, told: Sequence[EventData]) -> list[NewEvent]:
    metadata = {"node": socket.gethostname(), "pid": str(os.getpid()), "version": version(_DISTRIBUTION)}
    return [
        replace(one, causation_id=one.data.tool_use_id)
        if isinstance(one.data, ToolCallStarted | ToolCallCompleted)
        else one
        for one in new_events(command_id, told, metadata=metadata)
    ]
