"""What a session is: the fold of its stream, and what its commands lead to.

`decide(state, command)` gives the events that a command leads to, `evolve(state, data)` the state after an event. Both
are pure. A command for what is already so decides nothing, since commands are repeated; one that the state does not
allow raises `IllegalTransition`, and so does an event in a history that can't be.
"""

from __future__ import annotations

from functools import singledispatch

from events.errors import IllegalTransition
from events.life import illegal
from events.session_commands import (
    Attach,
    Claim,
    Command,
    DenyToolCall,
    Fail,
    Idle,
    KeepSandbox,
    LoseLease,
    RecordPosted,
    Release,
    RequestToolCall,
    Terminate,
)
from events.session_state import (
    LIFE,
    TRANSITIONS,
    CallStatus,
    Phase,
    SessionCall,
    SessionState,
    evolve,
    fold,
    load,
)
from events.types import (
    EventData,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionIdled,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    SessionSandboxKept,
    SessionTerminated,
    ToolCallDenied,
    ToolCallRequested,
)

__all__ = [
    "TRANSITIONS",
    "Attach",
    "CallStatus",
    "Claim",
    "Command",
    "DenyToolCall",
    "Fail",
    "Idle",
    "KeepSandbox",
    "LoseLease",
    "Phase",
    "RecordPosted",
    "Release",
    "RequestToolCall",
    "SessionCall",
    "SessionState",
    "Terminate",
    "decide",
    "evolve",
    "fold",
    "load",
]


def decide(state: SessionState, command: Command) -> list[EventData]:
    """The events that a command leads to; none where it is already so.

    Raises:
        IllegalTransition: the state does not allow it.
    """
    event = _decide(command, state)
    if event is None:
        return []
    LIFE.check(state, event.type, type(command).__name__)
    return [event]


def _illegal(state: SessionState, command: Command, because: str) -> IllegalTransition:
    return illegal(state, type(command).__name__, because)


@singledispatch
def _decide(command: object, state: SessionState) -> EventData | None:
    msg = f"not a session's command: {type(command).__name__}"
    raise TypeError(msg)


@_decide.register
def _claim(command: Claim, state: SessionState) -> EventData | None:
    if command.claim_id == state.last_claim_id:
        return None
    return SessionClaimed(
        environment_id=command.environment_id,
        work_id=command.work_id,
        claim_id=command.claim_id,
        worker_id=command.worker_id,
        credential=command.credential,
    )


@_decide.register
def _attach(command: Attach, state: SessionState) -> EventData | None:
    if command.claim_id != state.claim_id:
        raise illegal(
            state, type(command).__name__, f"it holds claim {state.claim_id or 'none'}, not {command.claim_id}"
        )
    if state.phase is Phase.ATTACHED and command.sandbox_id == state.sandbox_id:
        return None
    return SessionAttached(
        claim_id=command.claim_id,
        sandbox_id=command.sandbox_id,
        history_events=command.history_events,
        acknowledged_at=command.acknowledged_at,
        skills=list(command.skills),
    )


@_decide.register
def _request(command: RequestToolCall, state: SessionState) -> EventData | None:
    if command.tool_use_id in state.calls:
        return None
    return ToolCallRequested(
        tool_use_id=command.tool_use_id,
        tool=command.tool,
        input=command.input,
        thread_id=command.thread_id,
        permission=command.permission,
    )


@_decide.register
def _deny(command: DenyToolCall, state: SessionState) -> EventData | None:
    if _call(state, command.tool_use_id, command).status is not CallStatus.REQUESTED:
        return None
    return ToolCallDenied(tool_use_id=command.tool_use_id, by=command.by, message=command.message)


@_decide.register
def _posted(command: RecordPosted, state: SessionState) -> EventData | None:
    if _call(state, command.tool_use_id, command).status is CallStatus.POSTED:
        return None
    return SessionResultPosted(tool_use_id=command.tool_use_id, outcome=command.outcome, detail=command.detail)


@_decide.register
def _idle(command: Idle, state: SessionState) -> EventData | None:
    del state  # each turn's end is an event of its own
    return SessionIdled(stop_reason=command.stop_reason)


@_decide.register
def _lose(command: LoseLease, state: SessionState) -> EventData | None:
    if not _gives_up(state, command, command.claim_id):
        return None
    return SessionLeaseLost(claim_id=command.claim_id, reason=command.reason, detail=command.detail)


@_decide.register
def _release(command: Release, state: SessionState) -> EventData | None:
    if command.reason != "abandoned" and not _gives_up(state, command, command.claim_id):
        return None
    if command.reason == "abandoned" and state.phase is Phase.RELEASED and command.claim_id == state.last_claim_id:
        return None
    return SessionReleased(claim_id=command.claim_id, reason=command.reason)


@_decide.register
def _fail(command: Fail, state: SessionState) -> EventData | None:
    if state.phase is Phase.FAILED and state.failure == command.reason:
        return None
    return SessionFailed(reason=command.reason, detail=command.detail, next_step=command.next_step)


@_decide.register
def _keep(command: KeepSandbox, state: SessionState) -> EventData | None:
    if any(call.tool_use_id not in (command.asked_by, *command.waiting) for call in state.open_calls):
        raise _illegal(state, command, "a tool call of it has no posted result yet")
    if state.sandbox_id == command.sandbox_id and not command.ended:
        return None
    return SessionSandboxKept(sandbox_id=command.sandbox_id, previous=command.previous, ended=list(command.ended))


@_decide.register
def _terminate(command: Terminate, state: SessionState) -> EventData | None:
    return None if state.phase is Phase.TERMINATED else SessionTerminated(reason=command.reason)


def _gives_up(state: SessionState, command: Command, claim_id: str) -> bool:
    """Whether there is a claim to give up; False where it was given up already."""
    if state.claim_id and state.claim_id == claim_id:
        return True
    if claim_id == state.last_claim_id:
        return False
    raise _illegal(state, command, f"it holds claim {state.claim_id or 'none'}, not {claim_id}")


def _call(state: SessionState, tool_use_id: str, command: Command) -> SessionCall:
    call = state.calls.get(tool_use_id)
    if call is None:
        raise _illegal(state, command, f"no call {tool_use_id} was requested")
    return call
