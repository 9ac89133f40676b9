"""The events of a session, gap-free: stream first, then the whole history, then the stream again (contract §7, §11.1).

The stream carries only what is emitted after it was opened and is never replayed, so the history is read once the
stream stands. An event may come twice; `Conversation` knows each by its id.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from actors.api import API_ERRORS, describe, is_fatal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anthropic import AsyncAnthropic

log = logging.getLogger(__name__)

_PAGE = 1000
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 10.0


@dataclass(frozen=True, slots=True)
class History:
    """The whole history, as it was after the stream stood. Comes first, and again after every reconnect."""

    events: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Live:
    """One event of the stream."""

    event: Any


async def follow(client: AsyncAnthropic, session_id: str) -> AsyncGenerator[History | Live, None]:
    """Yield a `History`, then `Live` events, and after each reconnect a `History` again; it does not end by itself.

    Raises the API's error where it is fatal (a 4xx other than 408, 409, 429): the session or the credential is gone.
    """
    pause = _PAUSE_FIRST_S
    while True:
        try:
            async with await client.beta.sessions.events.stream(session_id) as stream:
                yield History(await _history(client, session_id))
                async for event in stream:
                    pause = _PAUSE_FIRST_S
                    yield Live(event)
        except API_ERRORS as error:
            if is_fatal(error):
                raise
            log.warning("stream lost, opening it again session_id=%s %s", session_id, describe(error))
        # A clean end is paused for as well: a server that closes every stream at once must not be hammered.
        await asyncio.sleep(random.uniform(pause / 2, pause))
        pause = min(pause * 2, _PAUSE_MAX_S)


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, API_ERRORS) and not is_fatal(error)),
    wait=wait_exponential_jitter(multiplier=_PAUSE_FIRST_S, max=_PAUSE_MAX_S, jitter=_PAUSE_FIRST_S),
    stop=stop_after_attempt(5),
    reraise=True,
)
async def _history(client: AsyncAnthropic, session_id: str) -> list[Any]:
    """All pages, ascending. A failure is asked for again while the stream stands (contract §18.5)."""
    return [event async for event in client.beta.sessions.events.list(session_id, limit=_PAGE)]
