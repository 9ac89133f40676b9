from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest
from anthropic import AsyncAnthropic

from replay.library import Library
from replay.recording import Recording, parse
from replay.server import EnvironmentAccess, RecordedServer, ServerSettings
from replay.user import first_message


@dataclass
class Answer:
    """One response of the server."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> dict[str, Any]:
        assert self.body["type"] == "error"
        assert self.body["request_id"] == self.headers["request-id"]
        error: dict[str, Any] = self.body["error"]
        return error


@dataclass
class Caller:
    """Speaks plain HTTP to a server, with one credential."""

    server: RecordedServer
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            sent = {"authorization": f"Bearer {self.token}"} | self.headers | (headers or {})
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            found = response.read()
            kind = response.getheader("content-type") or ""
            answer = json.loads(found) if kind.startswith("application/json") else found
            return Answer(response.status, answer, {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(urlsplit(self.server.base_url).netloc), timeout=20)

    def with_token(self, token: str) -> Caller:
        return Caller(self.server, token, self.headers)


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings()


@pytest.fixture
def server(settings: ServerSettings) -> Iterator[RecordedServer]:
    with RecordedServer(settings) as running:
        yield running


@pytest.fixture
def environment(server: RecordedServer) -> EnvironmentAccess:
    return server.create_environment()


@pytest.fixture
def app(server: RecordedServer) -> Caller:
    """The app's side: holds the API key."""
    return Caller(server, server.api_key)


@pytest.fixture
def worker(server: RecordedServer, environment: EnvironmentAccess) -> Caller:
    """The worker's side: holds the environment key."""
    return Caller(server, environment.key)


@pytest.fixture
def client(server: RecordedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=server.api_key, base_url=server.base_url) as made:
        yield made


MESSAGE: dict[str, Any] = {"type": "user.message", "content": [{"type": "text", "text": "go"}]}
Begin = Callable[..., str]


@pytest.fixture
def begin(server: RecordedServer, app: Caller, environment: EnvironmentAccess) -> Begin:
    """Creates a session on a recording and lets it run until it waits for somebody."""

    def create(recording: str | Recording, events: int = 1, **more: Any) -> str:
        agent = server.create_agent(recording)
        body = {"agent": agent, "environment_id": environment.id, "initial_events": [MESSAGE] * events} | more
        answer = app("POST", "/v1/sessions", body)
        assert answer.status == 200, answer.body
        if events:
            server.wait_for_status(answer.body["id"], "idle")
            server.wait_for(lambda platform: platform.sessions.seat(answer.body["id"]).session.stop_reason)
        return str(answer.body["id"])

    return create


@pytest.fixture
def play() -> Callable[..., Recording]:
    """Makes a recording of events written as (type, fields); their ids are e1, e2, …"""

    def make(*events: tuple[str, dict[str, Any]], **agent: Any) -> Recording:
        header = {"recording": 1, "name": "made-here", "agent": agent}
        lines = [header] + [{"id": f"e{n}", "type": kind} | more for n, (kind, more) in enumerate(events, start=1)]
        return parse("\n".join(map(json.dumps, lines)).encode(), "made-here")

    return make


# --- the SDK's side ------------------------------------------------------------------------------------------------


@pytest.fixture
async def async_app(server: RecordedServer) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key=server.api_key, base_url=server.base_url) as client:
        yield client


@pytest.fixture
def workdir(tmp_path: Path) -> Any:
    yield tmp_path
    # The SDK's toolset ends its shell alone, and not what that started in the background.
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").readlink().is_relative_to(tmp_path)
        except OSError:
            continue
        if inside and int(process.name) != os.getpid():
            os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
async def sdk_worker(
    async_app: AsyncAnthropic, environment: EnvironmentAccess, workdir: Path
) -> AsyncIterator[Callable[..., asyncio.Task[None]]]:
    """Starts the SDK's worker, as a vendor's guide does."""
    tasks: list[asyncio.Task[None]] = []

    def start(**more: Any) -> asyncio.Task[None]:
        made = async_app.beta.environments.work.worker(
            environment_id=environment.id,
            environment_key=environment.key,
            workdir=workdir,
            max_idle=0.3,
            **more,
        )
        tasks.append(asyncio.create_task(made.run()))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


BeginPlayed = Callable[[str], Awaitable[str]]
Differing = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def begin_played(async_app: AsyncAnthropic, server: RecordedServer, environment: EnvironmentAccess) -> BeginPlayed:
    """Creates a session on a shipped recording, with the message that it begins with."""

    async def create(name: str) -> str:
        session = await async_app.beta.sessions.create(
            agent=server.create_agent(name),
            environment_id=environment.id,
            initial_events=first_message(Library().get(name)),  # type: ignore[arg-type]
        )
        return session.id

    return create


@pytest.fixture
def differing(server: RecordedServer, workdir: Path) -> Differing:
    """The calls whose result here is not the recorded one, when this work tree is taken for the recorded one."""

    def find(session: str) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = server.comparison(session)["calls"]
        return [one for one in calls if str(one["posted"]).replace(str(workdir), "/workspace") != str(one["recorded"])]

    return find
