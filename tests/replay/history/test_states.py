"""States of the past: every version, position and time of a stream, and clear errors for those that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import sandbox
from events.cli import build
from events.envelope import new_events
from events.errors import UnknownEventType
from events.sqlite_log import SqliteLog
from events.types import SandboxCrashed, SandboxRecovered, SessionAttached, SessionClaimed, SessionIdled
from replay import state_at
from replay.history.errors import (
    HistoryError,
    NoMachine,
    NotYet,
    PositionNotThere,
    StreamNotThere,
    StreamUnclear,
    TargetUnreadable,
    TimeUnreadable,
    VersionNotThere,
)
from replay.history.states import parse_time, plain
from replay.history.target import Target, parse
from tests.replay.history.boxes import (
    SESSION,
    A,
    B,
    begin,
    call,
    created,
    cut,
    end,
    put,
    resumed,
    rewrite,
    started,
    suspended,
    taken,
)

if TYPE_CHECKING:
    from typer.testing import CliRunner

    from events.types import EventData

BOX, BOX_B, STREAM = f"sandbox-{A}", f"sandbox-{B}", f"session-{SESSION}"

HISTORY: list[EventData] = [
    created(),
    started(),
    *call("c1"),
    begin("c2"),
    taken("snap-1", of_version=4),
    end("c2"),
    taken("rest-1"),
    suspended("rest-1"),
    resumed("rest-1"),
    begin("c3"),
    SandboxCrashed(reason="exited"),
    cut("c3", "machine_lost"),
    SandboxRecovered(machine_id="hg-3", node="node-a", kept="files", seconds=0.2),
    *call("c4", "read"),
]


@pytest.fixture
def session(log: SqliteLog) -> SqliteLog:
    """A session and its sandbox, and another sandbox whose id begins likewise."""
    told: list[EventData] = [
        SessionClaimed(
            environment_id="env_1", work_id=SESSION, claim_id="claim_1", worker_id="w", credential="session_token"
        ),
        SessionAttached(claim_id="claim_1", sandbox_id=A, history_events=1),
    ]
    log.append(STREAM, new_events("s-1", told, correlation_id=SESSION), expected=0)
    put(log, A, HISTORY)
    put(log, B, [created(), started()])
    idle: list[EventData] = [SessionIdled(stop_reason="end_turn")]
    log.append(STREAM, new_events("s-2", idle, correlation_id=SESSION), expected=2)
    return log


@given(version=st.integers(1, len(HISTORY)))
@settings(max_examples=len(HISTORY) * 3)
def test_a_version_is_the_fold_of_the_events_up_to_it(version: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    with SqliteLog(tmp_path_factory.mktemp("log") / "log.db", durability="normal") as log:
        put(log, A, HISTORY)
        expected = sandbox.SandboxState(A)
        for data in HISTORY[:version]:
            expected = sandbox.evolve(expected, data)
        assert state_at(log, BOX, version=version) == expected
        assert state_at(log, BOX, version=version).version == version


def test_without_a_moment_it_is_the_last_one(session: SqliteLog) -> None:
    assert state_at(session, BOX) == sandbox.load(session, A)
    assert state_at(session, STREAM).phase == "attached"


def test_a_position_is_one_place_in_every_stream(session: SqliteLog) -> None:
    began = {event.stream: event.position for event in session.read_all() if event.version == 1}
    for position in range(1, session.position() + 1):
        for stream in (STREAM, BOX, BOX_B):
            expected = sum(event.stream == stream for event in session.read_all() if event.position <= position)
            if expected:
                assert state_at(session, stream, position=position).version == expected
            else:
                with pytest.raises(NotYet, match=f"first event is at position {began[stream]}"):
                    state_at(session, stream, position=position)
    for none in (0, -1, session.position() + 1, 2**70):
        with pytest.raises(PositionNotThere, match=f"its last one is {session.position()}"):
            state_at(session, BOX, position=none)


def test_a_time_is_what_was_recorded_by_then(session: SqliteLog) -> None:
    session.close()
    # A minute between two events, and a clock that went back once.
    rewrite(
        session.path,
        f"UPDATE events SET recorded_at = 1790000000000000 + version * 60000000 WHERE stream = '{BOX}'",
        f"UPDATE events SET recorded_at = 1790000000000001 WHERE stream = '{BOX}' AND version = 10",
    )
    began = datetime.fromtimestamp(1_790_000_000, UTC)
    with SqliteLog(session.path, read_only=True) as log:
        assert state_at(log, BOX, time=began + timedelta(seconds=119)).version == 10
        assert state_at(log, BOX, time=began + timedelta(minutes=12)).version == 12
        assert state_at(log, BOX, time=(began + timedelta(minutes=12)).replace(tzinfo=None)).version == 12
        assert state_at(log, BOX, time=began + timedelta(days=999)).version == len(HISTORY)
        with pytest.raises(NotYet, match="did not exist at 2026-09-21T"):
            state_at(log, BOX, time=began)


@pytest.mark.parametrize("version", [0, -1, len(HISTORY) + 1, 2**80])
def test_a_version_that_is_none_is_refused(session: SqliteLog, version: int) -> None:
    with pytest.raises(VersionNotThere, match=f"has no version {version}: its last one is {len(HISTORY)}") as error:
        state_at(session, BOX, version=version)
    assert f"log show {BOX}" in error.value.advice


def test_only_one_moment_is_taken(session: SqliteLog) -> None:
    with pytest.raises(ValueError, match="one of them"):
        state_at(session, BOX, version=1, position=1)


@pytest.mark.parametrize("stream", ["sandbox-none", "", "else", "sandbox-"])
def test_a_stream_that_is_none_is_refused(session: SqliteLog, stream: str) -> None:
    with pytest.raises(StreamNotThere):
        state_at(session, stream)


def test_what_comes_later_may_be_of_a_newer_hourglass(session: SqliteLog) -> None:
    session.close()
    rewrite(session.path, f"UPDATE events SET type = 'sandbox.teleported' WHERE stream = '{BOX}' AND version = 12")
    with SqliteLog(session.path, read_only=True) as log:
        assert state_at(log, BOX, version=11).version == 11
        with pytest.raises(UnknownEventType, match=r"sandbox\.teleported"):
            state_at(log, BOX, version=12)


# Targets


def test_a_target_names_a_version_and_a_path(session: SqliteLog) -> None:
    assert parse(session, f"{A}@3") == Target(BOX, 3)
    assert parse(session, f"{BOX}@3:/a@b:c", path=True) == Target(BOX, 3, "/a@b:c")
    assert parse(session, "sbx-00000000000000a") == Target(BOX, len(HISTORY))
    assert parse(session, f"{A}:x\ny", path=True) == Target(BOX, len(HISTORY), "x\ny")
    assert str(parse(session, f"{A}@3")) == f"{BOX}@3"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", TargetUnreadable, "a stream comes first"),
        ("@3", TargetUnreadable, "a stream comes first"),
        (f"{A}@", TargetUnreadable, "'' is no version"),
        (f"{A}@x", TargetUnreadable, "'x' is no version"),
        (f"{A}@٣", TargetUnreadable, "is no version"),
        (f"{A}@-1", TargetUnreadable, "is no version"),
        (f"{A}@{'9' * 30}", TargetUnreadable, "is no version"),
        (f"{A}@3:/x", TargetUnreadable, "no path belongs here"),
        (f"{A}@99", VersionNotThere, "has no version 99"),
        ("sbx-", StreamUnclear, f"could be {BOX}, {BOX_B}"),
        ("nobody@3", StreamNotThere, "no session or sandbox 'nobody'"),
        (f"{SESSION}@2", NoMachine, "name no state of a machine"),
    ],
)
def test_a_target_that_names_no_version_is_refused(
    session: SqliteLog, text: str, error: type[HistoryError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        parse(session, text)
    assert caught.value.advice
    if error is NoMachine:
        assert A in caught.value.advice


def test_times_are_iso(session: SqliteLog) -> None:
    assert parse_time("2026-11-28T09:30:00Z") == datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
    assert parse_time("2026-11-28T09:30:00") == datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
    assert parse_time("2026-11-28T09:30:00+02:00") == datetime(2026, 11, 28, 7, 30, tzinfo=UTC)
    for text in ("yesterday", "", "2026-13-01", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(TimeUnreadable):
            parse_time(text)


# The command


def test_the_command_shows_a_state(session: SqliteLog, runner: CliRunner) -> None:
    told = json.loads(runner.invoke(build(), ["state", A, "--version", "5", "--json"]).stdout)
    assert told["stream"] == BOX
    assert (told["version"], told["phase"], told["snapshot_id"]) == (5, "running", "")
    assert told["calls"]["c1"]["status"] == "completed"
    assert told["calls"]["c2"] == {
        "tool_use_id": "c2",
        "tool": "bash",
        "input": {"command": "echo c2"},
        "status": "started",
        "content": [],
        "is_error": False,
        "reason": "",
    }
    assert told["limits"]["processes"] == 512
    shown = runner.invoke(build(), ["state", A, "--version", "5"]).stdout
    assert "1 completed, 1 started" in shown
    assert "echo c2" in shown
    last = json.loads(runner.invoke(build(), ["state", SESSION, "--json"]).stdout)
    assert (last["phase"], last["sandbox_id"], last["version"]) == ("attached", A, 3)
    early = json.loads(runner.invoke(build(), ["state", BOX, "--position", "3", "--json"]).stdout)
    assert early["version"] == 1
    late = json.loads(runner.invoke(build(), ["state", BOX, "--time", "2999-01-01T00:00:00Z", "--json"]).stdout)
    assert late["version"] == len(HISTORY)


def test_the_command_refuses_two_moments(session: SqliteLog, runner: CliRunner) -> None:
    result = runner.invoke(build(), ["state", A, "--version", "5", "--position", "3"])
    assert result.exit_code == 2
    assert "give one of" in result.output


def test_a_hostile_input_is_shown_and_never_obeyed(log: SqliteLog, runner: CliRunner) -> None:
    put(log, A, [created(), started(), begin("\x1b[2J", "bash", {"command": "\x1b]0;x\x07\u202e"})])
    shown = runner.invoke(build(), ["state", A]).stdout
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    assert json.dumps(plain(state_at(log, BOX))["calls"])


def test_looking_back_needs_neither_ray_nor_a_driver() -> None:
    code = "import sys, replay; print([one for one in sys.modules if one.split('.')[0] in ('ray', 'actors')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
