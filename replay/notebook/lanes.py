"""What an agent and its sandboxes did when: spans of time, from the rows of a log.

The agent *thinks* from the moment that it is attended to, or has its last result, until it asks for a call or its turn
ends. When the user's next message came the log does not know, so after a turn nothing is told before the next call.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from events.sandbox_state import TRANSITIONS, Phase
from replay.notebook.reading import loaded, pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from events.sqlite_log import SqliteLog
    from replay.notebook.calls import ToolCall
    from replay.notebook.reading import Scope

_SANDBOX, _SESSION = "sandbox-", "session-"
_PHASES = [kind for kind in TRANSITIONS if any(before is not after for before, after in TRANSITIONS[kind].items())]
_AGENTS = (
    "session.claimed",
    "session.attached",
    "session.idled",
    "session.released",
    "session.lease_lost",
    "session.failed",
    "session.terminated",
    "session.result_posted",
    "tool_call.requested",
    "tool_call.denied",
)
AGENT = "agent"
ATTACHING, THINKING = "attaching", "thinking"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted; times in microseconds since the epoch."""

    lane: str
    """`agent`, or the id of a sandbox."""
    session_id: str
    what: str
    """`attaching` and `thinking`; or a sandbox's phase."""
    began_us: int
    ended_us: int | None
    """None where it lasts."""


def phases(log: SqliteLog, within: Scope) -> list[Span]:
    """The phases of every sandbox, one after the other; that it is killed is none. Raises `LogError`."""
    found: list[Span] = []
    open_: dict[str, tuple[Phase, int, str]] = {}
    columns = ("stream", "version", "type", "recorded_at", "correlation_id")
    for page in pages(log, columns, within, _PHASES):
        for stream, _, kind, at_us, session in page:
            before, since, whose = open_.get(stream, (Phase.ABSENT, at_us, session))
            after = TRANSITIONS[kind].get(before, before)
            if after is before:
                continue
            if before is not Phase.ABSENT:
                found.append(Span(stream.removeprefix(_SANDBOX), whose, before.value, since, max(at_us, since)))
            open_[stream] = (after, at_us, whose or session)
    for stream, (phase, since, session) in open_.items():
        if phase is not Phase.KILLED:
            found.append(Span(stream.removeprefix(_SANDBOX), session, phase.value, since, None))
    return sorted(found, key=lambda one: (one.lane, one.began_us))


def agent(log: SqliteLog, within: Scope) -> list[Span]:
    """What the agents of the sessions did, as far as the log can tell. Raises `LogError`."""
    sessions: dict[str, _Agent] = defaultdict(_Agent)
    columns = ("stream", "version", "type", "recorded_at", "data", "blob")
    spans: list[Span] = []
    for page in pages(log, columns, within, _AGENTS):
        for stream, _, kind, at_us, data, blob in page:
            if not stream.startswith(_SESSION):
                continue
            of_call = kind.startswith("tool_call.") or kind == "session.result_posted"
            told = loaded(log, data, blob) if of_call else None
            name = stream.removeprefix(_SESSION)
            spans += sessions[name].take(name, kind, at_us, str((told or {}).get("tool_use_id", "")))
    for name, one in sessions.items():
        if one.doing:
            spans.append(Span(AGENT, name, one.doing, one.since_us, None))
    return sorted(spans, key=lambda one: (one.session_id, one.began_us))


class _Agent:
    """One agent, while its session's stream is read."""

    def __init__(self) -> None:
        self.doing = ""
        self.since_us = 0
        self._owed: set[str] = set()

    def take(self, session_id: str, kind: str, at_us: int, call: str) -> Iterator[Span]:
        doing = self._next(kind, call)
        if doing == self.doing:
            return
        if self.doing:
            yield Span(AGENT, session_id, self.doing, self.since_us, max(at_us, self.since_us))
        self.doing, self.since_us = doing, at_us

    def _next(self, kind: str, call: str) -> str:
        match kind:
            case "session.claimed":
                return ATTACHING
            case "session.attached":
                return "" if self._owed else THINKING
            case "tool_call.requested":
                self._owed.add(call)
                return ""
            case "session.result_posted" | "tool_call.denied":
                # Denied by the server: the turn may be over.
                self._owed.discard(call)
                return "" if self._owed else THINKING
            case _:
                return ""


def in_calls(runs: Iterable[ToolCall], spans: Iterable[Span], until_us: int) -> dict[str, int]:
    """By sandbox: how long at least one call ran in it while it was running, in microseconds."""
    calls: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for one in runs:
        if one.sandbox_id is not None and one.started_us is not None:
            calls[one.sandbox_id].append((one.started_us, one.ended_us if one.ended_us is not None else until_us))
    running: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for span in spans:
        if span.what == Phase.RUNNING.value:
            running[span.lane].append((span.began_us, span.ended_us if span.ended_us is not None else until_us))
    return {name: _shared(_merged(calls[name]), running[name]) for name in calls}


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for began, ended in sorted(spans):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ended))
        else:
            merged.append((began, ended))
    return merged


def _shared(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
    """Of two lists of spans, each in order and none over another of its list: how long both last."""
    total = at = 0
    for began, ended in some:
        while at < len(others) and others[at][1] <= began:
            at += 1
        for other in range(at, len(others)):
            if others[other][0] >= ended:
                break
            total += max(min(ended, others[other][1]) - max(began, others[other][0]), 0)
    return total


def packed(spans: Iterable[tuple[int, int]]) -> list[int]:
    """For each of some spans in order of their beginning, a row on which none lies over another."""
    ends: list[int] = []
    rows: list[int] = []
    for began, ended in spans:
        row = next((number for number, end in enumerate(ends) if end <= began), len(ends))
        if row == len(ends):
            ends.append(ended)
        ends[row] = max(ends[row], ended)
        rows.append(row)
    return rows


def plain(spans: Iterable[Span]) -> list[tuple[Any, ...]]:
    """As rows: lane, session, what, began, ended, how long."""
    return [
        (
            one.lane,
            one.session_id,
            one.what,
            one.began_us,
            one.ended_us,
            None if one.ended_us is None else one.ended_us - one.began_us,
        )
        for one in spans
    ]
