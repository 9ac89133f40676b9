"""What a sandbox has used, from its history alone: time in each phase, CPU, memory, snapshots.

Seconds are between the moments at which events were recorded; a clock that was set back counts as no time. CPU and
memory are what the events carry: the last word on each machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

from events.sandbox_state import TRANSITIONS, Phase
from events.types import (
    SandboxAdopted,
    SandboxBranched,
    SandboxCrashed,
    SandboxCreated,
    SandboxForked,
    SandboxFrozen,
    SandboxKilled,
    SandboxRecovered,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxStopped,
    SandboxSuspended,
    ToolCallCompleted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from events.envelope import Event
    from events.payload import JsonObject
    from events.types import EventData

_MICROSECONDS = 1e6
_COUNTED = (SandboxFrozen, SandboxSuspended, SandboxStopped, SandboxCrashed, SandboxKilled)


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


@dataclass(slots=True)
class Meter:
    """A sandbox's usage while its stream is read."""

    phase: Phase = Phase.ABSENT
    since_us: int = 0
    session_id: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_CLOCKS.values(), 0.0))
    cpu: float = 0.0
    """Of machines that are gone."""
    cpu_of_machine: float = 0.0
    memory: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    calls: int = 0
    call_seconds: float = 0.0
    forks: int = 0

    def take(self, event: Event) -> None:
        """The next event of the sandbox's stream."""
        after = TRANSITIONS.get(event.type, {}).get(self.phase, self.phase)
        if after is not self.phase:
            self.tick(event.recorded_at_us, after)
        self._count(event.data)

    def tick(self, at_us: int, after: Phase) -> None:
        """The phase is another one from this moment on."""
        if self.phase in _CLOCKS:
            self.seconds[_CLOCKS[self.phase]] += max(at_us - self.since_us, 0) / _MICROSECONDS
        self.phase, self.since_us = after, at_us

    def _count(self, data: EventData) -> None:
        if isinstance(data, _COUNTED):
            # It only grows. Less means that its control group was gone by then, and nobody counted.
            self.cpu_of_machine = max(self.cpu_of_machine, data.cpu_seconds or 0.0)
            self.memory = max(self.memory, data.memory_high_bytes or 0)
        match data:
            case SandboxCreated() | SandboxBranched() | SandboxAdopted():
                self.session_id = data.session_id
            case SandboxStarted() | SandboxResumed() | SandboxRecovered(kept="files"):
                # One that is found again, memory and all, is the same machine, and goes on counting.
                self.cpu, self.cpu_of_machine = self.cpu + self.cpu_of_machine, 0.0
            case SandboxSnapshotted():
                self.snapshots += 1
                self.snapshot_bytes += data.image_bytes
            case SandboxForked():
                self.forks += 1
            case ToolCallCompleted():
                self.calls += 1
                self.call_seconds += data.seconds

    @property
    def cpu_seconds(self) -> float:
        """Of all its machines, as far as events told."""
        return self.cpu + self.cpu_of_machine

    def seconds_at(self, now_us: int) -> dict[str, float]:
        """Seconds on each clock until a moment, what still lasts included."""
        lasting = max(now_us - self.since_us, 0) / _MICROSECONDS
        return {
            name: seconds + (lasting if _CLOCKS.get(self.phase) == name else 0.0)
            for name, seconds in self.seconds.items()
        }

    def usage(self) -> Usage:
        """All of it, as far as events told."""
        return Usage(
            **{f"seconds_{name}": seconds for name, seconds in self.seconds.items()},
            cpu_seconds=self.cpu_seconds,
            memory_high_bytes=self.memory,
            snapshots=self.snapshots,
            snapshot_bytes=self.snapshot_bytes,
            tool_calls=self.calls,
            call_seconds=self.call_seconds,
            forks=self.forks,
        )


def usage_of(sandbox_id: str, history: Iterable[Event], now_us: int) -> SandboxUsage:
    """Fold a sandbox's stream.

    Args:
        now_us: until when what still lasts is counted, in microseconds since the epoch.
    """
    meter = Meter()
    for event in history:
        meter.take(event)
    meter.tick(now_us, meter.phase)
    return SandboxUsage(sandbox_id, meter.session_id, meter.phase, meter.usage())


def by_session(sandboxes: Iterable[SandboxUsage]) -> dict[str, Usage]:
    """The sum over the sandboxes of each session, by its id; "" for those that no session uses."""
    sums: dict[str, Usage] = {}
    for one in sandboxes:
        sums[one.session_id] = sums.get(one.session_id, Usage()).plus(one.usage)
    return sums
