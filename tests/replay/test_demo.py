"""The demo as a user runs it, and what it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from events.sqlite_log import SqliteLog
from events.types import SandboxBranched, ToolCallStarted
from replay.demo.show import DemoFailed
from replay.local import Daemon, LocalHourglass, NotEnded, NotStarted, storage
from replay.timeline import find, read

HOURGLASS = [sys.executable, "-c", "from events.cli import main; main()"]


def test_a_command_that_ends_instead_of_serving_is_said_with_its_reason(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    daemon = Daemon(tmp_path, "log", ["log", "verify", "--json", "--home", str(tmp_path / "none")], variables)
    daemon.start()
    with pytest.raises(NotStarted, match=r"`hourglass log` did not start: There is no log at") as error:
        daemon.ready(30)
    assert str(tmp_path / "log.err") in error.value.advice
    daemon.stop()


def test_a_command_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "replay", ["replay", "serve"], dict(os.environ))
    daemon.start()
    try:
        with pytest.raises(NotStarted, match="it said nothing for 0 s"):
            daemon.ready(0.05)
    finally:
        daemon.stop()
    assert not daemon.alive


def test_a_server_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    local = LocalHourglass(tmp_path, serve=False)
    with local, local.client() as client:
        session_id = local.create_session(client, "bash-true")
        with pytest.raises(NotEnded, match=f"The session {session_id} was not over after 0 s"):
            local.wait_ended(client, [session_id], 0.0)
        local.check()
        for daemon in local._daemons:
            daemon.stop()
        with pytest.raises(NotStarted, match="it ended while it served"):
            local.check()


def test_the_environment_of_the_user_leads_nothing_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-api03-someone")
    monkeypatch.setenv("HOURGLASS_HOME", "/elsewhere")
    monkeypatch.setenv("HOURGLASS_STORAGE", "/storage")
    found = LocalHourglass(tmp_path).variables({"MORE": "1"})
    assert "ANTHROPIC_API_KEY" not in found
    assert "HOURGLASS_HOME" not in found
    assert (found["HOURGLASS_STORAGE"], found["MORE"]) == ("/storage", "1")
    assert storage() == Path("/storage")


def test_a_failure_says_where_the_rest_is() -> None:
    error = DemoFailed(cause="it broke", home="/tmp/x")
    assert str(error) == "The demo failed: it broke."
    assert error.advice == "What the service said is in /tmp/x/up.err and /tmp/x/serve.err."


@pytest.mark.integration
def test_the_demo_shows_two_sessions_and_leaves_the_log_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [*HOURGLASS, "demo", "--json", "--home", str(home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [one["recording"] for one in found["sessions"]] == ["fix-the-bug", "break-the-tests"]
    assert [one["calls"] for one in found["sessions"]] == [16, 13]
    assert "total += int(number)" in (home / "durations.py").read_text()
    assert "Weeks are `w`." in (home / "README.md").read_text()
    with SqliteLog(home / "log.db", read_only=True) as log:
        assert log.verify() is None
        # One fork of three took its parent's place.
        kinds = [event.type for event in log.read(f"sandbox-{found['kept']}")]
        assert kinds[:3] == ["sandbox.created", "sandbox.suspended", "sandbox.resumed"]
        parent = [event.type for event in log.read(f"sandbox-{found['sessions'][0]['sandboxes'][0]}")]
        assert parent.count("sandbox.forked") == 3
        assert parent[-1] == "sandbox.killed"
        # The edit that broke a test is found, and a branch begins right before it.
        broken = found["regression"]
        [blamed] = [one.data for one in log.read(f"sandbox-{broken['sandbox']}") if one.version == broken["bad"] - 1]
        assert isinstance(blamed, ToolCallStarted)
        assert blamed.input["new_string"] == r"[smhdw]\s*)*"
        begun = next(log.read_data(f"sandbox-{broken['branch']}"))
        assert isinstance(begun, SandboxBranched)
        assert (begun.parent, begun.parent_version) == (broken["sandbox"], broken["good"])
        for one in found["sessions"]:
            timeline = read(log, find(log, one["session_id"]))
            assert timeline.totals.posted == one["calls"]
            assert timeline.claims[-1].ended == "session.released"
            for sandbox in one["sandboxes"]:
                assert not (storage() / "machines" / sandbox).exists()
    assert not running(home)


@pytest.mark.integration
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [*HOURGLASS, "demo", "--json", "--home", str(home)]
    # Where the tests run in the background of a shell, SIGINT is ignored, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 90
    while not (home / "log.db").exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert not running(home)


def running(home: Path) -> list[str]:
    """Processes that have the home on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(home) in words:
                found.append(words)
    return found
