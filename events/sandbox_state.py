"""What a sandbox is after some prefix of its stream: phases, the one table of transitions, the fold."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from rpds import HashTrieMap, HashTrieSet

from events.life import Life, data_of, illegal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from events.envelope import Event
    from events.log import EventLog
    from events.payload import JsonObject
    from events.types import (
        EgressPolicyChanged,
        EventData,
        Limits,
        SandboxAdopted,
        SandboxBranched,
        SandboxCreated,
        SandboxForked,
        SandboxForwardClosed,
        SandboxForwardOpened,
        SandboxProcessEnded,
        SandboxProcessStarted,
        SandboxRecovered,
        SandboxResumed,
        SandboxSnapshotStored,
        SandboxSnapshotted,
        SandboxStarted,
        SandboxSuspended,
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
    # Not from created: it may lack what it is to begin with.
    "sandbox.adopted": {phase: phase for phase in _NOT_KILLED if phase is not Phase.CREATED},
    "sandbox.started": dict.fromkeys((Phase.CREATED, Phase.STOPPED), Phase.RUNNING),
    # From suspended: its memory is given up on purpose, the files stay.
    "sandbox.stopped": dict.fromkeys((*_ALIVE, Phase.SUSPENDED), Phase.STOPPED),
    "sandbox.crashed": dict.fromkeys(_ALIVE, Phase.CRASHED),
    # From running: the machine outlived the host that knew it.
    "sandbox.recovered": dict.fromkeys((*_ALIVE, Phase.CRASHED), Phase.RUNNING),
    "sandbox.frozen": {Phase.RUNNING: Phase.FROZEN},
    "sandbox.thawed": {Phase.FROZEN: Phase.RUNNING},
    # From created: a fork, whose memory is its parent's snapshot, or a branch.
    "sandbox.suspended": dict.fromkeys((*_ALIVE, Phase.CREATED), Phase.SUSPENDED),
    "sandbox.resumed": {Phase.SUSPENDED: Phase.RUNNING},
    "sandbox.killed": dict.fromkeys(_NOT_KILLED, Phase.KILLED),
    "tool_call.started": {Phase.RUNNING: Phase.RUNNING},
    "tool_call.completed": _OUTCOME,
    "tool_call.interrupted": _OUTCOME,
    # One becomes durable while its machine runs on, and may crash. But a suspended sandbox goes on from its last one.
    # From created: a branch, which is rebuilt before its stream begins.
    "sandbox.snapshotted": {phase: phase for phase in (Phase.CREATED, *_ALIVE, Phase.CRASHED, Phase.STOPPED)},
    "sandbox.snapshot_stored": _UNCHANGED,
    "sandbox.forked": _UNCHANGED,
    "sandbox.process_started": {Phase.RUNNING: Phase.RUNNING},
    "sandbox.process_ended": _OUTCOME,
    "sandbox.forward_opened": {Phase.RUNNING: Phase.RUNNING},
    "sandbox.forward_closed": _OUTCOME,
    "sandbox.file_copied": _UNCHANGED,
    # Connections end, and are told of, after their machine did; refusals likewise.
    "egress.connected": _UNCHANGED,
    "egress.closed": _UNCHANGED,
    "egress.refused": _UNCHANGED,
    "egress.policy_changed": {phase: phase for phase in _NOT_KILLED},
    "replay.verified": _UNCHANGED,
    "replay.diverged": _UNCHANGED,
}
"""For each event type, from which phases it may happen, and where it leads: the one table of a sandbox's life."""


class CallStatus(StrEnum):
    """Where a tool call stands in the machine."""

    STARTED = "started"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"


class SandboxCall(NamedTuple):
    """A tool call, as the sandbox knows it."""

    tool_use_id: str
    tool: str
    input: JsonObject
    status: CallStatus
    content: list[JsonObject]
    """Recorded result, or what the agent is told of an interrupted call; empty before."""
    is_error: bool = False
    reason: str = ""
    """Why it was interrupted."""


# Nearly every event of a history makes a call anew, and SandboxCall(...) and CallStatus.STARTED take twice as long.
_STARTED, _COMPLETED = CallStatus.STARTED, CallStatus.COMPLETED
_call = partial(cast("Callable[..., SandboxCall]", tuple.__new__), SandboxCall)

_NO_CALLS: HashTrieMap[str, SandboxCall] = HashTrieMap()
_NOTHING_OPEN: HashTrieMap[str, bool] = HashTrieMap()
_NO_CHILDREN: HashTrieSet[str] = HashTrieSet()


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
    """The machine was restarted on its files alone, and the agent has not been told by an interrupted call."""
    version: int = 0
    """How many events were folded: the version of the stream's last one."""
    snapshot_id: str = ""
    """The last snapshot of it, or the one that it began with; "" where there is none."""
    snapshot_version: int = 0
    """The version of this stream that it is the state of; 0 where there is none, or it is a branch's first."""
    parent: str = ""
    """Of a fork or a branch: the sandbox that it was made from."""
    children: HashTrieSet[str] = field(default=_NO_CHILDREN)
    """Every fork of it, ended or not."""
    processes: HashTrieMap[str, bool] = field(default=_NOTHING_OPEN)
    """Every process ever opened beside the tool calls, by its id: whether it is open."""
    forwards: HashTrieMap[str, bool] = field(default=_NOTHING_OPEN)
    """Every forward ever opened, by its id: whether it is open."""
    stored: HashTrieSet[str] = field(default=_NO_CHILDREN)
    """The snapshots of it that were added to the snapshot store; a prune may have removed them since."""
    branched: bool = False
    """Whether it is a branch: its parent is another session's, or a past of this one's, and none of its family."""
    egress: tuple[str, ...] = ()
    """The allowlist: what it may reach, as texts that `egress_policy.Entry.parse` takes. Never a parent's by itself."""
    egress_settings: tuple[str, ...] | None = ()
    """What the settings gave when they were last asked; not all of it need be in the list. None: it follows no
    settings, as a branch, and what was forked from one."""
    egress_own: frozenset[str] = frozenset()
    """Of the list, what a person allowed: it stays when the settings have it no more."""
    egress_agent: tuple[str, ...] = ()
    """Id and name of the agent that the settings were asked for; empty where that is not known."""

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return f"sandbox-{self.sandbox_id}"

    @property
    def is_free_branch(self) -> bool:
        """Whether it is a branch that no session uses; killed or not."""
        return self.branched and not self.session_id

    @property
    def forked_from(self) -> str:
        """The sandbox that it is a fork of; "" where it is none, as a branch is."""
        return "" if self.branched else self.parent

    @property
    def open_calls(self) -> list[SandboxCall]:
        """Calls that were started and have no outcome, in no order."""
        return [call for call in self.calls.values() if call.status is CallStatus.STARTED]

    @property
    def open_processes(self) -> list[str]:
        """Processes beside the tool calls whose end is not recorded; after a host died, the next one records it."""
        return sorted(one for one, is_open in self.processes.items() if is_open)

    @property
    def open_forwards(self) -> list[str]:
        """Forwards whose end is not recorded; likewise."""
        return sorted(one for one, is_open in self.forwards.items() if is_open)


class _Draft:
    """A mutable twin of `SandboxState`."""

    __slots__ = (
        "branched",
        "calls",
        "children",
        "egress",
        "forwards",
        "known",
        "machine_id",
        "memory_lost",
        "node",
        "origin",
        "parent",
        "phase",
        "processes",
        "snapshot_id",
        "snapshot_version",
        "started",
        "state",
        "stored",
        "version",
    )

    def __init__(self, state: SandboxState) -> None:
        self.state = state
        self.phase = state.phase
        self.origin = (state.session_id, state.driver, state.template, state.limits)
        self.machine_id = state.machine_id
        self.node = state.node
        self.memory_lost = state.memory_lost
        self.version = state.version
        self.snapshot_id = state.snapshot_id
        self.snapshot_version = state.snapshot_version
        self.parent = state.parent
        self.children = state.children
        self.processes = state.processes
        self.forwards = state.forwards
        self.stored = state.stored
        self.branched = state.branched
        self.egress: tuple[tuple[str, ...], tuple[str, ...] | None, frozenset[str], tuple[str, ...]]
        self.egress = (state.egress, state.egress_settings, state.egress_own, state.egress_agent)
        self.known = state.calls
        self.calls: dict[str, SandboxCall] = {}
        """Those that changed and have an outcome."""
        self.started: dict[str, ToolCallStarted] = {}
        """Those that have none yet. Most do a moment later, so that none is made of them for nothing."""

    def freeze(self) -> SandboxState:
        self.calls |= {one: _open_call(data) for one, data in self.started.items()}
        self.started.clear()
        return SandboxState(
            self.state.sandbox_id,
            self.phase,
            *self.origin,
            self.machine_id,
            self.node,
            self.known.update(self.calls) if self.known else HashTrieMap(self.calls),
            self.memory_lost,
            self.version,
            self.snapshot_id,
            self.snapshot_version,
            self.parent,
            self.children,
            self.processes,
            self.forwards,
            self.stored,
            self.branched,
            *self.egress,
        )


_TELLING = frozenset({"machine_lost", "out_of_memory", "host_lost"})
"""Why a call is interrupted where the agent is told that processes and shell state are gone."""


def _created(draft: _Draft, data: SandboxCreated | SandboxBranched) -> None:
    draft.origin = (data.session_id, data.driver, data.template, data.limits)
    draft.parent = data.parent


def _branched(draft: _Draft, data: SandboxBranched) -> None:
    _created(draft, data)
    draft.snapshot_id = data.snapshot_id
    draft.branched = True
    draft.egress = ((), None, frozenset(), ())


def _adopted(draft: _Draft, data: SandboxAdopted) -> None:
    if not draft.branched or draft.origin[0]:
        raise illegal(draft.freeze(), data.type, "it is no branch that is free")
    draft.origin = (data.session_id, *draft.origin[1:])


def _started(draft: _Draft, data: SandboxStarted) -> None:
    draft.machine_id = data.machine_id
    draft.node = data.node
    draft.memory_lost = draft.phase is Phase.STOPPED


def _recovered(draft: _Draft, data: SandboxRecovered) -> None:
    draft.machine_id = data.machine_id
    draft.node = data.node
    draft.memory_lost = draft.memory_lost or data.kept == "files"


def _snapshotted(draft: _Draft, data: SandboxSnapshotted) -> None:
    if data.snapshot_id != draft.snapshot_id:
        # Else of the state before this event: it is counted only after this.
        draft.snapshot_id, draft.snapshot_version = data.snapshot_id, data.of_version or draft.version


def _stored(draft: _Draft, data: SandboxSnapshotStored) -> None:
    draft.stored = draft.stored.insert(data.snapshot_id)


def _suspended(draft: _Draft, data: SandboxSuspended) -> None:
    if data.snapshot_id != draft.snapshot_id:
        draft.snapshot_id, draft.snapshot_version = data.snapshot_id, draft.version


def _forked(draft: _Draft, data: SandboxForked) -> None:
    draft.children = draft.children.insert(data.child)


def _process_started(draft: _Draft, data: SandboxProcessStarted) -> None:
    draft.processes = _opened(draft, data.type, draft.processes, data.process_id)


def _process_ended(draft: _Draft, data: SandboxProcessEnded) -> None:
    draft.processes = _closed(draft, data.type, draft.processes, data.process_id)


def _forward_opened(draft: _Draft, data: SandboxForwardOpened) -> None:
    draft.forwards = _opened(draft, data.type, draft.forwards, data.forward_id)


def _forward_closed(draft: _Draft, data: SandboxForwardClosed) -> None:
    draft.forwards = _closed(draft, data.type, draft.forwards, data.forward_id)


def _opened(draft: _Draft, what: str, known: HashTrieMap[str, bool], which: str) -> HashTrieMap[str, bool]:
    if which in known:
        raise illegal(draft.freeze(), what, f"{which} was opened before")
    return known.insert(which, True)


def _closed(draft: _Draft, what: str, known: HashTrieMap[str, bool], which: str) -> HashTrieMap[str, bool]:
    if not known.get(which):
        raise illegal(draft.freeze(), what, f"{which} is not open")
    return known.insert(which, False)


def _egress_changed(draft: _Draft, data: EgressPolicyChanged) -> None:
    allowed, settings, own, _ = draft.egress
    given = set(data.settings or ()) - set(settings or ())
    # What is new in the list and not new in the settings came from a person.
    own = own.union(set(data.allow) - set(allowed) - given) & set(data.allow)
    followed = None if data.settings is None else tuple(data.settings)
    draft.egress = (tuple(data.allow), followed, own, tuple(data.agent))


def _resumed(draft: _Draft, data: SandboxResumed) -> None:
    draft.machine_id = data.machine_id
    draft.node = data.node


def _call_started(draft: _Draft, data: ToolCallStarted) -> None:
    tool_use_id = data.tool_use_id
    if tool_use_id in draft.started or tool_use_id in draft.calls or tool_use_id in draft.known:
        raise illegal(draft.freeze(), data.type, f"call {tool_use_id} was started before")
    draft.started[tool_use_id] = data


def _call_completed(draft: _Draft, data: ToolCallCompleted) -> None:
    tool_use_id = data.tool_use_id
    call = draft.started.pop(tool_use_id, None) or _known_open(draft, data)
    draft.calls[tool_use_id] = _call((tool_use_id, call.tool, call.input, _COMPLETED, data.content, data.is_error, ""))


def _call_interrupted(draft: _Draft, data: ToolCallInterrupted) -> None:
    tool_use_id = data.tool_use_id
    call = draft.started.pop(tool_use_id, None) or _known_open(draft, data)
    if data.reason in _TELLING:
        draft.memory_lost = False
    draft.calls[tool_use_id] = _call(
        (tool_use_id, call.tool, call.input, CallStatus.INTERRUPTED, data.content, True, data.reason)
    )


def _open_call(data: ToolCallStarted) -> SandboxCall:
    return _call((data.tool_use_id, data.tool, data.input, _STARTED, [], False, ""))


def _known_open(draft: _Draft, data: ToolCallCompleted | ToolCallInterrupted) -> SandboxCall:
    """A call that was open before this fold began. Raises `IllegalTransition` where it was not."""
    call = draft.calls.get(data.tool_use_id) or draft.known.get(data.tool_use_id)
    if call is None or call.status is not _STARTED:
        because = f"call {data.tool_use_id} is {call.status.value if call else 'unknown'}, not started"
        raise illegal(draft.freeze(), data.type, because)
    return call


LIFE = Life[SandboxState, _Draft](
    TRANSITIONS,
    {
        "sandbox.created": _created,
        "sandbox.branched": _branched,
        "sandbox.adopted": _adopted,
        "sandbox.started": _started,
        "sandbox.recovered": _recovered,
        "sandbox.resumed": _resumed,
        "sandbox.snapshotted": _snapshotted,
        "sandbox.snapshot_stored": _stored,
        "sandbox.suspended": _suspended,
        "sandbox.forked": _forked,
        "sandbox.process_started": _process_started,
        "sandbox.process_ended": _process_ended,
        "sandbox.forward_opened": _forward_opened,
        "sandbox.forward_closed": _forward_closed,
        "egress.policy_changed": _egress_changed,
        "tool_call.started": _call_started,
        "tool_call.completed": _call_completed,
        "tool_call.interrupted": _call_interrupted,
    },
    _Draft,
)
"""The two tables, joined."""


def evolve(state: SandboxState, data: EventData) -> SandboxState:
    """The state after one more event.

    Raises:
        IllegalTransition: no sandbox can come from this state by this event: the stream is not a sandbox's.
    """
    return LIFE.fold(state, (data,))


def fold(state: SandboxState, events: Iterable[Event]) -> SandboxState:
    """The state after these events; `SandboxState(sandbox_id)` is the one before the first.

    Raises:
        IllegalTransition: as `evolve`.
    """
    return LIFE.fold(state, data_of(events))


def load(log: EventLog, sandbox_id: str) -> SandboxState:
    """The state of a sandbox now, from its whole stream: the fastest way there is.

    Raises:
        IllegalTransition: as `evolve`.
        LogError: as `EventLog.read`.
    """
    state = SandboxState(sandbox_id)
    return LIFE.fold(state, log.read_data(state.stream))
