"""From events to figures: a projection of the log, so that no figure can disagree with it.

It is fed the whole log from its first event, as written by whatever host and whenever. So counters go on where they
were when a service starts again, and a host that is replaced resets nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.conversation import BUILT_IN_TOOLS
from actors.custom_tools import KEEP, TRY
from events.sandbox_state import Phase
from events.types import (
    SandboxCrashed,
    SandboxRecovered,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
    SandboxThawed,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    SessionTerminated,
    ToolCallCompleted,
    ToolCallDenied,
    ToolCallInterrupted,
    ToolCallRequested,
    ToolCallStarted,
)
from events.usage import Meter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.meters import Meters
    from events.envelope import Event

_MICROSECONDS = 1e6
_TOOLS = BUILT_IN_TOOLS | {TRY, KEEP}
_GONE = (Phase.ABSENT, Phase.KILLED)
_OPERATIONS = {
    SandboxStarted: "start",
    SandboxResumed: "resume",
    SandboxRecovered: "recover",
    SandboxThawed: "thaw",
    SandboxSuspended: "suspend",
    SandboxSnapshotted: "snapshot",
}


@dataclass(slots=True)
class _Session:
    claim_id: str = ""
    claimed_us: int = 0
    attached: bool = False
    requested: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Tool and time of the calls that nobody has answered, by id."""

    @property
    def phase(self) -> str:
        return "" if not self.claim_id else "attached" if self.attached else "claimed"


@dataclass(slots=True)
class _Sandbox:
    meter: Meter = field(default_factory=Meter)
    running: dict[str, str] = field(default_factory=dict)
    """Tools of the calls that run, by id."""


class Metrics:
    """The projection. `take` each event in the log's order, then `show`; `tick` now and then."""

    def __init__(self, *meters: Meters) -> None:
        self._meters: Sequence[Meters] = meters
        self._sessions: dict[str, _Session] = {}
        self._sandboxes: dict[str, _Sandbox] = {}
        self._phases: Counter[str] = Counter({one.value: 0 for one in Phase if one not in _GONE})
        self._served: Counter[str] = Counter(claimed=0, attached=0)
        self._ended_seconds: Counter[str] = Counter()
        """Of sandboxes that are over."""
        self._told_seconds: Counter[str] = Counter()
        self._position = 0

    def take(self, event: Event) -> None:
        """The next event of the log."""
        self._position = event.position
        self._add("hourglass_events", type=event.type)
        kind, _, name = event.stream.partition("-")
        if kind == "session":
            self._take_session(name, event)
        elif kind == "sandbox":
            self._take_sandbox(name, event)

    def show(self) -> None:
        """Bring the gauges up to date; after some events."""
        for phase, count in self._phases.items():
            self._put("hourglass_sandboxes", count, phase=phase)
        for phase, count in self._served.items():
            self._put("hourglass_sessions", count, phase=phase)
        self._put("hourglass_log_position", self._position)

    def tick(self, now_us: int) -> None:
        """Count the time until now, in microseconds since the epoch; every few seconds, as it looks at each sandbox."""
        seconds = Counter(self._ended_seconds)
        for one in self._sandboxes.values():
            seconds.update(one.meter.seconds_at(now_us))
        for phase, total in seconds.items():
            # A counter never goes down, though a clock that was set back does.
            if total > self._told_seconds[phase]:
                self._add("hourglass_sandbox_seconds", total - self._told_seconds[phase], phase=phase)
                self._told_seconds[phase] = total

    # --- sessions --------------------------------------------------------------------------------------------------

    def _take_session(self, session_id: str, event: Event) -> None:
        session = self._sessions.setdefault(session_id, _Session())
        before = session.phase
        match event.data:
            case SessionClaimed() as data:
                session.claim_id, session.claimed_us, session.attached = data.claim_id, event.recorded_at_us, False
            case SessionAttached():
                if session.claim_id and not session.attached:
                    self._observe("hourglass_attach_seconds", _seconds(session.claimed_us, event))
                session.attached = True
            case SessionReleased() as data:
                self._end_claim(session, data.claim_id, data.reason)
            case SessionLeaseLost() as data:
                self._end_claim(session, data.claim_id, "lease_lost")
                self._add("hourglass_leases_lost", reason=data.reason)
            case SessionFailed() as data:
                self._add("hourglass_sessions_failed", reason=data.reason)
            case _:
                self._take_asked(session, event)
        _moved(self._served, before, session.phase)
        if not session.phase and not session.requested:
            del self._sessions[session_id]  # an idle session costs nothing here either

    def _take_asked(self, session: _Session, event: Event) -> None:
        """What became of the calls that the agent asked for."""
        match event.data:
            case SessionTerminated():
                session.requested.clear()
            case ToolCallRequested() as data:
                session.requested[data.tool_use_id] = (_tool(data.tool), event.recorded_at_us)
            case ToolCallDenied() as data:
                tool, _ = session.requested.pop(data.tool_use_id, ("other", 0))
                self._add("hourglass_tool_calls", tool=tool, outcome="denied")
            case SessionResultPosted() as data:
                tool, asked_us = session.requested.pop(data.tool_use_id, ("", 0))
                if tool:
                    self._observe("hourglass_tool_call_turnaround_seconds", _seconds(asked_us, event), tool=tool)

    def _end_claim(self, session: _Session, claim_id: str, how: str) -> None:
        self._add("hourglass_claims_ended", how=how)
        if claim_id == session.claim_id:
            session.claim_id, session.attached = "", False

    # --- sandboxes -------------------------------------------------------------------------------------------------

    def _take_sandbox(self, sandbox_id: str, event: Event) -> None:
        sandbox = self._sandboxes.setdefault(sandbox_id, _Sandbox())
        meter, data = sandbox.meter, event.data
        before, cpu = meter.phase, meter.cpu_seconds
        meter.take(event)
        _moved(self._phases, _shown(before), _shown(meter.phase))
        if meter.cpu_seconds > cpu:
            self._add("hourglass_cpu_seconds", meter.cpu_seconds - cpu)
        operation = _OPERATIONS.get(type(data))
        # A fork begins suspended: nothing was done to a machine for that.
        if operation is not None and not (isinstance(data, SandboxSuspended) and data.reason == "fork"):
            self._observe("hourglass_machine_seconds", getattr(data, "seconds", 0.0), operation=operation)
        match data:
            case SandboxSnapshotted():
                self._add("hourglass_snapshot_bytes", data.image_bytes)
            case SandboxCrashed():
                self._add("hourglass_crashes", reason=data.reason)
            case ToolCallStarted() | ToolCallCompleted() | ToolCallInterrupted():
                self._take_call(sandbox, data)
        if meter.phase in _GONE:
            self._ended_seconds.update(meter.seconds)
            del self._sandboxes[sandbox_id]

    def _take_call(self, sandbox: _Sandbox, data: ToolCallStarted | ToolCallCompleted | ToolCallInterrupted) -> None:
        if isinstance(data, ToolCallStarted):
            sandbox.running[data.tool_use_id] = _tool(data.tool)
            return
        tool = sandbox.running.pop(data.tool_use_id, "other")
        if isinstance(data, ToolCallInterrupted):
            self._add("hourglass_tool_calls", tool=tool, outcome="interrupted")
            return
        self._add("hourglass_tool_calls", tool=tool, outcome="error" if data.is_error else "ok")
        self._observe("hourglass_tool_call_seconds", data.seconds, tool=tool)

    # --- to every meter --------------------------------------------------------------------------------------------

    def _add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        for one in self._meters:
            one.add(name, amount, **labels)

    def _put(self, name: str, value: float, /, **labels: str) -> None:
        for one in self._meters:
            one.put(name, value, **labels)

    def _observe(self, name: str, value: float, /, **labels: str) -> None:
        for one in self._meters:
            one.observe(name, value, **labels)


def _moved(counts: Counter[str], before: str, after: str) -> None:
    """One of them is in another phase; "" is none that is shown."""
    if before != after:
        for phase, change in ((before, -1), (after, 1)):
            if phase:
                counts[phase] += change


def _shown(phase: Phase) -> str:
    return "" if phase in _GONE else phase.value


def _tool(name: str) -> str:
    """The tool's name where it is one of ours: a model may ask for any, and each would be a series for ever."""
    return name if name in _TOOLS else "other"


def _seconds(since_us: int, event: Event) -> float:
    return max(event.recorded_at_us - since_us, 0) / _MICROSECONDS
