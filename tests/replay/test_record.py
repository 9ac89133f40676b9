"""Recording a served session, and the commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
import typer
from typer.testing import CliRunner

from events.errors import HourglassError
from replay.cli import register
from replay.record import NoCredential, SessionUnreadable, record
from replay.recording import RecordingMissing, load
from replay.server import RecordedServer, ServerNotStarted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from replay.recording import Recording
    from replay.server import EnvironmentAccess
    from tests.replay.conftest import Begin, Caller

TEXT = [{"type": "text", "text": "x"}]


@pytest.fixture
def commands() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


@pytest.fixture
def sdk(server: RecordedServer, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_ENVIRONMENT_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
    return monkeypatch


def answer_all(server: RecordedServer, app: Caller, session: str) -> None:
    while calls := server.comparison(session)["open_calls"]:
        results = [{"type": "user.tool_result", "tool_use_id": call, "content": TEXT} for call in calls]
        app("POST", f"/v1/sessions/{session}/events", {"events": results})
        server.wait_for(lambda platform: not platform.sessions.seat(session).player._scheduled)


def test_a_recorded_session_is_its_own_history(
    server: RecordedServer, client: anthropic.Anthropic, app: Caller, begin: Begin, tmp_path: Path
) -> None:
    session = begin("parallel-batch", title="Mine")
    answer_all(server, app, session)
    path = tmp_path / "mine.jsonl"
    assert record(client, session, path) == len(server.events(session))
    recording = load(path)
    assert list(recording.events) == server.events(session)
    assert (recording.name, recording.header.session_id) == ("Mine", session)
    assert recording.header.agent["tools"][0]["type"] == "agent_toolset_20260401"


def test_what_was_recorded_plays_again_and_alike(
    server: RecordedServer,
    client: anthropic.Anthropic,
    app: Caller,
    begin: Begin,
    tmp_path: Path,
) -> None:
    session = begin("threads")
    answer_all(server, app, session)
    record(client, session, tmp_path / "again.jsonl", "again")
    again = begin(load(tmp_path / "again.jsonl"))
    answer_all(server, app, again)
    shapes = [
        [(event["type"], event.get("name"), event.get("content")) for event in server.events(one)]
        for one in (session, again)
    ]
    assert shapes[0] == shapes[1]
    assert [call["equal"] for call in server.comparison(again)["calls"]] == [True] * 3


def test_fields_and_types_that_the_sdk_does_not_know_are_kept(
    server: RecordedServer,
    client: anthropic.Anthropic,
    begin: Begin,
    play: Callable[..., Recording],
    tmp_path: Path,
) -> None:
    new = ("agent.brand_new", {"shape": {"sides": 5}})
    session = begin(
        play(("user.message", {"content": TEXT}), new, ("agent.message", {"content": TEXT, "mood": "good"}))
    )
    record(client, session, tmp_path / "new.jsonl")
    events = {event["type"]: event for event in load(tmp_path / "new.jsonl").events}
    assert events["agent.brand_new"]["shape"] == {"sides": 5}
    assert events["agent.message"]["mood"] == "good"


def test_a_long_session_is_recorded_page_by_page(
    server: RecordedServer, client: anthropic.Anthropic, begin: Begin, play: Callable[..., Recording], tmp_path: Path
) -> None:
    messages = [("agent.message", {"content": [{"type": "text", "text": str(n)}]}) for n in range(2100)]
    session = begin(play(("user.message", {"content": TEXT}), *messages))
    assert record(client, session, tmp_path / "long.jsonl") == len(server.events(session)) > 2100
    assert len(server.requests(f"{session}/events", "GET")) == 3


def test_the_command_takes_the_environments_key(
    begin: Begin,
    environment: EnvironmentAccess,
    sdk: pytest.MonkeyPatch,
    commands: typer.Typer,
    tmp_path: Path,
) -> None:
    session = begin("bash-true")
    sdk.setenv("ANTHROPIC_ENVIRONMENT_KEY", environment.key)
    path = tmp_path / "x.jsonl"
    result = CliRunner().invoke(commands, ["record", session, "-o", str(path), "--json", "--name", "mine"])
    assert json.loads(result.stdout) == {"recording": str(path), "events": len(load(path).events)}
    assert load(path).name == "mine"


def test_the_command_takes_the_api_key(
    server: RecordedServer, begin: Begin, sdk: pytest.MonkeyPatch, commands: typer.Typer, tmp_path: Path
) -> None:
    sdk.setenv("ANTHROPIC_API_KEY", server.api_key)
    result = CliRunner().invoke(commands, ["record", begin("bash-true"), "-o", str(tmp_path / "x.jsonl")])
    assert "7 events in" in result.stdout
    failed = CliRunner().invoke(commands, ["record", "sesn_none", "-o", str(tmp_path / "y.jsonl")])
    assert isinstance(failed.exception, SessionUnreadable)
    assert "sesn_none can't be read: " in str(failed.exception)
    assert "ANTHROPIC_BASE_URL" in failed.exception.advice
    assert not (tmp_path / "y.jsonl").exists()


@pytest.mark.usefixtures("sdk")
def test_without_a_credential_nothing_is_asked(commands: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["record", "sesn_1", "-o", str(tmp_path / "x.jsonl")])
    assert isinstance(result.exception, NoCredential)
    assert "ANTHROPIC_API_KEY" in result.exception.advice


def test_recordings_are_listed(commands: typer.Typer, tmp_path: Path) -> None:
    listed = CliRunner().invoke(commands, ["replay", "recordings"])
    assert "fix-the-bug" in listed.stdout
    rows = json.loads(CliRunner().invoke(commands, ["replay", "recordings", "--json"]).stdout)
    assert {"name": "bash-true", "description": "One call: bash true.", "events": 14, "calls": 1} in rows
    failed = CliRunner().invoke(commands, ["replay", "recordings", "--recordings", str(tmp_path / "none")])
    assert isinstance(failed.exception, RecordingMissing)


def test_a_taken_port_is_named(server: RecordedServer) -> None:
    port = int(server.base_url.rsplit(":", 1)[1])
    with pytest.raises(ServerNotStarted, match=rf"Can't listen on 127.0.0.1:{port}: Address already in use") as raised:
        RecordedServer(port=port)
    assert isinstance(raised.value, HourglassError)
    assert "--port 0" in raised.value.advice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_and_ends_when_told(number: signal.Signals) -> None:
    main = "import typer; from replay.cli import register; app = typer.Typer(); register(app); app()"
    command = [sys.executable, "-c", main, "replay", "serve", "--json", "--ttl", "7", "--environments", "2"]
    with subprocess.Popen([*command, "--api-key", "sk-ant-api03-mine"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        where: dict[str, Any] = json.loads(process.stdout.readline())
        assert len(where["environments"]) == 2
        assert where["api_key"] == "sk-ant-api03-mine"
        with anthropic.Anthropic(api_key=where["api_key"], base_url=where["base_url"]) as client:
            found = {one.id for one in client.beta.environments.list()}
        assert found == {one["id"] for one in where["environments"]}
        process.send_signal(number)
        assert process.wait(10) == 0


def test_serve_speaks_shell_too() -> None:
    main = "import typer; from replay.cli import register; app = typer.Typer(); register(app); app()"
    with subprocess.Popen(
        [sys.executable, "-c", main, "replay", "serve"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.terminate()
    names = [line.removeprefix("export ").partition("=")[0] for line in lines]
    assert names == ["ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_KEY"]
