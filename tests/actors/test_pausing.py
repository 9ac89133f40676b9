"""Sandboxes that rest and come back while they serve sessions: real machines, real log, without Ray."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors.life import Life
from actors.operations import Operations, SandboxRefused
from events.errors import LogBusy

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


async def served(service: Service, recording: str = "two-turns") -> tuple[str, str]:
    """A session whose first turn is over; its id and its sandbox's stream."""
    session_id = await service.session(recording)
    await service.recorded(f"session-{session_id}", "session.released")
    return session_id, service.sandbox_of(session_id)


async def second_turn(service: Service, session_id: str) -> list[Any]:
    await service.given_back()
    await service.app.beta.sessions.events.send(
        session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
    )
    await service.recorded(f"session-{session_id}", "session.result_posted", count=2)
    results = [one for one in service.server.events(session_id) if one["type"] == "user.tool_result"]
    content: list[Any] = results[-1]["content"]
    return content


KEPT = [{"type": "text", "text": "42\n41"}]


async def test_what_nobody_uses_goes_to_disk_and_comes_back_by_itself(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"suspend_after": 0.5})
    async with service.up():
        session_id, sandbox = await served(service)
        (suspended,) = await service.recorded(sandbox, "sandbox.suspended")
        assert suspended.data.reason == "idle"  # type: ignore[union-attr]
        assert suspended.data.cpu_seconds  # type: ignore[union-attr]
        (host,) = service.hosts
        for _ in range(100):
            if not host.kept:
                break
            await asyncio.sleep(0.05)
        # Rows and a snapshot: nothing of it is in memory.
        assert host.kept == {}
        assert await second_turn(service, session_id) == KEPT
    kinds = service.kinds(sandbox)
    assert kinds.index("sandbox.frozen") < kinds.index("sandbox.suspended") < kinds.index("sandbox.resumed")


async def test_frozen_between_calls_it_serves_as_well(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"freeze": "call"})
    async with service.up():
        session_id, sandbox = await served(service, "fix-the-bug")
    kinds = service.kinds(sandbox)
    assert kinds.count("sandbox.thawed") >= 3
    assert kinds.count("tool_call.completed") == kinds.count("tool_call.started")
    posted = service.kinds(f"session-{session_id}").count("session.result_posted")
    assert posted == kinds.count("tool_call.completed")


async def test_a_suspend_that_can_not_be_recorded_is_taken_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        record = Life.record

        async def failing(self: Life, *commands: Any, causation_id: str = "") -> None:
            if any(type(one).__name__ == "Suspend" for one in commands):
                raise LogBusy(path=service.settings.home, seconds=1)
            await record(self, *commands, causation_id=causation_id)

        with monkeypatch.context() as patch:
            patch.setattr(Life, "record", failing)
            with pytest.raises(LogBusy):
                await Operations(service.hosts[0]).pause(session_id, True, False)
        assert "sandbox.suspended" not in service.kinds(sandbox)
        # It was held for the snapshot, and lives on.
        assert await second_turn(service, session_id) == KEPT
    assert "sandbox.crashed" not in service.kinds(sandbox)


async def test_two_resumes_at_once_make_one_machine(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        operations = Operations(service.hosts[0])
        assert (await operations.pause(session_id, True, False))["phase"] == "suspended"
        both = await asyncio.gather(operations.resume(session_id), operations.resume(session_id))
        assert [one["phase"] for one in both] == ["running", "running"]
        assert service.kinds(sandbox).count("sandbox.resumed") == 1


async def test_a_forced_pause_interrupts_the_call_and_another_waits_for_it(service: Service) -> None:
    async with service.up():
        session_id = await service.session("interrupt")
        await service.recorded(f"session-{session_id}", "session.attached")
        sandbox = service.sandbox_of(session_id)
        await service.recorded(sandbox, "tool_call.started")
        assert (await Operations(service.hosts[0]).pause(session_id, True, True))["phase"] == "suspended"
        (interrupted,) = await service.recorded(sandbox, "tool_call.interrupted")
        assert interrupted.data.reason == "user"  # type: ignore[union-attr]
        waiting = await service.session("interrupt")
        await service.recorded(f"session-{waiting}", "session.attached")
        other = service.sandbox_of(waiting)
        await service.recorded(other, "tool_call.started")
        assert (await Operations(service.hosts[0]).pause(waiting, True, False))["phase"] == "suspended"
        kinds = service.kinds(other)
        assert kinds.index("tool_call.completed") < kinds.index("sandbox.suspended")


async def test_nothing_is_kept_under_a_call_that_runs(service: Service) -> None:
    async with service.up():
        session_id = await service.session("interrupt")
        await service.recorded(f"session-{session_id}", "session.attached")
        await service.recorded(service.sandbox_of(session_id), "tool_call.started")
        with pytest.raises(SandboxRefused, match="has no posted result yet"):
            await Operations(service.hosts[0]).keep(session_id)
        (completed,) = await service.recorded(service.sandbox_of(session_id), "tool_call.completed")
    assert completed.data.content == [{"type": "text", "text": "awake"}]  # type: ignore[union-attr]


async def test_a_killed_sandbox_is_not_resumed(service: Service) -> None:
    async with service.up():
        session_id, _ = await served(service)
        operations = Operations(service.hosts[0])
        assert (await operations.kill(session_id))["phase"] == "killed"
        with pytest.raises(SandboxRefused, match="was killed"):
            await operations.resume(session_id)
        with pytest.raises(SandboxRefused, match="no memory to keep"):
            await operations.pause(session_id, True, False)


async def test_more_forks_than_there_is_room_for_take_turns(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"max_sandboxes": 2})
    async with service.up():
        session_id, _ = await served(service)
        (host,) = service.hosts
        children = (await Operations(host).fork(session_id, 3))["children"]
        assert not [child for child in children if "error" in child]
        assert len(host.kept) <= 2
        assert host.lent == {}
    for child in children:
        assert "sandbox.resumed" in service.kinds(f"sandbox-{child['sandbox_id']}")


async def test_one_that_lies_suspended_is_forked_again_and_again(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        operations = Operations(service.hosts[0])
        assert (await operations.pause(session_id, True, False))["phase"] == "suspended"
        children = [(await operations.fork(session_id, 1))["children"][0] for _ in range(2)]
        assert not [one for one in children if "error" in one]
        assert service.kinds(sandbox).count("sandbox.forked") == 2


async def test_forks_end_with_their_session(service: Service) -> None:
    async with service.up():
        session_id, _ = await served(service)
        operations = Operations(service.hosts[0])
        children = [one["sandbox_id"] for one in (await operations.fork(session_id, 2))["children"]]
        await operations.fork(children[0], 1)
        await service.hosts[0].bury(session_id)
        assert service.hosts[0].kept == {}
    for child in children:
        assert service.kinds(f"sandbox-{child}")[-1] == "sandbox.killed"
