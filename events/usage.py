"""What a sandbox has used, from its history alone: time in each phase, CPU, memory, snapshots.

Seconds are between the moments at which events were recorded; a clock that was set back counts as no time. CPU and
memory are what the events carry: the last word on each machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from events.sandbox_state import TRANSITIONS, Phase
from events.types import (
    SandboxCrashed,
    SandboxCreated,
    SandboxForked,
    SandboxFrozen,
    SandboxKilled,
    SandboxSnapshotted,
    SandboxStopped,
    SandboxSuspended,
    ToolCallCompleted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from events.envelope import Event
    from events.payload import JsonObject

_MICROSECONDS = 1e6
_COUNTED = (SandboxFrozen, SandboxSuspended, SandboxStopped, SandboxCrashed, SandboxKilled)
_MACHINE_BEGINS = ("sandbox.started", "sandbox.resumed", "sandbox.recovered")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one sandbox, or the sum over several."""

    seconds_running: float = 0.0
    seconds_frozen: float = 0.0
    seconds_suspended: float = 0.0
    """On disk, without memory or CPU."""
    seconds_stopped: float = 0.0
    """Files alone, on purpose or not."""
    cpu_seconds: float = 0.0
    memory_high_bytes: int = 0
    """The most that any of its machines had; of several sandboxes, the most that one had."""
    snapshots: int = 0
    snapshot_bytes: int = 0
    """Images as they were taken; what was removed since counts too."""
    tool_calls: int = 0
    call_seconds: float = 0.0
    forks: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        sums = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        return Usage(**{**sums, "memory_high_bytes": max(self.memory_high_bytes, other.memory_high_bytes)})

    def as_json(self) -> JsonObject:
        """Its fields; seconds to the millisecond."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """A sandbox's usage, and whose it is."""

    sandbox_id: str
    session_id: str
    phase: Phase
    usage: Usage


_CLOCKS = {
    Phase.RUNNING: "running",
    Phase.FROZEN: "frozen",
    Phase.SUSPENDED: "suspended",
    Phase.STOPPED: "stopped",
    Phase.CRASHED: "stopped",
}


def usage_of(sandbox_id: str, history: Iterable[Event], now_us: int) -> SandboxUsage:
    """Fold a sandbox's stream.

    Args:
        now_us: until when what still lasts is counted, in microseconds since the epoch.
    """
    seconds = dict.fromkeys(("running", "frozen", "suspended", "stopped"), 0.0)
    phase, since, session_id = Phase.ABSENT, now_us, ""
    cpu = cpu_of_machine = call_seconds = 0.0
    memory = snapshots = snapshot_bytes = calls = forks = 0
    for event in history:
        data = event.data
        after = TRANSITIONS.get(data.type, {}).get(phase, phase)
        if after is not phase:
            if phase in _CLOCKS:
                seconds[_CLOCKS[phase]] += max(event.recorded_at_us - since, 0) / _MICROSECONDS
            phase, since = after, event.recorded_at_us
        if data.type in _MACHINE_BEGINS:
            cpu, cpu_of_machine = cpu + cpu_of_machine, 0.0
        if isinstance(data, _COUNTED):
            cpu_of_machine = data.cpu_seconds if data.cpu_seconds is not None else cpu_of_machine
            memory = max(memory, data.memory_high_bytes or 0)
        elif isinstance(data, SandboxCreated):
            session_id = data.session_id
        elif isinstance(data, SandboxSnapshotted):
            snapshots, snapshot_bytes = snapshots + 1, snapshot_bytes + data.image_bytes
        elif isinstance(data, SandboxForked):
            forks += 1
        elif isinstance(data, ToolCallCompleted):
            calls, call_seconds = calls + 1, call_seconds + data.seconds
    if phase in _CLOCKS:
        seconds[_CLOCKS[phase]] += max(now_us - since, 0) / _MICROSECONDS
    usage = Usage(
        seconds["running"],
        seconds["frozen"],
        seconds["suspended"],
        seconds["stopped"],
        cpu + cpu_of_machine,
        memory,
        snapshots,
        snapshot_bytes,
        calls,
        call_seconds,
        forks,
    )
    return SandboxUsage(sandbox_id, session_id, phase, usage)
