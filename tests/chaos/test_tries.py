"""`kill -9` while an agent's variants run in forks; both ways to place sessions and sandboxes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from actors.custom_tools import TOOLS
from tests.chaos.test_kills import kill_actor
from tests.replay.draft import Draft

if TYPE_CHECKING:
    from tests.service import Installed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

VARIANTS: list[dict[str, Any]] = [
    {"name": "a", "files": {"made.txt": "a\n"}, "command": "sleep 3; cat made.txt"},
    {"name": "b", "files": {"made.txt": "b\n"}, "command": "cat made.txt; echo $mine"},
    {"name": "c", "command": "cat made.txt"},
]


def test_the_host_is_killed_while_variants_run(installed: Installed) -> None:
    draft = Draft("try-killed", "Tries, and keeps one.", tools=TOOLS).user("Try.").bash("mine=hello")
    draft.custom("try_in_parallel", variants=VARIANTS).custom("keep", variant="b").bash("cat made.txt; echo $mine")
    with installed.up():
        session_id = installed.session(draft.says("Done.").rests().recording())
        parent = installed.sandbox_of(session_id)
        first = [one.data.child for one in installed.wait_for(parent, "sandbox.forked", count=3)]  # type: ignore[union-attr]
        for child in first:
            installed.wait_for(f"sandbox-{child}", "tool_call.started")
        kill_actor("HostActor")
        installed.wait_for(f"session-{session_id}", "session.released")
    told = [
        json.loads(one["content"][0]["text"])
        for one in installed.server.events(session_id)
        if one["type"] == "user.custom_tool_result"
    ]
    a, b, c = told[0]["variants"]
    assert (a["output"], b["output"]) == ("a", "b\nhello")
    # There is no such file in the sandbox that was forked: no variant saw what another one wrote.
    assert (c["is_error"], c["exit_code"]) == (True, 1)
    assert told[1]["kept"] == b["sandbox"]
    assert installed.results(session_id)[-1]["content"] == [{"type": "text", "text": "b\nhello"}]
    for child in first:
        assert installed.kinds(f"sandbox-{child}")[-1] == "sandbox.killed"
    kinds = installed.kinds(parent)
    assert (kinds.count("sandbox.forked"), kinds.count("tool_call.started"), kinds.count("tool_call.completed")) == (
        6,
        3,
        3,
    )
    assert installed.command("log", "verify").returncode == 0
    shown = installed.command("timeline", session_id).stdout
    assert "not posted" not in shown
    assert "a, b, c" in shown
