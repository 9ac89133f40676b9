"""One line for an event: what ran, how long, what it printed.

Works on stored JSON of any type and version, so that a log of a newer Hourglass can be looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from events.console import clean, duration, first_line, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LIMIT = 100
_UNTOLD = ("type", "tool_use_id", "claim_id", "work_id")


def summarize(event_type: str, data: Any) -> str:
    """A line without control characters, for people; "" where there is nothing to say."""
    if not isinstance(data, dict):
        return clean(data, _LIMIT)
    return _SUMMARIES.get(event_type, _fields)(data)


def input_line(tool: Any, given: Any) -> str:
    """A tool call as a person would write it: the command, or the path and what is done to it."""
    if not isinstance(given, dict):
        return clean(tool if given is None else f"{tool} {given}", _LIMIT)
    for key in ("command", "file_path", "pattern", "path"):
        if isinstance(given.get(key), str):
            return f"{clean(tool)} {first_line(given[key], _LIMIT)}"
    return clean(f"{tool} {given}" if given else tool, _LIMIT)


def content_text(content: Any) -> str:
    """The text of a result's content blocks; other blocks by their type, in brackets."""
    blocks = content if isinstance(content, list) else []
    return "\n".join(
        str(block["text"]) if "text" in block else f"[{block.get('type', '?')}]"
        for block in blocks
        if isinstance(block, dict)
    )


def _fields(data: Mapping[str, Any]) -> str:
    told = ", ".join(
        f"{key}={value}" for key, value in data.items() if key not in _UNTOLD and value not in (None, "", [], {})
    )
    return clean(told, _LIMIT)


def _call(data: Mapping[str, Any]) -> str:
    asked = " (waits for a confirmation)" if data.get("permission") == "ask" else ""
    return input_line(data.get("tool", ""), data.get("input")) + asked


def _completed(data: Mapping[str, Any]) -> str:
    took = duration(data["seconds"]) if isinstance(data.get("seconds"), int | float) else "?"
    printed = f", {size(data['output_bytes'])}" if isinstance(data.get("output_bytes"), int) else ""
    verdict = "failed" if data.get("is_error") else "ok"
    return f"{verdict} in {took}{printed}: {first_line(content_text(data.get('content')), _LIMIT)}"


def _interrupted(data: Mapping[str, Any]) -> str:
    return f"{clean(data.get('reason', ''))}: {first_line(content_text(data.get('content')), _LIMIT)}"


_SUMMARIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "tool_call.requested": _call,
    "tool_call.started": _call,
    "tool_call.completed": _completed,
    "tool_call.interrupted": _interrupted,
}
