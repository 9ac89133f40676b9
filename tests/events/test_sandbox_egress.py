"""What a sandbox may reach, as its stream has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.egress_commands import MOST_DETAIL, MOST_HOST
from events.errors import IllegalTransition
from events.sandbox import (
    ChangeEgress,
    CloseEgress,
    Command,
    ConnectEgress,
    Create,
    EditEgress,
    FollowSettings,
    Kill,
    RefuseEgress,
    SandboxState,
    Snapshot,
    Start,
    Suspend,
    decide,
    evolve,
)
from events.types import EgressRefused, EventData, Limits, SandboxBranched

CREATE = Create(session_id="s", driver="gvisor", template="base", limits=Limits())
START = Start(machine_id="m1", node="n", seconds=0.1, agent_version="1")
CONNECT = ConnectEgress(host="a.example", port=443, address="203.0.113.7", rule="a.example")
CLOSE = CloseEgress(host="a.example", port=443, connections=3, bytes_sent=1, bytes_received=2, seconds=0.5)
REFUSE = RefuseEgress(host="b.example", port=None, protocol="dns", reason="not_allowed")
BRANCHED = SandboxBranched(
    parent="p", parent_version=3, snapshot_id="s-1", session_id="", driver="gvisor", template="base", limits=Limits()
)
SNAPSHOT = Snapshot(snapshot_id="snap-1", node="n", image_bytes=1, held_seconds=0.1, reason="suspend")
SUSPEND = Suspend(reason="idle", snapshot_id="snap-1")


def person(state: SandboxState, *allow: str) -> ChangeEgress:
    return ChangeEgress(allow=allow, settings=state.egress_settings, by="root")


def apply(state: SandboxState, *commands: Command) -> SandboxState:
    for command in commands:
        for data in decide(state, command):
            state = evolve(state, data)
    return state


def given_by_settings(state: SandboxState, *entries: str) -> SandboxState:
    return apply(state, FollowSettings(settings=entries))


def new() -> SandboxState:
    return apply(SandboxState("x"), CREATE)


def test_a_sandbox_reaches_nothing_until_it_is_told() -> None:
    assert new().egress == ()
    assert given_by_settings(new()) == new()
    state = given_by_settings(new(), "a.example", "*.b.example")
    assert state.egress == state.egress_settings == ("a.example", "*.b.example")
    assert decide(state, person(state, "a.example", "*.b.example")) == []


def test_what_a_person_says_outlives_a_change_of_the_settings() -> None:
    state = given_by_settings(new(), "a.example", "b.example")
    state = apply(state, person(state, "b.example", "mine.example"))
    state = given_by_settings(state, "a.example", "b.example")
    assert state.egress == ("b.example", "mine.example")
    state = given_by_settings(state, "a.example", "c.example")
    assert state.egress == ("mine.example", "c.example")
    state = given_by_settings(state)
    assert state.egress == ("mine.example",)
    assert given_by_settings(state, "a.example").egress == ("mine.example", "a.example")


def test_what_a_person_allowed_first_stays_when_the_settings_drop_it() -> None:
    state = apply(new(), person(new(), "a.example"))
    state = given_by_settings(state, "a.example")
    assert state.egress == ("a.example",)
    assert given_by_settings(state).egress == ("a.example",)


def test_a_persons_edit_is_of_what_is_there_when_it_is_decided() -> None:
    state = given_by_settings(new(), "a.example")
    edit = EditEgress(add=("b.example", "a.example"), remove=("c.example",), by="root")
    state = apply(state, edit)
    assert (state.egress, state.egress_own) == (("a.example", "b.example"), frozenset({"b.example"}))
    assert decide(state, edit) == []
    state = apply(state, EditEgress(remove=("a.example", "b.example"), by="root"))
    assert (state.egress, state.egress_settings, state.egress_own) == ((), ("a.example",), frozenset())


def test_the_agent_that_settings_were_asked_for_is_kept() -> None:
    state = apply(new(), FollowSettings(settings=("a.example",), agent=("agent_1", "coder")))
    assert state.egress_agent == ("agent_1", "coder")
    state = apply(state, EditEgress(add=("b.example",), by="root"))
    assert state.egress_agent == ("agent_1", "coder")
    assert decide(state, FollowSettings(settings=("a.example",), agent=("agent_2", "other"))) == []


def test_settings_give_nothing_to_what_is_not_there() -> None:
    for state in (SandboxState("x"), apply(SandboxState("x"), CREATE, Kill(reason="requested"))):
        assert decide(state, FollowSettings(settings=("a.example",))) == []


def test_what_a_person_gives_back_is_theirs() -> None:
    state = given_by_settings(new(), "a.example")
    state = apply(state, person(state))
    state = apply(state, person(state, "a.example"))
    assert given_by_settings(state).egress == ("a.example",)


def test_a_branch_reaches_nothing_and_follows_no_settings() -> None:
    branch = evolve(SandboxState("x"), BRANCHED)
    assert (branch.egress, branch.egress_settings) == ((), None)
    assert given_by_settings(branch, "a.example") == branch
    allowed = apply(branch, EditEgress(add=("a.example",), by="root"))
    assert allowed.egress == ("a.example",)
    assert given_by_settings(allowed, "b.example") == allowed


def test_a_fork_begins_with_its_parents_list() -> None:
    parent = given_by_settings(new(), "a.example", "b.example")
    parent = apply(parent, person(parent, "a.example", "mine.example"))
    inherit = ChangeEgress(allow=parent.egress, settings=parent.egress_settings, by="fork")
    fork = apply(SandboxState("f"), CREATE, inherit)
    assert (fork.egress, fork.egress_own) == (parent.egress, parent.egress_own)
    assert given_by_settings(fork, "a.example", "b.example") == fork
    assert given_by_settings(fork).egress == ("mine.example",)


def test_a_fork_of_a_branch_follows_no_settings_either() -> None:
    branch = evolve(SandboxState("x"), BRANCHED)
    inherit = ChangeEgress(allow=branch.egress, settings=branch.egress_settings, by="fork")
    fork = apply(SandboxState("f"), CREATE, inherit)
    assert given_by_settings(fork, "a.example") == fork


@pytest.mark.parametrize("command", [CONNECT, CLOSE, REFUSE], ids=lambda one: type(one).__name__)
def test_traffic_is_told_in_every_phase_and_changes_nothing_else(command: Command) -> None:
    with pytest.raises(IllegalTransition):
        apply(SandboxState("x"), command)
    for before in ((CREATE,), (CREATE, START), (CREATE, START, SNAPSHOT, SUSPEND), (CREATE, Kill(reason="requested"))):
        state = apply(SandboxState("x"), *before)
        told = apply(state, command)
        assert (told.version, told.phase) == (state.version + 1, state.phase)
        assert apply(told, command).version == state.version + 2


def test_the_list_changes_in_every_phase_but_that_of_a_sandbox_that_is_gone() -> None:
    for before in ((CREATE,), (CREATE, START), (CREATE, START, SNAPSHOT, SUSPEND)):
        state = apply(SandboxState("x"), *before)
        assert apply(state, person(state, "a.example")).phase is state.phase
    for state in (SandboxState("x"), apply(SandboxState("x"), CREATE, Kill(reason="requested"))):
        with pytest.raises(IllegalTransition):
            apply(state, person(state, "a.example"))
    assert apply(new(), person(new(), "a.example"), START).egress == ("a.example",)


def test_what_a_guest_asked_for_is_bounded() -> None:
    long = RefuseEgress(
        host="h" * 9999, port=1, protocol="tcp", reason="malformed", rule="r", detail="d" * 9999, count=7
    )
    [told] = decide(new(), long)
    assert isinstance(told, EgressRefused)
    assert (len(told.host), len(told.detail), told.count) == (MOST_HOST, MOST_DETAIL, 7)


entries = st.lists(st.sampled_from(["a.b", "c.d", "e.f", "g.h"]), unique=True, max_size=4)
steps = st.lists(st.tuples(st.sampled_from(["person", "settings"]), entries), max_size=8)


@given(steps)
def test_what_settings_give_is_taken_in_once(changes: list[tuple[str, list[str]]]) -> None:
    state = new()
    events: list[EventData] = []
    for who, listed in changes:
        command = person(state, *listed) if who == "person" else FollowSettings(settings=tuple(listed))
        before = set(state.egress)
        for data in decide(state, command):
            events.append(data)
            state = evolve(state, data)
        if who == "settings":
            assert decide(state, command) == []
            assert state.egress_own <= set(state.egress)
            assert set(state.egress) <= before | set(listed)
        else:
            assert state.egress == tuple(listed)
        assert len(set(state.egress)) == len(state.egress)
