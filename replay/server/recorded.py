"""A recorded-session server in this process: uvicorn on a thread of its own, on loopback."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import uvicorn

from events.errors import HourglassError
from replay.library import Library
from replay.server.app import build
from replay.server.faults import Fault, Wrong
from replay.server.platform import Platform, Served
from replay.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from replay.recording import JsonObject, Recording

T = TypeVar("T")
HOST = "127.0.0.1"
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.05


@dataclass(eq=False)
class ServerNotStarted(HourglassError):
    """Can't listen on {host}:{port}: {reason}."""

    host: str
    port: int
    reason: str
    next_step = "End what uses the port, or choose a free one with --port 0."


class WaitTimedOut(Exception):
    """Raised when what was waited for did not come true in time; the message tells what was waited for."""


@dataclass(frozen=True)
class EnvironmentAccess:
    """An environment and the key of its workers."""

    id: str
    key: str


class RecordedServer:
    """Plays recorded sessions to any client of the API.

        with RecordedServer() as server:
            environment = server.create_environment()
            client = anthropic.Anthropic(api_key=server.api_key, base_url=server.base_url)

    Methods may be called from any thread but the server's own.
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        recordings: Sequence[Path] = (),
        api_key: str | None = None,
        port: int = 0,
    ) -> None:
        """Args:
            settings: See ServerSettings.
            recordings: Folders whose recordings join those that ship, and win over them.
            api_key: The organization's key; a random one where None.
            port: 0: a free one.

        Raises:
            RecordingError: A recording of the folders can't be used.
            ServerNotStarted: The port is taken.
        """  # fmt: skip
        self.settings = settings or ServerSettings()
        self.api_key = api_key or f"sk-ant-api03-{secrets.token_urlsafe(32)}"
        self._platform = Platform(self.settings, Library(recordings), self.api_key)
        self._socket = _listen(port)
        self.base_url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            build(self._platform),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            date_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorded-server", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve. Requests are taken from the moment this returns."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """End every stream, then the server. Raises TimeoutError where a request keeps it."""
        if self._loop is None:
            self._socket.close()
            return
        self.call(lambda platform: platform.close())
        self.call(lambda _: self._server.leave.set())
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"the recorded-session server did not end within {_STOP_SECONDS:g} s")

    def call(self, act: Callable[[Platform], T]) -> T:
        """Run `act` on the server's thread, where its state may be touched, and return what it returns."""
        assert self._loop is not None, "the server is not running"

        async def run() -> T:
            return act(self._platform)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    # --- credentials and environments ---------------------------------------------------------------------------

    def create_environment(self, name: str = "recorded") -> EnvironmentAccess:
        """A self-hosted environment with a key, as an operator makes in the Console."""

        def create(platform: Platform) -> EnvironmentAccess:
            environment = platform.environments.create({"name": name})
            return EnvironmentAccess(environment.id, platform.credentials.environment_key(environment.id))

        return self.call(create)

    def create_agent(self, recording: str | Recording) -> str:
        """An agent like the recorded one, whose sessions play that recording; returns its id."""

        def create(platform: Platform) -> str:
            if not isinstance(recording, str):
                platform.library.add(recording)
            chosen = platform.library.get(recording) if isinstance(recording, str) else recording
            body = {"name": chosen.name, "model": "claude-opus-4-8"} | chosen.header.agent
            return str(platform.agents.create(body | {"metadata": {"recording": chosen.name}})["id"])

        return self.call(create)

    def revoke(self, token: str) -> None:
        """Refuse a key or token from now on."""
        self.call(lambda platform: platform.credentials.revoke(token))

    def add_webhook(self, url: str) -> str:
        """Deliver webhooks to a URL on this machine; returns the signing key."""
        return self.call(lambda platform: platform.webhooks.add(url).secret)

    # --- faults -------------------------------------------------------------------------------------------------

    def inject(
        self,
        wrong: Wrong | str,
        path: str = ".*",
        *,
        method: str = "*",
        times: int = 1,
        status: int = 503,
        seconds: float = 0.0,
        retry: bool | None = None,
    ) -> None:
        """Let the next `times` requests whose path matches go wrong; see `Wrong` and `Fault`."""
        fault = Fault(Wrong(wrong), path, method, times, status, seconds, retry)
        self.call(lambda platform: platform.faults.add(fault))

    def clear_faults(self) -> None:
        """Forget the faults that still wait."""
        self.call(lambda platform: platform.faults.clear())

    def drop_streams(self, session_id: str | None = None, *, after: int = 0, clean: bool = False) -> int:
        """Drop the open streams (of one session), now or after so many more events; returns how many there are."""
        return self.call(lambda platform: platform.drop_streams(session_id, after=after, clean=clean))

    def duplicate_events(self, times: int, session_id: str | None = None) -> None:
        """Send each of the next events twice on the streams (of one session)."""
        self.call(lambda platform: platform.duplicate_events(times, session_id))

    def expire_lease(self, work_id: str) -> None:
        """Let a lease lapse now."""
        self.call(lambda platform: platform.expire_lease(work_id))

    def healthcheck(self, environment_id: str) -> str:
        """Queue an item that is not a session; returns its id."""
        return self.call(lambda platform: platform.healthcheck(environment_id))

    # --- looking ------------------------------------------------------------------------------------------------

    def comparison(self, session_id: str) -> JsonObject:
        """How a session's results compare with the recorded ones, call by call."""
        return self.call(lambda platform: platform.comparison(session_id))

    def events(self, session_id: str) -> list[JsonObject]:
        """A session's history."""
        return self.call(lambda platform: list(platform.sessions.seat(session_id).session.feed.events))

    def work(self, environment_id: str) -> list[JsonObject]:
        """An environment's work items."""
        return self.call(
            lambda platform: [one.shape() for one in platform.environments.get(environment_id).queue.items()]
        )

    def requests(self, path: str = "", method: str = "") -> list[JsonObject]:
        """The requests that were served whose path holds `path`, oldest first."""

        def find(platform: Platform) -> list[Served]:
            return [one for one in platform.journal if path in one.path and method in ("", one.method)]

        return [asdict(one) for one in self.call(find)]

    def wait_for(self, holds: Callable[[Platform], T], timeout: float = 30.0, what: str = "the condition") -> T:
        """Wait until `holds` returns something true, and return that. It runs on the server's thread.

        Raises:
            WaitTimedOut: It did not within `timeout` seconds.
        """
        assert self._loop is not None, "the server is not running"
        return asyncio.run_coroutine_threadsafe(self._until(holds, timeout, what), self._loop).result()

    async def until(self, holds: Callable[[Platform], T], timeout: float = 30.0, what: str = "the condition") -> T:
        """`wait_for`, for a caller on an event loop."""
        assert self._loop is not None, "the server is not running"
        future = asyncio.run_coroutine_threadsafe(self._until(holds, timeout, what), self._loop)
        return await asyncio.wrap_future(future)

    def wait_for_status(
        self, session_id: str, status: str, stop_reason: str | None = None, timeout: float = 30.0
    ) -> None:
        """Wait until a session has that status (and stopped for that reason). Raises WaitTimedOut."""
        self.wait_for(
            has_status(session_id, status, stop_reason), timeout, f"{session_id} to be {status} {stop_reason}"
        )

    def wait_for_end(self, session_id: str, timeout: float = 60.0) -> None:
        """Wait until a session's recording was played to its end. Raises WaitTimedOut."""
        self.wait_for(has_ended(session_id), timeout, f"{session_id} to end")

    async def _until(self, holds: Callable[[Platform], T], timeout: float, what: str) -> T:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            found = holds(self._platform)
            if found:
                return found
            if asyncio.get_running_loop().time() > deadline:
                raise WaitTimedOut(f"waited {timeout:g} s for {what}")
            await self._platform.changed.wait(_LOOK_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._server.serve(sockets=[self._socket])


class _Server(uvicorn.Server):
    """Ends when it is told: uvicorn's own loop looks ten times a second, which a thousand tests feel."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leave = asyncio.Event()

    async def main_loop(self) -> None:
        await self.leave.wait()


def has_status(session_id: str, status: str, stop_reason: str | None = None) -> Callable[[Platform], bool]:
    """For `wait_for`: whether a session has that status."""

    def holds(platform: Platform) -> bool:
        session = platform.sessions.seat(session_id).session
        return session.status == status and (
            stop_reason is None or (session.stop_reason or {}).get("type") == stop_reason
        )

    return holds


def has_ended(session_id: str) -> Callable[[Platform], bool]:
    """For `wait_for`: whether a session's recording was played to its end."""

    def holds(platform: Platform) -> bool:
        seat = platform.sessions.seat(session_id)
        return seat.player.finished and seat.session.status != "running" and not seat.session.open_calls

    return holds


def _listen(port: int) -> socket.socket:
    # The protocol by name: asyncio sets TCP_NODELAY on accepted connections only where it reads IPPROTO_TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ServerNotStarted(HOST, port, error.strerror or str(error)) from error
    listener.listen(128)
    return listener
