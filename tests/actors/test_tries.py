"""An agent fans out: `try_in_parallel` and `keep`, with real machines, the real log and the unmodified SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from actors.custom_tools import TOOLS
from replay.server.recorded import has_ended
from tests.replay.draft import Draft

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

THREE = [
    {"name": "a", "files": {"answer.txt": "41\n"}, "command": "grep -q 42 answer.txt"},
    {"name": "b", "files": {"answer.txt": "42\n"}, "command": "grep 42 answer.txt; echo $mine; echo b > made.txt"},
    {"name": "c", "command": "sleep 60"},
]


class TryDraft(Draft):
    """An agent that has the tools."""

    def uses_ours(self, tool: str, /, **given: Any) -> TryDraft:
        call = self.event("agent.custom_tool_use", name=tool, input=given)
        self.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [call]})
        self.event("user.custom_tool_result", custom_tool_use_id=call, content=[{"type": "text", "text": "?"}])
        return self


def draft(name: str, *, tools: Any = TOOLS) -> TryDraft:
    made = TryDraft(name, "An agent that tries in parallel.", tools=list(tools))
    made.user("Try it.").bash("mine=hello; echo before > made.txt")
    return made


async def play(service: Service, made: Draft) -> str:
    """A session that plays a draft."""
    recording = made.says("Done.").rests().recording()
    session = await service.app.beta.sessions.create(
        agent=service.server.create_agent(recording),
        environment_id=service.environment.id,
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
    )
    return session.id


async def served(service: Service, made: Draft) -> str:
    """The id of a session that played a draft to its end."""
    session_id = await play(service, made)
    await service.until(has_ended(session_id), "the session to end")
    await service.recorded(f"session-{session_id}", "session.released")
    return session_id


def answers(service: Service, session_id: str) -> list[tuple[str, bool]]:
    """Text and failure of each result of a custom tool."""
    return [
        (one["content"][0]["text"], one["is_error"])
        for one in service.server.events(session_id)
        if one["type"] == "user.custom_tool_result"
    ]


def results(service: Service, session_id: str) -> list[str]:
    return [one["content"][0]["text"] for one in service.server.events(session_id) if one["type"] == "user.tool_result"]


async def test_three_variants_are_tried_and_one_is_kept(service: Service) -> None:
    made = draft("try-keep").uses_ours("try_in_parallel", variants=THREE, seconds=2)
    made.bash("cat made.txt").uses_ours("keep", variant="b").bash("cat answer.txt made.txt; echo $mine")
    async with service.up():
        session_id = await served(service, made)
    (tried, failed), (kept, _) = answers(service, session_id)
    assert not failed
    a, b, c = json.loads(tried)["variants"]
    assert (a["name"], a["exit_code"], a["is_error"], a["timed_out"]) == ("a", 1, True, False)
    assert (b["exit_code"], b["is_error"], b["output"]) == (0, False, "42\nhello")
    assert (c["timed_out"], c["is_error"], c["exit_code"]) == (True, True, None)
    assert c["seconds"] >= 2
    # The session's own sandbox was not touched, and then the one that was kept is its sandbox.
    assert results(service, session_id)[1:] == ["before", "42\nb\nhello"]
    parent = service.sandbox_of(session_id).removeprefix("sandbox-")
    assert json.loads(kept) == {
        "kept": b["sandbox"],
        "sandbox": b["sandbox"],
        "ended": [parent, a["sandbox"], c["sandbox"]],
    }
    for one in json.loads(kept)["ended"]:
        assert service.kinds(f"sandbox-{one}")[-1] == "sandbox.killed"
    of_b = service.kinds(f"sandbox-{b['sandbox']}")
    assert of_b[:3] == ["sandbox.created", "sandbox.suspended", "sandbox.resumed"]
    assert of_b.count("tool_call.completed") == 3
    of_parent = service.kinds(f"sandbox-{parent}")
    assert of_parent.count("sandbox.forked") == 3
    assert of_parent[-2:] == ["tool_call.completed", "sandbox.killed"]
    posted = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.result_posted"]
    assert [one.outcome for one in posted] == ["posted"] * 5  # type: ignore[union-attr]
