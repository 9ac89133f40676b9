"""The SSE streams and the lists (contract §7)."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest

from replay.server import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.server import RecordedServer
    from tests.replay.conftest import Begin, Caller

    Open = Callable[..., "Stream"]

MESSAGE: dict[str, Any] = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(ping_seconds=0.2)


class Stream:
    """A stream as it comes over the wire."""

    def __init__(self, caller: Caller, path: str) -> None:
        self.connection = caller.connect()
        self.connection.request("GET", path, headers={"authorization": f"Bearer {caller.token}"})
        self.response = self.connection.getresponse()

    def frame(self) -> tuple[str, dict[str, Any]] | None:
        """The next frame; None at the stream's end."""
        name = self.response.readline()
        if not name:
            return None
        data = self.response.readline()
        assert self.response.readline() == b"\n"
        assert name.startswith(b"event: ")
        assert data.startswith(b"data: ")
        return name[7:].strip().decode(), json.loads(data[6:])

    def event(self) -> dict[str, Any] | None:
        """The next frame that is no ping."""
        while (found := self.frame()) is not None:
            name, event = found
            if name != "ping":
                assert name == event["type"]
                return event
        return None

    def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the next of that type."""
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] != kind:
            event = self.event()
            assert event is not None
            events.append(event)
        return events

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@pytest.fixture
def stream(app: Caller) -> Iterator[Open]:
    opened: list[Stream] = []

    def make(session: str, more: str = "", path: str = "events/stream") -> Stream:
        opened.append(Stream(app, f"/v1/sessions/{session}/{path}{more}"))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def send(app: Caller, session: str, *events: dict[str, Any]) -> None:
    assert app("POST", f"/v1/sessions/{session}/events", {"events": list(events)}).status == 200


def answer_open(app: Caller, server: RecordedServer, session: str) -> None:
    for call in server.comparison(session)["open_calls"]:
        send(app, session, {"type": "user.tool_result", "tool_use_id": call})


def test_a_stream_carries_what_comes_after_it_opened(
    server: RecordedServer, app: Caller, begin: Begin, stream: Open
) -> None:
    session = begin("bash-true")
    before = len(server.events(session))
    live = stream(session)
    assert live.response.getheader("content-type", "").startswith("text/event-stream")
    assert live.frame() == ("ping", {"type": "ping"})
    answer_open(app, server, session)
    events = live.until("session.status_idle")
    assert events == server.events(session)[before:]
    assert events[0]["type"] == "user.tool_result"


def test_no_event_falls_between_headers_and_frames(app: Caller, begin: Begin, stream: Open) -> None:
    session = begin("bash-true", events=0)
    live = stream(session)  # its headers are here, not one frame
    send(app, session, MESSAGE)
    event = live.event()
    assert event is not None
    assert event["type"] == "user.message"


def test_previews_come_where_they_are_asked_for(
    server: RecordedServer, app: Caller, begin: Begin, stream: Open
) -> None:
    session = begin("bash-true")
    plain, previewed = stream(session), stream(session, "?event_deltas[]=agent.message")
    answer_open(app, server, session)
    events = previewed.until("session.status_idle")
    message = next(event for event in events if event["type"] == "agent.message")
    start = next(event for event in events if event["type"] == "event_start")
    deltas = [event for event in events if event["type"] == "event_delta"]
    assert start["event"] == {"id": message["id"], "type": "agent.message"}
    assert {delta["event_id"] for delta in deltas} == {message["id"]}
    assert "".join(delta["delta"]["content"]["text"] for delta in deltas) == message["content"][0]["text"]
    assert not [event for event in plain.until("session.status_idle") if event["type"].startswith("event_")]
    assert app("GET", f"/v1/sessions/{session}/events/stream?event_deltas[]=agent.tool_use").status == 400


def test_a_threads_stream_carries_its_own_events(
    server: RecordedServer, app: Caller, begin: Begin, stream: Open
) -> None:
    session = begin("threads")
    child = app("GET", f"/v1/sessions/{session}/threads").body["data"][1]["id"]
    live = stream(session, path=f"threads/{child}/stream")
    answer_open(app, server, session)
    events = live.until("session.thread_status_terminated")
    assert {event["session_thread_id"] for event in events} == {child}


@pytest.mark.parametrize("end", ["archive", "delete"])
def test_a_stream_ends_with_its_session(app: Caller, begin: Begin, stream: Open, end: str) -> None:
    session = begin("bash-true")
    live = stream(session)
    if end == "archive":
        app("POST", f"/v1/sessions/{session}/archive")
        assert live.until("session.status_terminated")
        assert app("GET", f"/v1/sessions/{session}").body["status"] == "terminated"
        assert stream(session).event() is None
    else:
        assert app("DELETE", f"/v1/sessions/{session}").body["type"] == "session_deleted"
        assert live.until("session.deleted")
        assert app("GET", f"/v1/sessions/{session}").status == 404
    assert live.event() is None


@pytest.mark.parametrize("clean", [True, False])
def test_a_stream_can_be_dropped(server: RecordedServer, begin: Begin, stream: Open, clean: bool) -> None:
    session = begin("bash-true")
    live = stream(session)
    assert server.drop_streams(session, clean=clean) == 1
    if clean:
        assert live.event() is None
    else:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            live.response.read()


def test_a_stream_can_be_dropped_after_some_events(
    server: RecordedServer, app: Caller, begin: Begin, stream: Open
) -> None:
    session = begin("bash-true")
    live = stream(session)
    server.drop_streams(session, after=2)
    answer_open(app, server, session)
    assert live.event()
    assert live.event()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        live.response.read()
    server.wait_for(lambda platform: platform.sessions.seat(session).session.feed.streams == 0)


def test_events_can_be_sent_twice(server: RecordedServer, app: Caller, begin: Begin, stream: Open) -> None:
    session = begin("bash-true")
    live = stream(session)
    server.duplicate_events(2, session)
    answer_open(app, server, session)
    ids = [event["id"] for event in live.until("session.status_idle")]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert len(set(ids)) == len(ids) - 2


def test_history_is_listed_in_pages_both_ways(server: RecordedServer, app: Caller, begin: Begin) -> None:
    session = begin("parallel-batch")
    events = server.events(session)
    path = f"/v1/sessions/{session}/events"
    assert app("GET", f"{path}?limit=1000").body == {"data": events, "next_page": None}
    for order, expected in (("asc", events), ("desc", events[::-1])):
        found: list[Any] = []
        page = ""
        while True:
            body = app("GET", f"{path}?limit=3&order={order}{page}").body
            found += body["data"]
            if body["next_page"] is None:
                break
            page = f"&page={body['next_page']}"
        assert found == expected


def test_history_is_filtered(server: RecordedServer, app: Caller, begin: Begin) -> None:
    session = begin("parallel-batch")
    events = server.events(session)
    path = f"/v1/sessions/{session}/events"
    calls = app("GET", f"{path}?types[]=agent.tool_use&types[]=user.message").body["data"]
    assert [event["type"] for event in calls] == ["user.message"] + ["agent.tool_use"] * 4
    middle = events[5]["processed_at"]
    assert app("GET", f"{path}?created_at[gt]={middle}").body["data"] == events[6:]
    assert app("GET", f"{path}?created_at[lte]={middle}").body["data"] == events[:6]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("order=up", "order"),
        ("page=nonsense", "not a page of this list"),
        ("page=%FF", "not a page of this list"),
        ("created_at[gt]=yesterday", "RFC 3339"),
    ],
)
def test_a_query_is_checked(app: Caller, begin: Begin, query: str, message: str) -> None:
    answer = app("GET", f"/v1/sessions/{begin('bash-true')}/events?{query}")
    assert answer.status == 400
    assert message in answer.error["message"]
