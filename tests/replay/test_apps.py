"""What an app sets up: environments, agents, sessions, stores, skills (contract §3)."""

from __future__ import annotations

import io
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess, RecordedServer
    from tests.replay.conftest import Begin, Caller

AGENT: dict[str, Any] = {"name": "Coder", "model": "claude-opus-4-8", "metadata": {"recording": "bash-true"}}


def test_an_environment_lives(app: Caller) -> None:
    made = app("POST", "/v1/environments", {"name": "mine", "metadata": {"a": "1", "b": "2"}}).body
    assert made["config"] == {"type": "self_hosted"}
    path = f"/v1/environments/{made['id']}"
    changed = app("POST", path, {"name": "yours", "metadata": {"a": None}}).body
    assert (changed["name"], changed["metadata"]) == ("yours", {"b": "2"})
    kind = app("POST", path, {"config": {"type": "cloud"}})
    assert kind.error["details"] == {"error_code": "invalid_config_type_change"}
    assert app("POST", f"{path}/archive").body["archived_at"]
    assert app("POST", path, {"name": "x"}).error["details"] == {"error_code": "environment_archived"}
    assert app("GET", "/v1/environments").body["data"] == []
    assert len(app("GET", "/v1/environments?include_archived=true").body["data"]) == 1
    assert app("DELETE", path).body == {"id": made["id"], "type": "environment_deleted"}
    assert app("GET", path).error["details"] == {"error_code": "environment_not_found"}


def test_a_self_hosted_environment_takes_nothing_else(app: Caller) -> None:
    config = {"type": "self_hosted", "networking": {}}
    assert app("POST", "/v1/environments", {"name": "x", "config": config}).status == 400
    assert app("POST", "/v1/environments", {}).status == 400


def test_an_agent_is_resolved_and_versioned(app: Caller) -> None:
    policy = {"permission_policy": {"type": "always_ask"}}
    tools = [{"type": "agent_toolset_20260401", "configs": [{"name": "bash"} | policy]}]
    made = app("POST", "/v1/agents", AGENT | {"tools": tools}).body
    configs = {config["name"]: config for config in made["tools"][0]["configs"]}
    assert len(configs) == 8
    assert configs["bash"]["permission_policy"] == {"type": "always_ask"}
    assert configs["read"]["permission_policy"] == {"type": "always_allow"}
    path = f"/v1/agents/{made['id']}"
    second = app("POST", path, {"version": 1, "system": "Be brief."}).body
    assert (second["version"], second["system"], second["name"]) == (2, "Be brief.", "Coder")
    assert app("POST", path, {"version": 1, "system": "x"}).status == 409
    assert app("GET", f"{path}?version=1").body["system"] is None
    assert [one["version"] for one in app("GET", f"{path}/versions").body["data"]] == [2, 1]
    assert app("GET", f"{path}?version=3").status == 404
    app("POST", f"{path}/archive")
    assert app("GET", "/v1/agents").body["data"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "m"}, "name"),
        ({"name": "n"}, "model"),
        ({"tools": [{"type": "shell"}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "name": "bash", "description": "d", "input_schema": {}}]}, "can't be a custom"),
        ({"tools": [{"type": "custom", "name": "mine"}]}, "needs a description"),
        ({"tools": [{"type": "agent_toolset_20260401", "configs": [{"name": "sh"}]}]}, "no tool named sh"),
        ({"skills": [{"type": "custom"}]}, "skills.0.skill_id"),
    ],
)
def test_an_agent_is_checked(app: Caller, body: dict[str, Any], message: str) -> None:
    base = {"name": "n", "model": "m"} if "tools" in body or "skills" in body else {}
    answer = app("POST", "/v1/agents", base | body)
    assert answer.status == 400
    assert message in answer.error["message"]


def test_a_session_picks_its_recording(app: Caller, environment: EnvironmentAccess, server: RecordedServer) -> None:
    agent = app("POST", "/v1/agents", AGENT).body["id"]
    body = {"agent": agent, "environment_id": environment.id}
    by_agent = app("POST", "/v1/sessions", body).body["id"]
    by_itself = app("POST", "/v1/sessions", body | {"metadata": {"recording": "two-turns"}}).body["id"]
    assert server.comparison(by_agent)["recording"] == "bash-true"
    assert server.comparison(by_itself)["recording"] == "two-turns"
    plain = app("POST", "/v1/agents", AGENT | {"metadata": {}}).body["id"]
    answer = app("POST", "/v1/sessions", body | {"agent": plain})
    assert "There is no recording for this session. Give it the metadata `recording`." in answer.error["message"]
    answer = app("POST", "/v1/sessions", body | {"metadata": {"recording": "none"}})
    assert "fix-the-bug" in answer.error["message"]
    server.settings.default_recording = "many-calls"
    by_default = app("POST", "/v1/sessions", body | {"agent": plain}).body["id"]
    assert server.comparison(by_default)["recording"] == "many-calls"


def test_a_session_has_every_key_and_no_null_list(app: Caller, begin: Begin) -> None:
    session = begin("bash-true", title="Mine", metadata={"k": "v"})
    body = app("GET", f"/v1/sessions/{session}").body
    for key in ("resources", "vault_ids", "outcome_evaluations"):
        assert body[key] == []
    assert body["agent"]["skills"] == []
    assert (body["title"], body["metadata"], body["status"]) == ("Mine", {"k": "v"}, "idle")
    assert app("GET", f"/v1/sessions/session_{session.removeprefix('sesn_')}").body == body
    assert app("GET", "/v1/sessions/sesn_none").status == 404


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"environment_id": "env_none"}, "Environment not found"),
        ({"environment_id": None}, "environment_id"),
        ({"agent": "agent_none"}, "Agent not found"),
        ({"agent": None}, "agent"),
        ({"initial_events": [{"type": "user.interrupt"}]}, "initial_events.0.type"),
        ({"initial_events": [{"type": "user.message", "content": []}] * 51}, "at most 50"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"resources": [{"type": "memory_store", "memory_store_id": "memstore_none"}]}, "Memory store not found"),
    ],
)
def test_a_session_is_checked(app: Caller, environment: EnvironmentAccess, more: Any, message: str) -> None:
    agent = app("POST", "/v1/agents", AGENT).body["id"]
    answer = app("POST", "/v1/sessions", {"agent": agent, "environment_id": environment.id} | more)
    assert answer.status in (400, 404)
    assert message in answer.error["message"]


def test_other_resources_are_refused_in_the_apis_words(app: Caller, environment: EnvironmentAccess) -> None:
    agent = app("POST", "/v1/agents", AGENT).body["id"]
    body = {"agent": agent, "environment_id": environment.id, "resources": [{"type": "file", "file_id": "file_1"}]}
    assert app("POST", "/v1/sessions", body).error["message"] == (
        f"Environment {environment.id} is a self-hosted environment. "
        "`resources` are not supported with self-hosted environments."
    )


def test_sessions_are_listed_and_changed(app: Caller, begin: Begin, server: RecordedServer) -> None:
    first, second = begin("bash-true"), begin("two-turns")
    assert [one["id"] for one in app("GET", "/v1/sessions").body["data"]] == [second, first]
    assert [one["id"] for one in app("GET", "/v1/sessions?order=asc&limit=1").body["data"]] == [first]
    assert app("GET", "/v1/sessions?statuses[]=running").body["data"] == []
    changed = app("POST", f"/v1/sessions/{first}", {"title": "New", "metadata": {"a": "b"}}).body
    assert (changed["title"], changed["metadata"]) == ("New", {"a": "b"})
    assert server.events(first)[-1]["type"] == "session.updated"
    app("POST", f"/v1/sessions/{first}/archive")
    assert app("GET", f"/v1/sessions?agent_id={changed['agent']['id']}").body["data"] == []
    assert app("POST", f"/v1/sessions/{first}", {"title": "x"}).status == 400


def test_a_running_session_is_neither_archived_nor_deleted(app: Caller, server: RecordedServer, begin: Begin) -> None:
    session = begin("bash-true")
    server.call(lambda platform: platform.sessions.seat(session).session.run())
    assert app("POST", f"/v1/sessions/{session}/archive").status == 400
    assert app("DELETE", f"/v1/sessions/{session}").status == 400


def test_an_unknown_path_has_the_envelope_too(app: Caller) -> None:
    assert app("GET", "/v1/nothing").error["type"] == "not_found_error"
    assert app("DELETE", "/v1/agents").status == 405


def test_a_request_beyond_the_limit_is_refused(app: Caller, server: RecordedServer) -> None:
    server.settings.max_request_bytes = 1000
    answer = app("POST", "/v1/agents", AGENT | {"system": "x" * 1000})
    assert answer.status == 413
    assert answer.error["type"] == "request_too_large"


def test_memories_have_preconditions(app: Caller) -> None:
    store = app("POST", "/v1/memory_stores", {"name": "Notes"}).body["id"]
    path = f"/v1/memory_stores/{store}/memories"
    made = app("POST", path, {"path": "/a/b.md", "content": "één"}).body
    assert made["content_sha256"] == sha256("één".encode()).hexdigest()
    assert made["content_size_bytes"] == 5
    assert app("POST", path, {"path": "/a/b.md", "content": ""}).status == 409
    one = f"{path}/{made['id']}"
    wrong = {"type": "content_sha256", "content_sha256": "0" * 64}
    right = wrong | {"content_sha256": made["content_sha256"]}
    assert app("POST", one, {"content": "x", "precondition": wrong}).status == 409
    assert app("POST", one, {"content": "x", "precondition": right}).body["content"] == "x"
    assert app("DELETE", f"{one}?expected_content_sha256={made['content_sha256']}").status == 409
    assert app("DELETE", f"{one}?expected_content_sha256={sha256(b'x').hexdigest()}").status == 200
    assert app("GET", one).status == 404
    versions = app("GET", f"/v1/memory_stores/{store}/memory_versions").body["data"]
    assert [version["operation"] for version in versions] == ["deleted", "modified", "created"]
    redacted = app("POST", f"/v1/memory_stores/{store}/memory_versions/{versions[2]['id']}/redact").body
    assert redacted["content"] is None


def test_memories_are_listed(app: Caller) -> None:
    store = app("POST", "/v1/memory_stores", {"name": "Notes"}).body["id"]
    path = f"/v1/memory_stores/{store}/memories"
    for name in ("/a.md", "/b/c.md", "/b/d.md"):
        app("POST", path, {"path": name, "content": name})
    basic = app("GET", f"{path}?limit=100").body["data"]
    assert [(one["path"], one["content"]) for one in basic] == [("/a.md", None), ("/b/c.md", None), ("/b/d.md", None)]
    full = app("GET", f"{path}?view=full&path_prefix=/b/").body["data"]
    assert [one["content"] for one in full] == ["/b/c.md", "/b/d.md"]
    shallow = app("GET", f"{path}?depth=1").body["data"]
    assert [(one["type"], one["path"]) for one in shallow] == [("memory", "/a.md"), ("memory_prefix", "/b/")]
    assert app("GET", f"{path}?view=full&limit=21").status == 400


@pytest.mark.parametrize("bad", ["a", "/", "/a//b", "/../a", "/a/.", "/\x07", "/" + "x" * 1024, "/e\u0301"])
def test_a_memorys_path_is_checked(app: Caller, bad: str) -> None:
    store = app("POST", "/v1/memory_stores", {"name": "Notes"}).body["id"]
    assert app("POST", f"/v1/memory_stores/{store}/memories", {"path": bad, "content": ""}).status == 400


def test_a_memorys_size_is_bounded(app: Caller) -> None:
    store = app("POST", "/v1/memory_stores", {"name": "Notes"}).body["id"]
    body = {"path": "/a", "content": "x" * 102_401}
    assert app("POST", f"/v1/memory_stores/{store}/memories", body).status == 400


def test_a_skill_is_fetched_as_an_archive(app: Caller, worker: Caller, server: RecordedServer) -> None:
    files = {"SKILL.md": "# PDF\n", "run.sh": "echo\n"}
    first = app("POST", "/_replay/skills", {"name": "pdf", "files": files}).body
    second = app("POST", "/_replay/skills", {"name": "pdf", "files": files, "skill_id": first["skill_id"]}).body
    path = f"/v1/skills/{first['skill_id']}/versions"
    assert worker("GET", f"{path}/latest").body["id"] == second["id"]
    assert worker("GET", f"{path}/{first['id']}").body["name"] == "pdf"
    packed = worker("GET", f"{path}/{second['id']}/content", headers={"accept": "application/binary"}).body
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.read("pdf/SKILL.md") == b"# PDF\n"
        assert archive.getinfo("pdf/run.sh").external_attr >> 16 == 0o755
    assert worker("GET", f"{path}/latest/content").status == 400
    assert app("DELETE", f"/v1/skills/{first['skill_id']}").status == 200
    assert worker("GET", f"{path}/latest").status == 404
