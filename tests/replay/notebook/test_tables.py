"""What the tables of a log hold: types, every row, only what is asked for, and the truth."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest

from events import types
from events.envelope import new_events
from events.errors import BlobBroken, LogMissing
from events.log import Append
from events.sqlite_log import SqliteLog
from replay import History
from replay.notebook.extra import ExtraMissing, needed
from replay.timeline.source import Ambiguous, NotInLog
from tests.replay.notebook.logs import written
from tests.replay.timeline_stories import BOX, FORK, SANDBOX, SESSION, T0_US, created, paused, plain, troubled

if TYPE_CHECKING:
    from pathlib import Path

OTHER = "sesn_02other"
T0 = datetime.fromtimestamp(T0_US / 1e6, UTC)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def test_a_home_a_file_or_nothing_is_opened_and_what_is_none_is_refused(home: Path) -> None:
    path = written(home / "log.db", plain())
    for place in (None, home, str(home), path, str(path)):
        with History(place) as history:
            assert history.path == path
            assert len(history.events()) == len(plain())
    with pytest.raises(LogMissing, match="no log at"):
        History(home / "none")
    copied = shutil.copy(path, home / "elsewhere.sqlite")
    assert len(History(copied).sessions()) == 1


def test_every_column_has_an_arrow_type_and_moments_are_moments(home: Path) -> None:
    written(home / "log.db", paused())
    with History(home) as history:
        for frame in (
            history.events(),
            history.tool_calls(),
            history.sessions(),
            history.sandboxes(),
            history.phases(),
            history.snapshots(),
            history.agent(),
            history.usage(),
        ):
            assert len(frame)
            for name, kind in frame.dtypes.items():
                assert isinstance(kind, pd.ArrowDtype), name
                if str(name).endswith("_at"):
                    assert kind.pyarrow_dtype == pa.timestamp("us", tz="UTC"), name
                if name in ("duration", "running", "cpu"):
                    assert kind.pyarrow_dtype == pa.duration("us"), name
        events = history.events()
        assert events["recorded_at"].iloc[0].to_pydatetime() == T0
        assert events["version"].groupby(events["stream"]).max().to_dict() == {
            f"session-{SESSION}": 13,
            f"sandbox-{SANDBOX}": 25,
            f"sandbox-{FORK}": 8,
        }
        # As Arrow, too, with the same rows.
        assert history.arrow.tool_calls().num_rows == len(history.tool_calls()) == 4


def test_an_empty_log_gives_empty_tables_with_the_same_columns(home: Path) -> None:
    SqliteLog(home / "log.db").close()
    with History(home) as empty:
        frames = [getattr(empty, name)() for name in ("events", "tool_calls", "sessions", "sandboxes", "usage")]
        assert empty.by_tool().empty
    written(home / "log.db", plain())
    with History(home) as full:
        for frame, name in zip(frames, ("events", "tool_calls", "sessions", "sandboxes", "usage"), strict=True):
            assert frame.empty
            assert dict(frame.dtypes) == dict(getattr(full, name)().dtypes)


def test_a_session_or_a_sandbox_is_asked_for_by_the_beginning_of_its_name(home: Path) -> None:
    path = written(home / "log.db", paused())
    with SqliteLog(path, durability="normal") as log:
        claimed = types.SessionClaimed(
            environment_id="e", work_id=OTHER, claim_id="c", worker_id="w", credential="session_token"
        )
        log.append(f"session-{OTHER}", new_events("other", [claimed], correlation_id=OTHER), expected=0)
    with History(home) as history:
        every = history.events()
        mine = history.events("sesn_01")
        assert len(every) == len(mine) + 1
        assert mine["position"].is_monotonic_increasing
        assert set(mine["stream"]) == set(every["stream"]) - {f"session-{OTHER}"}
        assert set(history.events(sandbox=FORK)["stream"]) == {f"sandbox-{FORK}"}
        assert set(history.events("sesn_01", sandbox=FORK)["stream"]) == {f"sandbox-{FORK}"}
        assert history.events("sesn_02", sandbox=FORK).empty
        assert set(history.events(types="sandbox.frozen")["type"]) == {"sandbox.frozen"}
        assert set(history.events("sesn_01", types=["sandbox.killed", "sandbox.forked"])["type"]) == {
            "sandbox.killed",
            "sandbox.forked",
        }
        assert history.tool_calls("sesn_02").empty
        assert list(history.sandboxes("sesn_01")["sandbox_id"]) == [SANDBOX, FORK]
        for name in ("nobody", SANDBOX, "session-sesn_0"):
            with pytest.raises((NotInLog, Ambiguous)):
                history.events(name)
        with pytest.raises(NotInLog, match="sandbox sesn_01"):
            history.events(sandbox="sesn_01")


def test_calls_are_told_as_the_timeline_tells_them(home: Path) -> None:
    written(home / "log.db", troubled())
    with History(home) as history:
        calls = history.tool_calls().set_index("tool_use_id")
        timeline = {one.tool_use_id: one for one in history.timeline(SESSION).calls}
    assert list(calls.index) == ["t1", "t2", "t3", "t4"]
    for name, told in timeline.items():
        row = calls.loc[name]
        assert (row["tool"], row["status"]) == (told.tool, told.status.value)
        assert (row["reason"] if told.reason else "") == told.reason
    first = calls.loc["t1"]
    assert first["requested_at"].to_pydatetime() == after(1.0)
    assert first["duration"].to_pytimedelta() == timedelta(seconds=8.5)
    assert first["output"] == "The sandbox ran out of memory."
    assert first["input"] == '{"command":"make -j64"}'
    denied = calls.loc["t2"]
    assert pd.isna(denied["started_at"])
    assert pd.isna(denied["duration"])
    assert denied["output"] == "Not that."
    assert calls.loc["t4"]["output"] == "[image]"
    assert calls.loc["t3"]["duration"].to_pytimedelta() == timedelta(seconds=0.2)


def test_a_call_that_a_branch_runs_again_is_a_row_of_its_own(home: Path) -> None:
    branched = types.SandboxBranched(
        parent=SANDBOX,
        parent_version=4,
        snapshot_id="s",
        session_id=SESSION,
        driver="gvisor",
        template="base",
        limits=types.Limits(),
    )
    again = types.ToolCallStarted(tool_use_id="toolu_1", tool="bash", input={"command": "ls"})
    steps = [*plain(), (90.0, f"sandbox-{FORK}", branched), (91.0, f"sandbox-{FORK}", again)]
    written(home / "log.db", steps)
    with History(home) as history:
        rows = history.tool_calls()
    rows = rows[rows["tool_use_id"] == "toolu_1"]
    assert list(rows["sandbox_id"]) == [SANDBOX, FORK]
    assert list(rows["status"]) == ["ok", "running"]
    assert rows["requested_at"].isna().tolist() == [False, True]


def test_large_data_is_read_where_it_is_asked_for_and_what_is_broken_hides_nothing_else(home: Path) -> None:
    large = "x" * 100_000
    steps = plain()
    steps[5] = (1.01, BOX, types.ToolCallStarted(tool_use_id="toolu_1", tool="bash", input={"command": large}))
    written(home / "log.db", steps)
    with History(home) as history:
        held = history.events(types="tool_call.started")["data"]
        assert held.isna().sum() == 1
        whole = history.events(types="tool_call.started", blobs=True)["data"]
        assert whole.notna().all()
        assert large in whole.iloc[0]
        assert large in history.tool_calls()["input"].iloc[0]
        [blob] = (one for one in (home / "blobs").rglob("*") if one.is_file())
        blob.write_bytes(b"other")
        with pytest.raises(BlobBroken):
            history.events(blobs=True)
        assert len(history.tool_calls()) == 8


def test_phases_thinking_and_usage_are_exact(home: Path) -> None:
    written(home / "log.db", paused())
    with History(home) as history:
        phases = history.phases(sandbox=SANDBOX)
        agent = history.agent()
        usage = history.usage().set_index("sandbox_id")
        later = history.usage(until=after(90.0)).set_index("sandbox_id")
    assert list(phases["phase"])[:4] == ["created", "running", "frozen", "running"]
    assert phases["phase"].iloc[-1] == "running"
    assert phases["ended_at"].iloc[-1].to_pydatetime() == after(77.0)
    # Attended to, then a thought before each call, and after the last one.
    assert list(agent["doing"]) == ["attaching", *["thinking"] * 5]
    assert agent["duration"].iloc[0].to_pytimedelta() == timedelta(seconds=0.31)
    assert agent["duration"].iloc[1].to_pytimedelta() == timedelta(seconds=9.69)
    frozen = 4 * 9.6 + 10.0
    mine = usage.loc[SANDBOX]
    assert mine["frozen"].total_seconds() == pytest.approx(frozen)
    assert mine["suspended"].total_seconds() == pytest.approx(9.9)
    assert mine["running"].total_seconds() == pytest.approx(77.0 - 0.3 - frozen - 9.9)
    assert mine["in_calls"].total_seconds() == pytest.approx(0.8)
    assert usage.loc[FORK]["running"].total_seconds() == pytest.approx(80.0 - 71.2)
    assert later.loc[FORK]["running"].total_seconds() == pytest.approx(90.0 - 71.2)


def test_snapshots_are_told_by_the_version_that_they_are_of(home: Path) -> None:
    stored = types.SandboxSnapshotStored(snapshot_id="rest-1", manifest="0" * 64, bytes=10, new_bytes=5, seconds=0.5)
    of_version = types.SandboxSnapshotted(snapshot_id="t-3", node="a", image_bytes=1, seconds=0.05, of_version=4)
    written(home / "log.db", [*paused(), (81.0, BOX, stored), (82.0, BOX, of_version)])
    with History(home) as history:
        table = history.snapshots(sandbox=SANDBOX).set_index("snapshot_id")
    assert table["version"].to_dict() == {"t-3": 4, "rest-1": 19, "fork-2": 22}
    assert table.loc["rest-1"]["stored_at"].to_pydatetime() == after(81.0)
    assert pd.isna(table.loc["fork-2"]["stored_at"])
    assert table.loc["t-3"]["stood_still"].to_pytimedelta() == timedelta(seconds=0.05)


def test_time_by_tool(home: Path) -> None:
    written(home / "log.db", plain())
    with History(home) as history:
        table = history.by_tool()
    assert table.index[0] == "bash"
    bash = table.loc["bash"]
    assert (bash["calls"], bash["failed"]) == (3, 1)
    assert bash["total"].total_seconds() == pytest.approx(12.7)
    assert bash["median"].total_seconds() == pytest.approx(0.2)
    assert bash["longest"].total_seconds() == pytest.approx(12.3)


def test_reading_beside_a_writer_shows_what_there_is_by_then(home: Path) -> None:
    with SqliteLog(home / "log.db", durability="normal") as log, History(home) as history:
        assert history.events().empty
        log.append(f"sandbox-{SANDBOX}", new_events("c", [created()], correlation_id=SESSION), expected=0)
        assert list(history.sandboxes()["phase"]) == ["created"]


def test_many_events_are_read_in_pages(home: Path) -> None:
    """Several pages, of one stream and of all; each row once."""
    frozen, thawed = types.SandboxFrozen(reason="call"), types.SandboxThawed(seconds=0.001)
    started = types.SandboxStarted(machine_id="m", node="n", seconds=0.1, agent_version="1")
    with SqliteLog(home / "log.db", durability="normal") as log:
        for number in range(3):
            data: list[Any] = [created(), started, *[frozen, thawed] * 1500]
            name = f"sandbox-sbx-{number:016x}"
            log.append_many([Append(name, new_events(name, data, correlation_id=SESSION), 0)])
    with History(home) as history:
        everything = history.events()
        assert list(everything["position"]) == list(range(1, 3 * 3002 + 1))
        one = history.events(sandbox="sbx-0000000000000001")
        assert list(one["version"]) == list(range(1, 3003))
        assert len(history.phases()) == 3 * 3002


def test_without_the_extra_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    written(home / "log.db", plain())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with History(home) as history:
        assert history.timeline(SESSION).calls
        with pytest.raises(ExtraMissing, match="pyarrow, which notebooks need, can't be imported") as caught:
            history.events()
    assert caught.value.advice.endswith("pip install 'hourglass-agents[notebook]'.")
    with pytest.raises(ExtraMissing, match="no_such_module"):
        needed("no_such_module.inner")


def test_importing_replay_loads_nothing_of_the_extra() -> None:
    code = (
        "import sys, replay; "
        "print([name for name in ('pandas', 'pyarrow', 'matplotlib', 'ray', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
