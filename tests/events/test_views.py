"""What `hourglass sessions` and `hourglass sandboxes` say of pauses and forks, from logs of any age."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from events.cli import build
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import (
    EgressClosed,
    EgressConnected,
    EgressRefused,
    Limits,
    SandboxCreated,
    SandboxForked,
    SandboxFrozen,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
    SessionAttached,
    SessionClaimed,
    SessionSandboxKept,
)

if TYPE_CHECKING:
    from pathlib import Path

    from events.types import EventData

SANDBOX = "sbx-parent"


def output(*arguments: str | Path) -> str:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def as_json(*arguments: str | Path) -> Any:
    return json.loads(output(*arguments, "--json"))


@pytest.fixture
def forked(tmp_path: Path) -> Path:
    """A home whose sandbox was frozen, forked, and put to disk; its fork took its place."""
    parent: list[EventData] = [
        SandboxCreated(session_id="sesn_1", driver="gvisor", template="base", limits=Limits()),
        SandboxStarted(machine_id="hg-1", node="n1", seconds=0.2, agent_version="1"),
        SandboxFrozen(reason="idle", cpu_seconds=0.5),
        SandboxSnapshotted(snapshot_id="fork-1", node="n1", image_bytes=9, seconds=0.1, reason="fork"),
        SandboxForked(child="sbx-child", snapshot_id="fork-1"),
        SandboxSnapshotted(snapshot_id="rest-2", node="n1", image_bytes=9, seconds=0.1, reason="suspend"),
        SandboxSuspended(reason="idle", snapshot_id="rest-2"),
    ]
    child: list[EventData] = [
        SandboxCreated(
            session_id="sesn_1", driver="gvisor", template="base", limits=Limits(), parent=SANDBOX, parent_version=4
        ),
        SandboxSuspended(reason="fork", snapshot_id="fork-1"),
        SandboxResumed(machine_id="hg-3", node="n1", snapshot_id="fork-1", seconds=0.1),
        SandboxFrozen(reason="call"),
    ]
    kept: list[EventData] = [
        SessionClaimed(
            environment_id="env_1", work_id="sesn_1", claim_id="c1", worker_id="w", credential="session_token"
        ),
        SessionAttached(claim_id="c1", sandbox_id=SANDBOX, history_events=3),
        SessionSandboxKept(sandbox_id="sbx-child", previous=SANDBOX, ended=[]),
    ]
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        for stream, data in ((f"sandbox-{SANDBOX}", parent), ("sandbox-sbx-child", child), ("session-sesn_1", kept)):
            log.append(stream, new_events(stream, data, correlation_id="sesn_1"), expected=0)
    return tmp_path


def test_sandboxes_that_rest_and_were_forked(forked: Path) -> None:
    found = {one["sandbox_id"]: one for one in as_json("sandboxes", "--home", forked)}
    parent, child = found[SANDBOX], found["sbx-child"]
    assert (parent["phase"], parent["parent"], parent["parent_version"]) == ("suspended", None, None)
    assert (parent["snapshot_id"], parent["snapshots"], parent["forks"]) == ("rest-2", 2, 1)
    assert (child["phase"], child["parent"], child["parent_version"]) == ("frozen", SANDBOX, 4)
    assert (child["snapshot_id"], child["machine_id"], child["session_id"]) == ("fork-1", "hg-3", "sesn_1")
    text = output("sandboxes", "--home", forked)
    assert "suspended" in text
    assert "rest-2" in text
    assert f"{SANDBOX} at 4" in text


def test_a_sessions_sandbox_is_the_one_that_was_kept(forked: Path) -> None:
    assert as_json("sessions", "--home", forked)[0]["sandbox_id"] == "sbx-child"


def test_a_log_with_older_views_is_read_as_it_is_and_gets_newer_ones_when_written(forked: Path) -> None:
    with closing(sqlite3.connect(forked / "log.db")) as db:
        db.execute("DROP VIEW sandboxes")
        db.execute("CREATE VIEW sandboxes AS SELECT 'old' AS sandbox_id")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = '0003_views_of_pauses_and_forks'")
        db.commit()
    assert {one["sandbox_id"] for one in as_json("sandboxes", "--home", forked)} == {SANDBOX, "sbx-child"}
    SqliteLog(forked / "log.db").close()
    with SqliteLog(forked / "log.db", read_only=True) as log:
        assert log.query("SELECT parent FROM sandboxes WHERE sandbox_id = 'sbx-child'") == [(SANDBOX,)]


def test_what_was_asked_of_the_network_is_a_view(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        told: list[EventData] = [
            SandboxCreated(session_id="sesn_1", driver="gvisor", template="base", limits=Limits()),
            EgressConnected(host="a.example", port=443, address="203.0.113.7", rule="*.example"),
            EgressRefused(host="b.example", protocol="dns", reason="not_allowed", count=4),
            EgressClosed(host="a.example", port=443, connections=2, bytes_sent=10, bytes_received=20, seconds=1.5),
        ]
        log.append(
            f"sandbox-{SANDBOX}", new_events("e", told, correlation_id="sesn_1", causation_id="toolu_1"), expected=0
        )
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        rows = db.execute(
            "SELECT sandbox_id, session_id, tool_use_id, decision, host, port, protocol, address, rule, reason, times, "
            "bytes_sent, bytes_received, seconds FROM egress"
        ).fetchall()
    whose = (SANDBOX, "sesn_1", "toolu_1")
    assert rows == [
        (*whose, "connected", "a.example", 443, "tcp", "203.0.113.7", "*.example", None, 1, None, None, None),
        (*whose, "refused", "b.example", None, "dns", None, None, "not_allowed", 4, None, None, None),
        (*whose, "closed", "a.example", 443, "tcp", None, None, None, 2, 10, 20, 1.5),
    ]
