"""`hourglass egress allow`, `deny` and `show` where nobody serves the log."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from actors import egress_changes
from actors.egress_changes import Edit, EntryNotListed, change
from actors.settings import Settings
from events.cli import build
from events.egress_policy import EntryInvalid
from events.envelope import new_events
from events.errors import HourglassError, IllegalTransition, LogLocked, LogMissing, StaleEpoch
from events.log import Expect
from events.sandbox import load
from events.sqlite_log import SqliteLog
from events.targets import AmbiguousTarget, NoSuchTarget
from events.types import EgressConnected, EgressRefused, Limits, SandboxBranched, SandboxCreated, SandboxKilled

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from events.types import EventData

BOX = "sbx-one"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sandbox, a branch, and one that was killed."""
    monkeypatch.chdir(tmp_path)
    created = SandboxCreated(session_id="sesn_1", driver="gvisor", template="base", limits=Limits())
    branched = SandboxBranched(
        parent=BOX, parent_version=1, snapshot_id="s", session_id="", driver="gvisor", template="base", limits=Limits()
    )
    used: list[EventData] = [
        created,
        EgressConnected(host="a.example", port=443, address="93.184.216.34", rule="a.example"),
        EgressRefused(host="b.example", port=443, reason="not_allowed"),
    ]
    gone: list[EventData] = [created, SandboxKilled(reason="requested")]
    streams: list[tuple[str, list[EventData]]] = [(BOX, used), ("branch", [branched]), ("sbx-gone", gone)]
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        epoch = log.next_epoch("host")
        for name, data in streams:
            log.append(f"sandbox-{name}", new_events(name, data), expected=0, epoch=epoch)
    return tmp_path


def run(home: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), ["egress", *map(str, arguments), "--home", str(home)])


def output(home: Path, *arguments: str | Path) -> str:
    result = run(home, *arguments)
    assert result.exit_code == 0, result.exception
    return str(result.stdout)


def as_json(home: Path, *arguments: str | Path) -> dict[str, Any]:
    return dict(json.loads(output(home, *arguments, "--json")))


def test_a_list_is_changed_in_the_log_itself(home: Path) -> None:
    assert "may reach nothing" in output(home, "show", BOX)
    text = output(home, "allow", BOX, "A.Example", "*.b.example:22")
    assert "a.example" in text
    assert "a person" in text
    view = as_json(home, "show", "sbx-o")
    assert (view["allow"], view["from_people"]) == (["a.example", "*.b.example:22"],) * 2
    assert as_json(home, "deny", BOX, "a.example.")["allow"] == ["*.b.example:22"]
    with SqliteLog(home / "log.db", read_only=True) as log:
        assert load(log, BOX).egress == ("*.b.example:22",)
        changes = [event for event in log.read(f"sandbox-{BOX}") if event.type == "egress.policy_changed"]
        assert len(changes) == 2
        assert {event.correlation_id for event in changes} == {"sesn_1"}
        assert log.verify() is None
    # What is so already is no event.
    output(home, "allow", BOX, "*.b.example:22")
    with SqliteLog(home / "log.db", read_only=True) as log:
        assert load(log, BOX).version == changes[-1].version


def test_a_host_that_was_thought_dead_can_not_write_after_it(home: Path) -> None:
    output(home, "allow", BOX, "a.example")
    killed = new_events("late", [SandboxKilled(reason="requested")])
    with SqliteLog(home / "log.db") as log, pytest.raises(StaleEpoch):
        log.append(f"sandbox-{BOX}", killed, expected=Expect.ANY, epoch=1)


def test_a_session_stands_for_its_sandbox_and_a_branch_follows_no_settings(home: Path) -> None:
    assert as_json(home, "allow", "branch", "a.example")["follows_settings"] is False
    assert "the settings do not apply to it" in output(home, "show", "branch")


def test_what_can_not_be_changed_says_why(home: Path) -> None:
    output(home, "allow", BOX, "*.example.com")
    for arguments, error, said in (
        (("allow", BOX, "*"), EntryInvalid, "would allow everything"),
        (("allow", "nobody", "a.example"), NoSuchTarget, "names no session"),
        (("allow", "sbx-", "a.example"), AmbiguousTarget, "could be any of"),
        (("allow", "sbx-gone", "a.example"), IllegalTransition, "is killed"),
        (("deny", BOX, "b.example"), EntryNotListed, "b.example is not in the list of sandbox sbx-one."),
        (("deny", BOX, "a.example.com"), EntryNotListed, "sbx-one: what allows it is *.example.com."),
        (("deny", BOX, "10.0.0.0/8"), EntryNotListed, "10.0.0.0/8 is not in the list"),
    ):
        found = run(home, *arguments).exception
        assert isinstance(found, error), (arguments, found)
        assert said in str(found)
        assert isinstance(found, HourglassError)
        assert found.advice
    assert isinstance(run(home / "none", "allow", BOX, "a.example").exception, LogMissing)
    assert not (home / "none").exists()


def test_a_dry_run_changes_nothing_and_tells_what_would_be_otherwise(home: Path) -> None:
    output(home, "allow", BOX, "a.example")
    allowed = as_json(home, "allow", BOX, "b.example", "--dry-run")
    assert [one["host"] for one in allowed["would_allow"]] == ["b.example"]
    assert allowed["would_refuse"] == []
    denied = as_json(home, "deny", BOX, "a.example", "--dry-run")
    assert [one["host"] for one in denied["would_refuse"]] == ["a.example"]
    assert isinstance(run(home, "deny", BOX, "c.example", "--dry-run").exception, EntryNotListed)
    assert as_json(home, "show", BOX)["allow"] == ["a.example"]


def test_a_log_that_is_held_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_changes, "_WAIT_S", 1.0)
    program = (
        "import sys, time; from events.sqlite_log import SqliteLog\n"
        "with SqliteLog(sys.argv[1]): print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    settings = Settings(home=home)

    def held(seconds: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(home / "log.db"), seconds], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with held("60") as process:
        with pytest.raises(LogLocked):
            change(settings, BOX, Edit.of(add=["a.example"]), "ann")
        process.kill()
    monkeypatch.setattr(egress_changes, "_WAIT_S", 20.0)
    with held("0.7"):
        assert change(settings, BOX, Edit.of(add=["a.example"]), "ann")["allow"] == ["a.example"]


def test_without_a_sandbox_the_settings_are_shown_and_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "sk-secret")
    (home / "hourglass.toml").write_text(
        """
egress = ["pkg.example.org"]
[egress_agents]
coder = ["github.com"]
[egress_hosts]
"db.example.com" = "10.0.0.5"
[egress_credentials."api.example.com"]
kind = "bearer"
env = "API_KEY"
"""
    )
    text = output(home, "show")
    for said in (
        "pkg.example.org",
        "sessions of agent coder",
        "10.0.0.5",
        "http://api.example.com.internal/",
        "API_KEY",
    ):
        assert said in text
    shown = as_json(home, "show")
    assert shown["agents"] == {"coder": ["github.com"]}
    assert "sk-secret" not in f"{text}{shown}"
    (home / "hourglass.toml").write_text("")
    assert "let no sandbox reach anything" in output(home, "show")
