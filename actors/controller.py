"""The controller: claims work, holds the leases, and has hosts serve the sessions.

For each item: `session.claimed` durable → acknowledged → heartbeat at once → served by the host. The leases live here,
not in the host, so that a host that is busy, or dies, loses none of them: its sessions are served again under the same
claims by the host that replaces it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from actors.api import API_ERRORS, as_bearer, describe, is_fatal, session_token
from actors.call_spans import of_claim
from actors.claim import Claim, Outcome
from actors.host import HostGone
from actors.lease import Lease, LeaseEnd
from events.errors import IllegalTransition

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta.environments import BetaSelfHostedWork

    from actors.host import LostReason
    from actors.host_handle import HostHandle
    from actors.queue import WorkQueue

log = logging.getLogger(__name__)

SWEEP_GRACE_S = 15.0
"""An item that was acknowledged this long ago and never had a heartbeat is nobody's (contract §18.1)."""
_SWEEP_EVERY_S = 60.0
_HOST_PAUSE_S = 0.5
_CLAIMS_AT_ONCE = 2
"""More would wait for each other with the item in hand; in the queue, an item waits at no risk."""
_CLAIMS_FIRST_S = 1.0
"""How long a session waits for other claims: a queue that gives more and more must not hold up what is claimed."""
_CROWD_S = 0.1
"""Items that come within this time of each other are a crowd."""


@dataclass(slots=True)
class _Served:
    """A claim in hand."""

    claim: Claim
    tokens: list[str] = field(repr=False)
    lease: Lease
    alone: bool = True
    """Whether no other item came just before it."""
    task: asyncio.Task[None] | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    heartbeat_after: float | None = None
    """Seconds from the claim to the first heartbeat's answer."""


class Controller:
    """Serves one environment until it is drained."""

    def __init__(self, queue: WorkQueue, host: HostHandle, *, environment_key: str, max_sessions: int) -> None:
        self._queue = queue
        self._host = host
        self._environment_key = environment_key
        self._slots = asyncio.Semaphore(max_sessions)
        self._served: dict[str, _Served] = {}  # by session id: one claim at a time each
        self._claims: set[asyncio.Task[None]] = set()
        self._claiming: set[str] = set()  # session ids
        self._claim_slots = asyncio.Semaphore(_CLAIMS_AT_ONCE)
        self._last_item_at = 0.0
        self._draining = asyncio.Event()

    async def run(self) -> None:
        """Sweep, then claim and serve until `drain`. Raises `QueueRejected` where the key is refused."""
        await self._sweep()
        late_sweep = asyncio.create_task(self._sweep_later())
        polling = asyncio.create_task(self._poll())
        stopping = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([polling, stopping], return_when=asyncio.FIRST_COMPLETED)
            if polling.done():
                polling.result()
        finally:
            for task in (polling, stopping, late_sweep):
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, let the tool calls that run end within `seconds`, and hand every lease back."""
        self._draining.set()
        await asyncio.gather(*self._claims, return_exceptions=True)
        tasks = [served.task for served in self._served.values() if served.task is not None]
        if not tasks:
            return
        await self._retry(self._host.drain)
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for served in [one for one in self._served.values() if one.task in late]:
            log.warning("still busy, handed over session_id=%s", served.claim.session_id)
            await self._host.cancel(served.claim.claim_id)
        if late:
            await asyncio.wait(late, timeout=10)

    def status(self) -> dict[str, Any]:
        """Leases in hand."""
        return {
            "environment_id": self._queue.environment_id,
            "worker_id": self._queue.worker_id,
            "sessions": [
                {
                    "session_id": served.claim.session_id,
                    "claimed_seconds_ago": round(time.monotonic() - served.claimed_at, 3),
                    "heartbeat_after": served.heartbeat_after,
                    "lease_ttl": served.lease.ttl_seconds,
                    "heartbeat_age": round(served.lease.heartbeat_age, 3),
                }
                for served in self._served.values()
            ],
        }

    # --- claiming --------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        items = self._queue.poll()
        while True:
            # A slot before a poll: what can't be served waits in the queue, where another worker may take it.
            await self._claim_slots.acquire()
            await self._slots.acquire()
            item = await anext(items)
            if item.data.id in self._claiming:
                self._claim_slots.release()
                self._slots.release()  # offered again while its first offer is still being claimed
                continue
            self._claiming.add(item.data.id)
            alone = time.monotonic() - self._last_item_at > _CROWD_S
            self._last_item_at = time.monotonic()
            task = asyncio.create_task(self._take(item, alone), name=f"claim {item.id}")
            self._claims.add(task)
            task.add_done_callback(self._claims.discard)

    async def _take(self, item: BetaSelfHostedWork, alone: bool) -> None:
        """Claim one item, and see to it that it is served. Gives its slot back where it is not."""
        served = None
        try:
            served = await self._claim(item, alone)
        except HostGone as error:
            # Not acknowledged, or without a heartbeat yet: the queue offers it again, or the next sweep finds it.
            log.warning("not claimed, the host is being replaced work_id=%s %s", item.id, error)
        except IllegalTransition as error:
            await self._answer_over(item, error)
        except Exception:
            log.exception("claim broke work_id=%s", item.id)
        finally:
            self._claiming.discard(item.data.id)
            self._claim_slots.release()
            if served is None:
                self._slots.release()

    async def _answer_over(self, item: BetaSelfHostedWork, error: IllegalTransition) -> None:
        """The log says that the session is over, and the queue offers it: end what is left of it, here and there."""
        log.warning("a session that is over was offered, stopped work_id=%s %s", item.id, error)
        await self._retry(self._host.bury, item.data.id)
        await self._answer_other(item)

    async def _claim(self, item: BetaSelfHostedWork, alone: bool) -> _Served | None:
        kind: str = item.data.type  # the SDK's type knows sessions alone; health checks exist (contract §4.3)
        if kind != "session":
            await self._answer_other(item)
            return None
        token = session_token(item.secret)
        claim = self._new_claim(item, "session_token" if token else "environment_key")
        with of_claim(claim):
            return await self._claim_session(claim, token, alone)

    async def _claim_session(self, claim: Claim, token: str | None, alone: bool) -> _Served | None:
        began = time.monotonic()
        await self._supersede(claim.session_id)
        await self._host.claim(claim)
        acknowledged = await self._acknowledge(claim)
        if acknowledged is None:
            return None
        claim = replace(claim, acknowledged_at=acknowledged)
        tokens = [token, self._environment_key] if token else [self._environment_key]
        lease = Lease(self._client(tokens), work_id=claim.work_id, environment_id=claim.environment_id)
        await lease.take()
        served = _Served(claim, tokens, lease, alone=alone, claimed_at=began, heartbeat_after=time.monotonic() - began)
        log.info("claimed session_id=%s heartbeat_after=%.3f", claim.session_id, served.heartbeat_after)
        self._serve(served)
        return served

    def _new_claim(self, item: BetaSelfHostedWork, credential: Literal["session_token", "environment_key"]) -> Claim:
        return Claim(
            claim_id=f"claim_{secrets.token_hex(12)}",
            session_id=item.data.id,
            work_id=item.id,
            environment_id=self._queue.environment_id,
            worker_id=self._queue.worker_id,
            credential=credential,
        )

    async def _answer_other(self, item: BetaSelfHostedWork) -> None:
        """An item that is no session, like a health check: acknowledge and stop it, touch nothing (contract §4.3)."""
        log.info("item is no session, stopped work_id=%s type=%s", item.id, item.data.type)
        try:
            await self._queue.acknowledge(item.id)
        except API_ERRORS as error:
            log.warning("item not acknowledged work_id=%s %s", item.id, describe(error))
        await self._queue.stop(item.id)

    async def _supersede(self, session_id: str) -> None:
        """The queue offers a session that we still serve: the older claim's lease lapsed unseen."""
        older = self._served.get(session_id)
        if older is not None and older.task is not None:
            older.lease.lose("the queue offered the item again")
            await asyncio.wait([older.task])

    async def _acknowledge(self, claim: Claim) -> str | None:
        """When the queue says that it was acknowledged, "" where that was not heard; None where it was refused.

        Where the answer is lost, the acknowledgement may have arrived, and then nobody else is ever offered the item:
        the first heartbeat tells, which an item that is still queued refuses.
        """
        try:
            return await self._queue.acknowledge(claim.work_id)
        except API_ERRORS as error:
            log.warning("item not acknowledged session_id=%s %s", claim.session_id, describe(error))
            if not is_fatal(error):
                return ""
            await self._host.fail(claim, "api_error", f"the item could not be acknowledged: {describe(error)}")
            await self._queue.stop(claim.work_id)
            await self._host.release(claim, "not_served")
            return None

    def _client(self, tokens: list[str]) -> AsyncAnthropic:
        return as_bearer(self._queue.client, tokens[0])

    # --- serving ---------------------------------------------------------------------------------------------------

    def _serve(self, served: _Served) -> None:
        self._served[served.claim.session_id] = served
        served.task = asyncio.create_task(self._keep(served), name=f"serve {served.claim.session_id}")

    async def _keep(self, served: _Served) -> None:
        """Serve a claim and hold its lease, whichever ends first, then settle the item."""
        claim = served.claim
        work = asyncio.create_task(self._serve_on_host(served))
        lease = asyncio.create_task(served.lease.wait_ended())
        try:
            await asyncio.wait([work, lease], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await self._settle(served, work.result())
            else:
                await self._retry(self._host.cancel, claim.claim_id)
                await self._lease_ended(served)
        except Exception:
            log.exception("claim broke session_id=%s", claim.session_id)
        finally:
            if self._served.get(claim.session_id) is served:
                del self._served[claim.session_id]
            self._slots.release()
            work.cancel()
            lease.cancel()
            await served.lease.release()

    async def _serve_on_host(self, served: _Served) -> Outcome:
        """Have the host serve it; where the host dies, the one that replaces it serves the same claim."""
        if not served.alone:
            await self._let_claims_pass()
        while True:
            try:
                return await self._host.serve(served.claim, served.tokens)
            except HostGone as error:
                log.warning("host lost, its replacement goes on session_id=%s %s", served.claim.session_id, error)
                await asyncio.sleep(_HOST_PAUSE_S)

    async def _let_claims_pass(self) -> None:
        """Of a crowd of items each is to have its heartbeat before the machines of the others take the CPU."""
        deadline = time.monotonic() + _CLAIMS_FIRST_S
        while (now := time.monotonic()) < deadline:
            quiet = self._last_item_at + _CROWD_S - now
            if quiet <= 0 and not self._claiming:
                return
            await asyncio.sleep(max(quiet, 0.01))

    async def _retry(self, method: Any, *arguments: Any) -> None:
        """A short call to the host, repeated while the host is being replaced."""
        while True:
            try:
                await method(*arguments)
                return
            except HostGone as error:
                log.warning("host lost, asking its replacement: %s", error)
                await asyncio.sleep(_HOST_PAUSE_S)

    async def _settle(self, served: _Served, outcome: Outcome) -> None:
        """The session ended by itself: record it, then tell the queue."""
        claim = served.claim
        log.info("served session_id=%s outcome=%s %s", claim.session_id, outcome.reason, outcome.detail)
        if outcome.reason in ("idle", "not_served"):
            await self._retry(self._host.release, claim, outcome.reason)
            await served.lease.release()
            await self._queue.stop(claim.work_id, client=self._client(served.tokens))
        elif outcome.reason in ("shutdown", "cancelled"):
            await self._retry(self._host.release, claim, "shutdown")
            await served.lease.hand_over()
        else:
            # Not stopped: a stopped item strands the session; a lapsed lease has the queue offer it again.
            await self._retry(self._host.release, claim, "not_served")
            await served.lease.release()

    async def _lease_ended(self, served: _Served) -> None:
        """The lease ended under the session: it has been cancelled. Stop the item only where it is still ours."""
        claim, ended = served.claim, await served.lease.wait_ended()
        log.warning("lease ended session_id=%s %s %s", claim.session_id, ended.why, ended.detail)
        if ended.why is LeaseEnd.STOP_REQUESTED:
            await self._retry(self._host.release, claim, "stop_requested")
            await self._queue.stop(claim.work_id, client=self._client(served.tokens))
            return
        await self._retry(self._host.lose_lease, claim, cast("LostReason", ended.why.value), ended.detail)
        if not ended.why.lost:
            await self._queue.stop(claim.work_id)

    # --- what others left behind -------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Take back the leases that a controller before this one held, and end the items that nobody can serve.

        An item that is `starting` and never had a heartbeat is reclaimed by nobody (contract §18.1).
        """
        try:
            items = await self._queue.items()
        except API_ERRORS as error:
            log.warning("the queue's items could not be listed, nothing was swept: %s", describe(error))
            return
        served = {one.claim.claim_id for one in self._served.values()}
        ours = {claim.work_id: claim for claim in await self._host.open_claims() if claim.claim_id not in served}
        for item in items:
            if item.data.id in self._claiming or item.data.id in self._served:
                continue
            try:
                await self._sweep_item(item, ours.get(item.id))
            except Exception:
                # What is wrong with one item must not keep the others, or the service, from being served.
                log.exception("item not swept work_id=%s", item.id)

    async def _sweep_item(self, item: BetaSelfHostedWork, claim: Claim | None) -> None:
        stranded = item.state == "starting" and item.latest_heartbeat_at is None and _age(item) > SWEEP_GRACE_S
        # By the time of its acknowledgement: work ids come again, and the lease may be another worker's by now.
        still_ours = claim is not None and claim.acknowledged_at and claim.acknowledged_at == item.acknowledged_at
        if stranded:
            await self._end_stranded(item, claim)
        elif item.state == "active" and item.latest_heartbeat_at and claim is not None and still_ours:
            with of_claim(claim):
                await self._take_back(item, claim)

    async def _end_stranded(self, item: BetaSelfHostedWork, claim: Claim | None) -> None:
        log.warning("stranded item stopped work_id=%s acknowledged_at=%s", item.id, item.acknowledged_at)
        if item.data.type == "session":
            ended = claim or self._new_claim(item, "environment_key")
            with of_claim(ended):
                if claim is None:
                    await self._host.claim(ended)
                await self._host.release(ended, "abandoned")
        await self._queue.stop(item.id)

    async def _take_back(self, item: BetaSelfHostedWork, claim: Claim) -> None:
        """Go on with a lease of a controller that died; the item's token died with it, the environment key serves."""
        tokens = [self._environment_key]
        lease = Lease(
            self._client(tokens),
            work_id=item.id,
            environment_id=claim.environment_id,
            last_heartbeat=item.latest_heartbeat_at or "",
        )
        await lease.take()
        await self._slots.acquire()
        self._serve(_Served(claim, tokens, lease))

    async def _sweep_later(self) -> None:
        """Again and again: what was too young to judge at the start, and what other workers strand."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            await self._sweep()


def _age(item: BetaSelfHostedWork) -> float:
    """Seconds since the item was acknowledged; none where it was not, or where the time can't be read."""
    try:
        acknowledged = datetime.fromisoformat(item.acknowledged_at or "")
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - acknowledged).total_seconds()
