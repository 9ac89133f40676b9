"""The shapes of what may be sent to a session (contract §6.1, §8.4), checked field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.server.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.recording import JsonObject
    from replay.server.errors import ApiError

INITIAL = frozenset({"user.message", "user.define_outcome"})
INITIAL_LIMIT = 50
_RUBRIC_LIMIT = 262_144
_RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result"})
_MESSAGE_BLOCKS = frozenset({"text", "image", "document"})


def events(body: JsonObject, key: str = "events", *, only: frozenset[str] | None = None) -> list[JsonObject]:
    """The events of a request, each with exactly the fields its type has. Raises ApiError (400)."""
    found = body.get(key)
    if not isinstance(found, list) or (not found and key == "events"):
        raise invalid(f"{key}: a non-empty list of events is required")
    return [_event(one, f"{key}.{index}", only) for index, one in enumerate(found)]


def _event(event: object, at: str, only: frozenset[str] | None) -> JsonObject:
    if not isinstance(event, dict):
        raise invalid(f"{at}: must be an object")
    kind = event.get("type")
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None or (only is not None and kind not in only):
        allowed = ", ".join(sorted(only or _CHECKS))
        raise invalid(f"{at}.type: {kind!r} is not one of {allowed}")
    return {"type": kind} | check(event, at)


def _message(event: JsonObject, at: str) -> JsonObject:
    return {"content": _content(event.get("content"), f"{at}.content", _MESSAGE_BLOCKS, required=True)}


def _system_message(event: JsonObject, at: str) -> JsonObject:
    return {"content": _content(event.get("content"), f"{at}.content", frozenset({"text"}), required=True)}


def _interrupt(event: JsonObject, at: str) -> JsonObject:
    return {"session_thread_id": _text(event, "session_thread_id", at, required=False)}


def _confirmation(event: JsonObject, at: str) -> JsonObject:
    result = event.get("result")
    if result not in ("allow", "deny"):
        raise invalid(f"{at}.result: must be 'allow' or 'deny'")
    return {
        "tool_use_id": _text(event, "tool_use_id", at),
        "result": result,
        "deny_message": _text(event, "deny_message", at, required=False),
    }


def _result(call_key: str) -> Callable[[JsonObject, str], JsonObject]:
    def check(event: JsonObject, at: str) -> JsonObject:
        is_error = event.get("is_error")
        if not isinstance(is_error, bool | None):
            raise invalid(f"{at}.is_error: must be a boolean")
        return {
            call_key: _text(event, call_key, at),
            "content": _content(event.get("content"), f"{at}.content", _RESULT_BLOCKS, required=False),
            "is_error": bool(is_error),
        }

    return check


def _outcome(event: JsonObject, at: str) -> JsonObject:
    rubric = event.get("rubric")
    if not isinstance(rubric, dict) or rubric.get("type") not in ("text", "file"):
        raise invalid(f"{at}.rubric: must be a text or a file")
    if rubric["type"] == "text" and not 0 < len(_text(rubric, "content", f"{at}.rubric") or "") <= _RUBRIC_LIMIT:
        raise invalid(f"{at}.rubric.content: must have 1 to {_RUBRIC_LIMIT} characters")
    most = event.get("max_iterations")
    if most is not None and (not isinstance(most, int) or not 1 <= most <= 20):
        raise invalid(f"{at}.max_iterations: must be from 1 to 20")
    return {"description": _text(event, "description", at), "rubric": rubric, "max_iterations": most or 3}


_CHECKS: dict[str, Callable[[JsonObject, str], JsonObject]] = {
    "user.message": _message,
    "system.message": _system_message,
    "user.interrupt": _interrupt,
    "user.tool_confirmation": _confirmation,
    "user.tool_result": _result("tool_use_id"),
    "user.custom_tool_result": _result("custom_tool_use_id"),
    "user.define_outcome": _outcome,
}


def _text(event: JsonObject, key: str, at: str, *, required: bool = True) -> str | None:
    value = event.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value:
        raise invalid(f"{at}.{key}: a non-empty string is required")
    return value


def _content(content: Any, at: str, allowed: frozenset[str], *, required: bool) -> list[JsonObject]:
    if content is None and not required:
        return []
    if not isinstance(content, list) or (required and not content):
        raise invalid(f"{at}: a list of content blocks is required")
    for index, block in enumerate(content):
        problem = _block_problem(block, f"{at}.{index}", allowed)
        if problem is not None:
            raise problem
    return content


def _block_problem(block: Any, at: str, allowed: frozenset[str]) -> ApiError | None:
    if not isinstance(block, dict):
        return invalid(f"{at}: must be an object")
    kind = block.get("type")
    if kind not in allowed:
        return invalid(f"{at}.type: {kind!r} is not one of {', '.join(sorted(allowed))}")
    if kind == "text":
        if not isinstance(block.get("text"), str):
            return invalid(f"{at}.text: a string is required")
        if not block["text"]:
            return invalid(f"{at}.text: minimum string length is 1")
    elif kind in ("image", "document") and not isinstance(block.get("source"), dict):
        return invalid(f"{at}.source: an object is required")
    return None
