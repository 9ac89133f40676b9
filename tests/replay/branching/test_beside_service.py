"""Beside a service: it writes the branch into its log, and runs, forks and ends it like any sandbox of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from tests.service import Installed


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_a_branch_of_a_live_sandbox_is_a_sandbox_of_the_service(installed: Installed) -> None:
    with installed.up():
        session = installed.session("two-turns")
        installed.wait_for(f"session-{session}", "session.idled")
        stream = installed.sandbox_of(session)
        installed.wait_for(stream, "sandbox.snapshotted")
        history = installed.history(stream)
        before = [event.hash for event in history]
        started = next(event.version for event in history if event.type == "tool_call.started")
        made = installed.json("branch", stream, "--replace", f'{started}={{"command": "echo other > mark"}}')
        one = made["sandbox_id"]
        assert (made["parent"], made["parent_version"]) == (stream.removeprefix("sandbox-"), started - 1)
        whole = installed.json("branch", f"{stream}@{history[-1].version}")["sandbox_id"]
        for name in (one, whole):
            said = installed.command("exec", name, "--", "sh", "-c", "hostname; cat mark || true").stdout.split()
            assert said == [name, "other"][: 1 + (name == one)]
        [child] = installed.json("fork", one)["children"]
        assert "error" not in child
        # Its parent, and that one's session, are not to be had for it.
        refused = installed.command("keep", one)
        assert refused.returncode == 1
        assert "belongs to no session" in refused.stderr
        members = {row["sandbox_id"]: row for row in installed.json("branches", session)}
        assert (members[whole]["how"], members[one]["how"]) == ("branched", "branched")
        assert (members[child["sandbox_id"]]["how"], members[child["sandbox_id"]]["parent"]) == ("forked", one)
        assert installed.json("kill", one)["phase"] == "killed"
        assert [event.hash for event in installed.history(stream)][: len(before)] == before
    # A service that stops lays them down, too.
    assert installed.kinds(f"sandbox-{whole}")[-1] == "sandbox.suspended"
    with SqliteLog(installed.home / "log.db", read_only=True) as log:
        assert log.verify() is None
        assert {row["session_id"] for row in log.query_dicts("SELECT * FROM tool_calls")} == {session, ""}
