"""Beside a service that serves the very sandbox: it goes on undisturbed, and its log has what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from tests.service import Installed


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_a_live_sandbox_is_rebuilt_and_verified_and_its_service_goes_on(installed: Installed) -> None:
    with installed.up():
        session = installed.session("two-turns")
        installed.wait_for(f"session-{session}", "session.idled")
        stream = installed.sandbox_of(session)
        installed.wait_for(stream, "sandbox.snapshotted")
        before = [event.hash for event in installed.history(stream)]
        rebuilt = installed.json("rebuild", stream, "--yes")
        assert rebuilt["verdict"] == "equal"
        assert rebuilt["tree"]["verdict"] == "equal"
        verified = installed.json("verify", stream)
        [one] = verified["sandboxes"]
        assert (one["status"], one["not_recorded"], one["lost"]) == ("verified", None, 0), one
        assert one["calls"] == 1
        found = installed.history(stream.replace("sandbox-", "replay-"))
        assert [(event.type, event.correlation_id) for event in found] == [("replay.verified", session)]
        assert [event.hash for event in installed.history(stream)][: len(before)] == before
        # Its writer has lost nothing.
        assert installed.json("pause", session)["phase"] == "suspended"
        assert installed.json("resume", session)["phase"] == "running"
    with SqliteLog(installed.home / "log.db", read_only=True) as log:
        assert log.verify() is None
