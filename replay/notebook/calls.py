"""Tool calls from the rows of a log: one for each that was asked for, and one for each time that it ran.

A call is asked for in a session's stream and runs in a sandbox's. What a branch runs again has the id that it had, so a
run is told by its stream and its id; the first run of an id in a session is the one that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from replay.notebook.reading import loaded, pages
from replay.timeline.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.sqlite_log import SqliteLog
    from replay.notebook.reading import Scope

_MICROSECONDS = 1_000_000
_SANDBOX = "sandbox-"
_COLUMNS = (
    "position",
    "stream",
    "version",
    "type",
    "recorded_at",
    "correlation_id",
    "causation_id",
    "data",
    "blob",
)
_TYPES = (
    "tool_call.requested",
    "tool_call.started",
    "tool_call.completed",
    "tool_call.interrupted",
    "tool_call.denied",
    "session.result_posted",
)


@dataclass(slots=True)
class ToolCall:
    """One call; times in microseconds since the epoch."""

    tool_use_id: str
    session_id: str
    position: int
    """Of the event that brought it."""
    tool: str | None = None
    sandbox_id: str | None = None
    """None before it was started."""
    version: int | None = None
    """Of the sandbox's stream after it ended."""
    status: str = Status.REQUESTED.value
    reason: str | None = None
    """Why it was interrupted, or who denied it."""
    requested_us: int | None = None
    started_us: int | None = None
    ended_us: int | None = None
    posted_us: int | None = None
    measured_us: int | None = None
    output_bytes: int | None = None
    input: str | None = None
    """JSON."""
    output: str | None = None
    """The text of the result; what is no text is named in square brackets."""

    @property
    def duration_us(self) -> int | None:
        """As the sandbox measured it, else between its events; None where it has not ended, or never began."""
        if self.measured_us is not None:
            return self.measured_us
        if self.started_us is None or self.ended_us is None:
            return None
        return max(self.ended_us - self.started_us, 0)


def tool_calls(log: SqliteLog, within: Scope) -> list[ToolCall]:
    """Every call, in the order in which they came. Raises `LogError`."""
    fold = _Fold()
    rows = [row for page in pages(log, _COLUMNS, within, _TYPES) for row in page]
    for position, stream, version, kind, at_us, session, cause, data, blob in sorted(rows):
        told = loaded(log, data, blob)
        fold.take(position, stream, version, kind, at_us, session, cause, told)
    return sorted(fold.calls(), key=lambda one: one.position)


class _Fold:
    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], ToolCall] = {}
        """By session and id."""
        self._runs: dict[tuple[str, str], ToolCall] = {}
        """By stream and id."""

    def calls(self) -> Iterator[ToolCall]:
        yield from self._asked.values()
        asked = {id(one) for one in self._asked.values()}
        yield from (one for one in self._runs.values() if id(one) not in asked)

    def take(
        self,
        position: int,
        stream: str,
        version: int,
        kind: str,
        at_us: int,
        session: str,
        cause: str,
        told: dict[str, Any] | None,
    ) -> None:
        name = _text(told, "tool_use_id") or cause
        if not name:
            return
        if stream.startswith(_SANDBOX):
            call = self._run(position, stream, session, name)
        else:
            call = self._asked.get((session, name)) or ToolCall(name, session, position)
            self._asked[session, name] = call
        match kind:
            case "tool_call.requested":
                call.requested_us = at_us
                self._ask(call, told)
            case "tool_call.started":
                call.started_us, call.status = at_us, Status.RUNNING.value
                self._ask(call, told)
            case "tool_call.completed" | "tool_call.interrupted":
                call.ended_us, call.version = at_us, version
                _end(call, kind, told)
            case "tool_call.denied":
                call.ended_us, call.status, call.reason = at_us, Status.DENIED.value, _text(told, "by")
                call.output = _text(told, "message")
            case _:
                call.posted_us = at_us

    def _run(self, position: int, stream: str, session: str, name: str) -> ToolCall:
        call = self._runs.get((stream, name))
        if call is None:
            asked = self._asked.get((session, name))
            call = asked if asked is not None and asked.sandbox_id is None else ToolCall(name, session, position)
            call.sandbox_id = stream.removeprefix(_SANDBOX)
            self._runs[stream, name] = call
        return call

    @staticmethod
    def _ask(call: ToolCall, told: dict[str, Any] | None) -> None:
        if told is not None:
            call.tool = _text(told, "tool")
            call.input = orjson.dumps(told.get("input")).decode()


def _end(call: ToolCall, kind: str, told: dict[str, Any] | None) -> None:
    if told is None:
        call.status = Status.UNREADABLE.value
        return
    call.output = _printed(told.get("content"))
    if kind == "tool_call.interrupted":
        call.status, call.reason = Status.INTERRUPTED.value, _text(told, "reason")
        return
    call.status = (Status.ERROR if told.get("is_error") else Status.OK).value
    seconds, size = told.get("seconds"), told.get("output_bytes")
    call.measured_us = round(seconds * _MICROSECONDS) if isinstance(seconds, int | float) else None
    call.output_bytes = size if isinstance(size, int) else None


def _text(told: dict[str, Any] | None, name: str) -> str | None:
    value = told.get(name) if told is not None else None
    return value if isinstance(value, str) else None


def _printed(content: object) -> str | None:
    blocks = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    return "\n".join(_text(one, "text") or f"[{_text(one, 'type')}]" for one in blocks) if blocks else None
