"""What a session is after some prefix of its stream: phases, the one table of transitions, the fold."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

from rpds import HashTrieMap

from events.life import Life, data_of, illegal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from events.envelope import Event
    from events.log import EventLog
    from events.payload import JsonObject, Payload
    from events.types import (
        EventData,
        SessionAttached,
        SessionClaimed,
        SessionFailed,
        SessionIdled,
        SessionResultPosted,
        SessionSandboxKept,
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
    "session.sandbox_kept": {phase: phase for phase in _ANY_BUT_TERMINATED[1:]},
    "session.terminated": dict.fromkeys(Phase, Phase.TERMINATED),
}
"""For each event type, from which phases it may happen, and where it leads: the one table of a session's life."""


class CallStatus(StrEnum):
    """Where a tool call stands between the agent and Anthropic."""

    REQUESTED = "requested"
    DENIED = "denied"
    POSTED = "posted"


class SessionCall(NamedTuple):
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


class _Draft:
    """A mutable twin of `SessionState`."""

    __slots__ = (
        "calls",
        "claim_id",
        "failure",
        "last_claim_id",
        "phase",
        "sandbox_id",
        "state",
        "stop_reason",
        "version",
    )

    def __init__(self, state: SessionState) -> None:
        self.state = state
        self.phase = state.phase
        self.claim_id = state.claim_id
        self.sandbox_id = state.sandbox_id
        self.stop_reason = state.stop_reason
        self.failure = state.failure
        self.last_claim_id = state.last_claim_id
        self.version = state.version
        self.calls: dict[str, SessionCall] = {}

    def call(self, data: ToolCallDenied | SessionResultPosted) -> SessionCall:
        call = self.calls.get(data.tool_use_id) or self.state.calls.get(data.tool_use_id)
        if call is None:
            raise illegal(self.freeze(), data.type, f"no call {data.tool_use_id} was requested")
        return call

    def freeze(self) -> SessionState:
        return SessionState(
            self.state.session_id,
            self.phase,
            self.claim_id,
            self.sandbox_id,
            self.state.calls.update(self.calls),
            self.stop_reason,
            self.failure,
            self.last_claim_id,
            self.version,
        )


def _claimed(draft: _Draft, data: SessionClaimed) -> None:
    draft.claim_id = draft.last_claim_id = data.claim_id
    draft.failure = ""


def _attached(draft: _Draft, data: SessionAttached) -> None:
    draft.sandbox_id = data.sandbox_id


def _kept(draft: _Draft, data: SessionSandboxKept) -> None:
    draft.sandbox_id = data.sandbox_id


def _given_up(draft: _Draft, data: Payload) -> None:
    del data
    draft.claim_id = ""


def _failed(draft: _Draft, data: SessionFailed) -> None:
    draft.failure = data.reason


def _idled(draft: _Draft, data: SessionIdled) -> None:
    draft.stop_reason = data.stop_reason


def _requested(draft: _Draft, data: ToolCallRequested) -> None:
    draft.calls[data.tool_use_id] = SessionCall(
        data.tool_use_id, data.tool, data.input, data.thread_id, data.permission, CallStatus.REQUESTED
    )


def _denied(draft: _Draft, data: ToolCallDenied) -> None:
    asked = draft.call(data)[:5]
    draft.calls[data.tool_use_id] = SessionCall(*asked, CallStatus.DENIED, data.by, data.message)


def _posted(draft: _Draft, data: SessionResultPosted) -> None:
    call = draft.call(data)
    draft.calls[data.tool_use_id] = SessionCall(*call[:5], CallStatus.POSTED, data.outcome, call.message)


LIFE = Life[SessionState, _Draft](
    TRANSITIONS,
    {
        "session.claimed": _claimed,
        "session.attached": _attached,
        "session.lease_lost": _given_up,
        "session.released": _given_up,
        "session.failed": _failed,
        "session.sandbox_kept": _kept,
        "session.idled": _idled,
        "tool_call.requested": _requested,
        "tool_call.denied": _denied,
        "session.result_posted": _posted,
    },
    _Draft,
)
"""The two tables, joined."""


def evolve(state: SessionState, data: EventData) -> SessionState:
    """The state after one more event.

    Raises:
        IllegalTransition: no session can come from this state by this event: the stream is not a session's.
    """
    return LIFE.fold(state, (data,))


def fold(state: SessionState, events: Iterable[Event]) -> SessionState:
    """The state after these events; `SessionState(session_id)` is the one before the first.

    Raises:
        IllegalTransition: as `evolve`.
    """
    return LIFE.fold(state, data_of(events))


def load(log: EventLog, session_id: str) -> SessionState:
    """The state of a session now, from its whole stream: the fastest way there is.

    Raises:
        IllegalTransition: as `evolve`.
        LogError: as `EventLog.read`.
    """
    state = SessionState(session_id)
    return LIFE.fold(state, log.read_data(state.stream))
