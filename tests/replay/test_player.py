"""How a recording is walked: pace, seeds, and what the comparison says on the way."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from replay.server import RecordedServer, ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import Recording
    from tests.replay.conftest import Begin, Caller

TEXT = [{"type": "text", "text": "x"}]
MESSAGE: dict[str, Any] = {"type": "user.message", "content": TEXT}


def ids_of_a_session(settings: ServerSettings) -> list[str]:
    with RecordedServer(settings) as server:
        environment = server.create_environment()
        agent = server.create_agent("parallel-batch")
        body = {"agent": agent, "environment_id": environment.id, "initial_events": [MESSAGE]}
        session = server.call(lambda platform: platform.sessions.create(body)).id
        server.wait_for_status(session, "idle", "requires_action")
        return [session, *(event["id"] for event in server.events(session))]


def test_one_seed_gives_the_same_ids_and_no_seed_never() -> None:
    assert ids_of_a_session(ServerSettings(seed=7)) == ids_of_a_session(ServerSettings(seed=7))
    assert not set(ids_of_a_session(ServerSettings())) & set(ids_of_a_session(ServerSettings()))


def test_an_agent_can_be_given_a_pace(server: RecordedServer, begin: Begin, app: Caller) -> None:
    server.settings.pace_seconds = 0.05
    session = begin("parallel-batch")
    times = [
        datetime.fromisoformat(event["processed_at"])
        for event in server.events(session)
        if event["type"] == "agent.tool_use"
    ]
    assert len(times) == 4
    # A timer may fire a hair early by the wall clock, never by the half.
    assert all(later - earlier > timedelta(seconds=0.025) for earlier, later in pairwise(times))
    # A user who interrupts between two events of the agent's ends the turn there.
    results = [{"type": "user.tool_result", "tool_use_id": one} for one in server.comparison(session)["open_calls"]]
    app("POST", f"/v1/sessions/{session}/events", {"events": results})
    server.wait_for_status(session, "running")
    app("POST", f"/v1/sessions/{session}/events", {"events": [{"type": "user.interrupt"}]})
    server.wait_for_end(session)
    assert server.comparison(session)["stop_reason"] == {"type": "end_turn"}
    assert len(server.comparison(session)["calls"]) < 8


def test_a_call_without_a_recorded_answer_is_waited_for_at_the_turns_end(
    server: RecordedServer, begin: Begin, app: Caller, play: Callable[..., Recording]
) -> None:
    recording = play(
        ("user.message", {"content": TEXT}),
        ("agent.tool_use", {"name": "bash", "input": {"command": "true"}}),
        ("session.status_idle", {"stop_reason": {"type": "end_turn"}}),
    )
    session = begin(recording)
    read_out = server.comparison(session)
    assert read_out["stop_reason"]["type"] == "requires_action"
    assert read_out["calls"][0]["recorded"] is None
    result = {"type": "user.tool_result", "tool_use_id": read_out["open_calls"][0]}
    app("POST", f"/v1/sessions/{session}/events", {"events": [result]})
    server.wait_for_end(session)
    assert server.comparison(session)["calls"][0]["equal"] is None


def test_a_refusal_keeps_its_details(server: RecordedServer, begin: Begin, play: Callable[..., Recording]) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": None}
    idle = ("session.status_idle", {"stop_reason": {"type": "refusal"}, "stop_details": details})
    session = begin(play(("user.message", {"content": TEXT}), ("agent.message", {"content": TEXT}), idle))
    last = server.events(session)[-1]
    assert (last["stop_reason"], last["stop_details"]) == ({"type": "refusal"}, details)


def test_the_read_out_comes_over_the_wire(server: RecordedServer, begin: Begin, app: Caller) -> None:
    session = begin("bash-true")
    assert app("GET", f"/_replay/sessions/{session}").body == server.comparison(session)
    assert app("GET", "/_replay/sessions/sesn_none").status == 404
    names = [one["name"] for one in app("GET", "/_replay/recordings").body["data"]]
    assert names == server.call(lambda platform: platform.library.names)
