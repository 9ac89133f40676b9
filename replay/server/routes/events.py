"""Events, streams and threads of a session (contract §3.4, §7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from replay.server.credentials import EVERYBODY
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import invalid, missing
from replay.server.feed import belongs
from replay.server.paging import in_period, listing
from replay.server.routes.sessions import seat_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.responses import Response

    from replay.recording import JsonObject
    from replay.server.feed import Feed, Subscription
    from replay.server.session import Thread

_PREVIEWS = frozenset({"agent.message", "agent.thinking"})
_MOST = 1000


async def post(call: Exchange) -> Response:
    """Send events."""
    seat = seat_of(call)
    kept = call.platform.sessions.post(seat.session.id, await call.body(), call.principal)
    return json({"data": kept})


async def events(call: Exchange) -> Response:
    """The history."""
    feed = seat_of(call).session.feed
    types = call.several("types")
    found = [
        event
        for event in feed.events
        if (not types or event["type"] in types)
        and in_period(event["processed_at"] or feed.created[event["id"]], call.query)
    ]
    return json(_ordered(found, call))


async def stream(call: Exchange) -> Response:
    """What happens from now on."""
    feed = seat_of(call).session.feed
    return _open(feed.subscribe(deltas=_deltas(call)), feed, call)


async def threads(call: Exchange) -> Response:
    """The session's threads, the primary one first."""
    session = seat_of(call).session
    statuses = call.several("statuses")
    found = [one for one in session.threads.values() if not statuses or one.status in statuses]
    return json(listing([session.thread_shape(one) for one in found], call.query, default=_MOST, most=_MOST))


async def thread(call: Exchange) -> Response:
    """One thread."""
    return json(seat_of(call).session.thread_shape(_thread(call)))


async def archive_thread(call: Exchange) -> Response:
    """Archive an idle thread."""
    session, chosen = seat_of(call).session, _thread(call)
    if chosen.status not in ("idle", "terminated"):
        raise invalid(f"Thread {chosen.id} is {chosen.status} and can't be archived")
    chosen.archived_at = chosen.archived_at or call.platform.clock.stamp()
    return json(session.thread_shape(chosen))


async def thread_events(call: Exchange) -> Response:
    """One thread's history."""
    session, chosen = seat_of(call).session, _thread(call)
    primary = chosen is session.primary
    return json(_ordered([one for one in session.feed.events if belongs(one, chosen.id, primary=primary)], call))


async def thread_stream(call: Exchange) -> Response:
    """What happens in one thread from now on."""
    session, chosen = seat_of(call).session, _thread(call)
    subscription = session.feed.subscribe(chosen.id, primary=chosen is session.primary, deltas=_deltas(call))
    return _open(subscription, session.feed, call)


def _ordered(found: list[JsonObject], call: Exchange) -> JsonObject:
    order = call.query.get("order", "asc")
    if order not in ("asc", "desc"):
        raise invalid("order: must be 'asc' or 'desc'")
    return listing(found if order == "asc" else found[::-1], call.query, default=100, most=_MOST)


def _thread(call: Exchange) -> Thread:
    chosen = seat_of(call).session.threads.get(call["thread"])
    if chosen is None:
        raise missing("Session thread", call["thread"])
    return chosen


def _deltas(call: Exchange) -> frozenset[str]:
    asked = frozenset(call.several("event_deltas"))
    if unknown := asked - _PREVIEWS:
        raise invalid(f"event_deltas: {sorted(unknown)[0]!r} is not one of {', '.join(sorted(_PREVIEWS))}")
    return asked


def _open(subscription: Subscription, feed: Feed, call: Exchange) -> Response:
    """The response of a stream that is subscribed already: no event falls between its headers and its first frame."""

    async def frames() -> AsyncIterator[bytes]:
        try:
            cut = call.request.scope["state"]["cut"]
            async for data in subscription.frames(call.platform.settings.ping_seconds, cut):
                yield data
        finally:
            feed.unsubscribe(subscription)

    call.platform.changed.notify()
    return StreamingResponse(frames(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


_SESSION = "/v1/sessions/{session}"
_THREAD = _SESSION + "/threads/{thread}"
RULES = [
    Rule("POST", f"{_SESSION}/events", EVERYBODY, post),
    Rule("GET", f"{_SESSION}/events", EVERYBODY, events),
    Rule("GET", f"{_SESSION}/events/stream", EVERYBODY, stream),
    Rule("GET", f"{_SESSION}/threads", EVERYBODY, threads),
    Rule("GET", _THREAD, EVERYBODY, thread),
    Rule("POST", f"{_THREAD}/archive", EVERYBODY, archive_thread),
    Rule("GET", f"{_THREAD}/events", EVERYBODY, thread_events),
    Rule("GET", f"{_THREAD}/stream", EVERYBODY, thread_stream),
]
