"""A whole Hourglass without Ray: the real controller, host, driver and log, on a recorded-session server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import AsyncAnthropic

from actors.api import connect
from actors.controller import Controller
from actors.host import Host
from actors.machines.drivers import make_driver
from actors.queue import WorkQueue
from actors.settings import Settings
from events.sqlite_log import SqliteLog
from replay.server.recorded import RecordedServer
from replay.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from events.envelope import Event
    from replay.server.platform import Platform
    from replay.server.recorded import EnvironmentAccess


@dataclass
class Service:
    """Hourglass and its brain in one process."""

    server: RecordedServer
    environment: EnvironmentAccess
    app: AsyncAnthropic
    settings: Settings
    hosts: list[Host] = field(default_factory=list)

    @asynccontextmanager
    async def up(self, *, close: bool = True) -> AsyncIterator[Controller]:
        """Serve the environment; drained at the end, and the machines stopped where `close`."""
        host = Host(self.settings, node="test")
        self.hosts.append(host)
        client = connect(self.server.base_url, self.environment.key)
        queue = WorkQueue(client, self.environment.id, block_ms=50)
        controller = Controller(queue, host, environment_key=self.environment.key, max_sessions=8)
        running = asyncio.create_task(controller.run())
        try:
            yield controller
        finally:
            await controller.drain(20)
            if close:
                await host.close()
            await asyncio.wait([running])
            await client.close()
            if not running.cancelled() and running.exception() is not None:
                raise running.exception() or AssertionError

    async def session(self, recording: str, **options: Any) -> str:
        """A new session that plays a recording; returns its id."""
        session = await self.app.beta.sessions.create(
            agent=self.server.create_agent(recording),
            environment_id=self.environment.id,
            initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
            **options,
        )
        return session.id

    async def until(self, holds: Callable[[Platform], object], what: str = "the condition") -> None:
        """Wait for the server's side."""
        await self.server.until(holds, timeout=60, what=what)

    async def given_back(self) -> None:
        """The release is recorded before the queue is told: a message in between is not offered as work."""
        while any(one["state"] != "stopped" for one in self.server.work(self.environment.id)):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)

    async def recorded(self, stream: str, kind: str, *, count: int = 1) -> list[Event]:
        """Wait until the log holds so many events of a type in a stream."""
        for _ in range(1200):
            found = [event for event in self.history(stream) if event.type == kind]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {kind} in {stream}: {[event.type for event in self.history(stream)]}")

    def history(self, stream: str) -> list[Event]:
        """A stream, read from the file as another process would."""
        log = SqliteLog(self.settings.home / "log.db", read_only=True)
        try:
            return list(log.read(stream))
        finally:
            log.close()

    def kinds(self, stream: str) -> list[str]:
        """The types of a stream's events."""
        return [event.type for event in self.history(stream)]

    def sandbox_of(self, session_id: str) -> str:
        """The stream of a session's sandbox."""
        (attached, *_) = [
            event.data for event in self.history(f"session-{session_id}") if event.type == "session.attached"
        ]
        return f"sandbox-{attached.sandbox_id}"  # type: ignore[union-attr]

    async def remove_sandboxes(self) -> None:
        """Leave nothing on the shared storage."""
        if not (self.settings.home / "log.db").exists():
            return
        log = SqliteLog(self.settings.home / "log.db", read_only=True)
        streams = log.streams()
        log.close()
        driver = make_driver(self.settings)
        for stream in streams:
            if stream.startswith("sandbox-"):
                await driver.remove(stream.removeprefix("sandbox-"))


@pytest.fixture
def server_settings() -> ServerSettings:
    """What the server is told; overridden where a test needs other."""
    return ServerSettings(ttl_seconds=4)


@pytest.fixture
def server(server_settings: ServerSettings) -> Iterator[RecordedServer]:
    """A recorded-session server."""
    with RecordedServer(server_settings) as running:
        yield running


@pytest.fixture
async def service(server: RecordedServer, tmp_path: Path) -> AsyncIterator[Service]:
    """Not up yet; its sandboxes are removed at the end."""
    settings = Settings(home=tmp_path / "home", max_idle=0.3, base_url=server.base_url)
    async with AsyncAnthropic(api_key=server.api_key, base_url=server.base_url) as app:
        made = Service(server, server.create_environment(), app, settings)
        yield made
        await made.remove_sandboxes()
