from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest

from replay.recording import Recording, parse
from replay.server import EnvironmentAccess, RecordedServer, ServerSettings


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
