from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.errors import IllegalTransition
from events.session import (
    TRANSITIONS,
    Attach,
    CallStatus,
    Claim,
    Command,
    DenyToolCall,
    Fail,
    Idle,
    KeepSandbox,
    LoseLease,
    Phase,
    RecordPosted,
    Release,
    RequestToolCall,
    SessionState,
    Terminate,
    decide,
    evolve,
)
from events.session_state import LIFE

if TYPE_CHECKING:
    from events.types import EventData


def claim(claim_id: str = "c1") -> Claim:
    return Claim(claim_id=claim_id, environment_id="e", work_id="s", worker_id="w", credential="session_token")


def attach(claim_id: str = "c1", sandbox_id: str = "sbx-1") -> Attach:
    return Attach(claim_id=claim_id, sandbox_id=sandbox_id, history_events=3)


def request(tool_use_id: str = "t1", thread_id: str = "") -> RequestToolCall:
    return RequestToolCall(tool_use_id=tool_use_id, tool="bash", input={"command": "true"}, thread_id=thread_id)


def lose(claim_id: str = "c1") -> LoseLease:
    return LoseLease(claim_id=claim_id, reason="precondition_failed")


def release(claim_id: str = "c1") -> Release:
    return Release(claim_id=claim_id, reason="idle")


FAIL = Fail(reason="no_progress", detail="d")
TERMINATE = Terminate(reason="deleted")
POSTED = RecordPosted(tool_use_id="t1")
DENY = DenyToolCall(tool_use_id="t1", by="user", message="no")


def after(*commands: Command) -> SessionState:
    state = SessionState("s")
    for command in commands:
        for data in decide(state, command):
            state = evolve(state, data)
    return state


@pytest.mark.parametrize(
    ("commands", "phase"),
    [
        ((), Phase.UNCLAIMED),
        ((claim(),), Phase.CLAIMED),
        ((claim(), attach()), Phase.ATTACHED),
        ((claim(), attach(), lose()), Phase.LOST),
        ((claim(), attach(), release()), Phase.RELEASED),
        ((claim(), FAIL), Phase.FAILED),
        ((claim(), FAIL, release()), Phase.RELEASED),
        ((claim(), attach(), TERMINATE), Phase.TERMINATED),
        ((claim(), attach(), TERMINATE, release()), Phase.TERMINATED),
        ((claim(), attach(), release(), claim("c2")), Phase.CLAIMED),
        ((claim(), lose(), claim("c2"), attach("c2")), Phase.ATTACHED),
        ((claim(), FAIL, claim("c2")), Phase.CLAIMED),
        ((claim(), attach(), claim("c2")), Phase.CLAIMED),
        ((Release(claim_id="", reason="abandoned"),), Phase.RELEASED),
    ],
)
def test_where_commands_lead(commands: tuple[Command, ...], phase: Phase) -> None:
    assert after(*commands).phase is phase


@pytest.mark.parametrize(
    ("commands", "again"),
    [
        ((claim(),), claim()),
        ((claim(), attach(), release()), claim()),
        ((claim(), attach()), attach()),
        ((claim(), attach(), request()), request()),
        ((claim(), attach(), request(), POSTED), request()),
        ((claim(), attach(), request(), POSTED), POSTED),
        ((claim(), attach(), request(), POSTED), DENY),
        ((claim(), attach(), request(), DENY), DENY),
        ((claim(), attach(), lose()), lose()),
        ((claim(), attach(), lose()), release()),
        ((claim(), attach(), release()), release()),
        ((claim(), FAIL), FAIL),
        ((claim(), TERMINATE), TERMINATE),
        ((claim(), Release(claim_id="c1", reason="abandoned")), Release(claim_id="c1", reason="abandoned")),
    ],
)
def test_what_is_already_so_decides_nothing(commands: tuple[Command, ...], again: Command) -> None:
    assert decide(after(*commands), again) == []


@pytest.mark.parametrize(
    ("commands", "illegal", "because"),
    [
        ((), attach(), "it holds claim none, not c1"),
        ((claim(),), attach("c2"), "it holds claim c1, not c2"),
        ((claim(),), request(), "version 2"),
        ((claim(), attach()), POSTED, "no call t1 was requested"),
        ((claim(), attach()), DENY, "no call t1 was requested"),
        ((claim(), attach()), lose("c0"), "it holds claim c1, not c0"),
        ((claim(), attach()), release("c0"), "it holds claim c1, not c0"),
        ((claim(), attach(), release()), request(), "version 4"),
        ((claim(), attach(), release()), Idle(stop_reason="end_turn"), "version 4"),
        ((claim(), TERMINATE), claim("c2"), "version 3"),
        ((claim(), TERMINATE), FAIL, "version 3"),
        ((), FAIL, "version 1"),
    ],
)
def test_what_is_not_possible_is_refused(commands: tuple[Command, ...], illegal: Command, because: str) -> None:
    state = after(*commands)
    with pytest.raises(IllegalTransition) as caught:
        decide(state, illegal)
    error = caught.value
    assert (error.stream, error.phase, error.what) == ("session-s", state.phase.value, type(illegal).__name__)
    assert because in str(error)
    assert "hourglass log show session-s" in error.advice


def test_only_commands_are_decided() -> None:
    with pytest.raises(TypeError, match="not a session's command: str"):
        decide(SessionState("s"), "claim")  # type: ignore[arg-type]


def test_what_a_session_knows_of_its_calls() -> None:
    state = after(claim(), attach(), request("t1"), request("t2", "thread_1"), request("t3"), POSTED)
    assert {call.tool_use_id for call in state.open_calls} == {"t2", "t3"}
    assert state.threads == {"", "thread_1"}
    state = evolve(state, decide(state, DenyToolCall(tool_use_id="t2", by="policy", message="why"))[0])
    denied = state.calls["t2"]
    assert (denied.status, denied.outcome, denied.message) == (CallStatus.DENIED, "policy", "why")
    # A denial may be posted, too, and what was said stays known.
    state = evolve(state, decide(state, RecordPosted(tool_use_id="t2", outcome="refused"))[0])
    assert (state.calls["t2"].outcome, state.calls["t2"].message) == ("refused", "why")


def test_calls_stay_open_over_a_lost_lease_and_a_late_post_is_recorded() -> None:
    state = after(claim(), attach(), request(), lose())
    assert [call.tool_use_id for call in state.open_calls] == ["t1"]
    assert after(claim(), attach(), request(), lose(), POSTED).open_calls == []
    assert state.sandbox_id == "sbx-1"
    assert (state.claim_id, state.last_claim_id) == ("", "c1")


def test_states_travel_between_processes() -> None:
    state = after(claim(), attach(), request(), POSTED)
    assert pickle.loads(pickle.dumps(state)) == state


IDS = st.sampled_from(["t1", "t2", "t3"])
CLAIMS = st.sampled_from(["c1", "c2", "c3"])
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    CLAIMS.map(claim),
    CLAIMS.map(attach),
    IDS.map(request),
    IDS.map(lambda one: RecordPosted(tool_use_id=one)),
    IDS.map(lambda one: DenyToolCall(tool_use_id=one, by="policy")),
    CLAIMS.map(lose),
    CLAIMS.map(release),
    st.just(Idle(stop_reason="end_turn")),
    st.just(FAIL),
    st.just(TERMINATE),
)


@given(st.lists(COMMANDS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_what_is_decided_can_happen_and_folds_alike(commands: list[Command]) -> None:
    state = SessionState("s")
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
        if not isinstance(command, Idle):
            assert decide(state, command) == []
    assert LIFE.fold(SessionState("s"), history) == state
    assert state.version == len(history)


def keep(*ended: str, asked_by: str = "") -> KeepSandbox:
    return KeepSandbox(sandbox_id="sbx-2", previous="sbx-1", ended=ended, asked_by=asked_by)


def test_a_kept_sandbox_is_the_sessions_from_then_on() -> None:
    state = after(claim(), attach(), keep("sbx-1", "sbx-3"))
    assert (state.phase, state.sandbox_id) == (Phase.ATTACHED, "sbx-2")
    assert after(claim(), attach(), release(), keep("sbx-1")).sandbox_id == "sbx-2"
    assert decide(state, keep()) == []


@pytest.mark.parametrize("commands", [(), (claim(), TERMINATE)])
def test_nothing_is_kept_for_no_session(commands: tuple[Command, ...]) -> None:
    with pytest.raises(IllegalTransition):
        decide(after(*commands), keep("sbx-1"))


def test_a_call_may_ask_for_keeping_beside_others_that_nothing_has_started() -> None:
    asked = after(claim(), attach(), request("t1"))
    with pytest.raises(IllegalTransition, match="has no posted result yet"):
        decide(asked, keep("sbx-1"))
    assert [data.type for data in decide(asked, keep("sbx-1", asked_by="t1"))] == ["session.sandbox_kept"]
    with pytest.raises(IllegalTransition, match="has no posted result yet"):
        decide(after(claim(), attach(), request("t1"), request("t2")), keep("sbx-1", asked_by="t1"))
    told = KeepSandbox(sandbox_id="sbx-2", previous="sbx-1", ended=("sbx-1",), asked_by="t1", waiting=("t2",))
    assert len(decide(after(claim(), attach(), request("t1"), request("t2")), told)) == 1
    with pytest.raises(IllegalTransition, match="has no posted result yet"):
        decide(after(claim(), attach(), request("t1"), request("t2"), request("t3")), told)
