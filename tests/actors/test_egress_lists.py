"""What sandboxes may reach follows settings, people and parents, before anything runs in them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from actors.handle import SandboxFailed
from actors.host import Host
from actors.life import sandbox_entity
from actors.settings import Settings
from events import sandbox as fold
from events.envelope import new_events
from events.types import EgressPolicyChanged, Limits, SandboxBranched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.actors.conftest import Service

BOX, SESSION = "sbx-0123456789abcdef", "sesn_1"


@asynccontextmanager
async def host(home: Path, **settings: Any) -> AsyncIterator[Host]:
    made = Host(Settings(home=home, **settings), node="test")
    try:
        yield made
    finally:
        await made.close()


async def lists(host: Host, sandbox_id: str = BOX) -> list[EgressPolicyChanged]:
    events = await host.journal.read(f"sandbox-{sandbox_id}")
    return [event.data for event in events if isinstance(event.data, EgressPolicyChanged)]


async def state(host: Host, sandbox_id: str = BOX) -> fold.SandboxState:
    found = fold.SandboxState(sandbox_id)
    return fold.fold(found, await host.journal.read(found.stream))


async def test_a_new_sandbox_begins_with_what_the_settings_give(tmp_path: Path) -> None:
    async with host(tmp_path, egress=["a.example"]) as made:
        await made.sandbox(BOX, SESSION)
        events = await made.journal.read(f"sandbox-{BOX}")
        assert [event.type for event in events] == ["sandbox.created", "egress.policy_changed"]
        # One append.
        assert events[0].recorded_at_us == events[1].recorded_at_us
        [told] = await lists(made)
        assert (told.allow, told.settings, told.by) == (["a.example"], ["a.example"], "settings")
    async with host(tmp_path / "other") as made:
        await made.sandbox(BOX, SESSION)
        assert await lists(made) == []


async def test_changed_settings_reach_a_sandbox_when_it_is_loaded_again(tmp_path: Path) -> None:
    async with host(tmp_path, egress=["a.example", "b.example"]) as made:
        box = await made.sandbox(BOX, SESSION)
        view = await box.change_egress(("mine.example",), ("b.example",), "ann")
        assert view["allow"] == ["a.example", "mine.example"]
        assert view["taken_out"] == ["b.example"]
    async with host(tmp_path, egress=["a.example", "b.example"]) as made:
        await made.sandbox(BOX, SESSION)
        assert len(await lists(made)) == 2
    async with host(tmp_path, egress=["b.example", "c.example"]) as made:
        await made.sandbox(BOX, SESSION)
        assert (await lists(made))[-1].allow == ["mine.example", "c.example"]
        assert (await lists(made))[-1].by == "settings"


async def test_an_agents_entries_are_there_before_anything_runs_and_after_a_restart(tmp_path: Path) -> None:
    agents = {"coder": ["git.example"], "agent_2": ["other.example"]}
    async with host(tmp_path, egress=["a.example"], egress_agents=agents) as made:
        box = await made.sandbox(BOX, SESSION)
        await box.served_for("agent_1", "coder")
        await box.served_for("agent_1", "coder")
        assert [one.allow for one in await lists(made)] == [["a.example"], ["a.example", "git.example"]]
    async with host(tmp_path, egress=["a.example"], egress_agents=agents) as made:
        await made.sandbox(BOX, SESSION)
        assert len(await lists(made)) == 2
    async with host(tmp_path, egress=["a.example"], egress_agents={"agent_1": ["new.example"]}) as made:
        await made.sandbox(BOX, SESSION)
        assert (await state(made)).egress == ("a.example", "new.example")


async def test_a_branch_follows_no_settings_and_has_nothing_of_its_parent(tmp_path: Path) -> None:
    async with host(tmp_path, egress=["a.example"], egress_agents={"coder": ["git.example"]}) as made:
        parent = await made.sandbox("sbx-parent", SESSION)
        await parent.change_egress(("mine.example",), (), "ann")
    branched = SandboxBranched(
        parent="sbx-parent", parent_version=3, snapshot_id="s-1", session_id="", driver="gvisor", template="base",
        limits=Limits(),
    )  # fmt: skip
    async with host(tmp_path, egress=["a.example"], egress_agents={"coder": ["git.example"]}) as made:
        made._log.append(f"sandbox-{BOX}", new_events("branch", [branched]), expected=0)
        branch = await made.sandbox(BOX, "")
        await branch.served_for("agent_1", "coder")
        assert await lists(made) == []
        await branch.change_egress(("b.example",), (), "ann")
        assert (await state(made)).egress == ("b.example",)


async def test_a_sandbox_that_is_gone_is_allowed_nothing(tmp_path: Path) -> None:
    async with host(tmp_path, egress=["a.example"]) as made:
        await made.sandbox(BOX, SESSION)
        entity = sandbox_entity(BOX, SESSION, made.journal, epoch=made.epoch, metadata={})
        await entity.load()
        await entity.execute("kill", fold.Kill(reason="requested"))
    async with host(tmp_path, egress=["b.example"]) as made:
        box = await made.sandbox(BOX, SESSION)
        assert len(await lists(made)) == 1
        with pytest.raises(SandboxFailed, match="was killed"):
            await box.change_egress(("b.example",), (), "ann")


@pytest.mark.integration
async def test_a_sessions_list_is_whole_before_its_machine_starts_and_forks_have_it(service: Service) -> None:
    session_id = await service.session("two-turns")
    session = await service.app.beta.sessions.retrieve(session_id)
    service.settings = service.settings.model_copy(
        update={"egress": ("a.example",), "egress_agents": {session.agent.id: ("git.example",)}}
    )
    async with service.up():
        await service.recorded(f"session-{session_id}", "session.released")
        box = service.sandbox_of(session_id)
        kinds = service.kinds(box)
        assert kinds[:4] == ["sandbox.created", "egress.policy_changed", "egress.policy_changed", "sandbox.started"]
        found = service.hosts[0]
        parent = await found.sandbox(box.removeprefix("sandbox-"), session_id)
        await parent.change_egress(("mine.example",), ("a.example",), "ann")
        [child] = await parent.fork(1)
        [told] = await lists(found, child)
        assert service.kinds(f"sandbox-{child}") == ["sandbox.created", "egress.policy_changed", "sandbox.suspended"]
        assert (told.allow, told.by) == (["git.example", "mine.example"], "fork")
        # The fork's own from here on, and no event when it is loaded.
        fork = await found.sandbox(child, session_id)
        await fork.change_egress((), ("git.example",), "ann")
        assert [one.by for one in await lists(found, child)] == ["fork", "ann"]
        assert (await state(found, box.removeprefix("sandbox-"))).egress == ("git.example", "mine.example")
