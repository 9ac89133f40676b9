"""The walk from a plan's start to its version: which calls there are, what else happened, and how far all is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from events.types import (
    EgressClosed,
    EgressConnected,
    SandboxCrashed,
    SandboxFileCopied,
    SandboxForwardClosed,
    SandboxForwardOpened,
    SandboxKilled,
    SandboxProcessEnded,
    SandboxProcessStarted,
    SandboxSnapshotted,
    SandboxStopped,
    SandboxSuspended,
    ToolCallCompleted,
    ToolCallInterrupted,
    ToolCallStarted,
)
from replay.history.connections import Connections
from replay.history.lineage import Place
from replay.history.planned import Fate, Gap, PlannedCall, Version

if TYPE_CHECKING:
    from events.envelope import Event
    from events.types import JsonObject
    from replay.history.lineage import Line

READ_ONLY = frozenset({"read", "glob", "grep"})
REPEATABLE = frozenset({"bash", "write", "edit"})
IN_FORKS = frozenset({"try_in_parallel", "keep"})
"""Custom tools that leave the sandbox itself as it is; see `actors.tries`."""
HARMLESS = READ_ONLY | IN_FORKS


@dataclass(slots=True)
class _Call:
    """A call, as far as the walk has come."""

    at: Place
    tool_use_id: str
    tool: str
    input: JsonObject
    ended: int = 0
    lost: str = ""
    """Why it can't be reproduced."""
    note: str = ""


@dataclass
class Walk:
    """Takes the events of a line one by one; made by `walk`."""

    line: Line
    start: Place
    """Up to here, all is in the snapshot; `Place(0, 0)` where there is none."""
    calls: dict[tuple[int, str], _Call] = field(default_factory=dict)
    gaps: list[tuple[Place, Gap]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _open: dict[str, _Call] = field(default_factory=dict)
    _visits: dict[str, tuple[Place, Event, str]] = field(default_factory=dict)
    _copying: set[str] = field(default_factory=set)
    """Programs and forwards of people that are open, until the start is passed."""
    _restarted: str = ""
    """How the memory that the snapshot has was lost since."""
    _of: dict[str, Place] = field(default_factory=dict)
    """What each snapshot is the state of."""

    def __post_init__(self) -> None:
        self._connections = Connections(self.start)

    def take(self, at: Place, event: Event) -> None:
        """Take in the next event."""
        self._connections.passed(at, event)
        self._take_machine(at, event)
        self._take_visit(at, event)
        data = event.data
        match data:
            case ToolCallStarted():
                call = _Call(at, data.tool_use_id, data.tool, data.input)
                self.calls[at.segment, data.tool_use_id] = self._open[data.tool_use_id] = call
                self._begin(call)
            case ToolCallCompleted() | ToolCallInterrupted():
                self._end(at, data)
            case EgressConnected():
                self._connected(at, event, data)
            case EgressClosed():
                self._closed(at, event, data)
            case SandboxCrashed() if at > self.start:
                self._restart(at, event, f"its machine crashed ({data.reason.replace('_', ' ')})")
            case SandboxStopped() if at > self.start:
                self._restart(at, event, "its machine was stopped, and its memory given up")
            case SandboxKilled() if at > self.start:
                self.notes.append(f"at {self.line.name(at)} it was ended: what was there until then is rebuilt")

    def _take_visit(self, at: Place, event: Event) -> None:
        """What people do in it."""
        data = event.data
        match data:
            case SandboxProcessStarted():
                self._visit(at, event, data.process_id, f"a person's program ran: {data.command}")
            case SandboxForwardOpened():
                self._visit(at, event, data.forward_id, f"connections from outside could reach port {data.port}")
            case SandboxProcessEnded() if at <= self.start:
                self._visits.pop(data.process_id, None)
            case SandboxForwardClosed() if at <= self.start:
                self._visits.pop(data.forward_id, None)
            case SandboxFileCopied(direction="in"):
                self._copied(at, event, data)

    def _take_machine(self, at: Place, event: Event) -> None:
        """What becomes of its connections, which end with the machine and come back with none."""
        data = event.data
        match data:
            case SandboxSnapshotted():
                self._of[data.snapshot_id] = Place(at.segment, data.of_version or at.version - 1)
            case SandboxSuspended():
                of = self._of.get(data.snapshot_id, Place(at.segment, at.version - 1))
                self._connections.cut(at, of == self.start)
            case SandboxCrashed() | SandboxStopped() | SandboxKilled():
                self._connections.cut(at, of_start=False)

    def finish(self) -> None:
        """After the last event."""
        for call in self._open.values():
            if call.at > self.start and call.tool not in HARMLESS:
                until = Place(call.at.segment, self.line.segments[call.at.segment].until)
                call.lost = call.lost or f"it had not ended at {self.line.name(until)}"
        if self.line.end > self.start:
            # A snapshot is brought back without them. Its own machine went on with them, and a fork of it did not.
            for at, event, what in (one for one in self._visits.values() if one[0].segment == self.start.segment):
                self._gap(at, event, f"{what}, and had not ended when the snapshot was taken")
            for at, event, where in self._connections.at_start():
                if at.segment == self.start.segment:
                    self._gap(at, event, f"it was connected to {where} when the snapshot was taken")
        self.gaps.sort(key=lambda one: one[0])

    def _begin(self, call: _Call) -> None:
        if call.at <= self.start or call.tool in READ_ONLY:
            return
        if call.tool in IN_FORKS:
            call.note = "it ran in forks, and changed nothing here"
        elif call.tool not in REPEATABLE:
            call.lost = "no such tool can be run again"
        elif self._restarted:
            call.lost = f"{self._restarted} after the snapshot, and began again on its files"

    def _end(self, at: Place, data: ToolCallCompleted | ToolCallInterrupted) -> None:
        call = self._open.pop(data.tool_use_id, None)
        if call is None:
            return
        call.ended = at.version
        if isinstance(data, ToolCallInterrupted):
            how = f"it was interrupted ({data.reason.replace('_', ' ')})"
            if call.at <= self.start:
                call.note = f"{how}, as far as it had come"
            elif call.tool not in HARMLESS:
                call.lost = call.lost or f"{how}: how far it had come is not known"

    def _connected(self, at: Place, event: Event, data: EgressConnected) -> None:
        self._connections.connected(at, event, data)
        if at <= self.start:
            return
        asked = self._open.get(event.causation_id)
        running = [asked] if asked is not None else list(self._open.values())
        self._used_network(at, event, running, f"{data.host}:{data.port}")

    def _closed(self, at: Place, event: Event, data: EgressClosed) -> None:
        since = self._connections.closed(at, data)
        if since is None:
            return
        segment = at.segment
        ran = [
            call
            for call in self.calls.values()
            if call.at > self.start and call.at.segment == segment and not 0 < call.ended < since.version
        ]
        self._used_network(at, event, ran, f"{data.host}:{data.port}")

    def _used_network(self, at: Place, event: Event, during: list[_Call], where: str) -> None:
        # What only looks has no connections: a process in the background does.
        during = [call for call in during if call.tool not in HARMLESS]
        if not during:
            self._gap(at, event, f"a process of it was connected to {where}")
        for call in during:
            call.lost = call.lost or f"it was connected to {where}, and a rebuild has no network"

    def _visit(self, at: Place, event: Event, which: str, what: str) -> None:
        if at > self.start:
            self._gap(at, event, what)
        else:
            self._visits[which] = (at, event, what)

    def _copied(self, at: Place, event: Event, data: SandboxFileCopied) -> None:
        """Counted where it begins; its end is nothing more."""
        if data.bytes is not None and data.path in self._copying:
            self._copying.remove(data.path)
            return
        if data.bytes is None:
            self._copying.add(data.path)
        if at > self.start:
            self._gap(at, event, f"a person copied {data.path} into it")

    def _restart(self, at: Place, event: Event, how: str) -> None:
        self._restarted = f"{how} at {self.line.name(at)}"
        self._gap(at, event, how)

    def _gap(self, at: Place, event: Event, what: str) -> None:
        self.gaps.append((at, Gap(Version(event.stream, event.version), event.type, what)))

    # --- what came of it --------------------------------------------------------------------------------------------

    def planned(self) -> list[PlannedCall]:
        """Every call with its fate."""
        return [
            PlannedCall(
                Version(self.line.segments[call.at.segment].stream, call.at.version),
                call.ended,
                call.tool_use_id,
                call.tool,
                call.input,
                self._fate(call),
                call.lost or call.note,
            )
            for call in self.calls.values()
        ]

    def good_until(self) -> Place:
        """The last place up to which all is known and no call runs."""
        lost = [call.at for call in self.calls.values() if self._fate(call) is Fate.LOST]
        obstacle = min([*lost, *(at for at, _ in self.gaps)], default=None)
        good = self.start
        running: set[str] = set()
        for at, event in self.line.after(self.start):
            if obstacle is not None and at >= obstacle:
                break
            data = event.data
            if isinstance(data, ToolCallStarted) and data.tool not in HARMLESS:
                running.add(data.tool_use_id)
            elif isinstance(data, ToolCallCompleted | ToolCallInterrupted):
                running.discard(data.tool_use_id)
            if not running:
                good = at
        return good

    def _fate(self, call: _Call) -> Fate:
        if call.at <= self.start:
            return Fate.IN_SNAPSHOT
        if call.tool in HARMLESS:
            return Fate.SKIPPED
        return Fate.LOST if call.lost else Fate.AGAIN


def walk(line: Line, start: Place) -> Walk:
    """Walk a line to its end."""
    made = Walk(line, start)
    for at, event in line.all():
        made.take(at, event)
    made.finish()
    return made
