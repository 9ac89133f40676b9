"""What a session's events say of its calls, rule by rule (contract §8, §11)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.conversation import Conversation


def event(kind: str, event_id: str, **fields: Any) -> Any:
    return SimpleNamespace(type=kind, id=event_id, **fields)


def tool_use(event_id: str, name: str = "bash", **fields: Any) -> Any:
    return event("agent.tool_use", event_id, name=name, input={"command": "true"}, **fields)


def idle(event_id: str, reason: str) -> Any:
    return event("session.status_idle", event_id, stop_reason=SimpleNamespace(type=reason))


def talk(*events: Any, live: bool = False) -> Conversation:
    conversation = Conversation()
    for one in events:
        conversation.observe(one, live=live)
    return conversation


def runnable(conversation: Conversation) -> list[str]:
    return [call.tool_use_id for call in conversation.unanswered() if conversation.may_run(call)]


def test_a_plain_call_may_run() -> None:
    assert runnable(talk(tool_use("a"), tool_use("b"))) == ["a", "b"]


def test_an_event_that_comes_twice_counts_once() -> None:
    conversation = Conversation()
    assert conversation.observe(tool_use("a"), live=False)
    assert not conversation.observe(tool_use("a"), live=True)
    assert runnable(conversation) == ["a"]


@pytest.mark.parametrize("answer", ["user.tool_result", "agent.tool_result"])
def test_a_call_with_an_answer_of_either_family_is_not_run(answer: str) -> None:
    assert runnable(talk(tool_use("a"), event(answer, "r", tool_use_id="a"))) == []


@pytest.mark.parametrize("name", ["web_search", "web_fetch", "submit_invoice"])
def test_tools_that_are_not_ours_are_left_alone(name: str) -> None:
    assert talk(tool_use("a", name)).calls == {}


def test_custom_and_mcp_calls_are_left_alone() -> None:
    assert (
        talk(event("agent.custom_tool_use", "a", name="bash"), event("agent.mcp_tool_use", "b", name="bash")).calls
        == {}
    )


def test_a_custom_tool_of_ours_runs_and_asks_nobody() -> None:
    conversation = Conversation(custom_tools=frozenset({"keep"}))
    for one in (
        event("agent.custom_tool_use", "a", name="keep", input={"none": True}, evaluated_permission="ask"),
        event("agent.custom_tool_use", "b", name="look_up", input={}),
        event("agent.custom_tool_use", "c", name="bash", input={}),
    ):
        conversation.observe(one, live=True)
    (call,) = conversation.unanswered()
    assert (call.tool_use_id, call.custom, conversation.may_run(call)) == ("a", True, True)
    conversation.observe(event("user.custom_tool_result", "r", custom_tool_use_id="a"), live=True)
    assert runnable(conversation) == []
    assert conversation.denied_by(call) == "server"


@pytest.mark.parametrize("permission", ["ask", "something_new"])
def test_only_an_explicit_allow_releases_a_held_call(permission: str) -> None:
    asked = tool_use("a", evaluated_permission=permission)
    assert runnable(talk(asked)) == []
    assert runnable(talk(asked, event("user.tool_confirmation", "c", tool_use_id="a", result="allow"))) == ["a"]
    for verdict in ("deny", "something_new"):
        denied = talk(asked, event("user.tool_confirmation", "c", tool_use_id="a", result=verdict))
        assert runnable(denied) == []
        assert denied.denied_by(denied.calls["a"]) == "user"


def test_a_confirmation_may_come_before_its_call() -> None:
    confirmation = event("user.tool_confirmation", "c", tool_use_id="a", result="allow")
    assert runnable(talk(confirmation, tool_use("a", evaluated_permission="ask"))) == ["a"]


def test_what_policy_denied_no_verdict_releases() -> None:
    conversation = talk(
        tool_use("a", evaluated_permission="deny"),
        event("user.tool_confirmation", "c", tool_use_id="a", result="allow"),
    )
    assert runnable(conversation) == []
    assert conversation.denied_by(conversation.calls["a"]) == "policy"


def test_a_stray_deny_stops_a_call_that_did_not_ask() -> None:
    assert runnable(talk(tool_use("a"), event("user.tool_confirmation", "c", tool_use_id="a", result="deny"))) == []


def test_calls_of_a_terminated_thread_never_run() -> None:
    over = event("session.thread_status_terminated", "t", session_thread_id="sthr_1")
    conversation = talk(tool_use("a", session_thread_id="sthr_1"), tool_use("b", session_thread_id="sthr_2"), over)
    assert runnable(conversation) == ["b"]
    assert conversation.denied_by(conversation.calls["a"]) == "thread_terminated"


def test_requires_action_is_no_end_of_a_turn() -> None:
    assert not talk(tool_use("a"), idle("i", "requires_action")).turn_is_over()


@pytest.mark.parametrize("reason", ["end_turn", "retries_exhausted", "budget_reached", "refusal", "something_new"])
def test_every_other_idle_ends_the_turn(reason: str) -> None:
    conversation = talk(idle("i", reason))
    assert conversation.turn_is_over()
    assert conversation.turn_ended == reason


def test_an_open_call_keeps_the_turn_open() -> None:
    assert not talk(tool_use("a"), idle("i", "end_turn")).turn_is_over()
    assert not talk(tool_use("a", evaluated_permission="ask"), idle("i", "end_turn")).turn_is_over()


def test_a_call_that_the_server_closed_does_not_keep_the_turn_open() -> None:
    assert talk(tool_use("a"), event("agent.tool_result", "r", tool_use_id="a"), idle("i", "end_turn")).turn_is_over()


@pytest.mark.parametrize("kind", ["user.message", "session.usage", "span.model_request_start", "a.type.of_tomorrow"])
def test_anything_new_opens_the_turn_again(kind: str) -> None:
    assert not talk(idle("i", "end_turn"), event(kind, "n")).turn_is_over()


def test_neutral_events_do_not() -> None:
    assert talk(
        idle("i", "end_turn"),
        event("user.tool_confirmation", "c", tool_use_id="x", result="allow"),
        event("session.thread_status_terminated", "t", session_thread_id="sthr_1"),
    ).turn_is_over()


@pytest.mark.parametrize(
    ("kind", "ended"), [("session.status_terminated", "terminated"), ("session.deleted", "deleted")]
)
def test_the_live_stream_ends_a_session_and_the_history_does_not(kind: str, ended: str) -> None:
    assert talk(event(kind, "x"), live=True).ended == ended
    assert talk(event(kind, "x"), live=False).ended == ""


def test_previews_without_an_id_are_let_through() -> None:
    assert not Conversation().observe(SimpleNamespace(type="event_delta", event_id="e"), live=True)


def test_an_input_that_is_no_object_is_kept_as_it_is() -> None:
    call = talk(event("agent.tool_use", "a", name="bash", input="ls")).calls["a"]
    assert call.input == {"input": "ls"}


def test_half_a_surrogate_pair_becomes_text_that_the_log_can_hold() -> None:
    event_ = event("agent.tool_use", "a", name="write", input={"content": "a\ud800b", "size": 2**70})
    assert talk(event_).calls["a"].input == {"content": "a?b", "size": 2**70}


EVENTS = st.lists(
    st.one_of(
        st.integers(0, 4).map(lambda n: tool_use(f"use{n}", evaluated_permission=["allow", "ask", "deny"][n % 3])),
        st.integers(0, 4).map(lambda n: event("user.tool_result", f"res{n}", tool_use_id=f"use{n}")),
        st.integers(0, 4).map(
            lambda n: event("user.tool_confirmation", f"conf{n}", tool_use_id=f"use{n}", result="allow")
        ),
        st.integers(0, 1).map(lambda n: idle(f"idle{n}", "end_turn")),
    ),
    max_size=20,
)


@given(EVENTS, st.integers(0, 20))
def test_history_and_stream_in_any_overlap_say_the_same(events: list[Any], cut: int) -> None:
    """Reading a prefix as history and everything again from any point of it changes nothing but repeats."""
    whole = talk(*events)
    overlapped = talk(*events[:cut], *events[max(0, cut - 3) :])
    assert runnable(whole) == runnable(overlapped)
    assert whole.turn_is_over() == overlapped.turn_is_over()
