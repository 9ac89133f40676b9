"""One session's events: the history that is listed, and the live streams (contract §7)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from replay.recording import JsonObject

PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def frame(event: JsonObject) -> bytes:
    """One SSE frame, named by the event's type."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), orjson.dumps(event))


@dataclass(eq=False)
class Subscription:
    """One open stream. It carries what happens after it was opened, and nothing before."""

    thread_id: str | None
    """The one thread whose events it carries; None: the session's stream."""
    primary: bool = False
    """Whether that thread is the session's primary one, whose events carry no thread id."""
    deltas: frozenset[str] = frozenset()
    """Event types whose previews (`event_start`, `event_delta`) were asked for."""
    remaining: int | None = None
    """Cut the connection after so many events; None: never."""
    _frames: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    _cut: bool = False

    def push(self, data: bytes) -> None:
        """Hand one event's frames to the stream."""
        self._frames.put_nowait(data)
        if self.remaining is not None:
            self.remaining -= 1
            if self.remaining <= 0:
                self.end(cut=True)

    def end(self, *, cut: bool = False) -> None:
        """End the stream after what was pushed: cleanly, or by cutting the connection."""
        self._cut = self._cut or cut
        self._frames.put_nowait(None)

    async def frames(self, ping_seconds: float, cut: Callable[[], None]) -> AsyncIterator[bytes]:
        """The body of the response; `cut` cuts the connection."""
        while True:
            try:
                data = await asyncio.wait_for(self._frames.get(), ping_seconds)
            except TimeoutError:
                yield PING
                continue
            if data is None:
                if self._cut:
                    cut()
                return
            yield data


class Feed:
    """Append, list, stream."""

    def __init__(self) -> None:
        self.events: list[JsonObject] = []
        self.created: dict[str, str] = {}
        """When each event came in, by its id."""
        self.duplicates = 0
        """How many of the next events are sent twice on every stream."""
        self._open: set[Subscription] = set()
        self._closed = False

    def append(self, event: JsonObject, stamp: str, *, keep: bool = True) -> None:
        """Add an event to the history (unless it is stream-only) and to every open stream."""
        if keep:
            self.events.append(event)
            self.created[event["id"]] = stamp
        times = 1
        if self.duplicates > 0:
            self.duplicates -= 1
            times = 2
        for subscription in list(self._open):
            if not belongs(event, subscription.thread_id, primary=subscription.primary):
                continue
            data = frame(event)
            if event["type"] in subscription.deltas:
                data = _previews(event) + data
            for _ in range(times):
                subscription.push(data)

    def subscribe(
        self, thread_id: str | None = None, *, primary: bool = False, deltas: frozenset[str] = frozenset()
    ) -> Subscription:
        """Open a stream of the session, or of one of its threads."""
        subscription = Subscription(thread_id, primary, deltas)
        if self._closed:
            subscription.end()
        else:
            self._open.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a stream whose client is gone."""
        self._open.discard(subscription)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def drop(self, after: int = 0, *, clean: bool = False) -> int:
        """Drop every open stream now, or once it carried `after` more events; returns how many there are."""
        for subscription in list(self._open):
            if after:
                subscription.remaining = after
            else:
                subscription.end(cut=not clean)
        return len(self._open)

    def close(self) -> None:
        """End every stream cleanly, and every later one at once: the session is over."""
        self._closed = True
        for subscription in list(self._open):
            subscription.end()


def belongs(event: JsonObject, thread_id: str | None, *, primary: bool = False) -> bool:
    """Whether an event is one of a thread's; None stands for the session, to which all belong."""
    if thread_id is None:
        return True
    owner = event.get("session_thread_id")
    return owner == thread_id or (primary and owner is None)


def _previews(event: JsonObject) -> bytes:
    start = frame({"type": "event_start", "event": {"id": event["id"], "type": event["type"]}})
    deltas = [
        {
            "type": "event_delta",
            "event_id": event["id"],
            "delta": {"type": "content_delta", "index": index, "content": {"type": "text", "text": part}},
        }
        for index, block in enumerate(event.get("content") or [])
        if block.get("type") == "text"
        for part in _halves(block["text"])
    ]
    return start + b"".join(map(frame, deltas))


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [part for part in (text[:middle], text[middle:]) if part]
