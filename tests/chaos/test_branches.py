"""`hourglass continue` from the command line to a machine, each actor a process of its own, and the host killed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from events.sqlite_log import SqliteLog
from tests.actors.branches import branch
from tests.chaos.test_kills import kill_actor
from tests.replay.draft import Draft

if TYPE_CHECKING:
    from tests.service import Installed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

COMMAND = "echo line >> made.txt; cat made.txt; echo $mine; mine=kept"


def run(installed: Installed, *words: str, **variables: str) -> Any:
    """What `continue` says, and with which exit code."""
    done = installed.command("continue", *words, "--json", **variables)
    return done.returncode, json.loads(done.stdout)


def test_a_session_goes_on_in_a_branch_and_the_host_is_killed_as_it_gets_it(installed: Installed) -> None:
    installed.options = ["--isolation", "process"]
    made = Draft("branched", "It writes a line.").user("Write.").says("I will.").bash(COMMAND).says("Written.").rests()
    with installed.up():
        parent = installed.session(made.recording())
        installed.wait_for(f"session-{parent}", "session.released")
        stream = installed.sandbox_of(parent)
    # The service is down: its last act was to put the sandbox to disk.
    (*_, asleep) = [one.data for one in installed.history(stream) if one.type == "sandbox.suspended"]
    name, write = branch(stream.removeprefix("sandbox-"), len(installed.history(stream)), asleep.snapshot_id)  # type: ignore[union-attr]
    with SqliteLog(installed.home / "log.db") as log:
        log.append_many([write])
    key = {"ANTHROPIC_API_KEY": installed.server.api_key}
    code, told = run(installed, name, "--message", "Go on.")
    assert (code, told["type"]) == (1, "NoApiKey")
    assert "ANTHROPIC_API_KEY" in told["next"]
    code, told = run(installed, stream, "--message", "Go on.", **key)
    assert (code, told["type"]) == (1, "BranchNotFree")
    code, told = run(installed, name, "--message", "Go on.", "--environment", "env_other", **key)
    assert (code, told["type"]) == (1, "EnvironmentDiffers")
    code, told = run(installed, name, "--message", "Go on.", "--agent", "agent_none", **key)
    assert (code, told["type"]) == (1, "SessionNotCreated")
    with installed.up():
        code, told = run(installed, name, "--message", "Go on.", **key)
        assert code == 0
        session_id = told["session_id"]
        assert (told["sandbox_id"], told["from_session"], told["conversations_missing"]) == (name, parent, [])
        installed.wait_for(f"sandbox-{name}", "sandbox.adopted")
        kill_actor("HostActor")
        installed.wait_for(f"session-{session_id}", "session.released")
        code, told = run(installed, name, "--message", "Go on.", **key)
        assert (code, told["type"]) == (1, "BranchNotFree")
        assert session_id in told["error"]
    assert installed.kinds(f"sandbox-{name}").count("sandbox.adopted") == 1
    # The parent's files and its shell, and nothing ran twice.
    (result,) = installed.results(session_id)
    assert result["content"] == [{"type": "text", "text": "line\nline\nkept"}]
    first, *_ = installed.server.events(session_id)
    record, message = (one["text"] for one in first["content"])
    assert message == "Go on."
    assert record.index("Go.") < record.index("I will.") < record.index("\nline\n") < record.index("Written.")
    assert "result:\nline\n" in record
    assert installed.command("log", "verify").returncode == 0
    assert name in installed.command("timeline", session_id).stdout
