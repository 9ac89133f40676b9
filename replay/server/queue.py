"""One environment's work queue: the states, leases and preconditions of contract §4, with nothing of HTTP in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from replay.server.errors import ApiError, missing
from replay.server.metadata import merged

if TYPE_CHECKING:
    from replay.recording import JsonObject
    from replay.server.clock import Clock

NO_HEARTBEAT = "NO_HEARTBEAT"
RECLAIM_MS = 5000
"""A claim that nobody acknowledged for so long is offered again, unless a poll says otherwise (contract §4.1)."""
_POLLING_SECONDS = 30.0
_MAX_TTL_SECONDS = 3600


class State(StrEnum):
    """A work item's state."""

    QUEUED = "queued"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass
class WorkItem:
    """One entry of the queue. `reserved_at` and `expires_at` are monotonic seconds."""

    id: str
    environment_id: str
    kind: str
    created_at: str
    sequence: int
    state: State = State.QUEUED
    acknowledged_at: str | None = None
    started_at: str | None = None
    latest_heartbeat_at: str | None = None
    stop_requested_at: str | None = None
    stopped_at: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    reserved_at: float | None = None
    expires_at: float | None = None
    lease_updated_at: str | None = None
    ttl_seconds: int = 0
    claims: int = 0

    def shape(self, secret: str | None = None) -> JsonObject:
        """The Work object of contract §3.2."""
        return {
            "id": self.id,
            "type": "work",
            "environment_id": self.environment_id,
            "created_at": self.created_at,
            "acknowledged_at": self.acknowledged_at,
            "started_at": self.started_at,
            "latest_heartbeat_at": self.latest_heartbeat_at,
            "stop_requested_at": self.stop_requested_at,
            "stopped_at": self.stopped_at,
            "state": self.state.value,
            "data": {"type": self.kind, "id": self.id},
            "metadata": self.metadata,
            "secret": secret,
        }


class WorkQueue:
    """The items of one environment. An item's id is its session's and comes again once the item before it stopped."""

    def __init__(self, environment_id: str, clock: Clock, *, ttl_seconds: int = 300) -> None:
        self.environment_id = environment_id
        self.ttl_seconds = ttl_seconds
        self._clock = clock
        self._items: dict[str, WorkItem] = {}
        self._sequence = 0
        self._seen: dict[str, float] = {}

    def enqueue(self, item_id: str, kind: str = "session") -> bool:
        """Queue an item, unless a live one has that id. True where one was queued."""
        old = self._items.get(item_id)
        if old is not None and old.state is not State.STOPPED:
            return False
        self._sequence += 1
        # A new entry at the end of the dict: its order is the list's order.
        self._items.pop(item_id, None)
        self._items[item_id] = WorkItem(
            item_id, self.environment_id, kind, self._clock.stamp(), self._sequence, ttl_seconds=self.ttl_seconds
        )
        return True

    def live(self, item_id: str) -> bool:
        """Whether an item of that id is queued or held."""
        self.expire()
        item = self._items.get(item_id)
        return item is not None and item.state is not State.STOPPED

    def poll(self, worker_id: str | None = None, reclaim_older_than_ms: int = RECLAIM_MS) -> WorkItem | None:
        """Reserve the longest-waiting item, or None where nothing waits."""
        now = self._clock.monotonic()
        if worker_id:
            self._seen[worker_id] = now
        self.expire()
        for item in self._items.values():
            if item.state is State.STOPPING and item.expires_at is None:
                self._stop(item)
        waiting = [item for item in self._items.values() if self._is_waiting(item, reclaim_older_than_ms / 1000)]
        if not waiting:
            return None
        item = min(waiting, key=lambda one: one.sequence)
        item.reserved_at = now
        item.claims += 1
        return item

    def ack(self, item_id: str) -> WorkItem:
        """Take a reserved item out of the queue; a repeat changes nothing. Raises ApiError (404, 409)."""
        item = self.get(item_id)
        if item.state is State.STOPPED:
            raise ApiError(409, f"Work {item_id} is already stopped")
        if item.state is State.QUEUED:
            item.state = State.STARTING
            item.acknowledged_at = self._clock.stamp()
            item.reserved_at = None
        return item

    def heartbeat(self, item_id: str, expected: str | None = None, ttl_seconds: int | None = None) -> JsonObject:
        """Extend a lease (contract §4.2). Raises ApiError (404; 412 where the lease is not the caller's)."""
        item = self.get(item_id)
        if item.state in (State.STOPPING, State.STOPPED):
            return self._beat(item, extended=False)
        stored = item.latest_heartbeat_at
        held = item.state is not State.QUEUED and (expected is None or expected == (stored or NO_HEARTBEAT))
        if not held:
            raise self._precondition_failed(item, expected)
        if ttl_seconds is not None:
            item.ttl_seconds = max(1, min(ttl_seconds, _MAX_TTL_SECONDS))
        item.latest_heartbeat_at = item.lease_updated_at = self._clock.stamp()
        item.expires_at = self._clock.monotonic() + item.ttl_seconds
        if item.state is State.STARTING:
            item.state = State.ACTIVE
            item.started_at = item.latest_heartbeat_at
        return self._beat(item, extended=True)

    def stop(self, item_id: str, *, force: bool = False) -> WorkItem:
        """Ask the holder to wind down, or end the item. Raises ApiError (404; 409 where it is stopped)."""
        item = self.get(item_id)
        if item.state is State.STOPPED:
            raise ApiError(409, f"Work {item_id} is already stopped")
        item.stop_requested_at = item.stop_requested_at or self._clock.stamp()
        if force or item.state is State.QUEUED:
            self._stop(item)
        else:
            item.state = State.STOPPING
            if item.expires_at is None:
                # Acknowledged and never beaten: its holder gets one lease's time to notice.
                item.expires_at = self._clock.monotonic() + item.ttl_seconds
        return item

    def get(self, item_id: str) -> WorkItem:
        """The item of that id. Raises ApiError (404)."""
        self.expire()
        item = self._items.get(item_id)
        if item is None:
            raise missing("Work", item_id)
        return item

    def items(self) -> list[WorkItem]:
        """Every item, oldest first."""
        self.expire()
        return list(self._items.values())

    def patch(self, item_id: str, metadata: object) -> WorkItem:
        """Merge metadata; null deletes a key. Raises ApiError (400, 404)."""
        item = self.get(item_id)
        item.metadata = merged(item.metadata, metadata)
        return item

    def stats(self) -> JsonObject:
        """The Stats object of contract §3.2."""
        self.expire()
        now = self._clock.monotonic()
        queued = [item for item in self._items.values() if item.state is State.QUEUED]
        pending = [item for item in queued if item.reserved_at is not None]
        return {
            "type": "work_queue_stats",
            "depth": len(queued) - len(pending),
            "pending": len(pending),
            "oldest_queued_at": min((item.created_at for item in queued), default=None),
            "workers_polling": sum(now - seen < _POLLING_SECONDS for seen in self._seen.values()),
        }

    def expire(self, item_id: str | None = None) -> None:
        """Queue again what is active on a lapsed lease; with `item_id`, lapse that lease now."""
        now = self._clock.monotonic()
        for item in self._items.values():
            if item.expires_at is not None and (item.id == item_id or item.expires_at <= now):
                item.expires_at = None
                if item.state is State.ACTIVE:
                    self._requeue(item)

    def discard(self, item_id: str) -> None:
        """Forget an item, as its session was deleted."""
        self._items.pop(item_id, None)

    def _is_waiting(self, item: WorkItem, reclaim_seconds: float) -> bool:
        if item.state is not State.QUEUED:
            return False
        return item.reserved_at is None or self._clock.monotonic() - item.reserved_at >= reclaim_seconds

    def _requeue(self, item: WorkItem) -> None:
        self._sequence += 1
        item.sequence = self._sequence
        item.state = State.QUEUED
        item.acknowledged_at = item.started_at = item.latest_heartbeat_at = item.reserved_at = None

    def _stop(self, item: WorkItem) -> None:
        item.state = State.STOPPED
        item.stopped_at = self._clock.stamp()
        item.expires_at = None

    def _beat(self, item: WorkItem, *, extended: bool) -> JsonObject:
        return {
            "type": "work_heartbeat",
            "last_heartbeat": item.latest_heartbeat_at or "",
            "lease_extended": extended,
            "state": item.state.value,
            "ttl_seconds": item.ttl_seconds,
        }

    def _precondition_failed(self, item: WorkItem, expected: str | None) -> ApiError:
        current = {
            "state": item.state.value,
            "last_heartbeat": item.latest_heartbeat_at,
            "lease_updated_at": item.lease_updated_at,
            "lease_extended": False,
            "ttl_seconds": item.ttl_seconds,
        }
        return ApiError(
            412,
            f"Heartbeat precondition failed: expected {expected}, actual was {item.latest_heartbeat_at or 'NULL'}",
            details={
                "error_code": "heartbeat_precondition_failed",
                "error_visibility": "user_facing",
                "current_state": current,
            },
        )
