"""What goes wrong between us and the API, and what becomes of the session then."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from actors.host import Host
from actors.queue import QueueRejected
from events import session as fold
from replay.server.settings import ServerSettings

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = pytest.mark.integration


async def released(service: Service, session_id: str, count: int = 1) -> list[Any]:
    events = await service.recorded(f"session-{session_id}", "session.released", count=count)
    return [event.data for event in events]


def results(service: Service, session_id: str) -> list[Any]:
    return [one for one in service.server.events(session_id) if one["type"] == "user.tool_result"]


def counts(service: Service, session_id: str) -> tuple[int, int, int]:
    """Calls requested, started, and results posted; the three agree where each call ran once."""
    session, sandbox = service.kinds(f"session-{session_id}"), service.kinds(service.sandbox_of(session_id))
    return (
        session.count("tool_call.requested"),
        sandbox.count("tool_call.started"),
        session.count("session.result_posted"),
    )


async def test_dropped_streams_lose_and_repeat_nothing(service: Service) -> None:
    async with service.up():
        session_id = await service.session("many-calls")
        for number in (1, 3, 5):
            await service.recorded(f"session-{session_id}", "session.result_posted", count=number)
            service.server.drop_streams(session_id)
        await released(service, session_id)
    requested, started, posted = counts(service, session_id)
    assert requested == started == posted == len(results(service, session_id))


async def test_duplicate_events_run_once(service: Service) -> None:
    async with service.up():
        session_id = await service.session("parallel-batch")
        service.server.duplicate_events(100, session_id)
        await released(service, session_id)
    requested, started, posted = counts(service, session_id)
    assert requested == started == posted


@pytest.mark.parametrize("wrong", ["lost_response", "refused", "status"])
async def test_a_result_arrives_once_whatever_is_lost(service: Service, wrong: str) -> None:
    service.server.inject(wrong, r"/sessions/[^/]+/events$", method="POST", times=5)
    async with service.up():
        session_id = await service.session("bash-true")
        # The app's own message is sent at creation, so the faults meet the worker's posts.
        await released(service, session_id)
    assert len(results(service, session_id)) == 1
    assert counts(service, session_id) == (1, 1, 1)


async def test_a_failing_api_is_waited_for(service: Service) -> None:
    for path in (r"/events/stream", r"/events\?|/events$", r"/sessions/sesn_[^/]+$"):
        service.server.inject("status", path, method="GET", times=2, status=529)
    async with service.up():
        session_id = await service.session("bash-true")
        await released(service, session_id)
    assert counts(service, session_id) == (1, 1, 1)


async def test_a_result_above_the_limit_becomes_an_error_that_says_so(service: Service) -> None:
    service.server.settings.max_request_bytes = 40_000
    async with service.up():
        session_id = await service.session("long-output")
        await released(service, session_id)
    said = [one["content"][0]["text"] for one in results(service, session_id) if one["is_error"]]
    assert any("too large" in text for text in said)
    posted = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.result_posted"]
    assert any("an error was posted instead" in one.detail for one in posted)  # type: ignore[union-attr]


async def test_a_lost_lease_stops_the_work_and_the_next_claim_goes_on(service: Service) -> None:
    async with service.up():
        session_id = await service.session("interrupt")  # its first call sleeps for three seconds
        attached = (await service.recorded(f"session-{session_id}", "session.attached"))[0].data
        await service.recorded(f"sandbox-{attached.sandbox_id}", "tool_call.started")  # type: ignore[union-attr]
        service.server.expire_lease(session_id)
        await service.recorded(f"session-{session_id}", "session.claimed", count=2)
        await service.recorded(f"session-{session_id}", "session.result_posted")
    kinds = service.kinds(f"session-{session_id}")
    assert kinds.count("session.lease_lost") == 1
    assert service.kinds(service.sandbox_of(session_id)).count("tool_call.started") == 1
    assert results(service, session_id)[0]["content"] == [{"type": "text", "text": "awake"}]


async def test_a_requested_stop_is_obeyed(service: Service) -> None:
    async with service.up():
        session_id = await service.session("interrupt")
        await service.recorded(f"session-{session_id}", "session.attached")
        await service.app.beta.environments.work.stop(session_id, environment_id=service.environment.id)
        (release,) = await released(service, session_id)
    assert release.reason == "stop_requested"
    (work,) = service.server.work(service.environment.id)
    assert work["state"] == "stopped"


async def test_a_session_that_is_over_is_ended_with_its_sandbox(service: Service) -> None:
    async with service.up():
        session_id = await service.session("two-turns")
        await released(service, session_id)
        sandbox = service.sandbox_of(session_id)
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
        )
        await service.recorded(f"session-{session_id}", "session.attached", count=2)
        await released(service, session_id, count=2)
        await service.app.beta.sessions.delete(session_id)
    # Nobody claims a deleted session, so what ends its sandbox is the stream, or the next claim.
    assert service.kinds(sandbox)[-1] == "sandbox.suspended"


async def test_a_session_that_ends_while_it_is_served_takes_its_sandbox_along(service: Service) -> None:
    async with service.up():
        session_id = await service.session("custom-tool")
        await service.recorded(f"session-{session_id}", "session.result_posted")
        await service.app.beta.sessions.archive(session_id)
        await service.recorded(f"session-{session_id}", "session.terminated")
        await service.recorded(service.sandbox_of(session_id), "sandbox.killed")
        await released(service, session_id)


async def test_what_is_no_session_is_acknowledged_and_stopped(service: Service) -> None:
    async with service.up():
        item = service.server.healthcheck(service.environment.id)
        await service.until(
            lambda platform: any(
                one.id == item and one.state.value == "stopped"
                for one in platform.environments.get(service.environment.id).queue.items()
            ),
            "the item to be stopped",
        )
    assert not service.server.requests("/sessions/")


async def test_a_session_with_a_memory_store_is_refused_with_the_reason(service: Service) -> None:
    store = await service.app.beta.memory_stores.create(name="notes")
    async with service.up():
        session_id = await service.session(
            "bash-true", resources=[{"type": "memory_store", "memory_store_id": store.id}]
        )
        (release,) = await released(service, session_id)
    assert release.reason == "not_served"
    (failed,) = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.failed"]
    assert failed.reason == "memory_store_unsupported"  # type: ignore[union-attr]
    assert "memory_store" in failed.next_step  # type: ignore[union-attr]
    assert not results(service, session_id)


@pytest.mark.parametrize("refused", [False, True])
async def test_skills_are_unpacked_into_the_sandbox(service: Service, refused: bool) -> None:
    service.server.settings.skills_refuse_sessions_token = refused
    files = {"SKILL.md": "---\nname: greet\n---\nSay hello.\n", "hello.sh": "echo hello from a skill\n"}
    skill = service.server.call(lambda platform: platform.skills.add("greet", files))
    agent = await service.app.beta.agents.create(
        name="Greeter",
        model="claude-opus-4-8",
        skills=[{"type": "custom", "skill_id": skill["skill_id"]}],
        tools=[{"type": "agent_toolset_20260401"}],
        metadata={"recording": "bash-true"},
    )
    async with service.up():
        session = await service.app.beta.sessions.create(
            agent=agent.id,
            environment_id=service.environment.id,
            initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
        )
        await released(service, session.id)
        content = await service.hosts[0].read_file(session.id, "/workspace/skills/greet/hello.sh", 1000)
    assert content == b"echo hello from a skill\n"
    (attached,) = [one.data for one in service.history(f"session-{session.id}") if one.type == "session.attached"]
    assert attached.skills == ["greet"]  # type: ignore[union-attr]


async def test_a_revoked_key_ends_the_service_with_the_reason(service: Service) -> None:
    async def serve() -> None:
        async with service.up():
            await service.until(lambda platform: any("/work/poll" in one.path for one in platform.journal), "a poll")
            service.server.revoke(service.environment.key)
            await service.until(lambda platform: any(one.status == 401 for one in platform.journal), "a refusal")

    with pytest.raises(QueueRejected, match="revoked"):
        await serve()


async def test_a_stranded_item_is_stopped_and_recorded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged by a worker that died before its first heartbeat: offered to nobody again (contract §18.1)."""
    monkeypatch.setattr("actors.controller.SWEEP_GRACE_S", 0.5)
    session_id = await service.session("bash-true")
    async with service.app.with_options(auth_token=service.environment.key, api_key=None) as dead:
        item = await dead.beta.environments.work.poll(service.environment.id)
        assert item is not None
        await dead.beta.environments.work.ack(item.id, environment_id=service.environment.id)
    await asyncio.sleep(0.6)
    async with service.up():
        (release,) = await released(service, session_id)
    assert release.reason == "abandoned"
    (work,) = service.server.work(service.environment.id)
    assert work["state"] == "stopped"


class TestWithoutItemTokens:
    @pytest.fixture
    def server_settings(self) -> ServerSettings:
        return ServerSettings(ttl_seconds=4, mint_secrets=False)

    async def test_the_environment_key_serves_where_the_item_has_no_token(self, service: Service) -> None:
        async with service.up():
            session_id = await service.session("bash-true")
            await released(service, session_id)
        (claimed,) = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.claimed"]
        assert claimed.credential == "environment_key"  # type: ignore[union-attr]


async def test_the_item_token_is_used_where_there_is_one(service: Service) -> None:
    async with service.up():
        session_id = await service.session("bash-true")
        await released(service, session_id)
    (claimed,) = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.claimed"]
    assert claimed.credential == "session_token"  # type: ignore[union-attr]
    of_item = [
        one for one in service.server.requests("") if f"/{session_id}" in one["path"] and "/ack" not in one["path"]
    ]
    assert of_item
    assert {one["credential"] for one in of_item if "/v1/sessions" in one["path"] and one["method"] != "DELETE"} >= {
        "sessions_token"
    }


async def test_a_stop_of_the_service_hands_leases_back(service: Service) -> None:
    """In the middle of a turn the item is not stopped, which would strand the session: it is offered again."""
    async with service.up():
        session_id = await service.session("custom-tool")
        await service.recorded(f"session-{session_id}", "session.result_posted")
    (release,) = await released(service, session_id)
    assert release.reason == "shutdown"
    await service.until(
        lambda platform: any(
            one.state.value == "queued" for one in platform.environments.get(service.environment.id).queue.items()
        ),
        "the item to be queued again",
    )
    assert service.kinds(service.sandbox_of(session_id))[-1] == "sandbox.suspended"


async def test_a_suspended_sandbox_goes_on_where_it_was(service: Service) -> None:
    async with service.up():
        session_id = await service.session("two-turns")
        await released(service, session_id)
    async with service.up():
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
        )
        await released(service, session_id, count=2)
    # The shell's variable lived through it.
    assert results(service, session_id)[-1]["content"] == [{"type": "text", "text": "42\n41"}]
    kinds = service.kinds(service.sandbox_of(session_id))
    assert "sandbox.resumed" in kinds
    assert "sandbox.crashed" not in kinds


async def test_an_event_type_of_tomorrow_is_let_through(service: Service) -> None:
    known = service.server.call(lambda platform: platform.library.get("bash-true"))
    at = next(place for place, event in enumerate(known.events) if event["type"] == "agent.tool_use")
    new = {"id": "sevt_tomorrow", "type": "agent.telepathy", "thought": {"deep": True}}
    header = known.header.model_copy(update={"name": "tomorrow"})
    recording = replace(known, header=header, events=(*known.events[:at], new, *known.events[at:]))
    agent = service.server.create_agent(recording)
    async with service.up():
        session = await service.app.beta.sessions.create(
            agent=agent,
            environment_id=service.environment.id,
            initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
        )
        await released(service, session.id)
    assert any(one["type"] == "agent.telepathy" for one in service.server.events(session.id))
    assert counts(service, session.id) == (1, 1, 1)


async def test_a_session_that_the_log_has_over_is_ended_where_it_is_offered(service: Service) -> None:
    """Its host died after it had recorded the end, and before it told the queue."""
    session_id = await service.session("bash-true")
    host = Host(service.settings, node="test")
    await host._record(session_id, "over", fold.Terminate(reason="deleted"))
    await host.close()
    async with service.up():
        await service.until(
            lambda platform: any(
                one.state.value == "stopped" for one in platform.environments.get(service.environment.id).queue.items()
            ),
            "the item to be stopped",
        )
    assert not results(service, session_id)


async def test_odd_answers_to_polls_do_not_end_the_service(service: Service) -> None:
    service.server.inject("empty", "/work/poll", times=3)
    async with service.up():
        session_id = await service.session("bash-true")
        await released(service, session_id)
    assert counts(service, session_id) == (1, 1, 1)
