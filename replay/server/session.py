"""One session: its resource, its events, its open calls and its threads (contract §5, §6, §8).

The session knows what has happened and what may happen next; what the agent *does* next is the player's part.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replay.server.call import Call
from replay.server.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

_HOOKS = {
    "session.status_running": "session.status_run_started",
    "session.status_idle": "session.status_idled",
    "session.status_rescheduled": "session.status_rescheduled",
    "session.status_terminated": "session.status_terminated",
    "session.updated": "session.updated",
    "session.thread_created": "session.thread_created",
    "session.thread_status_idle": "session.thread_idled",
    "session.thread_status_terminated": "session.thread_terminated",
    "span.outcome_evaluation_end": "session.outcome_evaluation_ended",
}
"""The webhook that an event sets off (contract §15)."""
INTERRUPTED = "Tool execution was interrupted before completion. Please retry."


@dataclass
class Thread:
    """A thread of a session; the primary one is the session's agent."""

    id: str
    agent: JsonObject
    parent_id: str | None
    created_at: str
    updated_at: str
    status: str = "idle"
    archived_at: str | None = None

    @property
    def agent_name(self) -> str:
        """Whom events name."""
        return str(self.agent.get("name", ""))


@dataclass
class Session:
    """State of one session. `on_change(session, webhook or "", thread)` is told of each change."""

    id: str
    environment_id: str
    agent: JsonObject
    clock: Clock
    ids: Ids
    on_change: Callable[[Session, str, str | None], None]
    interrupted_result: str = "user.tool_result"
    title: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    resources: list[JsonObject] = field(default_factory=list)
    vault_ids: list[str] = field(default_factory=list)
    budget: JsonObject | None = None
    status: str = "idle"
    stop_reason: JsonObject | None = None
    archived_at: str | None = None
    feed: Feed = field(default_factory=Feed)
    calls: dict[str, Call] = field(default_factory=dict)
    inbox: deque[JsonObject] = field(default_factory=deque)
    """Messages that the agent has not taken up."""
    threads: dict[str, Thread] = field(default_factory=dict)
    usage: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.created_at = self.updated_at = self.clock.stamp()
        self.primary = self._thread(self.ids.mint("sthr_"), self.agent, None)

    # --- what it is ---------------------------------------------------------------------------------------------

    def shape(self) -> JsonObject:
        """The Session object of contract §5."""
        return {
            "id": self.id,
            "type": "session",
            "status": self.status,
            "agent": self.agent,
            "environment_id": self.environment_id,
            "title": self.title,
            "metadata": self.metadata,
            "resources": self.resources,
            "vault_ids": self.vault_ids,
            "deployment_id": None,
            "budget": self.budget,
            "outcome_evaluations": [],
            "stats": {},
            "usage": self.usage,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "archived_at": self.archived_at,
        }

    def thread_shape(self, thread: Thread) -> JsonObject:
        """The Thread object of contract §3.4."""
        return {
            "id": thread.id,
            "type": "session_thread",
            "session_id": self.id,
            "agent": thread.agent,
            "parent_thread_id": thread.parent_id,
            "status": thread.status,
            "created_at": thread.created_at,
            "updated_at": thread.updated_at,
            "archived_at": thread.archived_at,
            "stats": None,
            "usage": None,
        }

    @property
    def open_calls(self) -> list[Call]:
        """The calls that a client still has to answer, in order."""
        return [call for call in self.calls.values() if call.is_open]

    @property
    def is_over(self) -> bool:
        """Whether it accepts nothing more."""
        return self.status == "terminated"

    # --- what happens -------------------------------------------------------------------------------------------

    def emit(self, event: JsonObject) -> JsonObject:
        """Send an event of the agent's or the platform's; it gets an id and a time."""
        sent = {"id": self.ids.mint("sevt_"), **event, "processed_at": self.clock.stamp()}
        return self._append(sent)

    def receive(self, event: JsonObject, *, consumed: bool = True) -> JsonObject:
        """Keep an event that came in; one that is not `consumed` has no `processed_at` until the agent takes it up."""
        stamp = self.clock.stamp()
        kept = {"id": self.ids.mint("sevt_"), **event, "processed_at": stamp if consumed else None}
        return self._append(kept)

    def run(self) -> None:
        """Become running, if it is not."""
        if self.status == "running":
            return
        self.status = "running"
        self.stop_reason = None
        self.emit({"type": "session.status_running"})
        self._thread_event(self.primary, "running")

    def rest(self, stop_reason: JsonObject, stop_details: JsonObject | None = None) -> None:
        """Become idle for that reason, if it is not."""
        if self.status == "idle" and self.stop_reason == stop_reason:
            return
        self.status = "idle"
        self.stop_reason = stop_reason
        more: JsonObject = {"stop_reason": stop_reason} | ({"stop_details": stop_details} if stop_details else {})
        own = more | {"stop_reason": self._own_part(stop_reason)}
        self._thread_event(self.primary, "idle", own)
        self.emit({"type": "session.usage", "usage": self.usage, "budget": self.budget})
        self.emit({"type": "session.status_idle", **more})
        if stop_reason["type"] == "requires_action":
            self.on_change(self, "session.requires_action", None)

    def park(self) -> None:
        """Become idle on the open calls; says so again where fewer are left than it last said."""
        self.rest({"type": "requires_action", "event_ids": [call.id for call in self.open_calls]})

    def leave_park(self) -> None:
        """Become running again, if it was parked: its calls are answered, whatever comes next."""
        if self.stop_reason is not None and self.stop_reason["type"] == "requires_action":
            self.run()

    def terminate(self) -> None:
        """Be over: say so, and end every stream."""
        if self.is_over:
            return
        self.status = "terminated"
        self.emit({"type": "session.status_terminated"})
        self.feed.close()

    def delete(self) -> None:
        """Say on the streams that it is gone, and end them."""
        self.feed.append({"id": self.ids.mint("sevt_"), "type": "session.deleted", "processed_at": self.clock.stamp()},
                         self.clock.stamp(), keep=False)  # fmt: skip
        self.feed.close()
        self.on_change(self, "session.deleted", None)

    def ask(self, event: JsonObject, recorded_id: str, recorded_answer: JsonObject | None, *, is_clients: bool) -> None:
        """Send a call of the agent's."""
        sent = self.emit(event)
        self.calls[sent["id"]] = Call(sent, recorded_id, recorded_answer, is_clients)

    def answer(self, call: Call, event: JsonObject) -> JsonObject:
        """Keep a client's result."""
        thread = {"session_thread_id": call.thread_id} if call.thread_id else {}
        call.answer = self.receive(event | thread)
        return call.answer

    def confirm(self, call: Call, event: JsonObject) -> JsonObject:
        """Keep a verdict; a denial closes the call, and nobody posts a result (contract §8.2)."""
        call.verdict = event["result"]
        thread = {"session_thread_id": call.thread_id} if call.thread_id else {}
        kept = self.receive(event | thread)
        if call.verdict == "deny":
            text = event.get("deny_message") or "The user denied this tool call."
            call.answer = self.emit(_error("agent.tool_result", "tool_use_id", call.id, text))
        return kept

    def interrupt(self, thread_id: str | None) -> bool:
        """Close the open calls (of one thread) unrun; True where there were any (contract §6.3)."""
        calls = [one for one in self.open_calls if thread_id in (None, one.thread_id or self.primary.id)]
        for call in calls:
            if call.event["type"] == "agent.custom_tool_use":
                event = _error("user.custom_tool_result", "custom_tool_use_id", call.id, INTERRUPTED)
            else:
                event = _error(self.interrupted_result, "tool_use_id", call.id, INTERRUPTED)
            thread = {"session_thread_id": call.thread_id} if call.thread_id else {}
            call.answer = self.emit(event | thread)
        return bool(calls)

    def open_thread(self, event: JsonObject) -> None:
        """Keep a child thread that the agent made."""
        agent = {"type": "agent", "name": event.get("agent_name", "")}
        self._thread(event["session_thread_id"], agent, self.primary.id)

    def move_thread(self, event: JsonObject) -> None:
        """Follow a `session.thread_status_*` of a child thread."""
        thread = self.threads.get(event["session_thread_id"])
        if thread is not None:
            thread.status = event["type"].removeprefix("session.thread_status_").replace("rescheduled", "rescheduling")
            thread.updated_at = self.clock.stamp()

    def _append(self, event: JsonObject) -> JsonObject:
        self.updated_at = self.clock.stamp()
        self.feed.append(event, self.updated_at)
        self.on_change(self, _HOOKS.get(event["type"], ""), event.get("session_thread_id"))
        return event

    def _own_part(self, stop_reason: JsonObject) -> JsonObject:
        """Of what the session waits for, what its primary thread waits for."""
        if "event_ids" not in stop_reason:
            return stop_reason
        return stop_reason | {"event_ids": [one for one in stop_reason["event_ids"] if not self.calls[one].thread_id]}

    def _thread(self, thread_id: str, agent: JsonObject, parent_id: str | None) -> Thread:
        stamp = self.clock.stamp()
        self.threads[thread_id] = Thread(thread_id, agent, parent_id, stamp, stamp)
        return self.threads[thread_id]

    def _thread_event(self, thread: Thread, status: str, more: JsonObject | None = None) -> None:
        thread.status = status
        thread.updated_at = self.clock.stamp()
        base = {"type": f"session.thread_status_{status}", "agent_name": thread.agent_name}
        self.emit(base | {"session_thread_id": thread.id} | (more or {}))


def _error(kind: str, key: str, call_id: str, text: str) -> JsonObject:
    return {"type": kind, key: call_id, "is_error": True, "content": [{"type": "text", "text": text}]}
