"""What a session is after some prefix of its stream: phases, the one table of transitions, the fold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from rpds import HashTrieMap

from events.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from events.envelope import Event
    from events.payload import JsonObject, Payload
    from events.types import (
        EventData,
        SessionAttached,
        SessionClaimed,
        SessionFailed,
        SessionIdled,
        SessionResultPosted,
        ToolCallDenied,
        ToolCallRequested,
    )


class Phase(StrEnum):
    """Where a session stands."""

    UNCLAIMED = "unclaimed"
    CLAIMED = "claimed"
    ATTACHED = "attached"
    LOST = "lost"
    """The lease is gone; the work may be somebody else's."""
    RELEASED = "released"
    FAILED = "failed"
    """Could not be served; a later claim tries again."""
    TERMINATED = "terminated"


_ANY_BUT_TERMINATED = tuple(phase for phase in Phase if phase is not Phase.TERMINATED)
_SERVED = (Phase.CLAIMED, Phase.ATTACHED, Phase.FAILED)

TRANSITIONS: Mapping[str, Mapping[Phase, Phase]] = {
    # A claim is the queue's word, so it overrules an older one that was never given back: its host is dead.
    "session.claimed": dict.fromkeys(_ANY_BUT_TERMINATED, Phase.CLAIMED),
    "session.attached": dict.fromkeys((Phase.CLAIMED, Phase.ATTACHED), Phase.ATTACHED),
    "tool_call.requested": {Phase.ATTACHED: Phase.ATTACHED},
    "tool_call.denied": {Phase.ATTACHED: Phase.ATTACHED},
    "session.idled": {Phase.ATTACHED: Phase.ATTACHED},
    # A fact about Anthropic's side, and a response may come late: it is recorded wherever the session stands by then.
    "session.result_posted": {phase: phase for phase in Phase if phase is not Phase.UNCLAIMED},
    "session.lease_lost": dict.fromkeys(_SERVED, Phase.LOST) | {Phase.TERMINATED: Phase.TERMINATED},
    # From anywhere, since an item that was found abandoned at start may be in any state, or in nobody's log.
    "session.released": dict.fromkeys(Phase, Phase.RELEASED) | {Phase.TERMINATED: Phase.TERMINATED},
    "session.failed": dict.fromkeys(_ANY_BUT_TERMINATED[1:], Phase.FAILED),
    "session.terminated": dict.fromkeys(Phase, Phase.TERMINATED),
}
"""For each event type, from which phases it may happen, and where it leads: the one table of a session's life."""


class CallStatus(StrEnum):
    """Where a tool call stands between the agent and Anthropic."""

    REQUESTED = "requested"
    DENIED = "denied"
    POSTED = "posted"


@dataclass(frozen=True, slots=True)
class SessionCall:
    """A tool call, as the session knows it."""

    tool_use_id: str
    tool: str
    input: JsonObject
    thread_id: str
    permission: Literal["allow", "ask"]
    status: CallStatus
    outcome: str = ""
    """Of a posted result: how Anthropic took it. Of a denied call: who denied it."""
    message: str = ""
    """Of a denied call: what the agent is told."""


_NO_CALLS: HashTrieMap[str, SessionCall] = HashTrieMap()


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session after some prefix of its stream."""

    session_id: str
    phase: Phase = Phase.UNCLAIMED
    claim_id: str = ""
    """The claim that is held; "" where none is."""
    sandbox_id: str = ""
    """Kept over releases: the sandbox outlives the claim."""
    calls: HashTrieMap[str, SessionCall] = field(default=_NO_CALLS)
    """Every call ever requested, by tool_use_id."""
    stop_reason: str = ""
    """Of the last turn that ended."""
    failure: str = ""
    """Reason of the last failure, until the next claim."""
    last_claim_id: str = ""
    """The last claim, held or not."""
    version: int = 0
    """How many events were folded: the version of the stream's last one."""

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return f"session-{self.session_id}"

    @property
    def open_calls(self) -> list[SessionCall]:
        """Calls that wait for a result, in no order."""
        return [call for call in self.calls.values() if call.status is CallStatus.REQUESTED]

    @property
    def threads(self) -> set[str]:
        """Threads that asked for a call; "" is the session's own."""
        return {call.thread_id for call in self.calls.values()}


def evolve(state: SessionState, data: EventData) -> SessionState:
    """The state after one more event.

    Raises:
        IllegalTransition: no session can come from this state by this event: the stream is not a session's.
    """
    event_type = data.type
    phase = next_phase(state, event_type, event_type)
    handler = _HANDLERS.get(event_type)
    if handler is not None:
        return handler(state, phase, data)
    return replace(state, phase=phase, version=state.version + 1)


def fold(state: SessionState, events: Iterable[Event]) -> SessionState:
    """The state after these events; `SessionState(session_id)` is the one before the first.

    Raises:
        IllegalTransition: as `evolve`.
    """
    for event in events:
        state = evolve(state, event.data)
    return state


def next_phase(state: SessionState, event_type: str, what: str) -> Phase:
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


def _claimed(state: SessionState, phase: Phase, data: SessionClaimed) -> SessionState:
    return replace(
        state,
        phase=phase,
        claim_id=data.claim_id,
        last_claim_id=data.claim_id,
        failure="",
        version=state.version + 1,
    )


def _attached(state: SessionState, phase: Phase, data: SessionAttached) -> SessionState:
    return replace(state, phase=phase, sandbox_id=data.sandbox_id, version=state.version + 1)


def _given_up(state: SessionState, phase: Phase, data: Payload) -> SessionState:
    del data
    return replace(state, phase=phase, claim_id="", version=state.version + 1)


def _failed(state: SessionState, phase: Phase, data: SessionFailed) -> SessionState:
    return replace(state, phase=phase, failure=data.reason, version=state.version + 1)


def _idled(state: SessionState, phase: Phase, data: SessionIdled) -> SessionState:
    return replace(state, phase=phase, stop_reason=data.stop_reason, version=state.version + 1)


def _requested(state: SessionState, phase: Phase, data: ToolCallRequested) -> SessionState:
    call = SessionCall(data.tool_use_id, data.tool, data.input, data.thread_id, data.permission, CallStatus.REQUESTED)
    return _with_call(state, phase, call)


def _denied(state: SessionState, phase: Phase, data: ToolCallDenied) -> SessionState:
    call = _known(state, data.tool_use_id, data.type)
    return _with_call(state, phase, _settled(call, CallStatus.DENIED, data.by, data.message))


def _posted(state: SessionState, phase: Phase, data: SessionResultPosted) -> SessionState:
    call = _known(state, data.tool_use_id, data.type)
    return _with_call(state, phase, _settled(call, CallStatus.POSTED, data.outcome, call.message))


def _settled(call: SessionCall, status: CallStatus, outcome: str, message: str) -> SessionCall:
    # Positional, as in `_with_call`: `replace` takes three times as long, and these are most of a history's events.
    return SessionCall(
        call.tool_use_id, call.tool, call.input, call.thread_id, call.permission, status, outcome, message
    )


def _with_call(state: SessionState, phase: Phase, call: SessionCall) -> SessionState:
    return SessionState(
        state.session_id,
        phase,
        state.claim_id,
        state.sandbox_id,
        state.calls.insert(call.tool_use_id, call),
        state.stop_reason,
        state.failure,
        state.last_claim_id,
        state.version + 1,
    )


def _known(state: SessionState, tool_use_id: str, what: str) -> SessionCall:
    call = state.calls.get(tool_use_id)
    if call is None:
        because = f": no call {tool_use_id} was requested"
        raise IllegalTransition(stream=state.stream, phase=state.phase.value, what=what, because=because)
    return call


_HANDLERS: Mapping[str, Callable[[SessionState, Phase, Any], SessionState]] = {
    "session.claimed": _claimed,
    "session.attached": _attached,
    "session.lease_lost": _given_up,
    "session.released": _given_up,
    "session.failed": _failed,
    "session.idled": _idled,
    "tool_call.requested": _requested,
    "tool_call.denied": _denied,
    "session.result_posted": _posted,
}
"""What an event changes beside the phase."""
