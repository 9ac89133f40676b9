"""The model's part: walks a recording and does in a session what the recorded agent did.

The walk stops where the recorded session waited for somebody, and goes on once this session's own somebody has acted:
at a message until the app sent one, at a result until that call is answered, at an interrupt until one came or nothing
is open. Status and usage events are the session's own, made from what happens now; ids are this session's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.recording import ANSWERS, CALLS, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import JsonObject, Recording
    from replay.server.session import Session

_OWN = frozenset({"session.status_running", "session.updated", "session.deleted"})
"""What the session says by itself, or an app did from outside: not the agent's to repeat."""
_END_TURN: JsonObject = {"type": "end_turn"}


class Player:
    """Plays one recording into one session."""

    def __init__(
        self,
        session: Session,
        recording: Recording,
        *,
        pace_seconds: float,
        defer: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """`defer(seconds, step)` runs a step later, on the session's own thread."""
        self.session = session
        self.recording = recording
        self.cursor = 0
        self._pace = pace_seconds
        self._defer = defer
        self._scheduled = False
        self._ids: dict[str, str] = {}
        self._silenced: set[str] = set()
        self._primary = _primary_thread(recording)

    @property
    def finished(self) -> bool:
        """Whether the whole recording was played."""
        return self.cursor >= len(self.recording.events)

    def kick(self) -> None:
        """Something happened: look, soon, whether the walk can go on."""
        if not self._scheduled:
            self._scheduled = True
            self._defer(0.0, self._walk)

    def interrupt(self, thread_id: str | None) -> None:
        """Drop the rest of the turn (of one thread)."""
        if thread_id is not None and thread_id != self.session.primary.id:
            self._silenced.add(thread_id)
            self.kick()
            return
        events = self.recording.events
        while self.cursor < len(events) and events[self.cursor]["type"] not in MESSAGES:
            self.cursor += 1
        self.session.rest(_END_TURN)
        self.kick()

    def _walk(self) -> None:
        self._scheduled = False
        while not self.session.is_over:
            if self.finished:
                self._finish()
                return
            event = self.recording.events[self.cursor]
            before = len(self.session.feed.events)
            if not self._step(event):
                return
            self.cursor += 1
            if self._pace and len(self.session.feed.events) > before:
                self._scheduled = True
                self._defer(self._pace, self._walk)
                return

    def _finish(self) -> None:
        """The recording is at its end; a further message finds nobody, and the session says so."""
        if self.session.open_calls:
            self.session.park()
            return
        while self.session.inbox:
            self._take_message()
            message = f"the recording {self.recording.name!r} has no further turn"
            error = {"type": "unknown_error", "message": message, "retry_status": {"type": "exhausted"}}
            self.session.emit({"type": "session.error", "error": error})
            self.session.rest({"type": "retries_exhausted"})
        self._end_turn()

    def _step(self, event: JsonObject) -> bool:
        """Do what one recorded event says; False where the walk has to wait there."""
        kind = event["type"]
        if kind in MESSAGES:
            return self._at_message()
        if kind == "user.interrupt":
            return not self._parked(self.session.open_calls)
        if kind == "user.tool_confirmation":
            call = self.session.calls[self._ids[event["tool_use_id"]]]
            return not self._parked([call] if call.is_open and call.verdict is None else [])
        if kind in ANSWERS:
            return self._at_answer(event)
        if not kind.startswith(("user.", "system.")) and kind not in _OWN:
            return self._do(event)
        if kind == "session.status_running" and self.session.status == "rescheduling":
            self.session.run()
        return True

    def _at_message(self) -> bool:
        if self._parked(self.session.open_calls):
            return False
        if not self.session.inbox:
            self._end_turn()
            return False
        self._take_message()
        return True

    def _at_answer(self, event: JsonObject) -> bool:
        recorded = event[ANSWERS[event["type"]]]
        if recorded not in self._ids:
            return True  # its thread was interrupted before it asked
        call = self.session.calls[self._ids[recorded]]
        if call.is_clients:
            return not self._parked([call] if call.is_open else [])
        if call.answer is None:
            self.session.run()
            call.answer = self.session.emit(self._renamed(event))
        return True

    def _do(self, event: JsonObject) -> bool:
        """What the agent or the platform did."""
        kind = event["type"]
        if kind == "session.status_idle":
            return self._at_idle(event)
        if kind == "session.usage":
            self.session.usage = event.get("usage") or {}
            return True
        if kind == "session.status_terminated":
            self.session.terminate()
            return True
        thread = event.get("session_thread_id")
        if thread is not None and (thread == self._primary or self._ids.get(thread, thread) in self._silenced):
            return True
        self.session.run()
        if kind in CALLS:
            self._call(event)
            return True
        sent = self.session.emit(self._renamed(event, mint="sthr_" if kind == "session.thread_created" else None))
        self._ids[event["id"]] = sent["id"]
        if kind == "session.thread_created":
            self.session.open_thread(sent)
        elif kind.startswith("session.thread_status_"):
            self.session.move_thread(sent)
        elif kind == "session.status_rescheduled":
            self.session.status = "rescheduling"
        return True

    def _at_idle(self, event: JsonObject) -> bool:
        stop_reason = event.get("stop_reason") or _END_TURN
        if stop_reason["type"] == "requires_action":
            return True
        if self._parked(self.session.open_calls):
            return False
        self.session.leave_park()
        self.session.rest(stop_reason, event.get("stop_details"))
        return True

    def _end_turn(self) -> None:
        """Rest, where the recording has nothing more for this turn and did not say so itself."""
        self.session.leave_park()
        if self.session.status != "idle":
            self.session.rest(_END_TURN)

    def _call(self, event: JsonObject) -> None:
        recorded = self.recording.answers.get(event["id"])
        self.session.ask(self._renamed(event), event["id"], recorded, is_clients=self.recording.is_clients(event))
        self._ids[event["id"]] = next(reversed(self.session.calls))

    def _take_message(self) -> None:
        message = self.session.inbox.popleft()
        message["processed_at"] = self.session.clock.stamp()
        self.session.run()

    def _parked(self, waiting: list[Any]) -> bool:
        if waiting:
            self.session.park()
        return bool(waiting)

    def _renamed(self, event: JsonObject, mint: str | None = None) -> JsonObject:
        """The event with this session's ids where it names others, and without its own."""
        if mint is not None:
            self._ids[event["session_thread_id"]] = self.session.ids.mint(mint)
        renamed = {
            key: _rename(value, self._ids)
            if key.endswith(("_id", "_ids")) or key in ("stop_reason", "event")
            else value
            for key, value in event.items()
        }
        renamed.pop("id")
        renamed.pop("processed_at", None)
        return renamed


def _rename(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        return ids.get(value, value)
    if isinstance(value, list):
        return [_rename(one, ids) for one in value]
    if isinstance(value, dict):
        return {key: _rename(one, ids) for key, one in value.items()}
    return value


def _primary_thread(recording: Recording) -> str | None:
    """The recorded session's primary thread: named by a status event, but never created (contract §6.3)."""
    created = {event["session_thread_id"] for event in recording.events if event["type"] == "session.thread_created"}
    for event in recording.events:
        if event["type"].startswith("session.thread_status_") and event["session_thread_id"] not in created:
            return str(event["session_thread_id"])
    return None
