"""The work queue's endpoints (contract §3.2, §4)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from replay.server.credentials import EVERYBODY, Kind, pack_secret
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import invalid
from replay.server.paging import listing, whole_number
from replay.server.queue import RECLAIM_MS, WorkItem

if TYPE_CHECKING:
    from starlette.responses import Response

    from replay.server.queue import WorkQueue

_HOUR_MS = 3_600_000
_LOOK_SECONDS = 0.05
"""How long a waiting poll sleeps at most: a lease that lapses or a claim that grows old announces itself to nobody."""


def _queue(call: Exchange) -> WorkQueue:
    environment_id = call["environment"]
    call.principal.require_environment(environment_id)
    return call.platform.environments.get(environment_id).queue


def _own_item(call: Exchange) -> WorkQueue:
    queue = _queue(call)
    if call.principal.kind is Kind.SESSION:
        call.principal.require_session(call["work"], call["environment"])
    return queue


async def poll(call: Exchange) -> Response:
    """Wait for an item, reserve it, and mint its secret."""
    queue = _queue(call)
    block = whole_number(call.query, "block_ms", 1, 999) or 0
    given = whole_number(call.query, "reclaim_older_than_ms", 0, _HOUR_MS)
    reclaim = RECLAIM_MS if given is None else given
    worker_id = call.request.headers.get("anthropic-worker-id")
    deadline = time.monotonic() + block / 1000
    item = queue.poll(worker_id, reclaim)
    while item is None and not call.platform.closing and (left := deadline - time.monotonic()) > 0:
        await call.platform.changed.wait(min(left, _LOOK_SECONDS))
        item = queue.poll(worker_id, reclaim)
    if item is None:
        return json(None)
    call.platform.changed.notify()
    return json(item.shape(_secret(call, item)))


def _secret(call: Exchange, item: WorkItem) -> str | None:
    if not call.platform.settings.mint_secrets or item.kind != "session":
        return None
    return pack_secret(call.platform.credentials.sessions_token(item.environment_id, item.id))


async def ack(call: Exchange) -> Response:
    """Take a reserved item."""
    item = _queue(call).ack(call["work"])
    call.platform.changed.notify()
    return json(item.shape())


async def heartbeat(call: Exchange) -> Response:
    """Extend a lease."""
    ttl = whole_number(call.query, "desired_ttl_seconds", 1, _HOUR_MS)
    beat = _own_item(call).heartbeat(call["work"], call.query.get("expected_last_heartbeat"), ttl)
    call.platform.changed.notify()
    return json(beat)


async def stop(call: Exchange) -> Response:
    """Wind an item down, or end it."""
    queue = _own_item(call)
    force = (await call.body()).get("force", False)
    if not isinstance(force, bool):
        raise invalid("force: must be a boolean")
    item = queue.stop(call["work"], force=force)
    call.platform.changed.notify()
    return json(item.shape())


async def retrieve(call: Exchange) -> Response:
    """One item."""
    return json(_queue(call).get(call["work"]).shape())


async def patch(call: Exchange) -> Response:
    """Merge an item's metadata."""
    body = await call.body()
    return json(_queue(call).patch(call["work"], body.get("metadata")).shape())


async def items(call: Exchange) -> Response:
    """The items, newest first."""
    return json(listing([item.shape() for item in reversed(_queue(call).items())], call.query))


async def stats(call: Exchange) -> Response:
    """How many wait."""
    return json(_queue(call).stats())


_WORK = "/v1/environments/{environment}/work"
_API, _ENV = frozenset({Kind.API}), frozenset({Kind.ENVIRONMENT})
RULES = [
    Rule("GET", f"{_WORK}/poll", _ENV, poll),
    Rule("GET", f"{_WORK}/stats", _API | _ENV, stats),
    Rule("GET", _WORK, _ENV, items),
    Rule("POST", _WORK + "/{work}/ack", _ENV, ack),
    Rule("POST", _WORK + "/{work}/heartbeat", EVERYBODY - _API, heartbeat),
    Rule("POST", _WORK + "/{work}/stop", EVERYBODY, stop),
    Rule("GET", _WORK + "/{work}", _API, retrieve),
    Rule("POST", _WORK + "/{work}", _API, patch),
]
