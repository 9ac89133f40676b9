"""What may be sent to a session, and what the session makes of it (contract §6, §8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import Recording
    from replay.server import RecordedServer
    from tests.replay.conftest import Answer, Begin, Caller

    Send = Callable[..., Answer]

TEXT = [{"type": "text", "text": "go"}]
MESSAGE: dict[str, Any] = {"type": "user.message", "content": TEXT}


@pytest.fixture
def send(app: Caller) -> Send:
    return lambda session, *events: app("POST", f"/v1/sessions/{session}/events", {"events": list(events)})


def result(call: str, text: str = "x", **more: Any) -> dict[str, Any]:
    return {"type": "user.tool_result", "tool_use_id": call, "content": [{"type": "text", "text": text}]} | more


def verdict(call: str, what: str) -> dict[str, Any]:
    return {"type": "user.tool_confirmation", "tool_use_id": call, "result": what}


def types(server: RecordedServer, session: str, after: int = 0) -> list[str]:
    return [event["type"] for event in server.events(session)[after:]]


def open_calls(server: RecordedServer, session: str) -> list[str]:
    calls: list[str] = server.comparison(session)["open_calls"]
    return calls


def settle(server: RecordedServer, session: str) -> None:
    server.wait_for(lambda platform: not platform.sessions.seat(session).player._scheduled)


def test_a_turn_goes_as_the_contract_has_it(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    send(session, result(open_calls(server, session)[0]))
    server.wait_for_end(session)
    primary = "session.thread_status_"
    assert types(server, session) == [
        "user.message",
        "session.status_running",
        f"{primary}running",
        "agent.tool_use",
        f"{primary}idle",
        "session.usage",
        "session.status_idle",
        "user.tool_result",
        "session.status_running",
        f"{primary}running",
        "agent.message",
        f"{primary}idle",
        "session.usage",
        "session.status_idle",
    ]
    events = server.events(session)
    assert events[6]["stop_reason"] == {"type": "requires_action", "event_ids": [events[3]["id"]]}
    assert events[-1]["stop_reason"] == {"type": "end_turn"}
    stamps = [event["processed_at"] for event in events]
    assert stamps[1:] == sorted(set(stamps[1:]))
    assert len({event["id"] for event in events}) == len(events)


def test_ids_are_the_sessions_own(server: RecordedServer, begin: Begin) -> None:
    first, second = begin("bash-true"), begin("bash-true")
    ids = {event["id"] for session in (first, second) for event in server.events(session)}
    assert len(ids) == len(server.events(first)) + len(server.events(second))
    recorded = {event["id"] for event in server.call(lambda p: p.library.get("bash-true")).events}
    assert not ids & recorded


def test_partial_answers_leave_the_rest_parked(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("parallel-batch")
    calls = open_calls(server, session)
    assert len(calls) == 4
    for count, call in enumerate(calls[:3], start=1):
        before = len(server.events(session))
        assert send(session, result(call)).status == 200
        settle(server, session)
        assert types(server, session, before)[-1] == "session.status_idle"
        assert server.events(session)[-1]["stop_reason"]["event_ids"] == calls[count:]
    send(session, result(calls[3]))
    settle(server, session)
    assert len(open_calls(server, session)) == 4
    assert not set(open_calls(server, session)) & set(calls)


def test_spans_and_usage_are_this_sessions(server: RecordedServer, begin: Begin) -> None:
    events = {event["type"]: event for event in server.events(begin("parallel-batch"))}
    assert events["span.model_request_end"]["model_request_start_id"] == events["span.model_request_start"]["id"]
    assert events["session.usage"]["usage"] == {"input_tokens": 1200, "output_tokens": 90}


def test_a_message_while_parked_is_refused_in_the_apis_words(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    answer = send(session, MESSAGE)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"] == (
        f"Invalid user.message event at events[0]: waiting on responses to events [{open_calls(server, session)[0]}]; "
        "only `user.tool_confirmation`, `user.custom_tool_result`, `user.tool_result`, or `user.interrupt` may be sent"
    )


def test_a_system_message_may_follow_a_result(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("parallel-batch")
    note = {"type": "system.message", "content": TEXT}
    assert send(session, note).status == 400
    assert send(session, result(open_calls(server, session)[0]), note).status == 200


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "user.message", "content": [{"type": "text", "text": ""}]},
         "events.0.content.0.text: minimum string length is 1"),
        ({"type": "user.message", "content": [{"type": "redacted"}]}, "events.0.content.0.type: 'redacted' is not one"),
        ({"type": "user.message", "content": []}, "events.0.content: a list of content blocks is required"),
        ({"type": "user.message", "content": [{"type": "image"}]}, "events.0.content.0.source"),
        ({"type": "agent.message", "content": TEXT}, "events.0.type: 'agent.message' is not one of"),
        ({"type": ["user.message"]}, "events.0.type"),
        ("user.message", "events.0: must be an object"),
        ({"type": "user.tool_result"}, "events.0.tool_use_id: a non-empty string is required"),
        ({"type": "user.tool_result", "tool_use_id": "x", "is_error": 1}, "events.0.is_error: must be a boolean"),
        ({"type": "user.tool_result", "tool_use_id": "x", "content": "text"}, "events.0.content: a list"),
        ({"type": "user.tool_result", "tool_use_id": "x"}, "x names no tool use of this session"),
        ({"type": "user.tool_confirmation", "tool_use_id": "x", "result": "perhaps"}, "must be 'allow' or 'deny'"),
        ({"type": "user.tool_confirmation", "tool_use_id": "x", "result": "deny"}, "names no tool use"),
        ({"type": "user.interrupt", "session_thread_id": "sthr_x"}, "names no thread of this session"),
        ({"type": "user.define_outcome", "description": "d"}, "events.0.rubric"),
    ],
)  # fmt: skip
def test_input_of_the_wrong_shape_is_named(begin: Begin, send: Send, event: Any, message: str) -> None:
    answer = send(begin("bash-true"), event)
    assert answer.status == 400
    assert message in answer.error["message"]


def test_a_request_is_taken_whole_or_not_at_all(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("parallel-batch")
    calls = open_calls(server, session)
    before = server.events(session)
    assert send(session, result(calls[0]), result(calls[0])).status == 400
    assert server.events(session) == before
    assert open_calls(server, session) == calls
    assert send(session).status == 400


def test_a_second_result_is_refused_and_counted(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    call = open_calls(server, session)[0]
    assert send(session, result(call, "(no output)", session_thread_id=None)).body["data"][0]["id"].startswith("sevt_")
    again = send(session, result(call))
    assert again.status == 400
    assert "already has a result" in again.error["message"]
    compared = server.comparison(session)["calls"][0]
    assert compared["equal"] is True
    assert compared["refused"] == 1


def test_a_different_result_is_told(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    call = open_calls(server, session)[0]
    send(session, result(call, "something else", is_error=True))
    read_out = server.comparison(session)
    assert read_out["differing"] == [call]
    assert read_out["calls"][0]["posted"] == {
        "type": "user.tool_result",
        "is_error": True,
        "content": [{"type": "text", "text": "something else"}],
    }


def test_what_asks_waits_for_a_verdict(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("ask-deny")
    call = open_calls(server, session)[0]
    early = send(session, result(call))
    assert early.status == 400
    assert early.error["message"] == (
        f'`tool_use_id` "{call}" has `evaluated_permission` "ask" and no `user.tool_confirmation` with result "allow" '
        "has been posted; send `user.tool_confirmation` first"
    )
    assert send(session, verdict(call, "allow")).status == 200
    assert send(session, verdict(call, "allow")).status == 400
    assert open_calls(server, session) == [call]
    assert send(session, result(call)).status == 200


def test_a_denial_closes_the_call_and_nobody_answers_it(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("ask-deny")
    first = open_calls(server, session)[0]
    assert send(session, verdict(first, "allow"), result(first)).status == 200
    settle(server, session)
    second = open_calls(server, session)[0]
    before = len(server.events(session))
    send(session, verdict(second, "deny") | {"deny_message": "No."})
    settle(server, session)
    found = [event for event in server.events(session)[before:] if event["type"] == "agent.tool_result"]
    assert [event["content"][0]["text"] for event in found] == ["No.", "This tool is not permitted."]
    assert send(session, result(second)).status == 400
    never = found[1]["tool_use_id"]
    assert "is not a client's to answer" in send(session, result(never)).error["message"]
    assert len(open_calls(server, session)) == 1


def test_what_did_not_ask_takes_no_verdict(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    answer = send(session, verdict(open_calls(server, session)[0], "allow"))
    assert answer.status == 400
    assert "did not ask" in answer.error["message"]


def test_a_custom_tool_is_answered_by_its_own_event(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("custom-tool")
    custom, builtin = open_calls(server, session)
    assert send(session, result(custom)).status == 400
    mine = {"type": "user.custom_tool_result", "custom_tool_use_id": custom, "content": TEXT}
    assert send(session, mine | {"custom_tool_use_id": builtin}).status == 400
    assert send(session, mine).status == 200
    settle(server, session)
    assert open_calls(server, session) == [builtin]


def test_a_search_is_answered_by_the_platform(server: RecordedServer, begin: Begin) -> None:
    session = begin("web-search")
    events = {event["type"]: event for event in server.events(session)}
    assert "flow of sand" in events["agent.tool_result"]["content"][0]["text"]
    compared = server.comparison(session)["calls"]
    assert [(call["name"], call["equal"]) for call in compared] == [("web_search", True), ("write", None)]


@pytest.mark.parametrize("family", ["user.tool_result", "agent.tool_result"])
def test_an_interrupt_closes_what_is_open_and_ends_the_turn(
    server: RecordedServer, begin: Begin, send: Send, family: Any
) -> None:
    server.settings.interrupted_result = family
    session = begin("interrupt")
    call = open_calls(server, session)[0]
    before = len(server.events(session))
    assert send(session, {"type": "user.interrupt"}).status == 200
    closing = [one for one in types(server, session, before) if "thread" not in one]
    assert closing == ["user.interrupt", family, "session.usage", "session.status_idle"]
    closed = server.events(session)[before + 1]
    assert closed["is_error"]
    assert closed["content"][0]["text"] == "Tool execution was interrupted before completion. Please retry."
    assert send(session, result(call)).status == 400
    assert server.comparison(session)["stop_reason"] == {"type": "end_turn"}
    assert send(session, MESSAGE).status == 200
    settle(server, session)
    assert len(open_calls(server, session)) == 1


def test_an_interrupt_of_a_resting_session_changes_nothing(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("two-turns")
    send(session, result(open_calls(server, session)[0]))
    server.wait_for_status(session, "idle", "end_turn")
    before = len(server.events(session))
    send(session, {"type": "user.interrupt"})
    settle(server, session)
    assert types(server, session, before) == ["user.interrupt"]


def test_messages_wait_their_turn(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("two-turns", events=2)
    events = server.events(session)
    assert [event["processed_at"] is None for event in events[:2]] == [False, True]
    send(session, result(open_calls(server, session)[0]))
    settle(server, session)
    assert server.events(session)[1]["processed_at"] is not None
    assert len(open_calls(server, session)) == 1


def test_beyond_its_recording_a_session_says_so(server: RecordedServer, begin: Begin, send: Send) -> None:
    session = begin("bash-true")
    send(session, result(open_calls(server, session)[0]))
    server.wait_for_end(session)
    send(session, MESSAGE)
    server.wait_for_status(session, "idle", "retries_exhausted")
    error = next(event for event in server.events(session) if event["type"] == "session.error")["error"]
    assert error["message"] == "the recording 'bash-true' has no further turn"


def test_threads_are_cross_posted_and_listed(server: RecordedServer, begin: Begin, app: Caller, send: Send) -> None:
    session = begin("threads")
    theirs, mine = open_calls(server, session)
    listed = app("GET", f"/v1/sessions/{session}/threads").body["data"]
    assert [thread["parent_thread_id"] for thread in listed] == [None, listed[0]["id"]]
    child = listed[1]["id"]
    assert child != "sthr_child"
    events = {event["id"]: event for event in server.events(session)}
    assert events[theirs]["session_thread_id"] == child
    assert "session_thread_id" not in events[mine]
    path = f"/v1/sessions/{session}/threads"
    in_child = app("GET", f"{path}/{child}/events").body["data"]
    assert [event["type"] for event in in_child][-1] == "agent.tool_use"
    in_primary = app("GET", f"{path}/{listed[0]['id']}/events").body["data"]
    assert mine in [event["id"] for event in in_primary]
    assert theirs not in [event["id"] for event in in_primary]
    assert send(session, result(theirs), result(mine)).status == 200
    settle(server, session)
    assert app("GET", f"{path}/{child}").body["status"] == "terminated"
    assert app("POST", f"{path}/{child}/archive").body["archived_at"]
    named = {"type": "user.interrupt", "session_thread_id": child}
    assert "names a terminated thread" in send(session, named).error["message"]
    assert app("GET", f"{path}/sthr_none").status == 404


def test_an_interrupted_thread_leaves_the_others(server: RecordedServer, begin: Begin, app: Caller, send: Send) -> None:
    session = begin("threads")
    mine = open_calls(server, session)[1]
    child = app("GET", f"/v1/sessions/{session}/threads").body["data"][1]["id"]
    assert send(session, {"type": "user.interrupt", "session_thread_id": child}).status == 200
    settle(server, session)
    assert open_calls(server, session) == [mine]
    send(session, result(mine))
    settle(server, session)
    assert len(open_calls(server, session)) == 1


def test_an_unrecoverable_session_takes_nothing_more(
    server: RecordedServer, begin: Begin, send: Send, play: Callable[..., Recording]
) -> None:
    recording = play(
        ("user.message", {"content": TEXT}),
        ("session.status_rescheduled", {}),
        ("session.status_running", {}),
        ("session.brand_new", {"something": 1}),
        ("session.status_terminated", {}),
    )
    session = begin(recording, events=0)
    send(session, MESSAGE)
    server.wait_for_status(session, "terminated")
    found = [one for one in types(server, session) if "thread" not in one]
    assert found == [
        "user.message",
        "session.status_running",
        "session.status_rescheduled",
        "session.status_running",
        "session.brand_new",
        "session.status_terminated",
    ]
    answer = send(session, MESSAGE)
    assert answer.status == 400
    assert "is terminated" in answer.error["message"]


def test_a_recording_that_breaks_off_still_ends_its_turn(
    server: RecordedServer, begin: Begin, send: Send, play: Callable[..., Recording]
) -> None:
    call = ("agent.tool_use", {"name": "bash", "input": {}})
    session = begin(play(("user.message", {"content": TEXT}), call, ("user.tool_result", {"tool_use_id": "e2"})))
    before = len(server.events(session))
    send(session, result(open_calls(server, session)[0]))
    server.wait_for_status(session, "idle", "end_turn")
    found = [one for one in types(server, session, before) if "thread" not in one]
    assert found == ["user.tool_result", "session.status_running", "session.usage", "session.status_idle"]
