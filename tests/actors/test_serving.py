"""Sessions served end to end: the real server, host, driver and machines; Ray is left to other tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from replay.server.recorded import has_ended, has_status

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = pytest.mark.integration


async def released(service: Service, session_id: str, count: int = 1) -> list[Any]:
    events = await service.recorded(f"session-{session_id}", "session.released", count=count)
    return [event.data for event in events]


def agrees(service: Service, session_id: str) -> bool:
    """Whether every result is, text for text, what the SDK's own toolset gave when it was recorded."""
    compared = service.server.comparison(session_id)
    assert compared["calls"], "nothing was compared"
    return all(call["equal"] for call in compared["calls"])


async def test_a_session_is_served_and_every_step_is_an_event(service: Service) -> None:
    async with service.up():
        session_id = await service.session("bash-true")
        (release,) = await released(service, session_id)
    assert release.reason == "idle"
    assert service.kinds(f"session-{session_id}") == [
        "session.claimed",
        "session.attached",
        "tool_call.requested",
        "session.result_posted",
        "session.idled",
        "session.released",
    ]
    kinds = service.kinds(service.sandbox_of(session_id))
    # The turn's snapshot is recorded when it is durable, before or after the freeze.
    kinds.remove("sandbox.snapshotted")
    assert kinds == [
        "sandbox.created",
        "sandbox.started",
        "tool_call.started",
        "tool_call.completed",
        "sandbox.frozen",
        "sandbox.snapshotted",
        "sandbox.suspended",
    ]
    assert agrees(service, session_id)
    (work,) = service.server.work(service.environment.id)
    assert work["state"] == "stopped"


@pytest.mark.parametrize(
    "recording", ["fix-the-bug", "tidy-the-logs", "parallel-batch", "long-output", "threads", "web-search"]
)
async def test_recordings_come_out_as_with_the_sdk(service: Service, recording: str) -> None:
    async with service.up():
        session_id = await service.session(recording)
        await released(service, session_id)
    calls = service.server.comparison(session_id)["calls"]
    # The recording was made without ripgrep, which leaves out the name of a single file, and orders files as it likes.
    unlike = [(call["posted"], call["recorded"]) for call in calls if not call["equal"] and call["name"] != "grep"]
    assert not unlike
    assert all(call["posted"]["is_error"] == call["recorded"]["is_error"] for call in calls)


async def test_two_turns_share_one_shell(service: Service) -> None:
    async with service.up():
        session_id = await service.session("two-turns")
        await released(service, session_id)
        await service.given_back()
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
        )
        await service.until(has_ended(session_id), "the second turn to end")
        await released(service, session_id, count=2)
    assert agrees(service, session_id)
    assert service.kinds(service.sandbox_of(session_id)).count("sandbox.started") == 1
    assert service.kinds(f"session-{session_id}").count("session.claimed") == 2


async def test_confirmations_hold_release_and_deny(service: Service) -> None:
    async with service.up():
        session_id = await service.session("ask-deny")
        for verdict in ("allow", "deny"):
            await service.until(has_status(session_id, "idle", "requires_action"), "a question")
            call_id = (await service.recorded(f"session-{session_id}", "tool_call.requested"))[-1].data.tool_use_id  # type: ignore[union-attr]
            assert not any(call_id in str(event.data) for event in service.history(service.sandbox_of(session_id)))
            await service.app.beta.sessions.events.send(
                session_id,
                events=[{"type": "user.tool_confirmation", "tool_use_id": call_id, "result": verdict}],
            )
            if verdict == "allow":
                await service.recorded(f"session-{session_id}", "tool_call.requested", count=2)
        await released(service, session_id)
    denied = [event.data for event in service.history(f"session-{session_id}") if event.type == "tool_call.denied"]
    assert [data.by for data in denied] == ["user", "policy"]  # type: ignore[union-attr]
    assert service.kinds(service.sandbox_of(session_id)).count("tool_call.started") == 2


async def test_custom_tools_are_left_to_whoever_owns_them(service: Service) -> None:
    async with service.up():
        session_id = await service.session("custom-tool")
        await service.recorded(f"session-{session_id}", "session.result_posted")
        (use,) = [one for one in service.server.events(session_id) if one["type"] == "agent.custom_tool_use"]
        assert not any(one["type"] == "user.custom_tool_result" for one in service.server.events(session_id))
        await service.app.beta.sessions.events.send(
            session_id,
            events=[
                {
                    "type": "user.custom_tool_result",
                    "custom_tool_use_id": use["id"],
                    "content": [{"type": "text", "text": "Ticket 7"}],
                }
            ],
        )
        await released(service, session_id)
    assert all("look_up_ticket" not in str(event.data) for event in service.history(f"session-{session_id}"))


async def test_an_interrupt_ends_the_command_and_the_next_turn_goes_on(service: Service) -> None:
    async with service.up():
        session_id = await service.session("interrupt")
        sandbox = await service.recorded(f"session-{session_id}", "session.attached")
        await service.recorded(f"sandbox-{sandbox[0].data.sandbox_id}", "tool_call.started")  # type: ignore[union-attr]
        await service.app.beta.sessions.events.send(session_id, events=[{"type": "user.interrupt"}])
        (interrupted,) = await service.recorded(service.sandbox_of(session_id), "tool_call.interrupted")
        assert interrupted.data.reason == "user"  # type: ignore[union-attr]
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Say hello."}]}]
        )
        await service.until(has_ended(session_id), "the second turn to end")
        await released(service, session_id)
    posted = [event.data for event in service.history(f"session-{session_id}") if event.type == "session.result_posted"]
    assert [data.outcome for data in posted] == ["already_answered", "posted"]  # type: ignore[union-attr]
    results = [one for one in service.server.events(session_id) if one["type"] == "user.tool_result"]
    # The command was `sleep 3; echo awake`: that nothing of it goes on costs its shell, as a timeout does.
    assert results[-1]["content"][0]["text"] == "bash: bash session terminated; restart required"
    assert "awake" not in str(results)


async def test_many_sessions_at_once_each_in_a_sandbox_of_its_own(service: Service) -> None:
    async with service.up():
        sessions = [await service.session("bash-true") for _ in range(4)]
        await asyncio.gather(*(released(service, one) for one in sessions))
    assert len({service.sandbox_of(one) for one in sessions}) == 4
