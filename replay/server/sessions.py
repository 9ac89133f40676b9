"""Sessions: created on an environment, played from a recording, queued when they need a worker (contract §4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.recording import RecordingMissing
from replay.server import inbound
from replay.server.errors import ApiError, invalid, missing
from replay.server.intake import Intake
from replay.server.metadata import merged
from replay.server.player import Player
from replay.server.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.library import Library
    from replay.recording import JsonObject, Recording
    from replay.server.agents import Agents
    from replay.server.clock import Clock, Ids
    from replay.server.credentials import Principal
    from replay.server.environments import Environment, Environments
    from replay.server.memory import MemoryStores
    from replay.server.settings import ServerSettings

_STORES_LIMIT = 8


@dataclass
class Seat:
    """A session with what plays and feeds it."""

    session: Session
    player: Player
    intake: Intake


@dataclass
class Sessions:
    """Every session of the server."""

    clock: Clock
    ids: Ids
    settings: ServerSettings
    library: Library
    agents: Agents
    environments: Environments
    stores: MemoryStores
    on_change: Callable[[Session, str, str | None], None]
    defer: Callable[[float, Callable[[], None]], None]

    def __post_init__(self) -> None:
        self._seats: dict[str, Seat] = {}

    def create(self, body: JsonObject) -> Session:
        """A new session; with `initial_events` its recording starts. Raises ApiError (400, 404)."""
        environment = self._environment(body.get("environment_id"))
        agent = self.agents.snapshot(body.get("agent"))
        initial = body.get("initial_events") or []
        if len(initial) > inbound.INITIAL_LIMIT:
            raise invalid(f"initial_events: at most {inbound.INITIAL_LIMIT}")
        events = inbound.events({"initial_events": initial}, "initial_events", only=inbound.INITIAL)
        metadata = merged({}, body.get("metadata"))
        session = Session(
            id=self.ids.mint("sesn_"),
            environment_id=environment.id,
            agent=agent,
            clock=self.clock,
            ids=self.ids,
            on_change=self.on_change,
            interrupted_result=self.settings.interrupted_result,
            title=body.get("title"),
            metadata=metadata,
            resources=self._resources(body.get("resources") or [], environment),
            vault_ids=body.get("vault_ids") or [],
            budget=body.get("budget"),
        )
        recording = self._recording(metadata, agent)
        player = Player(session, recording, pace_seconds=self.settings.pace_seconds, defer=self.defer)
        self._seats[session.id] = Seat(session, player, Intake(session, player))
        self.on_change(session, "session.created", None)
        if events:
            self._seats[session.id].intake.apply(events)
        if events or self.settings.queue_empty_sessions:
            environment.queue.enqueue(session.id)
            self.on_change(session, "", None)
        return session

    def post(self, session_id: str, body: JsonObject, principal: Principal) -> list[JsonObject]:
        """Take events into a session; returns them as kept. Raises ApiError."""
        seat = self.seat(session_id)
        events = inbound.events(body)
        seat.intake.check(events, principal)
        wants_worker = self._wants_worker(seat.session, events)
        kept = seat.intake.apply(events)
        if wants_worker and self.environments.get(seat.session.environment_id).queue.enqueue(session_id):
            self.on_change(seat.session, "", None)
        return kept

    def update(self, session_id: str, body: JsonObject) -> Session:
        """Change title, metadata, budget or the agent's tools. Raises ApiError (400, 404)."""
        session = self.seat(session_id).session
        if session.is_over:
            raise invalid(f"Session {session_id} is terminated")
        if body.get("vault_ids") is not None:
            raise invalid("vault_ids: can't be changed")
        changed: JsonObject = {}
        if "title" in body:
            changed["title"] = session.title = body["title"]
        if "budget" in body:
            changed["budget"] = session.budget = body["budget"]
        if "metadata" in body:
            changed["metadata"] = session.metadata = merged(session.metadata, body["metadata"])
        if body.get("agent"):
            if session.status == "running":
                raise invalid("agent: can't be changed while the session is running")
            session.agent = session.agent | {k: v for k, v in body["agent"].items() if k in ("tools", "mcp_servers")}
            changed["agent"] = session.agent
        if changed:
            session.emit({"type": "session.updated", **changed})
        return session

    def archive(self, session_id: str) -> Session:
        """End a session that is not running. Raises ApiError (400, 404)."""
        session = self._resting(session_id, "archived")
        if session.archived_at is None:
            session.archived_at = self.clock.stamp()
            session.terminate()
            self.on_change(session, "session.archived", None)
        return session

    def delete(self, session_id: str) -> None:
        """Forget a session that is not running, and its work. Raises ApiError (400, 404)."""
        session = self._resting(session_id, "deleted")
        session.delete()
        self.environments.get(session.environment_id).queue.discard(session_id)
        del self._seats[session_id]

    def seat(self, session_id: str) -> Seat:
        """The session of that id; `session_` may stand for `sesn_`. Raises ApiError (404)."""
        name = "sesn_" + session_id.removeprefix("session_") if session_id.startswith("session_") else session_id
        if name not in self._seats:
            raise missing("Session", session_id)
        return self._seats[name]

    def all(self) -> list[Session]:
        """Oldest first."""
        return [seat.session for seat in self._seats.values()]

    def _wants_worker(self, session: Session, events: list[JsonObject]) -> bool:
        """Whether these events queue the session, if it has no live item.

        A result does not: it is a worker's own. An interrupt does where calls were open, as that is how a session whose
        item failed is queued again (contract §4.4).
        """
        kinds = {event["type"] for event in events} - {"user.tool_result", "system.message"}
        if kinds == {"user.interrupt"}:
            return bool(session.open_calls)
        return bool(kinds)

    def _environment(self, environment_id: Any) -> Environment:
        if not isinstance(environment_id, str):
            raise invalid("environment_id: an environment id is required")
        environment = self.environments.get(environment_id)
        if environment.archived_at:
            raise invalid(f"Environment {environment_id} is archived", "environment_archived")
        return environment

    def _recording(self, metadata: dict[str, str], agent: JsonObject) -> Recording:
        name = metadata.get("recording") or agent["metadata"].get("recording") or self.settings.default_recording
        try:
            if name is None:
                raise RecordingMissing("for this session", "Give it the metadata `recording`.")
            return self.library.get(name)
        except RecordingMissing as error:
            raise invalid(f"metadata.recording: {error} {error.advice}") from None

    def _resources(self, asked: list[JsonObject], environment: Environment) -> list[JsonObject]:
        if any(one.get("type") != "memory_store" for one in asked):
            raise invalid(
                f"Environment {environment.id} is a self-hosted environment. "
                "`resources` are not supported with self-hosted environments."
            )
        if len(asked) > _STORES_LIMIT:
            raise invalid(f"resources: at most {_STORES_LIMIT} memory stores")
        return [self.stores.resource(one) for one in asked]

    def _resting(self, session_id: str, what: str) -> Session:
        session = self.seat(session_id).session
        if session.status in ("running", "rescheduling"):
            raise ApiError(400, f"Session {session_id} is {session.status} and can't be {what}; interrupt it first")
        return session
