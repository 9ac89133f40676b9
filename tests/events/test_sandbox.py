from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.continuing import why_not
from events.errors import IllegalTransition
from events.sandbox import (
    TRANSITIONS,
    Adopt,
    CallStatus,
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
    Phase,
    RecordCopy,
    Recover,
    Resume,
    SandboxState,
    Snapshot,
    Start,
    StartCall,
    Stop,
    Suspend,
    Thaw,
    Used,
    decide,
    evolve,
)
from events.sandbox_state import LIFE
from events.types import (
    Limits,
    SandboxBranched,
    SandboxFrozen,
    SandboxResumed,
    SandboxSuspended,
    SandboxThawed,
)

if TYPE_CHECKING:
    from typing import Literal

    from events.types import EventData

CREATE = Create(session_id="s", driver="gvisor", template="base", limits=Limits())
STOP = Stop(reason="shutdown")
CRASH = Crash(reason="out_of_memory", detail="exit 137")
KILL = Kill(reason="session_over")


def start(machine_id: str = "m1") -> Start:
    return Start(machine_id=machine_id, node="n", seconds=0.1, agent_version="1")


def recover(kept: Literal["memory_and_files", "files"] = "files", machine_id: str = "m2") -> Recover:
    return Recover(machine_id=machine_id, node="n2", kept=kept, seconds=0.1)


def call(tool_use_id: str = "t1") -> StartCall:
    return StartCall(tool_use_id=tool_use_id, tool="bash", input={"command": "true"})


def complete(tool_use_id: str = "t1") -> CompleteCall:
    return CompleteCall(tool_use_id=tool_use_id, content=[{"type": "text", "text": "ok"}], is_error=False, seconds=1)


def interrupt(tool_use_id: str = "t1") -> InterruptCall:
    return InterruptCall(tool_use_id=tool_use_id, reason="machine_lost", content=({"type": "text", "text": "gone"},))


FREEZE = Freeze(reason="idle", used=Used(1.5, 2**20))
THAW = Thaw(seconds=0.001)


def snapshot(snapshot_id: str = "snap-1") -> Snapshot:
    return Snapshot(snapshot_id=snapshot_id, node="n", image_bytes=9, held_seconds=0.1, reason="suspend")


def suspend(snapshot_id: str = "snap-1") -> Suspend:
    return Suspend(reason="idle", snapshot_id=snapshot_id, seconds=0.2, used=Used(1.5, 2**20))


def resume(machine_id: str = "m2") -> Resume:
    return Resume(machine_id=machine_id, node="n", snapshot_id="snap-1", seconds=0.1)


def open_process(process_id: str = "p1") -> OpenProcess:
    return OpenProcess(process_id=process_id, command="bash -l", terminal=True, by="shell")


def end_process(process_id: str = "p1") -> EndProcess:
    return EndProcess(process_id=process_id, exit_code=None, seconds=3.0, bytes_out=9)


def open_forward(forward_id: str = "f1") -> OpenForward:
    return OpenForward(forward_id=forward_id, port=8000)


def close_forward(forward_id: str = "f1") -> CloseForward:
    return CloseForward(forward_id=forward_id, seconds=3.0, bytes_in=1, bytes_out=2)


def fork(child: str = "c") -> Fork:
    return Fork(child=child, snapshot_id="snap-1")


def after(*commands: Command) -> SandboxState:
    state = SandboxState("x")
    for command in commands:
        for data in decide(state, command):
            state = evolve(state, data)
    return state


@pytest.mark.parametrize(
    ("commands", "phase"),
    [
        ((), Phase.ABSENT),
        ((CREATE,), Phase.CREATED),
        ((CREATE, start()), Phase.RUNNING),
        ((CREATE, start(), STOP), Phase.STOPPED),
        ((CREATE, start(), STOP, start("m2")), Phase.RUNNING),
        ((CREATE, start(), CRASH), Phase.CRASHED),
        ((CREATE, start(), CRASH, recover()), Phase.RUNNING),
        ((CREATE, start(), recover("memory_and_files", "m1")), Phase.RUNNING),
        ((CREATE, KILL), Phase.KILLED),
        ((CREATE, start(), CRASH, KILL), Phase.KILLED),
    ],
)
def test_where_commands_lead(commands: tuple[Command, ...], phase: Phase) -> None:
    assert after(*commands).phase is phase


@pytest.mark.parametrize(
    ("commands", "again"),
    [
        ((CREATE,), CREATE),
        ((CREATE, start()), CREATE),
        ((CREATE, start()), start()),
        ((CREATE, start(), STOP), STOP),
        ((CREATE, start(), CRASH), CRASH),
        ((CREATE, start(), CRASH, recover()), recover()),
        ((CREATE, KILL), KILL),
        ((CREATE, start(), call()), call()),
        ((CREATE, start(), call(), complete()), call()),
        ((CREATE, start(), call(), complete()), complete()),
        ((CREATE, start(), call(), interrupt()), interrupt()),
        ((CREATE, start(), call(), interrupt()), call()),
        ((CREATE, start(), FREEZE), FREEZE),
        ((CREATE, start(), FREEZE, THAW), THAW),
        ((CREATE, start(), snapshot()), snapshot()),
        ((CREATE, start(), snapshot(), suspend()), suspend()),
        ((CREATE, start(), snapshot(), suspend(), resume()), resume()),
        ((CREATE, start(), snapshot(), fork()), fork()),
        ((CREATE, start(), open_process()), open_process()),
        ((CREATE, start(), open_process(), end_process()), open_process()),
        ((CREATE, start(), open_process(), end_process()), end_process()),
        ((CREATE, start(), open_forward()), open_forward()),
        ((CREATE, start(), open_forward(), close_forward()), close_forward()),
    ],
)
def test_what_is_already_so_decides_nothing(commands: tuple[Command, ...], again: Command) -> None:
    assert decide(after(*commands), again) == []


@pytest.mark.parametrize(
    ("commands", "illegal", "because"),
    [
        ((), start(), "version 1"),
        ((), KILL, "version 1"),
        ((CREATE,), STOP, "version 2"),
        ((CREATE,), call(), "version 2"),
        ((CREATE, start()), start("m2"), "version 3"),
        ((CREATE, start()), recover("files", "m2"), "its machine is m1, not m2"),
        ((CREATE, start()), complete(), "no call t1 was started"),
        ((CREATE, start(), CRASH), start("m2"), "version 4"),
        ((CREATE, start(), CRASH), call(), "version 4"),
        ((CREATE, start(), call(), complete()), interrupt(), "call t1 is completed already"),
        ((CREATE, start(), call(), interrupt()), complete(), "call t1 is interrupted already"),
        ((CREATE, start(), FREEZE), open_process(), "version 4"),
        ((CREATE, start(), FREEZE), open_forward(), "version 4"),
        ((CREATE, start()), end_process(), "no p1 was opened"),
        ((CREATE, start()), close_forward(), "no f1 was opened"),
        ((CREATE, start(), snapshot(), suspend()), CRASH, "version 5"),
        ((CREATE, start(), snapshot(), suspend()), FREEZE, "version 5"),
        ((CREATE, start()), resume("m3"), "version 3"),
        ((CREATE, KILL), CREATE, "version 3"),
        ((CREATE, KILL), start(), "version 3"),
        (
            (CREATE,),
            Create(session_id="other", driver="gvisor", template="base", limits=Limits()),
            "version 2",
        ),
    ],
)
def test_what_is_not_possible_is_refused(commands: tuple[Command, ...], illegal: Command, because: str) -> None:
    state = after(*commands)
    with pytest.raises(IllegalTransition) as caught:
        decide(state, illegal)
    error = caught.value
    assert (error.stream, error.phase, error.what) == ("sandbox-x", state.phase.value, type(illegal).__name__)
    assert because in str(error)


def test_only_commands_are_decided() -> None:
    with pytest.raises(TypeError, match="not a sandbox's command: str"):
        decide(SandboxState("x"), "start")  # type: ignore[arg-type]


def test_what_a_sandbox_is() -> None:
    state = after(CREATE, start())
    assert (state.session_id, state.driver, state.template, state.limits) == ("s", "gvisor", "base", Limits())
    assert (state.machine_id, state.node) == ("m1", "n")
    moved = after(CREATE, start(), CRASH, recover())
    assert (moved.machine_id, moved.node) == ("m2", "n2")


@pytest.mark.parametrize(
    ("commands", "lost"),
    [
        ((CREATE, start()), False),
        ((CREATE, start(), STOP), False),
        ((CREATE, start(), STOP, start("m2")), True),
        ((CREATE, start(), STOP, start("m2"), call()), True),
        ((CREATE, start(), STOP, start("m2"), call(), complete()), True),
        ((CREATE, start(), STOP, start("m2"), call(), interrupt()), False),
        ((CREATE, start(), CRASH, recover("files")), True),
        ((CREATE, start(), recover("memory_and_files", "m1")), False),
        ((CREATE, start(), CRASH, recover("files"), recover("memory_and_files", "m2")), True),
    ],
)
def test_lost_memory_is_known_until_the_agent_was_told(commands: tuple[Command, ...], lost: bool) -> None:
    assert after(*commands).memory_lost is lost


def test_the_result_of_a_call_is_kept() -> None:
    state = after(
        CREATE, start(), call("t1"), complete("t1"), CRASH, recover(), call("t2"), interrupt("t2"), call("t3")
    )
    first, second, third = (state.calls[one] for one in ("t1", "t2", "t3"))
    assert (first.status, first.content) == (CallStatus.COMPLETED, [{"type": "text", "text": "ok"}])
    assert (second.status, second.reason) == (CallStatus.INTERRUPTED, "machine_lost")
    assert [one.tool_use_id for one in state.open_calls] == ["t3"]
    assert third.content == []


def test_an_outcome_is_recorded_after_the_machine_is_gone() -> None:
    for end in (STOP, CRASH, KILL):
        assert after(CREATE, start(), call(), end, complete()).open_calls == []
        assert after(CREATE, start(), call(), end, interrupt()).open_calls == []


def test_pauses_are_folded() -> None:
    state = after(CREATE, start(), call(), complete())
    for data, phase in (
        (SandboxFrozen(reason="idle"), Phase.FROZEN),
        (SandboxThawed(seconds=0.1), Phase.RUNNING),
        (SandboxSuspended(reason="idle", snapshot_id="snap"), Phase.SUSPENDED),
        (SandboxResumed(machine_id="m9", node="n", snapshot_id="snap", seconds=0.1), Phase.RUNNING),
    ):
        state = evolve(state, data)
        assert state.phase is phase
    assert (state.machine_id, state.memory_lost) == ("m9", False)


def test_states_travel_between_processes() -> None:
    state = after(CREATE, start(), call(), complete(), snapshot(), fork(), open_process(), open_forward())
    assert pickle.loads(pickle.dumps(state)) == state


def test_a_pause_leads_to_disk_and_back() -> None:
    state = after(CREATE, start(), FREEZE)
    assert state.phase is Phase.FROZEN
    assert after(CREATE, start(), FREEZE, THAW).phase is Phase.RUNNING
    state = after(CREATE, start(), FREEZE, snapshot(), suspend())
    assert (state.phase, state.snapshot_id, state.memory_lost) == (Phase.SUSPENDED, "snap-1", False)
    state = after(CREATE, start(), snapshot(), suspend(), resume())
    assert (state.phase, state.machine_id, state.memory_lost) == (Phase.RUNNING, "m2", False)


def test_only_what_was_recorded_as_a_snapshot_can_be_suspended_to() -> None:
    with pytest.raises(IllegalTransition, match="its last snapshot is snap-1, not snap-2"):
        decide(after(CREATE, start(), snapshot()), suspend("snap-2"))


def test_memory_that_is_given_up_is_told_of() -> None:
    state = after(CREATE, start(), snapshot(), suspend(), STOP, start("m3"))
    assert (state.phase, state.memory_lost) == (Phase.RUNNING, True)


def test_a_snapshot_is_of_the_version_before_it() -> None:
    state = after(CREATE, start(), call(), complete(), snapshot())
    assert (state.snapshot_id, state.snapshot_version, state.version) == ("snap-1", 4, 5)
    # Suspending to it makes no other of it.
    state = after(CREATE, start(), snapshot(), suspend(), resume())
    assert (state.snapshot_version, state.version) == (2, 5)
    assert after(CREATE, start(), snapshot(), call(), snapshot("snap-2")).snapshot_version == 4


def test_a_branch_begins_with_what_it_was_rebuilt_from() -> None:
    branched = SandboxBranched(
        parent="p",
        parent_version=7,
        snapshot_id="snap-3",
        session_id="s",
        driver="gvisor",
        template="base",
        limits=Limits(),
    )
    state = evolve(SandboxState("x"), branched)
    assert (state.parent, state.snapshot_id, state.snapshot_version) == ("p", "snap-3", 0)
    # It is of no family of forks.
    assert (state.branched, state.forked_from, state.is_free_branch) == (True, "", False)


def test_only_a_free_branch_that_is_whole_is_adopted_and_once() -> None:
    branched = SandboxBranched(
        parent="p",
        parent_version=7,
        snapshot_id="snap-3",
        session_id="",
        driver="gvisor",
        template="base",
        limits=Limits(),
    )
    half = evolve(SandboxState("x"), branched)
    asleep = evolve(half, *decide(half, Suspend(reason="fork", snapshot_id="snap-3")))
    (adopted,) = decide(asleep, Adopt(session_id="s"))
    taken = evolve(asleep, adopted)
    assert (asleep.is_free_branch, taken.is_free_branch, taken.session_id) == (True, False, "s")
    assert taken.phase is Phase.SUSPENDED
    assert decide(taken, Adopt(session_id="s")) == []
    for state, because in ((half, "created"), (taken, "session s's"), (after(CREATE, start()), "session s's")):
        with pytest.raises(IllegalTransition, match=because):
            decide(state, Adopt(session_id="other"))
    assert [why_not(one) for one in (asleep, half, SandboxState("x"))] == [
        "",
        "branch x is not made to its end",
        "there is no sandbox x in this log",
    ]
    assert why_not(taken) == "branch x is in use by session s"
    assert why_not(taken, "s") == ""
    assert why_not(after(CREATE, start())) == "sandbox x is no branch"


def test_forks_are_remembered_one_by_one() -> None:
    state = after(CREATE, start(), snapshot(), fork("a"), fork("b"), KILL)
    assert sorted(state.children) == ["a", "b"]


def test_processes_and_forwards_are_open_until_an_end_is_recorded() -> None:
    state = after(CREATE, start(), open_process("p2"), open_process(), open_forward(), end_process("p2"))
    assert (state.open_processes, state.open_forwards) == (["p1"], ["f1"])
    # Their host died with the machine: whoever comes next records what it finds.
    state = after(CREATE, start(), open_process(), open_forward(), CRASH, end_process(), close_forward())
    assert (state.open_processes, state.open_forwards) == ([], [])


def test_every_copy_is_an_event() -> None:
    copy = RecordCopy(path="/workspace/a", direction="in", size=3)
    assert after(CREATE, start(), copy, copy).version == 4


def test_a_fork_begins_suspended_on_its_parents_snapshot() -> None:
    create = Create(session_id="s", driver="gvisor", template="base", limits=Limits(), parent="p", parent_version=7)
    state = after(create, Suspend(reason="fork", snapshot_id="snap-9"))
    assert (state.phase, state.snapshot_id, state.parent) == (Phase.SUSPENDED, "snap-9", "p")
    assert [one.type for one in decide(after(CREATE, start()), Fork(child="c", snapshot_id="snap-9"))] == [
        "sandbox.forked"
    ]


def test_no_call_starts_in_a_machine_that_does_not_run() -> None:
    for state in (after(CREATE, start(), FREEZE), after(CREATE, start(), snapshot(), suspend())):
        with pytest.raises(IllegalTransition):
            decide(state, call())


IDS = st.sampled_from(["t1", "t2", "t3"])
MACHINES = st.sampled_from(["m1", "m2"])
SNAPSHOTS = st.sampled_from(["snap-1", "snap-2"])
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.just(CREATE),
    MACHINES.map(start),
    st.just(STOP),
    st.just(CRASH),
    MACHINES.map(lambda machine: recover("files", machine)),
    MACHINES.map(lambda machine: recover("memory_and_files", machine)),
    st.just(KILL),
    st.just(FREEZE),
    st.just(THAW),
    SNAPSHOTS.map(snapshot),
    SNAPSHOTS.map(suspend),
    MACHINES.map(resume),
    IDS.map(fork),
    IDS.map(open_process),
    IDS.map(end_process),
    IDS.map(open_forward),
    IDS.map(close_forward),
    IDS.map(call),
    IDS.map(complete),
    IDS.map(interrupt),
)


@given(st.lists(COMMANDS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_what_is_decided_can_happen_and_folds_alike(commands: list[Command]) -> None:
    state = SandboxState("x")
    history: list[EventData] = []
    for command in commands:
        try:
            decided = decide(state, command)
        except IllegalTransition:
            continue
        for data in decided:
            assert TRANSITIONS[data.type][state.phase]
            state = evolve(state, data)
        history += decided
        if not isinstance(command, Recover):
            assert decide(state, command) == []
    assert LIFE.fold(SandboxState("x"), history) == state
    assert state.version == len(history)
