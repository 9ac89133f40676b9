from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from events import cli
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import (
    EventData,
    Limits,
    SandboxCrashed,
    SandboxCreated,
    SandboxRecovered,
    SandboxStarted,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionIdled,
    SessionResultPosted,
    ToolCallCompleted,
    ToolCallInterrupted,
    ToolCallRequested,
    ToolCallStarted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer.testing import Result

EVIL = "\x1b]0;owned\x07[bold red]markup[/] \u202egnp.exe\x9b2J"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose log has a session that works, one that failed, and a sandbox that crashed."""
    sandbox = "sbx-00000000000000aa"
    works: list[EventData] = [
        SessionClaimed(
            environment_id="env_1", work_id="sesn_1", claim_id="c1", worker_id="w", credential="session_token"
        ),
        SessionAttached(claim_id="c1", sandbox_id=sandbox, history_events=3),
        ToolCallRequested(tool_use_id="toolu_1", tool="bash", input={"command": "pytest -q\nsecond line"}),
        ToolCallRequested(tool_use_id="toolu_2", tool="read", input={"file_path": "/workspace/a.py"}, permission="ask"),
        SessionResultPosted(tool_use_id="toolu_1"),
        SessionIdled(stop_reason="end_turn"),
    ]
    runs: list[EventData] = [
        SandboxCreated(session_id="sesn_1", driver="gvisor", template="base", limits=Limits()),
        SandboxStarted(machine_id="hg-1", node="n1", seconds=0.2, agent_version="1"),
        ToolCallStarted(tool_use_id="toolu_1", tool="bash", input={"command": "pytest -q\nsecond line"}),
        ToolCallCompleted(
            tool_use_id="toolu_1",
            content=[{"type": "text", "text": f"1 failed {EVIL}\nmore\neven more"}],
            is_error=True,
            seconds=1.25,
            output_bytes=2048,
        ),
        ToolCallStarted(tool_use_id="toolu_2", tool="read", input={"file_path": "/workspace/a.py"}),
        SandboxCrashed(reason="out_of_memory"),
        ToolCallInterrupted(
            tool_use_id="toolu_2", reason="out_of_memory", content=[{"type": "text", "text": "it ran out of memory"}]
        ),
        SandboxRecovered(machine_id="hg-2", node="n1", kept="files", seconds=0.3),
    ]
    fails: list[EventData] = [
        SessionClaimed(
            environment_id="env_1", work_id="sesn_2", claim_id="c2", worker_id="w", credential="session_token"
        ),
        SessionFailed(reason="api_error", detail="it said [red]no[/]"),
    ]
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        for stream, data in (("session-sesn_1", works), (f"sandbox-{sandbox}", runs), ("session-sesn_2", fails)):
            session_id = "sesn_2" if data is fails else "sesn_1"
            log.append(stream, new_events(stream, data, correlation_id=session_id), expected=0)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    cli.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def output(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    assert result.exit_code == 0
    return str(result.stdout)


def as_json(*arguments: str | Path) -> Any:
    return json.loads(output(*arguments, "--json"))


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code of the whole command, as a shell sees it."""
    monkeypatch.setattr(sys, "argv", ["hourglass", *map(str, arguments)])
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Entry("events", cli.register)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


class Entry:
    """A stand-in for an entry point, since what is installed is not what is tested."""

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def assert_harmless(text: str) -> None:
    assert not set(text) & set("\x1b\x07\x9b\u202e")


def test_sessions(home: Path) -> None:
    text = output("sessions", "--home", home)
    assert "sesn_1" in text
    assert "attached" in text
    assert "end_turn" in text
    assert "api_error: it said [red]no[/]" in text
    first, second = as_json("sessions", "--home", home)
    assert first["session_id"] == "sesn_1"
    assert (first["phase"], first["tool_calls"], first["results_posted"]) == ("attached", 2, 1)
    assert (first["sandbox_id"], first["stop_reason"]) == ("sbx-00000000000000aa", "end_turn")
    assert (second["phase"], second["failure"]) == ("failed", "api_error")


def test_sandboxes(home: Path) -> None:
    text = output("sandboxes", "--home", home)
    assert "sbx-00000000000000aa" in text
    assert "1 (out_of_memory)" in text
    [one] = as_json("sandboxes", "--home", home)
    assert (one["phase"], one["session_id"], one["machine_id"]) == ("running", "sesn_1", "hg-2")
    assert (one["template"], one["tool_calls"], one["interrupted"], one["crashes"]) == ("base", 2, 1, 1)


def test_the_view_of_tool_calls(home: Path) -> None:
    with SqliteLog(home / "log.db", read_only=True) as log:
        first, second = log.query_dicts("SELECT * FROM tool_calls")
    assert (first["tool_use_id"], first["session_id"], first["sandbox_id"]) == (
        "toolu_1",
        "sesn_1",
        "sbx-00000000000000aa",
    )
    assert (first["tool"], first["status"], first["is_error"], first["seconds"]) == ("bash", "completed", 1, 1.25)
    assert json.loads(first["input"]) == {"command": "pytest -q\nsecond line"}
    assert first["output"].startswith("1 failed")
    assert first["requested_at"] <= first["started_at"] <= first["ended_at"]
    assert first["posted_at"] is not None
    assert (second["status"], second["posted_at"]) == ("interrupted", None)


def test_tail_says_what_ran_how_long_and_what_it_printed(home: Path) -> None:
    text = output("log", "tail", "--home", home)
    assert "bash pytest -q  (+1 lines)" in text
    assert "failed in 1.2 s, 2.0 KiB: 1 failed" in text
    assert "(+2 lines)" in text
    assert "read /workspace/a.py (waits for a confirmation)" in text
    assert "out_of_memory: it ran out of memory" in text
    assert "[bold red]markup[/]" in text
    assert_harmless(text)


def test_tail_counts_and_speaks_json(home: Path) -> None:
    lines = output("log", "tail", "-n", "3", "--home", home, "--json").splitlines()
    assert [json.loads(line)["position"] for line in lines] == [14, 15, 16]
    assert len(output("log", "tail", "-n", "0", "--home", home, "--json")) == 0
    assert len(output("log", "tail", "-n", "999", "--home", home, "--json").splitlines()) == 16


@pytest.mark.parametrize("name", ["session-sesn_1", "sesn_1"])
def test_show_a_stream_by_either_name(home: Path, name: str) -> None:
    assert [event["version"] for event in as_json("log", "show", name, "--home", home)] == [1, 2, 3, 4, 5, 6]
    text = output("log", "show", name, "--home", home)
    assert "session.attached" in text
    assert_harmless(text)


def test_show_a_stream_by_the_beginning_that_it_alone_has(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_json("log", "show", "sbx-00", "--home", home) == as_json("log", "show", "sandbox-", "--home", home)
    assert main(monkeypatch, "log", "show", "sesn_", "--home", home) == 1
    assert "There is no stream that alone begins with sesn_ in" in capsys.readouterr().err


def test_show_a_sandbox(home: Path) -> None:
    assert len(as_json("log", "show", "sbx-00000000000000aa", "--home", home)) == 8


def test_show_one_event(home: Path) -> None:
    event = as_json("log", "show", "10", "--home", home)
    assert (event["type"], event["stream"], event["version"]) == (
        "tool_call.completed",
        "sandbox-sbx-00000000000000aa",
        4,
    )
    assert event["data"]["content"][0]["text"].startswith("1 failed")
    assert len(event["hash"]) == 64
    assert event["recorded_at"].endswith("Z")
    text = output("log", "show", "10", "--home", home)
    assert "\\u001b" in text
    assert_harmless(text)


def test_a_view_over_a_damaged_row_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(home / "log.db")) as connection, connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET data = '{' WHERE position = 2")
    assert main(monkeypatch, "sessions", "--home", home) == 1
    assert "is damaged: a row holds what is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["17", "0", "session-none", "99999999999999999999"])
def test_show_what_is_not_there(
    home: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "log", "show", what, "--home", home) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: There is no ")
    assert "next: `hourglass log tail`" in captured.err
    assert captured.out == ""


def test_verify_a_whole_log(home: Path) -> None:
    assert output("log", "verify", "--home", home).startswith("whole: 16 events, last hash ")
    found = as_json("log", "verify", "--home", home)
    assert (found["whole"], found["events"], found["broken"]) == (True, 16, None)


def test_verify_a_broken_log(home: Path) -> None:
    with closing(sqlite3.connect(home / "log.db")) as connection, connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("UPDATE events SET epoch = 9 WHERE position = 5")
    result = run("log", "verify", "--home", home)
    assert result.exit_code == 1
    assert "is broken at position 5 of session-sesn_1" in result.stderr
    assert "next: stop writing to it" in result.stderr
    result = run("log", "verify", "--home", home, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["broken"]["position"] == 5


def test_export_to_stdout_and_to_a_file(home: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in output("log", "export", "--home", home).splitlines()]
    assert [line["position"] for line in lines] == list(range(1, 17))
    target = tmp_path / "out.jsonl"
    assert "16 events written" in output("log", "export", "-o", target, "--home", home)
    assert [json.loads(line) for line in target.read_text().splitlines()] == lines
    assert as_json("log", "export", "-o", target, "--home", home) == {"file": str(target), "events": 16}
    assert not target.with_name("out.jsonl.part").exists()


def test_an_export_that_fails_leaves_the_old_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with SqliteLog(home / "log.db") as log:
        log.append("session-x", new_events("x", [SessionIdled(stop_reason="x" * 100_000)]), expected=0)
    shutil.rmtree(home / "blobs")
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    assert main(monkeypatch, "log", "export", "-o", target, "--home", home) == 1
    assert "is damaged: blob" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert not target.with_name("out.jsonl.part").exists()


def test_an_export_to_where_nothing_can_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "log", "export", "-o", home / "none" / "x.jsonl", "--home", home) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_log_may_be_named_and_the_home_may_come_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert len(as_json("sessions", "--log", home / "log.db", "--home", tmp_path / "none")) == 2
    monkeypatch.setenv("HOURGLASS_HOME", str(home))
    assert len(as_json("sessions")) == 2


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    SqliteLog(tmp_path / "log.db").close()
    assert output("sessions", "--home", tmp_path).startswith("No session in ")
    assert output("sandboxes", "--home", tmp_path).startswith("No sandbox in ")
    assert "is empty" in output("log", "tail", "--home", tmp_path)
    assert "is empty" in output("log", "verify", "--home", tmp_path)
    assert output("log", "export", "--home", tmp_path) == ""
    assert as_json("sessions", "--home", tmp_path) == []
    assert as_json("log", "verify", "--home", tmp_path)["whole"] is True


@pytest.mark.parametrize(
    "command",
    [["sessions"], ["sandboxes"], ["log", "tail"], ["log", "show", "1"], ["log", "verify"], ["log", "export"]],
)
def test_a_missing_log_says_so(
    tmp_path: Path, command: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, *command, "--home", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: There is no log at {tmp_path}/log.db.\nnext: Start `hourglass up`")
    assert main(monkeypatch, *command, "--home", tmp_path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["type"] == "LogMissing"
    assert "hourglass up" in found["next"]


def test_what_a_newer_version_wrote_is_shown(home: Path) -> None:
    with closing(sqlite3.connect(home / "log.db")) as connection, connection:
        connection.execute(
            "INSERT INTO events SELECT 17, stream, 3, 'new', 'session.teleported', 4, recorded_at, correlation_id, "
            'causation_id, epoch, \'{"type":"session.teleported","to":"mars"}\', blob, metadata, hash '
            "FROM events WHERE position = 16"
        )
    assert "to=mars" in output("log", "tail", "--home", home)
    assert as_json("log", "show", "17", "--home", home)["schema_version"] == 4
    assert len(output("log", "export", "--home", home).splitlines()) == 17
    assert len(as_json("sessions", "--home", home)) == 2


def test_following_shows_what_another_process_appends(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "events", "log", "tail", "-f", "-n", "1", "--json", "--home", home],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["position"] == 16
        with SqliteLog(home / "log.db") as log:
            for n in range(3):
                log.append("session-x", new_events(f"x{n}", [SessionIdled(stop_reason=EVIL)]), expected=n)
                assert json.loads(child.stdout.readline())["position"] == 17 + n
        child.kill()


def test_a_reader_that_has_seen_enough(home: Path) -> None:
    with SqliteLog(home / "log.db") as log:
        data = [SessionIdled(stop_reason="x" * 1000) for _ in range(500)]
        log.append("session-x", new_events("x", data), expected=0)
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "events", "log", "export", "--home", home],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, errors = child.communicate(timeout=60)
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_every_command_has_help_and_json() -> None:
    commands = [
        ["sessions"],
        ["sandboxes"],
        ["usage"],
        *(["log", name] for name in ("tail", "show", "verify", "export")),
    ]
    for command in commands:
        text = output(*command, "--help")
        assert "--json" in text
        assert "--home" in text


def test_help_is_broken_where_the_terminal_ends() -> None:
    app = cli.build()
    commands = [*app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands
    assert len(commands) > 30
    for command in commands:
        assert command.help
        assert "\n" not in command.help.replace("\n\n", "")
