"""The SDK's unmodified worker against the recorded-session server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from replay.library import Library
from replay.recording import Header, dump, parse
from replay.server import RecordedServer, ServerSettings, has_ended, has_status
from replay.server.queue import State, WorkItem
from replay.user import first_message, play_user

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess
    from replay.server.call import Call
    from replay.server.platform import Platform
    from tests.replay.conftest import BeginPlayed, Differing

pytestmark = pytest.mark.integration
SECONDS = 60.0
# fix-the-bug is left to a sandbox: it binds a port, which here would be this machine's.
PLAYED = sorted(set(Library().names) - {"fix-the-bug", "interrupt"})


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(ttl_seconds=4)


def posted(server: RecordedServer, session: str) -> list[str]:
    """The calls that results were taken for, in order."""
    kinds = {"user.tool_result": "tool_use_id", "user.custom_tool_result": "custom_tool_use_id"}
    return [event[kinds[event["type"]]] for event in server.events(session) if event["type"] in kinds]


@pytest.mark.parametrize("name", PLAYED)
async def test_the_sdks_worker_serves_a_recording(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    workdir: Path,
    name: str,
    begin_played: BeginPlayed,
    differing: Differing,
) -> None:
    session = await begin_played(name)
    sdk_worker()
    await play_user(async_app, session, Library().get(name))
    await server.until(has_ended(session), SECONDS, f"{name} to end")
    assert differing(session) == []
    assert all(call["refused"] == 0 for call in server.comparison(session)["calls"])
    await server.until(has_stopped(environment, session), SECONDS, "the work to stop")


async def test_without_a_secret_the_worker_uses_the_environments_key(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    server.settings.mint_secrets = False
    session = await begin_played("bash-true")
    sdk_worker()
    await server.until(has_ended(session), SECONDS)
    helpers = {one["helper"] for one in server.requests(session) if one["credential"] == "environment_key"}
    assert {"session-tool-runner", "environments-worker"} <= helpers
    assert not [one for one in server.requests() if one["credential"] == "sessions_token"]


async def test_with_a_secret_the_worker_uses_its_token(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    session = await begin_played("bash-true")
    sdk_worker()
    await server.until(has_ended(session), SECONDS)
    used = {one["credential"] for one in server.requests(session) if one["helper"] == "session-tool-runner"}
    assert used == {"sessions_token"}


async def test_a_worker_comes_through_faults(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    workdir: Path,
    begin_played: BeginPlayed,
    differing: Differing,
) -> None:
    session = await begin_played("many-calls")
    server.inject("status", "/work/poll", status=503)
    server.inject("empty", "/work/poll")
    server.inject("lost_response", "/ack$")
    server.inject("status", f"/sessions/{session}$", method="GET", status=500)
    server.inject("status", "/heartbeat$", status=529)
    server.inject("status", "/events/stream", status=502)
    server.inject("status", "/events$", method="GET", status=500)
    server.inject("refused", "/events$", method="POST", times=2)
    sdk_worker()
    await server.until(lambda platform: len(posted_calls(platform, session)) >= 5, SECONDS)
    server.duplicate_events(10, session)
    server.drop_streams(session, after=12)
    await server.until(lambda platform: len(posted_calls(platform, session)) >= 20, SECONDS)
    server.drop_streams(session, clean=True)
    await server.until(has_ended(session), SECONDS)
    assert differing(session) == []
    assert len(posted(server, session)) == 40


def item_of(platform: Platform, environment: EnvironmentAccess, work_id: str) -> WorkItem:
    return platform.environments.get(environment.id).queue.get(work_id)


def has_stopped(environment: EnvironmentAccess, work_id: str) -> Callable[[Platform], bool]:
    return lambda platform: item_of(platform, environment, work_id).state is State.STOPPED


def posted_calls(platform: Platform, session: str) -> list[Call]:
    calls = platform.sessions.seat(session).session.calls.values()
    return [call for call in calls if call.answer is not None]


async def test_a_lost_response_to_a_result_is_answered_with_a_400_on_the_retry(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    session = await begin_played("bash-true")
    server.inject("lost_response", f"{session}/events$", method="POST")
    sdk_worker()
    await server.until(has_ended(session), SECONDS)
    refused = await server.until(lambda p: p.comparison(session)["calls"][0]["refused"], SECONDS, "the retry")
    assert refused == 1


async def test_a_worker_that_lost_its_lease_leaves_the_item_to_the_next(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    session = await begin_played("ask-deny")
    sdk_worker()
    await server.until(lambda p: item_of(p, environment, session).state is State.ACTIVE, SECONDS, "the lease")
    server.expire_lease(session)
    await server.until(lambda p: item_of(p, environment, session).claims == 2, SECONDS, "the second claim")
    await play_user(async_app, session, Library().get("ask-deny"))
    await server.until(has_ended(session), SECONDS)
    beats = [one["status"] for one in server.requests(f"{session}/heartbeat")]
    assert 412 in beats


async def test_an_interrupted_tools_result_comes_too_late(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    session = await begin_played("interrupt")
    sdk_worker()
    await server.until(lambda p: p.sessions.seat(session).session.feed.streams, SECONDS, "a stream")
    await play_user(async_app, session, Library().get("interrupt"), interrupt_seconds=0.5)
    await server.until(has_ended(session), SECONDS)
    first, second = server.comparison(session)["calls"]
    assert first["posted"]["is_error"]
    assert first["refused"] == 1
    assert second["equal"]


async def test_a_session_comes_again_after_its_item_stopped(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    begin_played: BeginPlayed,
) -> None:
    session = await begin_played("two-turns")
    sdk_worker()
    await server.until(has_status(session, "idle", "end_turn"), SECONDS)
    await server.until(has_stopped(environment, session), SECONDS, "the work to stop")
    await play_user(async_app, session, Library().get("two-turns"))
    await server.until(has_ended(session), SECONDS)
    assert len([one for one in server.requests("/ack") if session in one["path"]]) == 2
    # The SDK's shell of the first item is gone, and its variable with it: the past had one shell for both turns.
    assert [call["equal"] for call in server.comparison(session)["calls"]] == [True, False]


async def test_items_that_are_no_sessions_are_stopped(
    server: RecordedServer, environment: EnvironmentAccess, sdk_worker: Callable[..., asyncio.Task[None]]
) -> None:
    name = server.healthcheck(environment.id)
    sdk_worker()
    await server.until(has_stopped(environment, name), SECONDS, "the healthcheck to stop")
    assert not server.requests(f"/sessions/{name}")


async def test_a_revoked_key_ends_the_worker(
    server: RecordedServer, environment: EnvironmentAccess, sdk_worker: Callable[..., asyncio.Task[None]]
) -> None:
    task = sdk_worker()
    await server.until(lambda platform: len(platform.journal) > 0, SECONDS)
    server.revoke(environment.key)
    with pytest.raises(anthropic.AuthenticationError, match="has been revoked"):
        await asyncio.wait_for(task, SECONDS)


async def test_memory_and_skills_reach_the_worker(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
    workdir: Path,
    differing: Differing,
) -> None:
    mount = workdir / "mounted"
    skill = server.call(lambda platform: platform.skills.add("greeting", {"SKILL.md": "Say hello.\n"}))
    store = await async_app.beta.memory_stores.create(name="Notes")
    await async_app.beta.memory_stores.memories.create(store.id, path="/known.md", content="known\n")
    draft: list[tuple[str, dict[str, Any]]] = [
        ("user.message", {"content": [{"type": "text", "text": "go"}]}),
        ("agent.tool_use", {"name": "bash", "input": {"command": f"cat skills/greeting/SKILL.md {mount}/known.md"}}),
        ("user.tool_result", {"tool_use_id": "e2", "content": [{"type": "text", "text": "Say hello.\nknown"}]}),
        ("agent.tool_use", {"name": "bash", "input": {"command": f"echo new > {mount}/new.md; sleep 0.1"}}),
        ("user.tool_result", {"tool_use_id": "e4", "content": [{"type": "text", "text": "(no output)"}]}),
    ]
    events = [{"id": f"e{n}", "type": kind} | more for n, (kind, more) in enumerate(draft, start=1)]
    agent = {"skills": [{"type": "custom", "skill_id": skill["skill_id"], "version": "latest"}]}
    recording = parse(dump(Header(recording=1, name="with-memory", agent=agent), events), "with-memory")
    session = await async_app.beta.sessions.create(
        agent=server.create_agent(recording),
        environment_id=environment.id,
        initial_events=first_message(recording),  # type: ignore[arg-type]
        resources=[{"type": "memory_store", "memory_store_id": store.id}],
    )
    server.call(lambda p: p.sessions.seat(session.id).session.resources[0].update(mount_path=str(mount)))
    sdk_worker()
    await server.until(has_ended(session.id), SECONDS)
    assert differing(session.id) == []
    await server.until(lambda p: len(p.stores.get(store.id).memories) == 2, SECONDS, "the sync")
    assert {one.path async for one in async_app.beta.memory_stores.memories.list(store.id)} == {"/known.md", "/new.md"}


async def test_skills_may_refuse_a_token(
    async_app: AsyncAnthropic, server: RecordedServer, environment: EnvironmentAccess
) -> None:
    server.settings.skills_refuse_sessions_token = True
    skill = server.call(lambda platform: platform.skills.add("greeting", {"SKILL.md": "Say hello.\n"}))
    token = server.call(lambda platform: platform.credentials.sessions_token(environment.id, "sesn_1"))
    async with AsyncAnthropic(auth_token=token, base_url=server.base_url) as mate:
        with pytest.raises(anthropic.AuthenticationError):
            await mate.beta.skills.versions.retrieve("latest", skill_id=skill["skill_id"])
    found = await async_app.beta.skills.versions.retrieve("latest", skill_id=skill["skill_id"])
    assert found.id == skill["id"]
