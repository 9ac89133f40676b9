"""Leases against the recorded-session server: held, lost in every way, handed over (contract §4.2, §10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from anthropic import AsyncAnthropic

from actors.api import connect, session_token
from actors.lease import Lease, LeaseEnd
from actors.queue import QueueRejected, WorkQueue
from replay.server.recorded import RecordedServer
from replay.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from anthropic.types.beta.environments import BetaSelfHostedWork

    from replay.server.platform import Platform
    from replay.server.recorded import EnvironmentAccess

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[RecordedServer]:
    with RecordedServer(ServerSettings(ttl_seconds=2)) as running:
        yield running


@pytest.fixture
def environment(server: RecordedServer) -> EnvironmentAccess:
    return server.create_environment()


@pytest.fixture
async def app(server: RecordedServer) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key=server.api_key, base_url=server.base_url) as client:
        yield client


@pytest.fixture
async def worker(server: RecordedServer, environment: EnvironmentAccess) -> AsyncIterator[AsyncAnthropic]:
    async with connect(server.base_url, environment.key) as client:
        yield client


@pytest.fixture
def queue(worker: AsyncAnthropic, environment: EnvironmentAccess) -> WorkQueue:
    return WorkQueue(worker, environment.id, block_ms=50)


async def new_session(app: AsyncAnthropic, server: RecordedServer, environment: EnvironmentAccess) -> str:
    session = await app.beta.sessions.create(
        agent=server.create_agent("bash-true"),
        environment_id=environment.id,
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
    )
    return session.id


@pytest.fixture
async def item(
    app: AsyncAnthropic, server: RecordedServer, environment: EnvironmentAccess, queue: WorkQueue
) -> BetaSelfHostedWork:
    """A work item, acknowledged."""
    await new_session(app, server, environment)
    found = await anext(queue.poll())
    await queue.acknowledge(found.id)
    return found


def lease_on(worker: AsyncAnthropic, item: BetaSelfHostedWork) -> Lease:
    return Lease(worker, work_id=item.id, environment_id=item.environment_id)


def state(server: RecordedServer, item: BetaSelfHostedWork) -> object:
    (found,) = [one for one in server.work(item.environment_id) if one["id"] == item.id]
    return found["state"]


async def test_the_first_heartbeat_makes_the_item_active(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    assert state(server, item) == "starting"
    await lease.take()
    assert state(server, item) == "active"
    assert lease.ttl_seconds == 2
    await lease.release()


async def test_heartbeats_go_on_past_the_ttl(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    await server.until(lambda platform: beats(platform) >= 4, timeout=20, what="four heartbeats")
    assert state(server, item) == "active"
    assert lease.ended is None
    await lease.release()


def beats(platform: Platform) -> int:
    """Heartbeats that the server accepted so far."""
    return sum("heartbeat" in one.path and one.status == 200 for one in platform.journal)


async def test_the_item_token_holds_the_lease_as_well(
    server: RecordedServer, app: AsyncAnthropic, environment: EnvironmentAccess, queue: WorkQueue
) -> None:
    await new_session(app, server, environment)
    found = await anext(queue.poll())
    await queue.acknowledge(found.id)
    token = session_token(found.secret)
    assert token is not None
    async with connect(server.base_url, token) as client:
        lease = lease_on(client, found)
        await lease.take()
        assert state(server, found) == "active"
        await lease.release()


async def test_a_graceful_stop_ends_the_lease_and_leaves_the_item_ours(
    app: AsyncAnthropic, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    await app.beta.environments.work.stop(item.id, environment_id=item.environment_id)
    ended = await asyncio.wait_for(lease.wait_ended(), 20)
    assert ended.why is LeaseEnd.STOP_REQUESTED
    assert not ended.why.lost


async def test_an_item_that_lapsed_is_lost(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    server.expire_lease(item.id)
    ended = await asyncio.wait_for(lease.wait_ended(), 20)
    assert ended.why is LeaseEnd.PRECONDITION_FAILED
    assert ended.why.lost


async def test_a_heartbeat_whose_answer_is_lost_is_not_a_lost_lease(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    """The beat was applied, so the next one meets a 412 of our own making."""
    lease = lease_on(worker, item)
    await lease.take()
    before = server.call(beats)
    server.inject("lost_response", "/heartbeat")
    await server.until(lambda platform: beats(platform) >= before + 3, timeout=20, what="heartbeats after the loss")
    assert lease.ended is None
    assert state(server, item) == "active"
    await lease.release()


async def test_the_first_heartbeat_may_lose_its_answer_too(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    server.inject("lost_response", "/heartbeat")
    lease = lease_on(worker, item)
    await lease.take()
    await server.until(lambda platform: beats(platform) >= 2, timeout=20, what="a second heartbeat")
    assert lease.ended is None
    await lease.release()


async def test_an_answer_that_is_no_heartbeat_is_a_failed_one(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    before = server.call(beats)
    server.inject("empty", "/heartbeat")
    await server.until(lambda platform: beats(platform) >= before + 3, timeout=20, what="heartbeats after the odd one")
    assert lease.ended is None
    await lease.release()


async def test_a_rejected_credential_ends_the_lease(
    server: RecordedServer, environment: EnvironmentAccess, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    server.revoke(environment.key)
    ended = await asyncio.wait_for(lease.wait_ended(), 20)
    assert ended.why is LeaseEnd.CREDENTIAL_REJECTED
    assert "401" in ended.detail
    assert environment.key not in ended.detail


async def test_silence_of_the_server_for_a_whole_ttl_is_a_lost_lease(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    server.inject("status", "/heartbeat", times=1000, status=503)
    ended = await asyncio.wait_for(lease.wait_ended(), 30)
    assert ended.why is LeaseEnd.NO_HEARTBEAT_SUCCEEDED


async def test_a_hand_over_has_the_queue_offer_the_item_again_soon(
    server: RecordedServer, worker: AsyncAnthropic, item: BetaSelfHostedWork, queue: WorkQueue
) -> None:
    lease = lease_on(worker, item)
    await lease.take()
    await lease.hand_over()
    assert (await asyncio.wait_for(anext(queue.poll()), 20)).id == item.id


async def test_stop_is_no_error_where_the_item_has_ended(queue: WorkQueue, item: BetaSelfHostedWork) -> None:
    await queue.stop(item.id)
    await queue.stop(item.id)


async def test_an_empty_queue_is_polled_on_and_a_failing_one_too(
    server: RecordedServer, app: AsyncAnthropic, environment: EnvironmentAccess, queue: WorkQueue
) -> None:
    server.inject("empty", "/work/poll", times=2)
    server.inject("status", "/work/poll", times=3, status=500)
    polled = asyncio.ensure_future(anext(queue.poll()))
    await server.until(
        lambda platform: sum("/work/poll" in one.path for one in platform.journal) >= 4, what="some polls"
    )
    session_id = await new_session(app, server, environment)
    assert (await asyncio.wait_for(polled, 30)).id == session_id


async def test_a_revoked_key_is_said_so(
    server: RecordedServer, environment: EnvironmentAccess, queue: WorkQueue
) -> None:
    server.revoke(environment.key)
    with pytest.raises(QueueRejected, match="revoked") as caught:
        await anext(queue.poll())
    assert "Console" in caught.value.advice


async def test_a_key_of_another_environment_is_said_so(server: RecordedServer, worker: AsyncAnthropic) -> None:
    other = server.create_environment()
    with pytest.raises(QueueRejected, match="403"):
        await anext(WorkQueue(worker, other.id).poll())


async def test_the_worker_names_itself(server: RecordedServer, queue: WorkQueue, app: AsyncAnthropic) -> None:
    polled = asyncio.ensure_future(anext(queue.poll()))
    await server.until(lambda platform: any("/work/poll" in one.path for one in platform.journal), what="a poll")
    stats = await app.beta.environments.work.stats(queue.environment_id)
    assert stats.workers_polling == 1
    polled.cancel()


@pytest.mark.parametrize(
    "secret", [None, "", "%%%", "bm90IGpzb24", "WzFd", "eyJzZXNzaW9uc190b2tlbiI6MX0", "x" * 100_000]
)
def test_a_secret_that_carries_no_token_gives_none(secret: str | None) -> None:
    assert session_token(secret) is None


def test_a_secret_comes_with_or_without_padding() -> None:
    assert session_token("eyJzZXNzaW9uc190b2tlbiI6ImFiIn0") == "ab"
    assert session_token("eyJzZXNzaW9uc190b2tlbiI6ImFiIn0=") == "ab"
