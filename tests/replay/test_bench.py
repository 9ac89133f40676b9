"""The benches' frame, its command, and each bench in small where it needs no machine."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from events.cli import build
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import SessionIdled, SessionResultPosted, ToolCallCompleted
from replay.bench import append, command, dense, fold, idle_host, replay, start, tool
from replay.bench.frame import BenchImpossible, Result, in_turns, percentile, ratio
from replay.bench.machine import facts
from replay.local import LocalHourglass
from replay.recording import dump, parse

if TYPE_CHECKING:
    from pathlib import Path

    from events.types import EventData
    from replay.bench.frame import Progress


def quiet(what: str) -> None:
    del what


def bench_of(value: float) -> SimpleNamespace:
    def run(progress: Progress) -> Result:
        progress("measuring")
        result = Result("append")
        result.figure("speed", value, "1/s")
        result.at_least("speed", value, 10)
        result.at_most("slowness", 1 / value, 10)
        return result

    return SimpleNamespace(run=run)


def test_a_result_has_the_promised_shape() -> None:
    shape = bench_of(20).run(quiet).shape({"kernel": "6.1"})
    assert shape == {
        "bench": "append",
        "machine": {"kernel": "6.1"},
        "figures": {"speed": {"value": 20, "unit": "1/s"}},
        "promises": [
            {"name": "speed, at least", "value": 20, "bound": 10, "holds": True},
            {"name": "slowness, at most", "value": 0.05, "bound": 10, "holds": True},
        ],
    }


@pytest.mark.parametrize(("value", "code"), [(20.0, 0), (10.0, 0), (9.99, 1)])
def test_the_exit_code_tells_whether_all_promises_hold(
    monkeypatch: pytest.MonkeyPatch, value: float, code: int
) -> None:
    monkeypatch.setattr(command, "import_module", lambda _: bench_of(value))
    runner = CliRunner()
    as_json = runner.invoke(build(), ["bench", "append", "--json"])
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout)["promises"][0]["holds"] is (code == 0)
    as_table = runner.invoke(build(), ["bench", "append"])
    assert as_table.exit_code == code
    assert ("broken" in as_table.stdout) is (code == 1)


def test_all_benches_run_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def module(name: str) -> SimpleNamespace:
        asked.append(name)
        return bench_of(20)

    monkeypatch.setattr(command, "import_module", module)
    result = CliRunner().invoke(build(), ["bench", "--json"])
    assert result.exit_code == 0
    assert asked == [f"replay.bench.{name.replace('-', '_')}" for name in command.BENCHES]
    assert all(find_spec(name) for name in asked)
    assert len(json.loads(result.stdout)) == len(command.BENCHES)


def test_an_unknown_bench_is_wrong_usage() -> None:
    result = CliRunner().invoke(build(), ["bench", "nonsense"])
    assert result.exit_code == 2
    assert "there is no bench 'nonsense'" in result.output


def test_a_missing_yardstick_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "eventsourcing.application", None)
    with pytest.raises(BenchImpossible, match="The bench replay can't run here: the package eventsourcing") as error:
        replay._eventsourcing(tmp_path)
    assert error.value.advice == "pip install 'hourglass-agents[bench]'"


def test_measurements_take_turns() -> None:
    order: list[str] = []

    def measure(name: str, turn: int) -> float:
        order.append(f"{name}{turn}")
        return float(turn)

    values = in_turns(2, lambda turn: measure("a", turn), lambda turn: measure("b", turn))
    assert order == ["a0", "b0", "a1", "b1"]
    assert values == [[0.0, 1.0], [0.0, 1.0]]


def test_a_ratio_is_that_of_the_turns() -> None:
    # A neighbour slowed both sides of the second turn.
    assert ratio([100.0, 10.0, 90.0], [200.0, 20.0, 180.0]) == 0.5


def test_a_percentile_was_observed() -> None:
    assert percentile([float(value) for value in range(1, 101)], 0.99) == 100.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([7.0], 0.99) == 7.0


def test_facts_name_the_machine_and_no_place() -> None:
    found = facts()
    assert {"kernel", "cpu", "cores", "python", "runsc", "revision"} <= found.keys()
    assert found["cores"] >= 1
    assert "/" not in json.dumps(found)


def test_bare_sqlite_writes_the_very_rows_in_the_very_transactions(tmp_path: Path) -> None:
    waits: list[float] = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(append, "_CALLERS", 8)
        patch.setattr(append, "_EACH", 20)
        assert append._many(tmp_path, 0, waits) > 0
        assert append._bare(tmp_path, 0) > 0
    assert len(waits) == 160
    select = "SELECT * FROM events ORDER BY position"
    rows = [sqlite3.connect(tmp_path / f"{name}-0" / "log.db").execute(select).fetchall() for name in ("many", "bare")]
    assert rows[0] == rows[1]
    assert sum(map(len, append._transactions(tmp_path / "many-0" / "log.db"))) == 160
    with SqliteLog(tmp_path / "bare-0" / "log.db", read_only=True) as log:
        assert log.verify() is None


@pytest.mark.parametrize("bench", [append, fold, replay])
def test_the_benches_of_the_log_measure(monkeypatch: pytest.MonkeyPatch, bench: object) -> None:
    small = {"_ROUNDS": 2, "_SINGLE": 20, "_CALLERS": 4, "_EACH": 10, "_SANDBOXES": 2, "_CALLS": 5, "_EVENTS": 24}
    for name, value in small.items():
        if hasattr(bench, name):
            monkeypatch.setattr(bench, name, value)
    result: Result = bench.run(quiet)  # type: ignore[attr-defined]
    assert all(figure.value > 0 for figure in result.figures.values())
    assert all(promise.value > 0 for promise in result.promises)


def test_the_tools_recording_can_be_played_and_its_calls_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "_EACH", 3)
    recording = parse(dump(tool._header(), tool._recording()), "bench-tool")
    assert len(recording.calls) == 10
    took = asyncio.run(tool._sdk(tmp_path))
    assert [len(values) for values in took.values()] == [2, 2, 2]
    assert (tmp_path / "text.txt").read_text().count("LINE 7 of") == 1


@pytest.mark.integration
async def test_an_idle_session_is_rows_and_a_suspended_machine_no_process(tmp_path: Path) -> None:
    found = await idle_host.main(tmp_path / "home", sessions=3, warm=2, real=1)
    assert found["sessions"] == 5
    assert found["handles"] == found["processes_suspended"] == 0
    assert found["machines"] == 1
    assert found["processes_running"] >= 2
    with SqliteLog(tmp_path / "home" / "log.db", read_only=True) as log:
        assert sum(event.type == "sandbox.suspended" for event in log.read_all()) == 6
        assert log.verify() is None


def test_a_sandbox_whose_call_fails_does_not_answer(tmp_path: Path) -> None:
    assert (
        len(parse(dump(dense._header(), dense._recording()), "bench-dense").calls) == 2 + dense._ALONE + dense._ROUNDS
    )
    with SqliteLog(tmp_path / "log.db") as log:
        for name in ("good", "bad"):
            done = ToolCallCompleted(tool_use_id=name, content=[], is_error=name == "bad", seconds=0.1)
            told: list[EventData] = [SessionResultPosted(tool_use_id=name), SessionIdled(stop_reason="end_turn")]
            log.append(f"sandbox-{name}", new_events(f"{name}-1", [done], correlation_id=name), expected=0)
            log.append(f"session-{name}", new_events(f"{name}-2", told, correlation_id=name), expected=0)
    local = LocalHourglass(tmp_path, serve=False)
    with local.client() as client, dense._Crowd(local, client) as crowd:
        assert list(crowd._until_posted({"good", "bad"}, quiet, "begin")) == ["good"]


def test_first_heartbeats_are_read_from_the_service_and_missed_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_LOG_SECONDS", 0.0)
    log = tmp_path / "up.err"
    log.write_text(
        "\x1b[36m(ControllerActor pid=1)\x1b[0m INFO claimed session_id=sesn_1 heartbeat_after=0.052\n"
        "something else\nINFO claimed session_id=sesn_2 heartbeat_after=0.010\n"
    )
    assert start._heartbeats(log, ["sesn_1", "sesn_2"]) == {"sesn_1": 52.0, "sesn_2": 10.0}
    with pytest.raises(BenchImpossible, match="logged 2 first heartbeats of 3"):
        start._heartbeats(log, ["sesn_1", "sesn_2", "sesn_3"])
