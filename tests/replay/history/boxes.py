"""Histories of sandboxes for the tests that look back: one builder, step by step, appended to a real log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from events import types
from events.envelope import NewEvent, new_events
from events.log import Append

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from events.sqlite_log import SqliteLog
    from events.types import EventData

SESSION = "sesn_01history"
A, B, C = "sbx-00000000000000aa", "sbx-00000000000000bb", "sbx-00000000000000cc"


def created(parent: str = "", parent_version: int = 0, template: str = "base") -> types.SandboxCreated:
    return types.SandboxCreated(
        session_id=SESSION,
        driver="gvisor",
        template=template,
        limits=types.Limits(),
        parent=parent,
        parent_version=parent_version,
    )


def started(machine: str = "hg-1") -> types.SandboxStarted:
    return types.SandboxStarted(machine_id=machine, node="node-a", seconds=0.1, agent_version="1")


def begin(id_: str, tool: str = "bash", input_: dict[str, Any] | None = None) -> types.ToolCallStarted:
    return types.ToolCallStarted(tool_use_id=id_, tool=tool, input=input_ or {"command": f"echo {id_}"})


def end(id_: str, text: str = "done", *, is_error: bool = False) -> types.ToolCallCompleted:
    return types.ToolCallCompleted(
        tool_use_id=id_, content=[{"type": "text", "text": text}], is_error=is_error, seconds=0.5, output_bytes=4
    )


def call(id_: str, tool: str = "bash", input_: dict[str, Any] | None = None, text: str = "done") -> list[EventData]:
    return [begin(id_, tool, input_), end(id_, text)]


def cut(id_: str, reason: Any = "user") -> types.ToolCallInterrupted:
    return types.ToolCallInterrupted(tool_use_id=id_, reason=reason)


def taken(snapshot_id: str, of_version: int = 0) -> types.SandboxSnapshotted:
    return types.SandboxSnapshotted(
        snapshot_id=snapshot_id, node="node-a", image_bytes=1000, seconds=0.05, of_version=of_version
    )


def suspended(snapshot_id: str, reason: Any = "idle") -> types.SandboxSuspended:
    return types.SandboxSuspended(reason=reason, snapshot_id=snapshot_id)


def resumed(snapshot_id: str, machine: str = "hg-2") -> types.SandboxResumed:
    return types.SandboxResumed(machine_id=machine, node="node-a", snapshot_id=snapshot_id, seconds=0.1)


def branched(parent: str, version: int, snapshot_id: str) -> types.SandboxBranched:
    return types.SandboxBranched(
        parent=parent,
        parent_version=version,
        snapshot_id=snapshot_id,
        session_id=SESSION,
        driver="gvisor",
        template="base",
        limits=types.Limits(),
    )


def put(log: SqliteLog, sandbox_id: str, events: Sequence[EventData], causation: str = "") -> int:
    """Append to a sandbox's stream; its version then."""
    stream = f"sandbox-{sandbox_id}"
    version = log.version(stream)
    told: list[NewEvent] = new_events(
        f"{stream}-{version}", list(events), correlation_id=SESSION, causation_id=causation
    )
    log.append_many([Append(stream, told, version)])
    return version + len(events)


def rewrite(path: Path, *statements: str) -> None:
    """Change the file of a closed log behind its back."""
    with closing(sqlite3.connect(path)) as file:
        for (name,) in list(file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")):
            file.execute(f"DROP TRIGGER {name}")
        for one in statements:
            file.execute(one)
        file.commit()
