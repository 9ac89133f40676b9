"""What a sandbox has used, by its history."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from events.cli import build
from events.envelope import new_events
from events.sandbox import Phase
from events.sqlite_log import SqliteLog
from events.types import (
    Limits,
    SandboxCrashed,
    SandboxCreated,
    SandboxFrozen,
    SandboxKilled,
    SandboxRecovered,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxStopped,
    SandboxSuspended,
    SandboxThawed,
    ToolCallCompleted,
    ToolCallStarted,
)
from events.usage import SandboxUsage, Usage, by_session, usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from events.envelope import Event
    from events.types import EventData

SECOND = 1_000_000
CREATED = SandboxCreated(session_id="s", driver="gvisor", template="base", limits=Limits())
HISTORY: list[tuple[float, EventData]] = [
    (0, CREATED),
    (1, SandboxStarted(machine_id="m1", node="n", seconds=0.1, agent_version="1")),
    (2, ToolCallStarted(tool_use_id="t", tool="bash", input={})),
    (4, ToolCallCompleted(tool_use_id="t", content=[], is_error=False, seconds=2)),
    (5, SandboxFrozen(reason="idle", cpu_seconds=1.0, memory_high_bytes=50)),
    (15, SandboxThawed(seconds=0.001)),
    (16, SandboxFrozen(reason="idle", cpu_seconds=1.5, memory_high_bytes=60)),
    (20, SandboxSnapshotted(snapshot_id="a", node="n", image_bytes=9, seconds=0.1, reason="suspend")),
    (20, SandboxSuspended(reason="idle", snapshot_id="a", cpu_seconds=2.0, memory_high_bytes=70)),
    (120, SandboxResumed(machine_id="m2", node="n", snapshot_id="a", seconds=0.1)),
    # The clock was set back.
    (110, SandboxKilled(reason="requested", cpu_seconds=0.5, memory_high_bytes=40)),
]


def events(log: SqliteLog, moments: list[tuple[float, EventData]]) -> Iterator[Event]:
    stored = log.append("sandbox-x", new_events("c", [data for _, data in moments]), expected=0)
    for event, (at, _) in zip(stored, moments, strict=True):
        yield dataclasses.replace(event, recorded_at_us=int(at * SECOND))


def test_time_goes_to_the_phase_that_it_was_spent_in(log: SqliteLog) -> None:
    found = usage_of("x", events(log, HISTORY), 500 * SECOND)
    assert (found.session_id, found.phase.value) == ("s", "killed")
    assert found.usage == Usage(
        seconds_running=5.0,
        seconds_frozen=14.0,
        seconds_suspended=100.0,
        cpu_seconds=2.5,
        memory_high_bytes=70,
        snapshots=1,
        snapshot_bytes=9,
        tool_calls=1,
        call_seconds=2.0,
    )


def test_what_still_lasts_is_counted_until_now(log: SqliteLog) -> None:
    assert usage_of("x", events(log, HISTORY[:5]), 65 * SECOND).usage.seconds_frozen == 60.0
    assert usage_of("x", [], 65 * SECOND).usage == Usage()


def test_a_machine_that_is_found_again_goes_on_counting(log: SqliteLog) -> None:
    found = SandboxRecovered(machine_id="m1", node="n", kept="memory_and_files", seconds=0.1)
    history = [*HISTORY[:5], (7.0, found), (9.0, SandboxFrozen(reason="idle", cpu_seconds=1.5, memory_high_bytes=60))]
    usage = usage_of("x", events(log, history), 9 * SECOND).usage
    assert (usage.cpu_seconds, usage.seconds_running, usage.seconds_frozen) == (1.5, 6.0, 2.0)


def test_a_machine_on_the_files_alone_counts_anew(log: SqliteLog) -> None:
    history: list[tuple[float, EventData]] = [
        *HISTORY[:4],
        (6, SandboxCrashed(reason="exited", cpu_seconds=2.0, memory_high_bytes=50)),
        (9, SandboxRecovered(machine_id="m2", node="n", kept="files", seconds=0.1)),
        (10, SandboxStopped(reason="requested", cpu_seconds=0.5)),
    ]
    usage = usage_of("x", events(log, history), 20 * SECOND).usage
    assert (usage.cpu_seconds, usage.seconds_stopped, usage.memory_high_bytes) == (2.5, 13.0, 50)


def test_a_control_group_that_was_gone_takes_nothing_back(log: SqliteLog) -> None:
    gone = SandboxCrashed(reason="exited", cpu_seconds=0.0, memory_high_bytes=0)
    usage = usage_of("x", events(log, [*HISTORY[:5], (6, gone)]), 6 * SECOND).usage
    assert (usage.cpu_seconds, usage.memory_high_bytes) == (1.0, 50)


def test_a_sessions_usage_is_that_of_its_sandboxes() -> None:
    def one(name: str, session: str, seconds: float) -> SandboxUsage:
        return SandboxUsage(
            name, session, Phase.RUNNING, Usage(seconds_running=seconds, memory_high_bytes=int(seconds))
        )

    sums = by_session([one("a", "s", 1), one("b", "t", 2), one("fork-of-a", "s", 4)])
    assert sums == {
        "s": Usage(seconds_running=5, memory_high_bytes=4),
        "t": Usage(seconds_running=2, memory_high_bytes=2),
    }


def test_several_are_summed_but_for_the_most_memory() -> None:
    one, other = Usage(seconds_running=1, memory_high_bytes=5, forks=1), Usage(seconds_running=2, memory_high_bytes=3)
    assert one.plus(other) == Usage(seconds_running=3, memory_high_bytes=5, forks=1)


@pytest.mark.parametrize("target", [None, "x", "s"])
def test_the_command_reads_the_file_alone(tmp_path: Path, target: str | None) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.append("sandbox-x", new_events("c", [data for _, data in HISTORY]), expected=0)
    arguments = ["usage", *([target] if target else []), "--home", str(tmp_path)]
    told = json.loads(CliRunner().invoke(build(), [*arguments, "--json"]).stdout)
    assert told["sandboxes"][0]["sandbox_id"] == "x"
    assert told["total"]["cpu_seconds"] == 2.5
    assert [(one["session_id"], one["cpu_seconds"]) for one in told["sessions"]] == [("s", 2.5)]
    assert "in all" in CliRunner().invoke(build(), arguments).stdout
    in_sessions = CliRunner().invoke(build(), [*arguments, "--sessions"]).stdout
    assert in_sessions.startswith("session ")
    assert "sandbox" not in in_sessions


def test_a_target_may_be_the_beginning_of_an_id(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        for name, session_id in (("ab", "sesn_1"), ("abc", "sesn_2"), ("b", "sesn_12")):
            made = CREATED.model_copy(update={"session_id": session_id})
            log.append(f"sandbox-{name}", new_events(name, [made]), expected=0)

    def named(target: str) -> list[str]:
        told = CliRunner().invoke(build(), ["usage", target, "--home", str(tmp_path), "--json"])
        return [one["sandbox_id"] for one in json.loads(told.stdout)["sandboxes"]]

    assert named("a") == ["ab", "abc"]
    # A whole id is meant as one, whatever else begins so.
    assert named("ab") == named("sesn_1") == ["ab"]
    assert named("sesn") == ["ab", "abc", "b"]


def test_what_was_not_used_is_left_empty(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.append("sandbox-x", new_events("c", [CREATED]), expected=0)
    shown = CliRunner().invoke(build(), ["usage", "--home", str(tmp_path)]).stdout.splitlines()
    assert shown[1].split() == ["x", "created", "s", "0"]


def test_an_unknown_target_is_an_error(tmp_path: Path) -> None:
    SqliteLog(tmp_path / "log.db").close()
    result = CliRunner().invoke(build(), ["usage", "nobody", "--home", str(tmp_path)])
    assert result.exit_code == 1
