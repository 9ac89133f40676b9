"""From entries, in the log's order, to calls, notes and claims.

Lenient, since it only displays: an event that the rules would not allow there is shown all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.types import (
    SandboxCrashed,
    SandboxKilled,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionIdled,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    SessionSandboxKept,
    SessionTerminated,
    ToolCallCompleted,
    ToolCallDenied,
    ToolCallInterrupted,
    ToolCallRequested,
    ToolCallStarted,
)
from replay.timeline.describe import describe
from replay.timeline.model import Call, Claim, Mood, Note, Posted, Status, Timeline

if TYPE_CHECKING:
    from events.types import EventData

_SANDBOX = "sandbox-"
_ENDS = ("tool_call.completed", "tool_call.interrupted", "tool_call.denied")

CallEvent = (
    ToolCallRequested | ToolCallStarted | ToolCallCompleted | ToolCallInterrupted | ToolCallDenied | SessionResultPosted
)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of data that can't be shown."""

    why: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the log, as far as a timeline needs it."""

    position: int
    stream: str
    version: int
    at_us: int
    type: str
    causation_id: str
    data: EventData | Unreadable


class Builder:
    """Takes entries one by one; `timeline` is right after each."""

    def __init__(self, session_id: str) -> None:
        self.timeline = Timeline(session_id)
        self._calls: dict[str, Call] = {}
        self._homes: dict[str, Claim] = {}
        """The claim that each call is listed under."""

    def add(self, entry: Entry) -> None:
        """Take in the next entry."""
        self._note_sandbox(entry)
        data = entry.data
        if isinstance(data, SessionClaimed):
            self._claim(entry, data)
            return
        claim = self._current(entry)
        claim.last_us = max(claim.last_us, entry.at_us)
        if isinstance(data, CallEvent):
            self._call_event(entry, data)
            return
        call = self._calls.get(entry.causation_id)
        if isinstance(data, Unreadable) and call is not None and entry.type in _ENDS:
            call.status, call.ended_us, call.version = Status.UNREADABLE, entry.at_us, entry.version
        self._follow_session(entry, claim)
        text, mood = (
            (f"{entry.type}: {data.why}", Mood.WARNING) if isinstance(data, Unreadable) else describe(data, entry)
        )
        if text:
            claim.items.append(
                Note(
                    entry.at_us,
                    entry.position,
                    entry.stream,
                    entry.version,
                    entry.type,
                    text,
                    mood,
                    self._other_sandbox(entry),
                )
            )

    def _note_sandbox(self, entry: Entry) -> None:
        sandboxes = self.timeline.sandboxes
        found = ""
        if entry.stream.startswith(_SANDBOX):
            found = entry.stream.removeprefix(_SANDBOX)
        elif isinstance(entry.data, SessionAttached | SessionSandboxKept):
            found = entry.data.sandbox_id
        if found and found not in sandboxes:
            sandboxes.append(found)

    def _other_sandbox(self, entry: Entry) -> str:
        """The sandbox whose event it is, where that is not the first: a fork, or what came after one was removed."""
        if not entry.stream.startswith(_SANDBOX):
            return ""
        name = entry.stream.removeprefix(_SANDBOX)
        return "" if name == self.timeline.sandboxes[0] else name

    def _claim(self, entry: Entry, data: SessionClaimed) -> None:
        held = self.timeline.claims[-1] if self.timeline.claims else None
        if held is not None and held.number and not held.ended:
            held.abandoned = True
            held.ended_us = held.last_us
        self.timeline.stop_reason = ""
        self.timeline.claims.append(
            Claim(
                number=sum(claim.number > 0 for claim in self.timeline.claims) + 1,
                claim_id=data.claim_id,
                environment_id=data.environment_id,
                worker_id=data.worker_id,
                credential=data.credential,
                began_us=entry.at_us,
                last_us=entry.at_us,
            )
        )

    def _current(self, entry: Entry) -> Claim:
        if not self.timeline.claims:
            self.timeline.claims.append(Claim(number=0, began_us=entry.at_us, last_us=entry.at_us))
        return self.timeline.claims[-1]

    def _follow_session(self, entry: Entry, claim: Claim) -> None:
        match entry.data:
            case SessionIdled(stop_reason=reason):
                self.timeline.stop_reason = reason or "idle"
            case SandboxCrashed():
                self.timeline.crashes += 1
            case SandboxKilled():
                self._cut_off(entry)
            case SessionReleased() | SessionLeaseLost() | SessionFailed() | SessionTerminated() if not claim.ended:
                # A failure is followed by a release, and says more.
                claim.ended, claim.ended_us = entry.type, entry.at_us

    def _cut_off(self, entry: Entry) -> None:
        """What ran in a fork that was removed has no end of its own: nobody waits for it."""
        of = entry.stream.removeprefix(_SANDBOX)
        for call in self._calls.values():
            if call.sandbox_id == of and call.status is Status.RUNNING and not call.is_owed:
                call.status, call.reason, call.ended_us = Status.INTERRUPTED, "sandbox removed", entry.at_us

    # Tool calls

    def _call_event(self, entry: Entry, data: CallEvent) -> None:
        call = self._calls.get(data.tool_use_id)
        if call is None:
            call = Call(data.tool_use_id, getattr(data, "tool", ""), getattr(data, "input", {}), entry.position)
            self._calls[data.tool_use_id] = call
            self._list_here(call)
        match data:
            case ToolCallRequested():
                call.requested_us = entry.at_us
                call.thread_id = data.thread_id
                self.timeline.stop_reason = ""
            case ToolCallStarted():
                self._start(call, entry, data)
            case ToolCallCompleted() | ToolCallInterrupted():
                self._end(call, entry, data)
            case ToolCallDenied():
                call.status, call.reason, call.ended_us = Status.DENIED, data.by, entry.at_us
                call.content = [{"type": "text", "text": data.message}] if data.message else []
            case SessionResultPosted():
                call.posted, call.posted_detail = Posted(data.outcome), data.detail
                call.posted_us = entry.at_us

    def _start(self, call: Call, entry: Entry, data: ToolCallStarted) -> None:
        call.tool, call.input = data.tool, data.input
        call.started_us = entry.at_us
        call.sandbox_id = entry.stream.removeprefix(_SANDBOX)
        if call.status is Status.REQUESTED:
            call.status = Status.RUNNING
        if self._homes[call.tool_use_id] is not self.timeline.claims[-1]:
            # Asked for under one claim and run under a later one: it is listed where it ran.
            self._homes[call.tool_use_id].items.remove(call)
            self._list_here(call)

    def _end(self, call: Call, entry: Entry, data: ToolCallCompleted | ToolCallInterrupted) -> None:
        call.ended_us, call.version = entry.at_us, entry.version
        call.sandbox_id = call.sandbox_id or entry.stream.removeprefix(_SANDBOX)
        call.content = list(data.content)
        if isinstance(data, ToolCallInterrupted):
            call.status, call.reason = Status.INTERRUPTED, data.reason
            return
        call.status = Status.ERROR if data.is_error else Status.OK
        call.measured, call.output_bytes = data.seconds, data.output_bytes

    def _list_here(self, call: Call) -> None:
        claim = self.timeline.claims[-1]
        claim.items.append(call)
        self._homes[call.tool_use_id] = claim
