"""The queue's endpoints, and when a session is queued (contract §4)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from replay.server import ServerSettings

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess, RecordedServer
    from tests.replay.conftest import Begin, Caller

RESULT = {"type": "user.tool_result", "content": [{"type": "text", "text": "(no output)"}], "is_error": False}
MESSAGE = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
NO_HEARTBEAT = "?expected_last_heartbeat=NO_HEARTBEAT"


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(ttl_seconds=1)


@pytest.fixture
def work(environment: EnvironmentAccess) -> str:
    return f"/v1/environments/{environment.id}/work"


def states(server: RecordedServer, environment: EnvironmentAccess) -> dict[str, str]:
    return {item["id"]: item["state"] for item in server.work(environment.id)}


def test_an_empty_poll_is_null(worker: Caller, work: str) -> None:
    answer = worker("GET", f"{work}/poll?beta=true")
    assert (answer.status, answer.body) == (200, None)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("query", ["block_ms=0", "block_ms=1000", "block_ms=x", "reclaim_older_than_ms=-1"])
def test_a_poll_is_checked(worker: Caller, work: str, query: str) -> None:
    answer = worker("GET", f"{work}/poll?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.error["message"]


def test_a_poll_waits_for_work(worker: Caller, work: str, begin: Begin) -> None:
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(worker("GET", f"{work}/poll?block_ms=999").body))
    waiting.start()
    session = begin("bash-true")
    waiting.join()
    item = found[0] or worker("GET", f"{work}/poll").body
    assert item["id"] == session


def test_a_work_object_has_every_key(worker: Caller, work: str, begin: Begin, environment: EnvironmentAccess) -> None:
    session = begin("bash-true")
    item = worker("GET", f"{work}/poll").body
    secret = item.pop("secret")
    created = item.pop("created_at")
    assert secret
    assert created.endswith("Z")
    assert item == {
        "id": session,
        "type": "work",
        "environment_id": environment.id,
        "acknowledged_at": None,
        "started_at": None,
        "latest_heartbeat_at": None,
        "stop_requested_at": None,
        "stopped_at": None,
        "state": "queued",
        "data": {"type": "session", "id": session},
        "metadata": {},
    }


def test_each_claim_has_a_token_of_its_own(worker: Caller, work: str, begin: Begin) -> None:
    begin("bash-true")
    first = worker("GET", f"{work}/poll").body
    second = worker("GET", f"{work}/poll?reclaim_older_than_ms=0").body
    assert first["id"] == second["id"]
    assert first["secret"] != second["secret"]


def test_a_lapsed_lease_is_offered_again(worker: Caller, work: str, begin: Begin) -> None:
    session = begin("bash-true")
    worker("GET", f"{work}/poll")
    worker("POST", f"{work}/{session}/ack")
    beat = worker("POST", f"{work}/{session}/heartbeat{NO_HEARTBEAT}").body
    assert (beat["state"], beat["ttl_seconds"]) == ("active", 1)
    item = None
    deadline = time.monotonic() + 10
    while item is None:
        assert time.monotonic() < deadline
        item = worker("GET", f"{work}/poll?block_ms=999").body
    assert item["id"] == session
    late = worker("POST", f"{work}/{session}/heartbeat?expected_last_heartbeat={beat['last_heartbeat']}")
    assert late.status == 412
    assert late.error["details"]["current_state"]["last_heartbeat"] is None


def test_a_lease_can_be_made_to_lapse(server: RecordedServer, worker: Caller, work: str, begin: Begin) -> None:
    session = begin("bash-true")
    worker("GET", f"{work}/poll")
    worker("POST", f"{work}/{session}/ack")
    worker("POST", f"{work}/{session}/heartbeat{NO_HEARTBEAT}&desired_ttl_seconds=600")
    server.expire_lease(session)
    assert worker("GET", f"{work}/poll").body["id"] == session


def test_a_session_is_queued_with_its_first_event(
    server: RecordedServer, environment: EnvironmentAccess, app: Caller, begin: Begin
) -> None:
    session = begin("bash-true", events=0)
    assert states(server, environment) == {}
    app("POST", f"/v1/sessions/{session}/events", {"events": [MESSAGE]})
    assert states(server, environment) == {session: "queued"}


def test_an_empty_session_is_queued_where_told(
    server: RecordedServer, environment: EnvironmentAccess, begin: Begin
) -> None:
    server.settings.queue_empty_sessions = True
    session = begin("bash-true", events=0)
    assert states(server, environment) == {session: "queued"}


def test_the_same_id_comes_again_with_new_input(
    server: RecordedServer, environment: EnvironmentAccess, app: Caller, worker: Caller, work: str, begin: Begin
) -> None:
    session = begin("two-turns")
    worker("GET", f"{work}/poll")
    worker("POST", f"{work}/{session}/ack")
    worker("POST", f"{work}/{session}/heartbeat{NO_HEARTBEAT}")
    call = server.comparison(session)["open_calls"][0]
    worker("POST", f"/v1/sessions/{session}/events", {"events": [RESULT | {"tool_use_id": call}]})
    server.wait_for_status(session, "idle", "end_turn")
    worker("POST", f"{work}/{session}/stop", {"force": True})
    assert states(server, environment) == {session: "stopped"}
    app("POST", f"/v1/sessions/{session}/events", {"events": [MESSAGE]})
    assert states(server, environment) == {session: "queued"}
    assert worker("GET", f"{work}/poll").body["id"] == session


def test_a_failed_item_leaves_the_session_parked_until_an_interrupt(
    server: RecordedServer, environment: EnvironmentAccess, app: Caller, worker: Caller, work: str, begin: Begin
) -> None:
    session = begin("two-turns")
    worker("GET", f"{work}/poll")
    worker("POST", f"{work}/{session}/ack")
    worker("POST", f"{work}/{session}/stop", {"force": True})
    assert app("POST", f"/v1/sessions/{session}/events", {"events": [MESSAGE]}).status == 400
    assert states(server, environment) == {session: "stopped"}
    assert app("POST", f"/v1/sessions/{session}/events", {"events": [{"type": "user.interrupt"}]}).status == 200
    assert states(server, environment) == {session: "queued"}
    server.wait_for_status(session, "idle", "end_turn")


def test_an_interrupt_of_a_resting_session_queues_nothing(
    server: RecordedServer, environment: EnvironmentAccess, app: Caller, begin: Begin
) -> None:
    session = begin("bash-true", events=0)
    app("POST", f"/v1/sessions/{session}/events", {"events": [{"type": "user.interrupt"}]})
    assert states(server, environment) == {}


def test_a_healthcheck_is_no_session(
    server: RecordedServer, environment: EnvironmentAccess, worker: Caller, work: str
) -> None:
    name = server.healthcheck(environment.id)
    item = worker("GET", f"{work}/poll").body
    assert item["data"] == {"type": "healthcheck", "id": name}
    assert item["secret"] is None
    assert worker("POST", f"{work}/{name}/ack").body["state"] == "starting"
    assert worker("POST", f"{work}/{name}/stop", {"force": True}).body["state"] == "stopped"


def test_stop_is_checked_and_said_once(worker: Caller, work: str, begin: Begin) -> None:
    session = begin("bash-true")
    assert worker("POST", f"{work}/{session}/stop", {"force": "yes"}).status == 400
    assert worker("POST", f"{work}/{session}/stop", b"[]").status == 400
    assert worker("POST", f"{work}/{session}/stop", b"{broken").status == 400
    assert worker("POST", f"{work}/{session}/stop").body["state"] == "stopped"
    assert worker("POST", f"{work}/{session}/stop").status == 409


def test_items_are_listed_newest_first_in_pages(worker: Caller, work: str, begin: Begin) -> None:
    sessions = [begin("bash-true") for _ in range(3)]
    first = worker("GET", f"{work}?limit=2").body
    second = worker("GET", f"{work}?limit=2&page={first['next_page']}").body
    assert [item["id"] for item in first["data"] + second["data"]] == sessions[::-1]
    assert second["next_page"] is None


def test_metadata_and_stats(app: Caller, worker: Caller, work: str, begin: Begin) -> None:
    session = begin("bash-true")
    assert app("POST", f"{work}/{session}", {"metadata": {"k": "v"}}).body["metadata"] == {"k": "v"}
    bad = app("POST", f"{work}/{session}", {"metadata": {"k": 1}})
    assert bad.error["details"] == {"error_code": "invalid_metadata"}
    worker("GET", f"{work}/poll", headers={"Anthropic-Worker-ID": "w1"})
    stats = app("GET", f"{work}/stats").body
    assert (stats["depth"], stats["pending"], stats["workers_polling"]) == (0, 1, 1)
