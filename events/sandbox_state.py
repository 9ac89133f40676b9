"""What a sandbox is after some prefix of its stream: phases, the one table of transitions, the fold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rpds import HashTrieMap

from events.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from events.envelope import Event
    from events.payload import JsonObject
    from events.types import (
        EventData,
        Limits,
        SandboxBranched,
        SandboxCreated,
        SandboxRecovered,
        SandboxResumed,
        SandboxStarted,
        ToolCallCompleted,
        ToolCallInterrupted,
        ToolCallStarted,
    )


class Phase(StrEnum):
    """Where a sandbox stands."""

    ABSENT = "absent"
    CREATED = "created"
    """No machine has run yet."""
    RUNNING = "running"
    FROZEN = "frozen"
    """In RAM, without CPU."""
    SUSPENDED = "suspended"
    """On disk, memory included."""
    STOPPED = "stopped"
    """Files alone, on purpose."""
    CRASHED = "crashed"
    """Files alone, not on purpose."""
    KILLED = "killed"


_ALIVE = (Phase.RUNNING, Phase.FROZEN)
_EXISTING = tuple(phase for phase in Phase if phase is not Phase.ABSENT)
_NOT_KILLED = tuple(phase for phase in _EXISTING if phase is not Phase.KILLED)
_UNCHANGED: Mapping[Phase, Phase] = {phase: phase for phase in _EXISTING}
# An outcome is a fact: a machine may be gone by the time that it is recorded.
_OUTCOME: Mapping[Phase, Phase] = {phase: phase for phase in _EXISTING if phase is not Phase.CREATED}

TRANSITIONS: Mapping[str, Mapping[Phase, Phase]] = {
    "sandbox.created": {Phase.ABSENT: Phase.CREATED},
    "sandbox.branched": {Phase.ABSENT: Phase.CREATED},
    "sandbox.started": dict.fromkeys((Phase.CREATED, Phase.STOPPED), Phase.RUNNING),
    "sandbox.stopped": dict.fromkeys(_ALIVE, Phase.STOPPED),
    "sandbox.crashed": dict.fromkeys(_ALIVE, Phase.CRASHED),
    # From running: the machine outlived the host that knew it.
    "sandbox.recovered": dict.fromkeys((*_ALIVE, Phase.CRASHED), Phase.RUNNING),
    "sandbox.frozen": {Phase.RUNNING: Phase.FROZEN},
    "sandbox.thawed": {Phase.FROZEN: Phase.RUNNING},
    "sandbox.suspended": dict.fromkeys(_ALIVE, Phase.SUSPENDED),
    "sandbox.resumed": {Phase.SUSPENDED: Phase.RUNNING},
    "sandbox.killed": dict.fromkeys(_NOT_KILLED, Phase.KILLED),
    "tool_call.started": {Phase.RUNNING: Phase.RUNNING},
    "tool_call.completed": _OUTCOME,
    "tool_call.interrupted": _OUTCOME,
    "sandbox.snapshotted": {phase: phase for phase in _ALIVE},
    "sandbox.forked": _UNCHANGED,
    "egress.connected": _UNCHANGED,
    "egress.refused": _UNCHANGED,
    "egress.policy_changed": _UNCHANGED,
    "replay.verified": _UNCHANGED,
    "replay.diverged": _UNCHANGED,
}
"""For each event type, from which phases it may happen, and where it leads: the one table of a sandbox's life."""


class CallStatus(StrEnum):
    """Where a tool call stands in the machine."""

    STARTED = "started"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class SandboxCall:
    """A tool call, as the sandbox knows it."""

    tool_use_id: str
    tool: str
    input: JsonObject
    status: CallStatus
    content: list[JsonObject] = field(default_factory=list)
    """Recorded result, or what the agent is told of an interrupted call."""
    is_error: bool = False
    reason: str = ""
    """Why it was interrupted."""
    after_memory_loss: bool = False
    """Whether it ended as the first one after the machine lost its memory: its result may say so."""


_NO_CALLS: HashTrieMap[str, SandboxCall] = HashTrieMap()


@dataclass(frozen=True, slots=True)
class SandboxState:
    """A sandbox after some prefix of its stream."""

    sandbox_id: str
    phase: Phase = Phase.ABSENT
    session_id: str = ""
    driver: str = ""
    template: str = ""
    limits: Limits | None = None
    machine_id: str = ""
    """The machine that runs, or the last that did; "" where none has."""
    node: str = ""
    """Where it runs, or ran."""
    calls: HashTrieMap[str, SandboxCall] = field(default=_NO_CALLS)
    """Every call ever started, by tool_use_id."""
    memory_lost: bool = False
    """The machine was restarted on its files alone, and no call has ended since."""
    version: int = 0
    """How many events were folded: the version of the stream's last one."""

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return f"sandbox-{self.sandbox_id}"

    @property
    def open_calls(self) -> list[SandboxCall]:
        """Calls that were started and have no outcome, in no order."""
        return [call for call in self.calls.values() if call.status is CallStatus.STARTED]


def evolve(state: SandboxState, data: EventData) -> SandboxState:
    """The state after one more event.

    Raises:
        IllegalTransition: no sandbox can come from this state by this event: the stream is not a sandbox's.
    """
    event_type = data.type
    phase = next_phase(state, event_type, event_type)
    handler = _HANDLERS.get(event_type)
    if handler is not None:
        return handler(state, phase, data)
    return replace(state, phase=phase, version=state.version + 1)


def fold(state: SandboxState, events: Iterable[Event]) -> SandboxState:
    """The state after these events; `SandboxState(sandbox_id)` is the one before the first.

    Raises:
        IllegalTransition: as `evolve`.
    """
    for event in events:
        state = evolve(state, event.data)
    return state


def next_phase(state: SandboxState, event_type: str, what: str) -> Phase:
    """Where an event of this type leads.

    Args:
        what: the command or event, for the error.

    Raises:
        IllegalTransition: the table has no such transition.
    """
    phases = TRANSITIONS.get(event_type)
    phase = phases.get(state.phase) if phases is not None else None
    if phase is None:
        because = f": it would be version {state.version + 1}"
        raise IllegalTransition(stream=state.stream, phase=state.phase.value, what=what, because=because)
    return phase


def _created(state: SandboxState, phase: Phase, data: SandboxCreated | SandboxBranched) -> SandboxState:
    return replace(
        state,
        phase=phase,
        session_id=data.session_id,
        driver=data.driver,
        template=data.template,
        limits=data.limits,
        version=state.version + 1,
    )


def _started(state: SandboxState, phase: Phase, data: SandboxStarted) -> SandboxState:
    return replace(
        state,
        phase=phase,
        machine_id=data.machine_id,
        node=data.node,
        memory_lost=state.phase is Phase.STOPPED,
        version=state.version + 1,
    )


def _recovered(state: SandboxState, phase: Phase, data: SandboxRecovered) -> SandboxState:
    return replace(
        state,
        phase=phase,
        machine_id=data.machine_id,
        node=data.node,
        memory_lost=state.memory_lost or data.kept == "files",
        version=state.version + 1,
    )


def _resumed(state: SandboxState, phase: Phase, data: SandboxResumed) -> SandboxState:
    return replace(state, phase=phase, machine_id=data.machine_id, node=data.node, version=state.version + 1)


def _call_started(state: SandboxState, phase: Phase, data: ToolCallStarted) -> SandboxState:
    if data.tool_use_id in state.calls:
        because = f": call {data.tool_use_id} was started before"
        raise IllegalTransition(stream=state.stream, phase=state.phase.value, what=data.type, because=because)
    call = SandboxCall(data.tool_use_id, data.tool, data.input, CallStatus.STARTED)
    return _with_call(state, phase, call, memory_lost=state.memory_lost)


def _call_completed(state: SandboxState, phase: Phase, data: ToolCallCompleted) -> SandboxState:
    call = _running(state, data.tool_use_id, data.type)
    ended = SandboxCall(
        call.tool_use_id,
        call.tool,
        call.input,
        CallStatus.COMPLETED,
        data.content,
        data.is_error,
        "",
        state.memory_lost,
    )
    return _with_call(state, phase, ended, memory_lost=False)


def _call_interrupted(state: SandboxState, phase: Phase, data: ToolCallInterrupted) -> SandboxState:
    call = _running(state, data.tool_use_id, data.type)
    ended = SandboxCall(
        call.tool_use_id,
        call.tool,
        call.input,
        CallStatus.INTERRUPTED,
        data.content,
        True,
        data.reason,
        state.memory_lost,
    )
    return _with_call(state, phase, ended, memory_lost=False)


def _with_call(state: SandboxState, phase: Phase, call: SandboxCall, *, memory_lost: bool) -> SandboxState:
    # Positional: `replace` takes three times as long, and these are most of a history's events.
    return SandboxState(
        state.sandbox_id,
        phase,
        state.session_id,
        state.driver,
        state.template,
        state.limits,
        state.machine_id,
        state.node,
        state.calls.insert(call.tool_use_id, call),
        memory_lost,
        state.version + 1,
    )


def _running(state: SandboxState, tool_use_id: str, what: str) -> SandboxCall:
    call = state.calls.get(tool_use_id)
    if call is None or call.status is not CallStatus.STARTED:
        because = f": call {tool_use_id} is {call.status.value if call else 'unknown'}, not started"
        raise IllegalTransition(stream=state.stream, phase=state.phase.value, what=what, because=because)
    return call


_HANDLERS: Mapping[str, Callable[[SandboxState, Phase, Any], SandboxState]] = {
    "sandbox.created": _created,
    "sandbox.branched": _created,
    "sandbox.started": _started,
    "sandbox.recovered": _recovered,
    "sandbox.resumed": _resumed,
    "tool_call.started": _call_started,
    "tool_call.completed": _call_completed,
    "tool_call.interrupted": _call_interrupted,
}
"""What an event changes beside the phase."""
