"""What a sandbox is: the fold of its stream, and what its commands lead to.

`decide(state, command)` gives the events that a command leads to, `evolve(state, data)` the state after an event. Both
are pure. A command for what is already so decides nothing, since commands are repeated; one that the state does not
allow raises `IllegalTransition`, and so does an event in a history that can't be.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import singledispatch
from typing import TYPE_CHECKING

from events.egress_commands import (
    ChangeEgress,
    CloseEgress,
    ConnectEgress,
    EditEgress,
    FollowSettings,
    RefuseEgress,
    decide_egress,
)
from events.errors import IllegalTransition
from events.life import illegal
from events.sandbox_commands import (
    Adopt,
    CloseForward,
    Command,
    CompleteCall,
    Crash,
    Create,
    EndProcess,
    Fork,
    Freeze,
    InterruptCall,
    Kill,
    OpenForward,
    OpenProcess,
    RecordCopy,
    Recover,
    Resume,
    Snapshot,
    Start,
    StartCall,
    Stop,
    StoreSnapshot,
    Suspend,
    Thaw,
    Used,
)
from events.sandbox_state import LIFE, TRANSITIONS, CallStatus, Phase, SandboxCall, SandboxState, evolve, fold, load
from events.types import (
    EventData,
    SandboxAdopted,
    SandboxCrashed,
    SandboxCreated,
    SandboxFileCopied,
    SandboxForked,
    SandboxForwardClosed,
    SandboxForwardOpened,
    SandboxFrozen,
    SandboxKilled,
    SandboxProcessEnded,
    SandboxProcessStarted,
    SandboxRecovered,
    SandboxResumed,
    SandboxSnapshotStored,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxStopped,
    SandboxSuspended,
    SandboxThawed,
    ToolCallCompleted,
    ToolCallInterrupted,
    ToolCallStarted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "TRANSITIONS",
    "Adopt",
    "CallStatus",
    "ChangeEgress",
    "CloseEgress",
    "CloseForward",
    "Command",
    "CompleteCall",
    "ConnectEgress",
    "Crash",
    "Create",
    "EditEgress",
    "EndProcess",
    "FollowSettings",
    "Fork",
    "Freeze",
    "InterruptCall",
    "Kill",
    "OpenForward",
    "OpenProcess",
    "Phase",
    "RecordCopy",
    "Recover",
    "RefuseEgress",
    "Resume",
    "SandboxCall",
    "SandboxState",
    "Snapshot",
    "Start",
    "StartCall",
    "Stop",
    "StoreSnapshot",
    "Suspend",
    "Thaw",
    "Used",
    "decide",
    "evolve",
    "fold",
    "load",
]


def decide(state: SandboxState, command: Command) -> list[EventData]:
    """The events that a command leads to; none where it is already so.

    Raises:
        IllegalTransition: the state does not allow it.
    """
    event = _decide(command, state)
    if event is None:
        return []
    LIFE.check(state, event.type, type(command).__name__)
    return [event]


def _illegal(state: SandboxState, command: Command, because: str) -> IllegalTransition:
    return illegal(state, type(command).__name__, because)


@singledispatch
def _decide(command: object, state: SandboxState) -> EventData | None:
    msg = f"not a sandbox's command: {type(command).__name__}"
    raise TypeError(msg)


@_decide.register
def _create(command: Create, state: SandboxState) -> EventData | None:
    if state.phase not in (Phase.ABSENT, Phase.KILLED) and command.session_id == state.session_id:
        return None
    return SandboxCreated(
        session_id=command.session_id,
        driver=command.driver,
        template=command.template,
        limits=command.limits,
        parent=command.parent,
        parent_version=command.parent_version,
    )


@_decide.register
def _start(command: Start, state: SandboxState) -> EventData | None:
    if state.phase is Phase.RUNNING and command.machine_id == state.machine_id:
        return None
    return SandboxStarted(
        machine_id=command.machine_id,
        node=command.node,
        seconds=command.seconds,
        agent_version=command.agent_version,
    )


@_decide.register
def _stop(command: Stop, state: SandboxState) -> EventData | None:
    if state.phase is Phase.STOPPED:
        return None
    return SandboxStopped(reason=command.reason, **asdict(command.used))


@_decide.register
def _crash(command: Crash, state: SandboxState) -> EventData | None:
    if state.phase is Phase.CRASHED:
        return None
    return SandboxCrashed(reason=command.reason, detail=command.detail, **asdict(command.used))


@_decide.register
def _freeze(command: Freeze, state: SandboxState) -> EventData | None:
    return None if state.phase is Phase.FROZEN else SandboxFrozen(reason=command.reason, **asdict(command.used))


@_decide.register
def _thaw(command: Thaw, state: SandboxState) -> EventData | None:
    return None if state.phase is Phase.RUNNING else SandboxThawed(seconds=command.seconds)


@_decide.register
def _snapshot(command: Snapshot, state: SandboxState) -> EventData | None:
    if state.snapshot_id == command.snapshot_id:
        return None
    return SandboxSnapshotted(
        snapshot_id=command.snapshot_id,
        node=command.node,
        image_bytes=command.image_bytes,
        tree_digest=command.tree_digest,
        tree_bytes=command.tree_bytes,
        seconds=command.held_seconds,
        reason=command.reason,
        of_version=command.of_version,
    )


@_decide.register
def _store_snapshot(command: StoreSnapshot, state: SandboxState) -> EventData | None:
    if command.snapshot_id in state.stored:
        return None
    return SandboxSnapshotStored(
        snapshot_id=command.snapshot_id,
        manifest=command.manifest,
        bytes=command.size,
        new_bytes=command.new_size,
        seconds=command.seconds,
    )


@_decide.register
def _suspend(command: Suspend, state: SandboxState) -> EventData | None:
    if state.phase is Phase.SUSPENDED:
        return None
    if command.reason != "fork" and state.snapshot_id != command.snapshot_id:
        raise _illegal(state, command, f"its last snapshot is {state.snapshot_id or 'none'}, not {command.snapshot_id}")
    return SandboxSuspended(
        reason=command.reason, snapshot_id=command.snapshot_id, seconds=command.seconds, **asdict(command.used)
    )


@_decide.register
def _resume(command: Resume, state: SandboxState) -> EventData | None:
    if state.phase is Phase.RUNNING and command.machine_id == state.machine_id:
        return None
    return SandboxResumed(
        machine_id=command.machine_id, node=command.node, snapshot_id=command.snapshot_id, seconds=command.seconds
    )


@_decide.register
def _fork(command: Fork, state: SandboxState) -> EventData | None:
    if command.child in state.children:
        return None
    return SandboxForked(child=command.child, snapshot_id=command.snapshot_id)


@_decide.register
def _adopt(command: Adopt, state: SandboxState) -> EventData | None:
    if state.branched and state.session_id == command.session_id:
        return None
    if not state.is_free_branch:
        whose = f"session {state.session_id}'s" if state.session_id else "no branch"
        raise _illegal(state, command, f"it is {whose}")
    return SandboxAdopted(session_id=command.session_id)


@_decide.register
def _recover(command: Recover, state: SandboxState) -> EventData | None:
    if state.phase is not Phase.CRASHED and command.machine_id != state.machine_id:
        raise illegal(
            state, type(command).__name__, f"its machine is {state.machine_id or 'none'}, not {command.machine_id}"
        )
    # A machine that is found again is an event each time, though nothing changes: it tells that a host died.
    if state.phase is Phase.RUNNING and command.kept == "files":
        return None
    return SandboxRecovered(
        machine_id=command.machine_id, node=command.node, kept=command.kept, seconds=command.seconds
    )


@_decide.register
def _kill(command: Kill, state: SandboxState) -> EventData | None:
    if state.phase is Phase.KILLED:
        return None
    return SandboxKilled(reason=command.reason, **asdict(command.used))


@_decide.register
def _start_call(command: StartCall, state: SandboxState) -> EventData | None:
    if command.tool_use_id in state.calls:
        return None
    return ToolCallStarted(tool_use_id=command.tool_use_id, tool=command.tool, input=command.input)


@_decide.register
def _complete(command: CompleteCall, state: SandboxState) -> EventData | None:
    if _is_ended(state, command.tool_use_id, CallStatus.COMPLETED, command):
        return None
    return ToolCallCompleted(
        tool_use_id=command.tool_use_id,
        content=command.content,
        is_error=command.is_error,
        seconds=command.seconds,
        output_bytes=command.output_bytes,
    )


@_decide.register
def _interrupt(command: InterruptCall, state: SandboxState) -> EventData | None:
    if _is_ended(state, command.tool_use_id, CallStatus.INTERRUPTED, command):
        return None
    return ToolCallInterrupted(tool_use_id=command.tool_use_id, reason=command.reason, content=list(command.content))


@_decide.register
def _open_process(command: OpenProcess, state: SandboxState) -> EventData | None:
    if command.process_id in state.processes:
        return None
    return SandboxProcessStarted(
        process_id=command.process_id, command=command.command, terminal=command.terminal, by=command.by
    )


@_decide.register
def _end_process(command: EndProcess, state: SandboxState) -> EventData | None:
    if not _is_open(state, state.processes, command.process_id, command):
        return None
    return SandboxProcessEnded(
        process_id=command.process_id,
        exit_code=command.exit_code,
        seconds=command.seconds,
        bytes_out=command.bytes_out,
    )


@_decide.register
def _open_forward(command: OpenForward, state: SandboxState) -> EventData | None:
    if command.forward_id in state.forwards:
        return None
    return SandboxForwardOpened(forward_id=command.forward_id, port=command.port)


@_decide.register
def _close_forward(command: CloseForward, state: SandboxState) -> EventData | None:
    if not _is_open(state, state.forwards, command.forward_id, command):
        return None
    return SandboxForwardClosed(
        forward_id=command.forward_id,
        seconds=command.seconds,
        bytes_in=command.bytes_in,
        bytes_out=command.bytes_out,
    )


@_decide.register
def _copy(command: RecordCopy, state: SandboxState) -> EventData | None:
    del state  # each copy is an event of its own
    return SandboxFileCopied(path=command.path, direction=command.direction, bytes=command.size)


@_decide.register
def _egress(
    command: ChangeEgress | EditEgress | FollowSettings | ConnectEgress | CloseEgress | RefuseEgress,
    state: SandboxState,
) -> EventData | None:
    return decide_egress(state, command)


def _is_open(state: SandboxState, known: Mapping[str, bool], which: str, command: Command) -> bool:
    """Whether it has an end to come; one that never began has none to record."""
    is_open = known.get(which)
    if is_open is None:
        raise _illegal(state, command, f"no {which} was opened")
    return is_open


def _is_ended(state: SandboxState, tool_use_id: str, status: CallStatus, command: Command) -> bool:
    """Whether a call ended this way already; the first outcome stands, so any other way is refused."""
    call = state.calls.get(tool_use_id)
    if call is None:
        raise _illegal(state, command, f"no call {tool_use_id} was started")
    if call.status is CallStatus.STARTED:
        return False
    if call.status is status:
        return True
    raise _illegal(state, command, f"call {tool_use_id} is {call.status.value} already")
