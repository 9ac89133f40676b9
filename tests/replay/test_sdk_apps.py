"""The SDK's poller, runner and app clients against the recorded-session server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401

from replay.server import RecordedServer

if TYPE_CHECKING:
    from replay.server import EnvironmentAccess
    from tests.replay.conftest import BeginPlayed, Differing

pytestmark = pytest.mark.integration


async def test_the_poller_and_the_runner_serve_the_apps_own_tool(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    workdir: Path,
    begin_played: BeginPlayed,
    differing: Differing,
) -> None:
    @beta_async_tool
    async def look_up_ticket(number: int) -> str:
        """Reads a ticket."""
        return f"Ticket {number}: say hello in hello.txt."

    session = await begin_played("custom-tool")
    poller = async_app.beta.environments.work.poller(
        environment_id=environment.id, environment_key=environment.key, drain=True, block_ms=None, auto_stop=False
    )
    async with AsyncExitStack() as stack:
        keyed = await stack.enter_async_context(AsyncAnthropic(auth_token=environment.key, base_url=server.base_url))
        async for item in poller:
            assert item.data.id == session
            tools = [*beta_agent_toolset_20260401(AgentToolContext(workdir=workdir)), look_up_ticket]
            runner = keyed.beta.sessions.events.tool_runner(session_id=session, tools=tools, max_idle=0.2)
            calls = [call async for call in runner]
            assert [call.name for call in calls] == ["look_up_ticket", "bash", "write"]
    assert server.comparison(session)["finished"]
    assert differing(session) == []


async def test_an_app_follows_a_session_on_its_stream(
    async_app: AsyncAnthropic,
    server: RecordedServer,
    environment: EnvironmentAccess,
    sdk_worker: Callable[..., asyncio.Task[None]],
) -> None:
    session = await async_app.beta.sessions.create(
        agent=server.create_agent("bash-true"), environment_id=environment.id, title="Mine"
    )
    seen: list[str] = []
    async with await async_app.beta.sessions.events.stream(session.id) as stream:
        message = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
        await async_app.beta.sessions.events.send(session.id, events=[message])  # type: ignore[list-item]
        sdk_worker()
        async for event in stream:
            seen.append(event.id)  # type: ignore[union-attr]
            if event.type == "session.status_idle" and event.stop_reason.type == "end_turn":
                break
    assert seen == [event["id"] for event in server.events(session.id)]


def test_a_synchronous_app_does_all_an_app_does(client: anthropic.Anthropic, server: RecordedServer) -> None:
    environment = client.beta.environments.create(name="mine", config={"type": "self_hosted"})
    agent = client.beta.agents.create(
        name="Coder",
        model="claude-opus-4-8",
        tools=[{"type": "agent_toolset_20260401"}],
        metadata={"recording": "bash-true"},
    )
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
    with client.beta.sessions.events.stream(session.id) as stream:
        message = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
        sent = client.beta.sessions.events.send(session.id, events=[message])  # type: ignore[list-item]
        assert sent.data
        for event in stream:
            if event.type == "agent.tool_use":
                result: Any = {"type": "user.tool_result", "tool_use_id": event.id, "content": []}
                client.beta.sessions.events.send(session.id, events=[result])
            if event.type == "session.status_idle" and event.stop_reason.type == "end_turn":
                break
    listed = client.beta.sessions.events.list(session.id, limit=3)
    assert [event.id for event in listed] == [event["id"] for event in server.events(session.id)]
    assert [one.id for one in client.beta.sessions.list()] == [session.id]
    threads = list(client.beta.sessions.threads.list(session.id))
    assert threads[0].status == "idle"
    assert client.beta.environments.work.stats(environment.id).depth == 1
    assert client.beta.environments.work.retrieve(session.id, environment_id=environment.id).state == "queued"
    empty: Any = {"type": "user.message", "content": [{"type": "text", "text": ""}]}
    with pytest.raises(anthropic.BadRequestError, match="minimum string length"):
        client.beta.sessions.events.send(session.id, events=[empty])
    client.beta.sessions.archive(session.id)
    assert client.beta.sessions.retrieve(session.id).status == "terminated"
    assert client.beta.sessions.delete(session.id).type == "session_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.retrieve(session.id)
