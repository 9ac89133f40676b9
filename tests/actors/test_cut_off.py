"""Who is cut off in the middle of what is done to a machine leaves machine and log agreed. Real machines, no Ray."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from actors.machines.machine import GvisorMachine
from actors.machines.protocol import MachineGone
from actors.outcome import MEMORY_LOST
from tests.actors.test_pausing import KEPT, second_turn, served

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def sandbox_of(service: Service, stream: str) -> Any:
    return service.hosts[0].kept[stream.removeprefix("sandbox-")].handle


async def cut_off(service: Service, kind: str, doing: Coroutine[Any, Any, Any]) -> None:
    """Cancel what is done while an event of a kind is on its way into the log."""
    journal = service.hosts[0].journal
    append, task = journal.append, asyncio.create_task(doing)

    async def cancelling(*writes: Any) -> Any:
        if any(event.data.type == kind for write in writes for event in write.events):
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # by somebody who has no patience
        return await append(*writes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "append", cancelling)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_resume_that_is_cut_off_keeps_the_memory(service: Service) -> None:
    async with service.up():
        session_id, stream = await served(service)
        sandbox = sandbox_of(service, stream)
        await sandbox.suspend("requested")
        await cut_off(service, "sandbox.resumed", sandbox.start())
        assert await second_turn(service, session_id) == KEPT
        kinds = service.kinds(stream)
    assert kinds.count("sandbox.resumed") == 1
    assert "sandbox.crashed" not in kinds


async def test_a_suspend_that_is_cut_off_is_one(service: Service) -> None:
    async with service.up():
        session_id, stream = await served(service)
        sandbox = sandbox_of(service, stream)
        await cut_off(service, "sandbox.suspended", sandbox.suspend("pressure"))
        assert sandbox.state.phase == "suspended"
        assert stream.removeprefix("sandbox-") not in await service.hosts[0].actors.running()
        assert await second_turn(service, session_id) == KEPT


async def test_a_kill_that_is_cut_off_ends_the_machine(service: Service) -> None:
    async with service.up():
        _, stream = await served(service)
        sandbox = sandbox_of(service, stream)
        await cut_off(service, "sandbox.killed", sandbox.kill("requested"))
        assert stream.removeprefix("sandbox-") not in await service.hosts[0].actors.running()


async def test_a_machine_that_ends_under_the_snapshot_of_a_turn_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dying(self: GvisorMachine, *_: Any, **__: Any) -> Any:
        await self.kill()
        raise MachineGone("the guest's stream ended")

    async with service.up():
        with monkeypatch.context() as patch:
            patch.setattr(GvisorMachine, "snapshot", dying)
            session_id, stream = await served(service)
            await service.recorded(stream, "sandbox.crashed")
        # Told before the next call began, and not as if that had been cut short.
        assert MEMORY_LOST[0]["text"] in str(await second_turn(service, session_id))


async def test_one_that_is_frozen_between_calls_is_snapshotted_all_the_same(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"freeze": "call"})
    async with service.up():
        session_id, stream = await served(service)
        await service.recorded(stream, "sandbox.snapshotted")
        assert (await sandbox_of(service, stream).view())["phase"] == "frozen"
        assert sandbox_of(service, stream)._life.machine.frozen
        assert await second_turn(service, session_id) == KEPT
        await service.recorded(stream, "sandbox.snapshotted", count=2)
