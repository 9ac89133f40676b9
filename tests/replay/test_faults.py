"""What can be made to go wrong, from here and from another process."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

import pytest

from replay.server import WaitTimedOut, Wrong

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess, RecordedServer
    from tests.replay.conftest import Begin, Caller


def test_a_fault_meets_so_many_matching_requests(server: RecordedServer, app: Caller) -> None:
    server.inject(Wrong.STATUS, "^/v1/agents$", method="GET", times=2, status=529, retry=False)
    assert app("GET", "/v1/environments").status == 200
    answers = [app("GET", "/v1/agents") for _ in range(3)]
    assert [answer.status for answer in answers] == [529, 529, 200]
    assert answers[0].error["type"] == "overloaded_error"
    assert answers[0].headers["x-should-retry"] == "false"


def test_a_response_can_be_lost_after_it_was_earned(server: RecordedServer, app: Caller) -> None:
    server.inject("lost_response", "/v1/agents", method="POST")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        app("POST", "/v1/agents", {"name": "n", "model": "m"})
    assert len(app("GET", "/v1/agents").body["data"]) == 1


def test_a_connection_can_be_refused_before_anything_happened(server: RecordedServer, app: Caller) -> None:
    server.inject("refused", "/v1/agents", method="POST")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        app("POST", "/v1/agents", {"name": "n", "model": "m"})
    assert app("GET", "/v1/agents").body["data"] == []


def test_a_response_can_be_slow(server: RecordedServer, app: Caller) -> None:
    server.inject("slow", "/v1/agents", seconds=0.2)
    start = time.monotonic()
    assert app("GET", "/v1/agents").status == 200
    assert time.monotonic() - start >= 0.2


def test_polls_can_come_back_empty(
    server: RecordedServer, worker: Caller, begin: Begin, environment: EnvironmentAccess
) -> None:
    session = begin("bash-true")
    server.inject("empty", "/work/poll", times=2)
    found = [worker("GET", f"/v1/environments/{environment.id}/work/poll").body for _ in range(3)]
    assert found[:2] == [None, None]
    assert found[2]["id"] == session


def test_a_412_has_the_heartbeats_body(
    server: RecordedServer, worker: Caller, begin: Begin, environment: EnvironmentAccess
) -> None:
    session = begin("bash-true")
    server.inject("status", "/heartbeat$", status=412)
    answer = worker("POST", f"/v1/environments/{environment.id}/work/{session}/heartbeat")
    assert answer.status == 412
    assert answer.error["details"]["error_code"] == "heartbeat_precondition_failed"


def test_faults_come_over_the_wire_too(
    app: Caller, worker: Caller, begin: Begin, environment: EnvironmentAccess
) -> None:
    def fault(**body: object) -> int:
        return app("POST", "/_replay/faults", body).status

    poll = f"/v1/environments/{environment.id}/work/poll"
    assert fault(fault="status", path="/poll", status=500) == 200
    assert worker("GET", poll).status == 500
    session = begin("bash-true")
    worker("GET", poll)
    worker("POST", f"/v1/environments/{environment.id}/work/{session}/ack")
    worker("POST", f"/v1/environments/{environment.id}/work/{session}/heartbeat")
    assert fault(fault="expire_lease", work_id=session) == 200
    assert worker("GET", poll).body["id"] == session
    assert fault(fault="drop_streams", session_id=session) == 200
    assert fault(fault="duplicate_events", times=1) == 200
    assert fault(fault="healthcheck", environment_id=environment.id) == 200
    assert fault(fault="webhooks", duplicates=1) == 200
    assert fault(fault="status", path="/poll", times=9) == 200
    assert app("DELETE", "/_replay/faults").status == 200
    assert worker("GET", poll).status == 200
    assert fault(fault="revoke", token=environment.key) == 200
    assert worker("GET", poll).status == 401
    key = app("POST", f"/_replay/environments/{environment.id}/keys").body["environment_key"]
    assert worker.with_token(key)("GET", poll).status == 200


@pytest.mark.parametrize(
    "body",
    [{}, {"fault": "explosion"}, {"fault": "status", "path": "("}, {"fault": "status", "colour": 1},
     {"fault": "expire_lease"}],
)  # fmt: skip
def test_a_fault_that_is_none_is_refused(app: Caller, body: dict[str, object]) -> None:
    assert app("POST", "/_replay/faults", body).status == 400


def test_a_lease_that_nobody_holds_cant_lapse(app: Caller) -> None:
    assert app("POST", "/_replay/faults", {"fault": "expire_lease", "work_id": "sesn_none"}).status == 404


def test_the_journal_keeps_requests_but_no_credentials(server: RecordedServer, app: Caller, worker: Caller) -> None:
    app("GET", "/v1/agents?limit=1")
    worker("GET", "/v1/agents")
    lines = app("GET", "/_replay/requests").body["data"]
    assert [(one["path"], one["query"], one["status"], one["credential"]) for one in lines[:2]] == [
        ("/v1/agents", "limit=1", 200, "api_key"),
        ("/v1/agents", "", 401, "environment_key"),
    ]
    assert "sk-ant" not in str(lines)
    assert [one["status"] for one in server.requests("/agents", "GET")] == [200, 401]


def test_waiting_ends_and_says_for_what(server: RecordedServer) -> None:
    with pytest.raises(WaitTimedOut, match="the tide"):
        server.wait_for(lambda _: False, timeout=0.1, what="the tide")


def test_a_bug_of_the_server_is_answered_in_the_envelope(server: RecordedServer, app: Caller) -> None:
    server.call(lambda platform: setattr(platform.agents, "all", None))
    answer = app("GET", "/v1/agents")
    assert answer.status == 500
    assert answer.error["type"] == "api_error"
