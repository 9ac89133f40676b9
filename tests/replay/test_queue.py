from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from replay.server.clock import Clock
from replay.server.errors import ApiError
from replay.server.queue import NO_HEARTBEAT, State, WorkQueue


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        epoch = datetime(2026, 1, 1, tzinfo=UTC)
        self.clock = Clock(lambda: epoch + timedelta(seconds=self.now), lambda: self.now)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def queue(time: Time) -> WorkQueue:
    return WorkQueue("env_1", time.clock, ttl_seconds=10)


def test_items_are_reserved_in_order_and_once(queue: WorkQueue) -> None:
    assert queue.enqueue("a")
    assert queue.enqueue("b")
    assert not queue.enqueue("a")
    first, second = queue.poll(), queue.poll()
    assert first
    assert second
    assert (first.id, second.id) == ("a", "b")
    assert queue.poll() is None


def test_a_claim_without_ack_is_offered_again(queue: WorkQueue, time: Time) -> None:
    queue.enqueue("a")
    queue.poll()
    time.now += 4.5
    assert queue.poll() is None
    assert queue.poll(reclaim_older_than_ms=4500)
    time.now += 5
    assert queue.poll()


def test_an_acked_item_is_never_reclaimed(queue: WorkQueue, time: Time) -> None:
    queue.enqueue("a")
    queue.poll()
    assert queue.ack("a").state is State.STARTING
    time.now += 10_000
    assert queue.poll(reclaim_older_than_ms=0) is None
    assert queue.ack("a").state is State.STARTING


def test_a_lease_lives_from_beat_to_beat(queue: WorkQueue, time: Time) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    beat = queue.heartbeat("a", NO_HEARTBEAT)
    assert beat["state"] == "active"
    assert beat["lease_extended"]
    assert beat["ttl_seconds"] == 10
    for _ in range(3):
        time.now += 9
        beat = queue.heartbeat("a", beat["last_heartbeat"])
    time.now += 11
    with pytest.raises(ApiError) as raised:
        queue.heartbeat("a", beat["last_heartbeat"])
    assert raised.value.status == 412
    again = queue.poll()
    assert again is not None
    assert again.id == "a"
    assert again.claims == 2


def test_the_412_is_the_contracts_to_the_letter(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    queue.heartbeat("a", NO_HEARTBEAT)
    queue.expire("a")
    with pytest.raises(ApiError) as raised:
        queue.heartbeat("a", "2026-01-01T00:00:00Z")
    assert raised.value.body("req_1") == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "Heartbeat precondition failed: expected 2026-01-01T00:00:00Z, actual was NULL",
            "details": {
                "error_code": "heartbeat_precondition_failed",
                "error_visibility": "user_facing",
                "current_state": {
                    "state": "queued",
                    "last_heartbeat": None,
                    "lease_updated_at": queue.get("a").lease_updated_at,
                    "lease_extended": False,
                    "ttl_seconds": 10,
                },
            },
        },
        "request_id": "req_1",
    }


def test_a_second_worker_cant_take_a_held_lease(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    queue.heartbeat("a", NO_HEARTBEAT)
    with pytest.raises(ApiError, match="expected NO_HEARTBEAT"):
        queue.heartbeat("a", NO_HEARTBEAT)


def test_without_a_precondition_any_beat_extends(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    assert queue.heartbeat("a")["lease_extended"]
    assert queue.heartbeat("a", ttl_seconds=99_999)["ttl_seconds"] == 3600


def test_an_unacked_item_has_no_lease(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.poll()
    with pytest.raises(ApiError) as raised:
        queue.heartbeat("a", NO_HEARTBEAT)
    assert raised.value.status == 412


def test_a_graceful_stop_is_seen_by_the_holder(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    assert queue.stop("a").state is State.STOPPING
    beat = queue.heartbeat("a", NO_HEARTBEAT)
    assert beat == {
        "type": "work_heartbeat",
        "last_heartbeat": "",
        "lease_extended": False,
        "state": "stopping",
        "ttl_seconds": 10,
    }
    assert queue.stop("a", force=True).state is State.STOPPED
    with pytest.raises(ApiError) as raised:
        queue.stop("a", force=True)
    assert raised.value.status == 409
    with pytest.raises(ApiError) as raised:
        queue.ack("a")
    assert raised.value.status == 409
    assert queue.heartbeat("a", "anything")["state"] == "stopped"


def test_an_abandoned_stop_is_finished_by_the_next_poll(queue: WorkQueue, time: Time) -> None:
    queue.enqueue("a")
    queue.poll()
    queue.ack("a")
    queue.stop("a")
    queue.poll()
    assert queue.get("a").state is State.STOPPING
    time.now += 11
    queue.poll()
    assert queue.get("a").state is State.STOPPED


def test_a_stopped_id_comes_again_as_a_new_item(queue: WorkQueue) -> None:
    queue.enqueue("a")
    queue.patch("a", {"k": "v"})
    queue.stop("a", force=True)
    assert not queue.live("a")
    assert queue.enqueue("a")
    assert queue.get("a").metadata == {}
    assert queue.get("a").stopped_at is None


def test_a_stop_of_what_nobody_holds_ends_it(queue: WorkQueue) -> None:
    queue.enqueue("a")
    assert queue.stop("a").state is State.STOPPED


def test_stats_count_waiting_reserved_and_workers(queue: WorkQueue, time: Time) -> None:
    assert queue.stats()["oldest_queued_at"] is None
    queue.enqueue("a")
    queue.enqueue("b")
    queue.poll("worker-1")
    queue.poll("worker-2", 10**6)
    queue.enqueue("c")
    stats = queue.stats()
    assert (stats["depth"], stats["pending"], stats["workers_polling"]) == (1, 2, 2)
    assert stats["oldest_queued_at"] == queue.get("a").created_at
    time.now += 31
    assert queue.stats()["workers_polling"] == 0


def test_metadata_is_merged_and_checked(queue: WorkQueue) -> None:
    queue.enqueue("a")
    assert queue.patch("a", {"x": "1", "y": "2"}).metadata == {"x": "1", "y": "2"}
    assert queue.patch("a", {"x": None}).metadata == {"y": "2"}
    with pytest.raises(ApiError) as raised:
        queue.patch("a", {"x": 1})
    assert raised.value.details == {"error_code": "invalid_metadata"}


def test_an_unknown_item_is_404(queue: WorkQueue) -> None:
    for act in (queue.get, queue.ack, queue.stop, queue.heartbeat):
        with pytest.raises(ApiError) as raised:
            act("none")
        assert raised.value.status == 404


def test_stamps_strictly_increase_even_when_time_stands_still(time: Time) -> None:
    stamps = [time.clock.stamp() for _ in range(100)]
    time.now -= 3600
    stamps.append(time.clock.stamp())
    assert stamps == sorted(set(stamps))
