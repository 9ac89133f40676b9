"""Handing a result to Anthropic: once, whatever is lost on the way (contract §8.4, §11.5).

The result is in the log before it is posted. Where an answer is lost, a repeat may meet a 400, since the first try had
arrived: the history then tells.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson

from actors.api import API_ERRORS, describe, is_fatal, is_rejected_credential, status_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic import AsyncAnthropic

    from events.types import JsonObject

log = logging.getLogger(__name__)

RESULT_BYTES_MAX = 30 * 1024**2
"""Above it a result is replaced by an error that says so: the API takes requests of up to 32 MB."""
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 30.0
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class Posted:
    """How a result fared."""

    outcome: Literal["posted", "already_answered", "refused"]
    detail: str = ""


async def post_result(
    client: AsyncAnthropic,
    session_id: str,
    tool_use_id: str,
    content: Sequence[JsonObject],
    *,
    is_error: bool,
    custom: bool = False,
) -> Posted:
    """Post one result, again and again while the failure is transient; cancel it to give up.

    It goes as `user.tool_result`, or as `user.custom_tool_result` where the tool is `custom` (contract §8.1). Raises
    the API's error where the credential is rejected.
    """
    size = len(orjson.dumps(list(content)))
    replaced = ""
    if size > RESULT_BYTES_MAX:
        content, is_error = _too_large(size), True
        replaced = f"the result of {size} bytes is over the limit of {RESULT_BYTES_MAX}, an error was posted instead"
    pause = _PAUSE_FIRST_S
    while True:
        try:
            await client.beta.sessions.events.send(
                session_id,
                events=[_event(tool_use_id, content, is_error=is_error, custom=custom)],
            )
        except API_ERRORS as error:
            if is_rejected_credential(error):
                raise
            if status_of(error) == _TOO_LARGE and not replaced:
                replaced = f"the API refused the result of {size} bytes as too large, an error was posted instead"
                content, is_error = _too_large(size), True
                continue
            if is_fatal(error):
                posted = await _refused(client, session_id, tool_use_id, error)
                if posted.outcome == "already_answered" or replaced:
                    return posted
                # An open call parks the session for ever: the agent is told that there was a result, and is not left.
                replaced = f"the API refused the result ({posted.detail}), an error was posted instead"
                content, is_error = _undeliverable(), True
                continue
            log.warning("result not posted, trying again tool_use_id=%s %s", tool_use_id, describe(error))
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, _PAUSE_MAX_S)
        else:
            return Posted("posted", replaced)


def _event(tool_use_id: str, content: Sequence[JsonObject], *, is_error: bool, custom: bool) -> Any:
    kind, key = ("user.custom_tool_result", "custom_tool_use_id") if custom else ("user.tool_result", "tool_use_id")
    # The content was checked where it left the guest.
    return {"type": kind, key: tool_use_id, "is_error": is_error, "content": list(content)}


async def _refused(client: AsyncAnthropic, session_id: str, tool_use_id: str, error: Exception) -> Posted:
    """A 4xx: either the server has an answer already, ours or its own, or it will never take this one."""
    if await is_answered(client, session_id, tool_use_id):
        return Posted("already_answered", describe(error))
    log.error("result refused session_id=%s tool_use_id=%s %s", session_id, tool_use_id, describe(error))
    return Posted("refused", describe(error))


async def is_answered(client: AsyncAnthropic, session_id: str, tool_use_id: str) -> bool:
    """Whether the history holds an answer to the call; False where the history can't be read."""
    try:
        async for event in client.beta.sessions.events.list(
            session_id,
            types=["user.tool_result", "agent.tool_result", "user.custom_tool_result"],
            order="desc",
            limit=1000,
        ):
            if tool_use_id in (getattr(event, "tool_use_id", None), getattr(event, "custom_tool_use_id", None)):
                return True
    except API_ERRORS as error:
        log.warning("history not read session_id=%s %s", session_id, describe(error))
    return False


def _undeliverable() -> list[JsonObject]:
    return [{"type": "text", "text": "The tool ran, but its result could not be delivered: the API refused it."}]


def _too_large(size: int) -> list[JsonObject]:
    text = (
        f"The tool's result is too large to be sent: {size} bytes, the limit is {RESULT_BYTES_MAX}. "
        "Narrow it down: read a part, or write the output to a file and look at that."
    )
    return [{"type": "text", "text": text}]
