"""All that a recorded-session server holds, on one event loop: the stand-in for the whole platform."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.library import Library
from replay.server.agents import Agents
from replay.server.clock import Clock, Ids
from replay.server.credentials import Credentials
from replay.server.environments import Environments
from replay.server.errors import missing
from replay.server.faults import Faults
from replay.server.memory import MemoryStores
from replay.server.sessions import Sessions
from replay.server.settings import ServerSettings
from replay.server.signal import Signal
from replay.server.skills import Skills
from replay.server.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import JsonObject
    from replay.server.session import Session

_JOURNAL_LENGTH = 10_000


@dataclass
class Served:
    """One request, as the journal keeps it. Never a credential."""

    method: str
    path: str
    query: str
    helper: str
    """The SDK's `x-stainless-helper`, e.g. `session-tool-runner`."""
    worker_id: str
    status: int = 0
    """0: still being served, or its connection was cut."""
    credential: str = ""
    """The kind of credential it came with."""


class Platform:
    """The parts, wired. Everything but `Signal.wait` is synchronous and belongs to the loop's thread."""

    def __init__(self, settings: ServerSettings, library: Library, api_key: str) -> None:
        self.settings = settings
        self.library = library
        self.api_key = api_key
        self.clock = Clock()
        self.ids = Ids(settings.seed)
        self.credentials: Credentials = Credentials(api_key)
        self.changed = Signal()
        self.closing = False
        self.faults = Faults()
        self.journal: deque[Served] = deque(maxlen=_JOURNAL_LENGTH)
        self.webhooks = Webhooks(self.clock, self.ids)
        self.agents = Agents(self.clock, self.ids)
        self.environments = Environments(self.clock, self.ids, settings.ttl_seconds)
        self.skills = Skills(self.clock, self.ids)
        self.stores = MemoryStores(self.clock, self.ids)
        self.sessions = Sessions(
            clock=self.clock,
            ids=self.ids,
            settings=settings,
            library=library,
            agents=self.agents,
            environments=self.environments,
            stores=self.stores,
            on_change=self._session_changed,
            defer=_later,
        )

    def comparison(self, session_id: str) -> JsonObject:
        """How a session's results compare with the recording's, call by call. Raises ApiError (404)."""
        seat = self.sessions.seat(session_id)
        calls = [call.comparison() for call in seat.session.calls.values()]
        return {
            "session_id": seat.session.id,
            "recording": seat.player.recording.name,
            "status": seat.session.status,
            "stop_reason": seat.session.stop_reason,
            "finished": seat.player.finished,
            "streams": seat.session.feed.streams,
            "open_calls": [call.id for call in seat.session.open_calls],
            "calls": calls,
            "differing": [call["tool_use_id"] for call in calls if call["equal"] is False],
        }

    def expire_lease(self, work_id: str) -> None:
        """Let the lease of a work item lapse now. Raises ApiError (404)."""
        for environment in self.environments.all(archived=True):
            if any(item.id == work_id for item in environment.queue.items()):
                environment.queue.expire(work_id)
                self.changed.notify()
                return
        raise missing("Work", work_id)

    def healthcheck(self, environment_id: str) -> str:
        """Queue an item that is not a session; returns its id. Raises ApiError (404)."""
        item_id = self.ids.mint("work_")
        self.environments.get(environment_id).queue.enqueue(item_id, "healthcheck")
        self.changed.notify()
        return item_id

    def drop_streams(self, session_id: str | None = None, *, after: int = 0, clean: bool = False) -> int:
        """Drop the open streams (of one session), now or after so many events; returns how many."""
        sessions = self.sessions.all() if session_id is None else [self.sessions.seat(session_id).session]
        return sum(session.feed.drop(after, clean=clean) for session in sessions)

    def duplicate_events(self, times: int, session_id: str | None = None) -> None:
        """Send each of the next events twice on the streams (of one session)."""
        sessions = self.sessions.all() if session_id is None else [self.sessions.seat(session_id).session]
        for session in sessions:
            session.feed.duplicates = times

    def close(self) -> None:
        """End every stream, delivery and waiting poll, so that the server can stop."""
        self.closing = True
        self.changed.notify()
        for session in self.sessions.all():
            session.feed.close()
        self.webhooks.close()

    def _session_changed(self, session: Session, hook: str, thread_id: str | None) -> None:
        if hook:
            self.webhooks.emit(hook, session.id, thread_id if hook.startswith("session.thread_") else None)
        self.changed.notify()


def _later(seconds: float, step: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, step)
