"""The auth matrix of contract §2.1 and the failures of §2.2."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess, RecordedServer
    from tests.replay.conftest import Begin, Caller

# endpoint: what the API key, the environment key and the sessions token get (2 = any 2xx, else the status).
MATRIX = [
    ("GET", "/v1/agents", 2, 401, 401),
    ("GET", "/v1/environments", 2, 401, 401),
    ("GET", "/v1/environments/{env}", 2, 401, 401),
    ("POST", "/v1/sessions", 400, 401, 401),
    ("GET", "/v1/sessions", 2, 401, 401),
    ("POST", "/v1/sessions/{session}", 2, 401, 401),
    ("GET", "/v1/sessions/{session}", 2, 2, 2),
    ("GET", "/v1/sessions/{session}/events", 2, 2, 2),
    ("POST", "/v1/sessions/{session}/events", 400, 400, 400),
    ("GET", "/v1/sessions/{session}/threads", 2, 2, 2),
    ("GET", "/v1/environments/{env}/work/poll", 401, 2, 401),
    ("POST", "/v1/environments/{env}/work/{session}/ack", 401, 2, 401),
    ("POST", "/v1/environments/{env}/work/{session}/heartbeat", 401, 2, 2),
    ("GET", "/v1/environments/{env}/work/stats", 2, 2, 401),
    ("GET", "/v1/environments/{env}/work", 401, 2, 401),
    ("GET", "/v1/environments/{env}/work/{session}", 2, 401, 401),
    ("POST", "/v1/environments/{env}/work/{session}", 2, 401, 401),
    ("POST", "/v1/environments/{env}/work/{session}/stop", 2, 2, 2),
    ("GET", "/v1/memory_stores", 2, 401, 401),
    ("GET", "/v1/memory_stores/{store}/memories", 2, 401, 2),
    ("GET", "/v1/memory_stores/{other}/memories", 2, 401, 403),
    ("GET", "/v1/skills", 2, 403, 403),
    ("GET", "/v1/skills/{skill}/versions/latest", 2, 2, 2),
    ("GET", "/_replay/recordings", 2, 401, 401),
]


def sessions_token(worker: Caller, environment_id: str) -> str:
    item = worker("GET", f"/v1/environments/{environment_id}/work/poll").body
    worker("POST", f"/v1/environments/{environment_id}/work/{item['id']}/ack")
    packed = item["secret"]
    assert "=" not in packed
    return str(json.loads(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))["sessions_token"])


def test_the_matrix(
    server: RecordedServer, app: Caller, worker: Caller, begin: Begin, environment: EnvironmentAccess
) -> None:
    store, other = (app("POST", "/v1/memory_stores", {"name": name}).body["id"] for name in ("mine", "other"))
    resources = [{"type": "memory_store", "memory_store_id": store}]
    session = begin("bash-true", resources=resources)
    skill = server.call(lambda platform: platform.skills.add("pdf", {"SKILL.md": "x"}))["skill_id"]
    names = {"env": environment.id, "session": session, "store": store, "other": other, "skill": skill}
    token = sessions_token(worker, environment.id)
    found = []
    for method, path, *_ in MATRIX:
        where = path.format(**names)
        answers = [caller(method, where) for caller in (app, worker, app.with_token(token))]
        found.append((method, path, *(2 if one.status < 300 else one.status for one in answers)))
        for answer in answers:
            if answer.status >= 400:
                assert answer.error["type"]
    assert found == MATRIX


def test_every_failure_has_its_words(
    server: RecordedServer, app: Caller, worker: Caller, environment: EnvironmentAccess
) -> None:
    other = server.create_environment("other")
    poll = f"/v1/environments/{environment.id}/work/poll"

    def refused(caller: Caller, path: str = poll) -> tuple[int, str, str]:
        answer = caller("GET", path)
        return answer.status, answer.error["type"], answer.error["message"]

    assert refused(app.with_token("sk-ant-oat01-made-up")) == (
        401,
        "authentication_error",
        "OAuth access token is invalid",
    )
    assert refused(worker.with_token(other.key)) == (
        403,
        "permission_error",
        "Token not authorized for this environment",
    )
    assert refused(worker, "/v1/agents") == (401, "authentication_error", "Authentication failed")
    assert worker("GET", poll).status == 200
    server.revoke(environment.key)
    assert refused(worker) == (401, "authentication_error", "OAuth access token has been revoked.")


def test_the_header_does_not_matter(app: Caller, server: RecordedServer) -> None:
    plain = app.with_token("")
    assert plain("GET", "/v1/agents", headers={"authorization": "", "x-api-key": server.api_key}).status == 200
    assert plain("GET", "/v1/agents", headers={"authorization": ""}).status == 401


def test_a_token_serves_its_own_session_and_sends_results_alone(
    app: Caller, worker: Caller, begin: Begin, environment: EnvironmentAccess
) -> None:
    mine, other = begin("bash-true"), begin("bash-true")
    mate = app.with_token(sessions_token(worker, environment.id))
    assert mate("GET", f"/v1/sessions/{mine}").status == 200
    assert mate("GET", f"/v1/sessions/{other}").status == 403
    assert mate("POST", f"/v1/environments/{environment.id}/work/{other}/heartbeat").status == 403
    for event in (
        {"type": "user.message", "content": [{"type": "text", "text": "x"}]},
        {"type": "user.interrupt"},
    ):
        answer = mate("POST", f"/v1/sessions/{mine}/events", {"events": [event]})
        assert answer.status == 403
        assert str(event["type"]) in answer.error["message"]


@pytest.mark.parametrize("mint", [True, False])
def test_secrets_can_be_switched_off(
    server: RecordedServer, worker: Caller, begin: Begin, environment: EnvironmentAccess, mint: bool
) -> None:
    server.settings.mint_secrets = mint
    begin("bash-true")
    item = worker("GET", f"/v1/environments/{environment.id}/work/poll").body
    assert (item["secret"] is not None) is mint
    acked = worker("POST", f"/v1/environments/{environment.id}/work/{item['id']}/ack").body
    assert acked["secret"] is None
