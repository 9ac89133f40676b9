"""From events to OpenTelemetry spans: a projection of the log, with the times that the log has.

One trace for each claim of a session (`actors.trace`):

    session                                claimed → released
    ├─ attach                              claimed → attached
    │   └─ machine start
    ├─ execute_tool bash                   requested → its result posted
    │   ├─ machine resume
    │   └─ run bash                        started → completed, in the machine
    └─ machine suspend, machine snapshot, machine crash …

Ids come from the log too: a span has the beginning of the id of the event that opened it. What ended before this
service began is not exported again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from actors.trace import span_id_of, trace_id_of
from events.types import (
    SandboxAdopted,
    SandboxBranched,
    SandboxCrashed,
    SandboxCreated,
    SandboxKilled,
    SandboxRecovered,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
    SandboxThawed,
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    SessionTerminated,
    ToolCallCompleted,
    ToolCallDenied,
    ToolCallInterrupted,
    ToolCallRequested,
    ToolCallStarted,
)

if TYPE_CHECKING:
    from actors.tracing import Traces
    from events.envelope import Event

Attributes = dict[str, str | bool | int | float]
_NS_IN_US = 1_000
_REMEMBERED = 10_000
"""Sessions; what happens to one after so many others had something happen is not traced."""
_US_IN_S = 1_000_000
_DONE = {
    SandboxStarted: "start",
    SandboxResumed: "resume",
    SandboxRecovered: "recover",
    SandboxThawed: "thaw",
    SandboxSuspended: "suspend",
    SandboxSnapshotted: "snapshot",
}


@dataclass(slots=True)
class _Open:
    """A span that has begun."""

    context: SpanContext
    parent: SpanContext | None
    began_us: int
    attributes: Attributes = field(default_factory=dict)


@dataclass(slots=True)
class _Session:
    root: _Open | None = None
    """Of the claim that is open, or of the last one: what happens between two claims belongs to the first."""
    claimed: bool = False
    attach: _Open | None = None
    failure: str = ""
    calls: dict[str, _Open] = field(default_factory=dict)
    """Requested, and not answered yet."""


@dataclass(slots=True)
class _Sandbox:
    session_id: str
    running: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Tool and time of the calls that were started."""


class Spans:
    """The projection: `take` each event in the log's order."""

    def __init__(self, traces: Traces, since_us: int) -> None:
        """Args:
        since_us: what ended before this moment is not exported, in microseconds since the epoch.
        """
        self._traces = traces
        self._since_us = since_us
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        """The last seen at the end."""
        self._sandboxes: dict[str, _Sandbox] = {}

    def take(self, event: Event) -> None:
        """The next event of the log."""
        kind, _, name = event.stream.partition("-")
        if kind == "session":
            self._take_session(name, event)
        elif kind == "sandbox":
            self._take_sandbox(name, event)

    # --- sessions --------------------------------------------------------------------------------------------------

    def _take_session(self, session_id: str, event: Event) -> None:
        session = self._sessions.setdefault(session_id, _Session())
        self._sessions.move_to_end(session_id)
        while len(self._sessions) > _REMEMBERED:
            self._sessions.popitem(last=False)
        match event.data:
            case SessionClaimed() as data:
                self._end_claim(session, event, "superseded")
                self._begin_claim(session, session_id, event, data)
            case SessionAttached() as data:
                if session.attach is not None:
                    session.attach.attributes["hourglass.history_events"] = data.history_events
                    self._end("attach", session.attach, event)
                session.attach = None
                if session.root is not None:
                    session.root.attributes["hourglass.sandbox.id"] = data.sandbox_id
            case SessionReleased() as data:
                self._end_claim(session, event, data.reason)
            case SessionLeaseLost() as data:
                self._end_claim(session, event, "lease_lost", f"lease lost: {data.reason}")
            case SessionFailed() as data:
                session.failure = f"{data.reason}: {data.detail}"
            case _:
                self._take_asked(session, session_id, event)

    def _take_asked(self, session: _Session, session_id: str, event: Event) -> None:
        """What became of the calls that the agent asked for."""
        match event.data:
            case SessionTerminated():
                session.calls.clear()
            case ToolCallRequested() as data:
                self._request(session, session_id, event, data)
            case ToolCallDenied() as data:
                self._answer(session, event, data.tool_use_id, f"denied_by_{data.by}", "")
            case SessionResultPosted() as data:
                refused = f"result refused: {data.detail}" if data.outcome == "refused" else ""
                self._answer(session, event, data.tool_use_id, data.outcome, refused)

    def _begin_claim(self, session: _Session, session_id: str, event: Event, data: SessionClaimed) -> None:
        context = self._traces.root(int(trace_id_of(data.claim_id), 16), span_id_of(event.event_id))
        attributes: Attributes = {
            "gen_ai.conversation.id": session_id,
            "hourglass.claim.id": data.claim_id,
            "hourglass.environment.id": data.environment_id,
            "hourglass.worker.id": data.worker_id,
        }
        session.root = _Open(context, None, event.recorded_at_us, attributes)
        session.claimed, session.failure = True, ""
        session.attach = self._open(event, context, salt=1)
        # A call that an earlier claim left open goes on under this one.
        for one in session.calls.values():
            one.parent = context
            one.context = _under(context, one.context.span_id)

    def _end_claim(self, session: _Session, event: Event, how: str, failure: str = "") -> None:
        if not session.claimed or session.root is None:
            return
        session.root.attributes["hourglass.outcome"] = how
        self._end("session", session.root, event, failure or session.failure, SpanKind.CONSUMER)
        session.claimed, session.attach = False, None

    def _request(self, session: _Session, session_id: str, event: Event, data: ToolCallRequested) -> None:
        if session.root is None:
            return
        call = self._open(event, session.root.context)
        call.attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": data.tool,
            "gen_ai.tool.call.id": data.tool_use_id,
            "gen_ai.conversation.id": session_id,
        }
        session.calls[data.tool_use_id] = call

    def _answer(self, session: _Session, event: Event, tool_use_id: str, outcome: str, failure: str) -> None:
        call = session.calls.pop(tool_use_id, None)
        if call is not None:
            call.attributes["hourglass.outcome"] = outcome
            self._end(f"execute_tool {call.attributes['gen_ai.tool.name']}", call, event, failure)

    # --- sandboxes -------------------------------------------------------------------------------------------------

    def _take_sandbox(self, sandbox_id: str, event: Event) -> None:
        data = event.data
        if isinstance(data, SandboxCreated | SandboxBranched):
            self._sandboxes[sandbox_id] = _Sandbox(data.session_id)
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return  # it is over
        match data:
            case ToolCallStarted():
                sandbox.running[data.tool_use_id] = (data.tool, event.recorded_at_us)
            case ToolCallCompleted() | ToolCallInterrupted():
                self._ran(sandbox, sandbox_id, event, data)
            case SandboxAdopted():
                sandbox.session_id = data.session_id
            case SandboxCrashed():
                failure = f"{data.reason}: {data.detail}"
                self._did(sandbox, sandbox_id, event, "crash", event.recorded_at_us, failure)
            case SandboxKilled():
                del self._sandboxes[sandbox_id]
        done = _DONE.get(type(data))
        if done is not None and not (isinstance(data, SandboxSuspended) and data.reason == "fork"):
            began_us = event.recorded_at_us - int(getattr(data, "seconds", 0.0) * _US_IN_S)
            self._did(sandbox, sandbox_id, event, done, began_us)

    def _ran(
        self, sandbox: _Sandbox, sandbox_id: str, event: Event, data: ToolCallCompleted | ToolCallInterrupted
    ) -> None:
        tool, began_us = sandbox.running.pop(data.tool_use_id, ("", 0))
        session = self._sessions.get(sandbox.session_id)
        call = None if session is None else session.calls.get(data.tool_use_id)
        if not tool or session is None or session.root is None:
            return
        parent = session.root if call is None else call
        run = self._open(event, parent.context)
        run.began_us = began_us
        run.attributes = {"gen_ai.tool.name": tool, "hourglass.sandbox.id": sandbox_id}
        failure = ""
        if isinstance(data, ToolCallInterrupted):
            failure = f"interrupted: {data.reason}"
        elif data.is_error:
            failure = "the tool's result is an error"
            run.attributes["hourglass.output_bytes"] = data.output_bytes
        if call is not None and failure:
            call.attributes["error.type"] = "interrupted" if isinstance(data, ToolCallInterrupted) else "tool_error"
        self._end(f"run {tool}", run, event, failure)

    def _did(
        self, sandbox: _Sandbox, sandbox_id: str, event: Event, what: str, began_us: int, failure: str = ""
    ) -> None:
        """Something was done to the machine: for a call that waits, else to attach, else for the session."""
        session = self._sessions.get(sandbox.session_id)
        if session is None or session.root is None:
            return
        waiting = next(iter(session.calls.values()), None) or session.attach or session.root
        span = self._open(event, waiting.context)
        span.began_us = began_us
        span.attributes = {"hourglass.sandbox.id": sandbox_id, "hourglass.node": event.metadata.get("node", "")}
        for name in ("reason", "image_bytes", "snapshot_id", "kept"):
            value = getattr(event.data, name, None)
            if value is not None:
                span.attributes[f"hourglass.{name}"] = value
        self._end(f"machine {what}", span, event, failure)

    # --- spans -----------------------------------------------------------------------------------------------------

    def _open(self, event: Event, parent: SpanContext, salt: int = 0) -> _Open:
        return _Open(_under(parent, span_id_of(event.event_id) ^ salt), parent, event.recorded_at_us)

    def _end(self, name: str, span: _Open, event: Event, failure: str = "", kind: SpanKind = SpanKind.INTERNAL) -> None:
        if event.recorded_at_us < self._since_us:
            return
        around = Context() if span.parent is None else set_span_in_context(NonRecordingSpan(span.parent), Context())
        self._traces.next_is(span.context)
        made = self._traces.tracer.start_span(
            name, around, kind, attributes=span.attributes, start_time=span.began_us * _NS_IN_US
        )
        if failure or "error.type" in span.attributes:
            made.set_status(Status(StatusCode.ERROR, failure[:500] or None))
        made.end(end_time=max(event.recorded_at_us, span.began_us) * _NS_IN_US)


def _under(parent: SpanContext, span_id: int) -> SpanContext:
    return SpanContext(parent.trace_id, span_id, is_remote=True, trace_flags=TraceFlags(parent.trace_flags))
