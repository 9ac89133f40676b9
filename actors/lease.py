"""The lease of one work item: held by heartbeats, and lost in one of four ways (contract §4.2, §10).

The first heartbeat is sent at once after the acknowledgement, before any machine work: an item whose worker dies
between the two stays `starting` for ever, since only items that were never acknowledged are offered again
(contract §18.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from anthropic import APIStatusError
from anthropic.types.beta.environments import BetaSelfHostedWorkHeartbeatResponse

from actors.api import API_ERRORS, describe, is_fatal, status_of

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.resources.beta.environments.work import AsyncWork

log = logging.getLogger(__name__)

NO_HEARTBEAT = "NO_HEARTBEAT"
"""What the API expects for an item that never had one (contract §4.2)."""
_TTL_ASSUMED_S = 90.0
"""Until the server tells: short, so that a second worker is never risked for long."""
_INTERVAL_MAX_S = 30.0
_INTERVAL_MIN_S = 1.0
_RETRY_S = 1.0
_HANDOVER_TTL_S = 1


class LeaseEnd(StrEnum):
    """Why a lease ended."""

    RELEASED = "released"
    """By us."""
    STOP_REQUESTED = "stop_requested"
    """The server winds the item down; it is still ours to stop."""
    PRECONDITION_FAILED = "precondition_failed"
    """412: the item was queued again or another worker holds it."""
    CREDENTIAL_REJECTED = "credential_rejected"
    """Another 4xx: this credential can't hold the lease any more."""
    NO_HEARTBEAT_SUCCEEDED = "no_heartbeat_succeeded"
    """None got through for a whole TTL, so it must be taken for lost."""

    @property
    def lost(self) -> bool:
        """Whether the item may be another worker's by now: it must not be stopped by us."""
        return self in (LeaseEnd.PRECONDITION_FAILED, LeaseEnd.NO_HEARTBEAT_SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a lease ended."""

    why: LeaseEnd
    detail: str = ""


class Lease:
    """Holds one work item from its first heartbeat until `release`, or until the server says otherwise.

    `client` must be bound to the credential that serves the item.
    """

    def __init__(
        self, client: AsyncAnthropic, *, work_id: str, environment_id: str, last_heartbeat: str = NO_HEARTBEAT
    ) -> None:
        # The SDK's own retry would hide that a beat's answer was lost, and meet a 412 of our own making.
        self._work: AsyncWork = client.with_options(max_retries=0).beta.environments.work
        self._work_id = work_id
        self._environment_id = environment_id
        self._last = last_heartbeat
        self._ttl = _TTL_ASSUMED_S
        self._interval = _INTERVAL_MAX_S
        self._last_success = time.monotonic()
        self._failing = False
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    @property
    def ttl_seconds(self) -> float:
        """What the server last granted."""
        return self._ttl

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat that was answered; none is owed once the lease has ended."""
        return 0.0 if self._ended.done() else time.monotonic() - self._last_success

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it is held."""
        return self._ended.result() if self._ended.done() else None

    async def wait_ended(self) -> Ended:
        """Return when the lease has ended."""
        return await asyncio.shield(self._ended)

    async def take(self) -> None:
        """Send the first heartbeat, then keep sending them in the background. Returns after the first answer."""
        await self._beat()
        if not self._ended.done():
            self._task = asyncio.create_task(self._keep(), name=f"lease {self._work_id}")

    async def release(self) -> None:
        """Send no more heartbeats. The item is not stopped: that is for who decided to release it."""
        self._finish(LeaseEnd.RELEASED)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def lose(self, detail: str) -> None:
        """Take it for lost: somebody saw that the item is not ours any more."""
        self._finish(LeaseEnd.PRECONDITION_FAILED, detail)

    async def hand_over(self) -> None:
        """Release in the middle of a turn: ask for the shortest lease, so that the queue offers the item again soon.

        A forced stop would strand the session on `requires_action` (contract §18.2); a lapsed lease does not.
        """
        held = not self._ended.done()
        await self.release()
        if not held:
            return
        try:
            await asyncio.wait_for(self._send(desired_ttl_seconds=_HANDOVER_TTL_S), timeout=5)
        except API_ERRORS as error:
            log.warning(
                "hand-over not confirmed, the lease lapses by itself work_id=%s %s", self._work_id, describe(error)
            )

    def _finish(self, why: LeaseEnd, detail: str = "") -> None:
        if not self._ended.done():
            self._ended.set_result(Ended(why, detail))

    async def _keep(self) -> None:
        while not self._ended.done():
            # Soon after a failure: whether its beat arrived can be told apart only within the lease.
            pause = min(_RETRY_S, self._ttl / 4) if self._failing else self._interval
            await asyncio.wait([self._ended], timeout=pause)
            if not self._ended.done():
                await self._beat()

    async def _send(self, *, desired_ttl_seconds: int | None = None) -> BetaSelfHostedWorkHeartbeatResponse:
        if desired_ttl_seconds is None:
            return await self._work.heartbeat(
                self._work_id, environment_id=self._environment_id, expected_last_heartbeat=self._last
            )
        return await self._work.heartbeat(
            self._work_id,
            environment_id=self._environment_id,
            expected_last_heartbeat=self._last,
            desired_ttl_seconds=desired_ttl_seconds,
        )

    async def _beat(self) -> None:
        try:
            # Bounded: the SDK's own timeout is minutes, and the lease would be gone long before.
            left = self._ttl - (time.monotonic() - self._last_success)
            answer = await asyncio.wait_for(self._send(), timeout=max(_INTERVAL_MIN_S, min(self._interval, left)))
            if not isinstance(answer, BetaSelfHostedWorkHeartbeatResponse):
                raise ValueError(f"a heartbeat was answered with a {type(answer).__name__}")
        except API_ERRORS as error:
            if self._is_own_beat(error):
                log.info("an unanswered heartbeat had arrived work_id=%s", self._work_id)
                await self._beat()  # at once: how much of its lease is left is not known
            else:
                self._failed(error)
            return
        self._last = answer.last_heartbeat
        self._last_success = time.monotonic()
        self._failing = False
        self._granted(answer.ttl_seconds)
        if answer.state in ("stopping", "stopped") or not answer.lease_extended:
            self._finish(LeaseEnd.STOP_REQUESTED, f"state={answer.state}")

    def _granted(self, ttl_seconds: object) -> None:
        if isinstance(ttl_seconds, int) and ttl_seconds > 0:
            self._ttl = float(ttl_seconds)
            self._interval = max(_INTERVAL_MIN_S, min(self._ttl / 2, _INTERVAL_MAX_S))

    def _failed(self, error: Exception) -> None:
        detail = describe(error)
        if status_of(error) == 412:
            self._finish(LeaseEnd.PRECONDITION_FAILED, detail)
        elif is_fatal(error):
            self._finish(LeaseEnd.CREDENTIAL_REJECTED, detail)
        elif time.monotonic() - self._last_success > self._ttl:
            self._finish(LeaseEnd.NO_HEARTBEAT_SUCCEEDED, detail)
        else:
            self._failing = True
            log.warning("heartbeat failed, trying again work_id=%s %s", self._work_id, detail)

    def _is_own_beat(self, error: Exception) -> bool:
        """Whether a 412 only says that a beat of ours arrived whose answer did not.

        Nobody else can have taken an active item before our last lease ran out. Adopts the server's heartbeat then.
        """
        state = _current_state(error)
        last = state.get("last_heartbeat")
        if status_of(error) != 412:
            return False
        in_lease = time.monotonic() - self._last_success < self._ttl
        if not (self._failing and in_lease and state.get("state") == "active" and isinstance(last, str)):
            return False
        self._last = last
        self._last_success = time.monotonic()
        self._failing = False
        self._granted(state.get("ttl_seconds"))
        return True


def _current_state(error: Exception) -> dict[str, object]:
    """The server's view of the lease in a 412 (contract §3.2); empty where there is none."""
    node: object = error.body if isinstance(error, APIStatusError) else None
    for key in ("error", "details", "current_state"):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}
