"""The user's part of a recording, played against any server: messages, verdicts, custom tools' results, interrupts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from replay.recording import CALLS, MESSAGES, WORKERS_TOOLS

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from replay.recording import JsonObject, Recording

_LOOK_SECONDS = 0.05
_USERS = MESSAGES | {"user.tool_confirmation", "user.custom_tool_result", "user.interrupt", "system.message"}
_KEPT_BY_SERVER = ("id", "processed_at", "session_thread_id", "outcome_id")


def first_message(recording: Recording) -> list[JsonObject]:
    """The recording's first message, as `initial_events` of a new session; empty where it begins otherwise."""
    return [_sendable(event) for event in recording.events[:1] if event["type"] in MESSAGES]


async def play_user(
    client: AsyncAnthropic, session_id: str, recording: Recording, *, sent: int = 1, interrupt_seconds: float = 0.0
) -> None:
    """Send each of the user's recorded inputs once the session is where it was when they were sent then.

    Args:
        client: The app's client.
        session_id: A session that plays `recording`; its n-th call is taken for the recorded n-th.
        recording: Whose user to play.
        sent: How many inputs the session has already had, e.g. as `initial_events`.
        interrupt_seconds: How long a call that is interrupted is let run, seconds.
    """
    calls: list[str] = []
    inputs = 0
    for event in recording.events:
        if event["type"] in CALLS:
            calls.append(event["id"])
        if event["type"] not in _USERS or _is_workers(event, recording):
            continue
        inputs += 1
        if inputs <= sent:
            continue
        live = await _reached(client, session_id, len(calls), resting=event["type"] in MESSAGES)
        if event["type"] == "user.interrupt":
            await asyncio.sleep(interrupt_seconds)
        payload = _sendable(event)
        for key in ("tool_use_id", "custom_tool_use_id"):
            if key in payload:
                payload[key] = live[calls.index(payload[key])]
        await client.beta.sessions.events.send(session_id, events=[payload])  # type: ignore[list-item]


def _is_workers(event: JsonObject, recording: Recording) -> bool:
    """Whether it is a result that the worker posts, though the tool is a custom one."""
    call = recording.calls.get(event.get("custom_tool_use_id", ""))
    return call is not None and call["name"] in WORKERS_TOOLS


async def _reached(client: AsyncAnthropic, session_id: str, calls: int, *, resting: bool) -> list[str]:
    """Wait until a session has made so many calls (and rests); the ids of its calls."""
    while True:
        events = [event async for event in client.beta.sessions.events.list(session_id, limit=1000)]
        live = [event.id for event in events if event.type in CALLS]
        if len(live) >= calls and (not resting or _rests(events)):
            return live
        await asyncio.sleep(_LOOK_SECONDS)


def _rests(events: list[Any]) -> bool:
    statuses = [event for event in events if event.type in ("session.status_idle", "session.status_running")]
    last = statuses[-1] if statuses else None
    return last is not None and last.type == "session.status_idle" and last.stop_reason.type != "requires_action"


def _sendable(event: JsonObject) -> JsonObject:
    return {key: value for key, value in event.items() if key not in _KEPT_BY_SERVER and value is not None}
