"""What was said in a session, which no log has: its events as the API lists them, joined with the log's calls.

The log is what counts for a call: input and result are as it has them. The API gives what stands between calls. How far
it goes is told by the calls: up to the last one on the line that leads to the version, and on to the end of that turn
where the turn made no further call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replay.continuing.logged import Call, Note, Part, calls_of
from replay.recording import ANSWERS, CALLS, MESSAGES, SANDBOX_TOOLS, WORKERS_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from events.payload import JsonObject

RECORD_BEGINS = "This session goes on from an earlier one. "
"""How a record begins that was put into a session's first message."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message."""

    by: Literal["user", "agent", "system"]
    content: tuple[JsonObject, ...]
    """Content blocks."""
    thread_id: str = ""
    """"" for the session's own."""


Entry = Said | Call | Note


def joined(part: Part, events: Sequence[JsonObject], *, whole: bool, first: bool) -> tuple[list[Entry], int]:
    """A part's calls with what was said around them, and how many events of the conversation came later.

    Args:
        events: the session's, in order, as the API gives them.
        whole: up to the session's end, whatever calls came later.
        first: False where other parts come before: what its first message repeats of them is left out.
    """
    events = _utf8(events)
    calls = {call.tool_use_id: call for call in calls_of(part)}
    end = len(events) if whole else _end(events, calls)
    answers = {str(one.get(ANSWERS[one["type"]])): one for one in events if one.get("type") in ANSWERS}
    left = list(part.steps)
    told: list[Entry] = []
    opening = None if first else next((one for one in events if one.get("type") == "user.message"), None)
    for event in events[:end]:
        known = calls.get(str(event.get("id"))) if event.get("type") in CALLS else None
        if known is not None:
            # Notes and calls that the API does not know, as of a fork that was kept, stand where the log has them.
            told += _up_to(known, left)
        else:
            told += _entries(event, answers, skip_record=event is opening)
    told += left
    later = sum(one.get("type") in CALLS | MESSAGES | {"agent.message"} for one in events[end:])
    return told, later


def _utf8(events: Sequence[JsonObject]) -> list[JsonObject]:
    """Without halves of characters, which JSON may hold (a text that was cut), and UTF-8 may not."""
    told: list[JsonObject] = json.loads(json.dumps(list(events), ensure_ascii=False).encode("utf-8", "replace"))
    return told


def _up_to(call: Call, left: list[Call | Note]) -> list[Call | Note]:
    if call not in left:
        return []
    count = left.index(call) + 1
    taken, left[:count] = left[:count], []
    return taken


def _end(events: Sequence[JsonObject], calls: dict[str, Call]) -> int:
    """How many events there are up to the end of what led to the last call, and of its turn where that made no more."""
    ours = [number for number, one in enumerate(events) if one.get("type") in CALLS and str(one.get("id")) in calls]
    if ours:
        least = ours[-1] + 1
    else:
        acted = (n for n, one in enumerate(events) if str(one.get("type")).startswith("agent."))
        least = next(acted, len(events))
    for number in range(least, len(events)):
        event = events[number]
        if event.get("type") in MESSAGES:
            return number
        if _runs_in_sandbox(event):
            return least
    return len(events)


def _runs_in_sandbox(event: JsonObject) -> bool:
    kind, name = event.get("type"), event.get("name")
    if kind == "agent.tool_use":
        return name in SANDBOX_TOOLS and event.get("evaluated_permission") != "deny"
    return kind == "agent.custom_tool_use" and name in WORKERS_TOOLS


def _entries(event: JsonObject, answers: dict[str, JsonObject], *, skip_record: bool) -> Iterator[Entry]:
    kind = str(event.get("type"))
    thread_id = str(event.get("session_thread_id") or "")
    by: dict[str, Literal["user", "agent", "system"]] = {
        "user.message": "user",
        "agent.message": "agent",
        "system.message": "system",
    }
    if kind in by:
        content = _blocks(event.get("content"))
        kept = tuple(one for one in content if not (skip_record and _is_record(one)))
        if len(kept) < len(content):
            yield Note("The session began with the record of what is above.")
        if kept:
            yield Said(by[kind], kept, thread_id)
    elif kind == "user.define_outcome":
        yield Said("user", ({"type": "text", "text": _outcome(event)},))
    elif kind == "user.interrupt":
        yield Note("The user interrupted the agent.")
    elif kind == "agent.thread_context_compacted":
        yield Note("The agent's context was compacted here.")
    elif kind in CALLS:
        yield _elsewhere(event, answers.get(str(event.get("id"))))


def _elsewhere(event: JsonObject, answer: JsonObject | None) -> Call:
    """A call that did nothing to the sandbox: another's tool, a denied one, or one in a sandbox that was given up."""
    given = event.get("input")
    name = str(event.get("name"))
    if event.get("mcp_server_name"):
        name = f"{event['mcp_server_name']}: {name}"
    content = _blocks(answer.get("content")) if answer is not None else ()
    return Call(
        str(event.get("id")),
        name,
        given if isinstance(given, dict) else {"input": given},
        "open" if answer is None else "failed" if answer.get("is_error") else "completed",
        content,
        reason="it is not part of what led to this sandbox" if _runs_in_sandbox(event) else "",
    )


def _blocks(content: Any) -> tuple[JsonObject, ...]:
    return tuple(one for one in content if isinstance(one, dict)) if isinstance(content, list) else ()


def _is_record(block: JsonObject) -> bool:
    return str(block.get("text", "")).startswith(RECORD_BEGINS)


def _outcome(event: JsonObject) -> str:
    rubric = event.get("rubric")
    text = rubric.get("content") if isinstance(rubric, dict) else None
    return f"Outcome wanted: {event.get('description')}" + (f"\nRubric: {text}" if text else "")
