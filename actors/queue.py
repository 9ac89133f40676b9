"""The work queue of one environment: polling, and every call about an item (contract §4, §9).

Our own loop on the raw calls: the SDK's poller acknowledges before it hands an item on, and a consumer that dies then
strands the session for good (contract §18.1).
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from anthropic import omit
from anthropic.types.beta.environments import BetaSelfHostedWork

from actors.api import API_ERRORS, describe, is_fatal, is_rejected_credential, status_of
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anthropic import AsyncAnthropic

log = logging.getLogger(__name__)

_EMPTY_POLL_S = 1.0
"""A poll that came back empty is not repeated before: a server that does not block must not be hammered."""
_PAUSE_MAX_S = 60.0
_CONFLICT = 409


@dataclass(eq=False)
class QueueRejected(HourglassError):
    """The queue of {environment_id} refuses this worker: {reason}."""

    environment_id: str
    reason: str
    step: str
    next_step = "{step}"


class WorkQueue:
    """The queue of one environment, as the environment key sees it."""

    def __init__(
        self,
        client: AsyncAnthropic,
        environment_id: str,
        *,
        worker_id: str | None = None,
        block_ms: int = 999,
        reclaim_older_than_ms: int | None = None,
    ) -> None:
        self.client = client
        self.environment_id = environment_id
        self.worker_id = worker_id or f"{socket.gethostname()}-{uuid4().hex[:12]}"
        self._block_ms = block_ms
        self._reclaim = omit if reclaim_older_than_ms is None else reclaim_older_than_ms

    async def poll(self) -> AsyncIterator[BetaSelfHostedWork]:
        """Yield items as the queue gives them, none of them acknowledged; it does not end by itself.

        Raises `QueueRejected` where the key is not, or no longer, good for this environment.
        """
        failures = 0
        while True:
            began = time.monotonic()
            try:
                item = await self.client.beta.environments.work.poll(
                    self.environment_id,
                    block_ms=self._block_ms,
                    reclaim_older_than_ms=self._reclaim,
                    anthropic_worker_id=self.worker_id,
                )
                if item and not isinstance(item, BetaSelfHostedWork):
                    raise ValueError(f"a poll was answered with a {type(item).__name__}")
            except API_ERRORS as error:
                if is_fatal(error):
                    raise self._rejected(error) from error
                failures += 1
                pause = min(_PAUSE_MAX_S, 2.0 ** min(failures, 10) / 2) + random.random()
                log.warning("poll failed, trying again in %.0f s: %s", pause, describe(error))
                await asyncio.sleep(pause)
                continue
            failures = 0
            if item:
                yield item
                continue
            await asyncio.sleep(max(0.0, _EMPTY_POLL_S - (time.monotonic() - began)) + random.uniform(0, 0.05))

    async def acknowledge(self, work_id: str) -> str:
        """Take the item out of the queue; returns when that was, as the queue writes it. Raises the API's errors."""
        item = await self.client.beta.environments.work.ack(work_id, environment_id=self.environment_id)
        return getattr(item, "acknowledged_at", None) or ""

    async def stop(self, work_id: str, *, client: AsyncAnthropic | None = None) -> None:
        """End the item now. No error where it has ended already; other failures are logged, and the lease lapses."""
        try:
            # No retry by the SDK: 409 says that it is stopped, and it would be asked for twice more.
            await (
                (client or self.client)
                .with_options(max_retries=0)
                .beta.environments.work.stop(work_id, environment_id=self.environment_id, force=True)
            )
        except API_ERRORS as error:
            if status_of(error) != _CONFLICT:
                log.warning("item not stopped work_id=%s %s", work_id, describe(error))

    async def items(self) -> list[BetaSelfHostedWork]:
        """Every item of the environment. Raises the API's errors."""
        return [item async for item in self.client.beta.environments.work.list(self.environment_id, limit=100)]

    def _rejected(self, error: Exception) -> QueueRejected:
        step = "Check ANTHROPIC_ENVIRONMENT_ID."
        if is_rejected_credential(error):
            step = "Check in the Console that the key was made for this environment and is not revoked."
        return QueueRejected(self.environment_id, describe(error), step)
