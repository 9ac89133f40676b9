"""The queue against a plain model of contract §4.1 and §4.2, through any order of calls and any passing of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from replay.server.clock import Clock
from replay.server.errors import ApiError
from replay.server.queue import NO_HEARTBEAT, WorkQueue

pytestmark = pytest.mark.model
TTL = 10
RECLAIM = 5
IDS = ["a", "b", "c"]


@dataclass
class Model:
    state: str
    order: int
    reserved: float | None = None
    beat: str | None = None
    expires: float | None = None


class QueueMachine(RuleBasedStateMachine):
    beats = Bundle("beats")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        epoch = datetime(2026, 1, 1, tzinfo=UTC)
        clock = Clock(lambda: epoch + timedelta(seconds=self.now), lambda: self.now)
        self.queue = WorkQueue("env", clock, ttl_seconds=TTL)
        self.items: dict[str, Model] = {}
        self.count = 0

    def lapse(self) -> None:
        for item in self.items.values():
            if item.expires is not None and item.expires <= self.now:
                item.expires = None
                if item.state == "active":
                    self.count += 1
                    item.state, item.beat, item.reserved, item.order = "queued", None, None, self.count

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 6.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        # Leases are seen to lapse when somebody looks; several at once lapse in the list's order.
        self.queue.expire()
        self.lapse()

    @rule(name=st.sampled_from(IDS))
    def enqueue(self, name: str) -> None:
        new = name not in self.items or self.items[name].state == "stopped"
        assert self.queue.enqueue(name) is new
        if new:
            self.count += 1
            self.items.pop(name, None)
            self.items[name] = Model("queued", self.count)

    @rule()
    def poll(self) -> None:
        found = self.queue.poll(reclaim_older_than_ms=RECLAIM * 1000)
        for item in self.items.values():
            if item.state == "stopping" and item.expires is None:
                item.state = "stopped"
        waiting = {
            name: item
            for name, item in self.items.items()
            if item.state == "queued" and (item.reserved is None or self.now - item.reserved >= RECLAIM)
        }
        expected = min(waiting, key=lambda name: waiting[name].order, default=None)
        assert (found.id if found else None) == expected
        if expected is not None:
            waiting[expected].reserved = self.now

    @rule(name=st.sampled_from(IDS))
    def ack(self, name: str) -> None:
        item = self.items.get(name)
        if item is None or item.state == "stopped":
            with pytest.raises(ApiError) as raised:
                self.queue.ack(name)
            assert raised.value.status == (404 if item is None else 409)
            return
        self.queue.ack(name)
        if item.state == "queued":
            item.state, item.reserved = "starting", None

    @rule(target=beats, name=st.sampled_from(IDS))
    def first_beat(self, name: str) -> object:
        return self.beat(name, NO_HEARTBEAT)

    @rule(target=beats, name=st.sampled_from(IDS), last=beats)
    def next_beat(self, name: str, last: str) -> object:
        return self.beat(name, last)

    def beat(self, name: str, expected: str) -> object:
        item = self.items.get(name)
        holds = item is not None and item.state in ("starting", "active") and expected == (item.beat or NO_HEARTBEAT)
        winding_down = item is not None and item.state in ("stopping", "stopped")
        if item is None or not (holds or winding_down):
            with pytest.raises(ApiError) as raised:
                self.queue.heartbeat(name, expected)
            assert raised.value.status == (404 if item is None else 412)
            return multiple()
        answer = self.queue.heartbeat(name, expected)
        assert answer["lease_extended"] is holds
        if holds:
            item.state, item.beat, item.expires = "active", answer["last_heartbeat"], self.now + TTL
            return answer["last_heartbeat"]
        assert answer["last_heartbeat"] == (item.beat or "")
        return multiple()

    @rule(name=st.sampled_from(IDS), force=st.booleans())
    def stop(self, name: str, force: bool) -> None:
        item = self.items.get(name)
        if item is None or item.state == "stopped":
            with pytest.raises(ApiError) as raised:
                self.queue.stop(name, force=force)
            assert raised.value.status == (404 if item is None else 409)
            return
        self.queue.stop(name, force=force)
        if force or item.state == "queued":
            item.state, item.expires = "stopped", None
        else:
            item.state = "stopping"
            item.expires = self.now + TTL if item.expires is None else item.expires

    @invariant()
    def agrees(self) -> None:
        assert {one.id: one.state.value for one in self.queue.items()} == {n: i.state for n, i in self.items.items()}
        stats = self.queue.stats()
        queued = [item for item in self.items.values() if item.state == "queued"]
        assert stats["depth"] + stats["pending"] == len(queued)
        assert stats["pending"] == sum(item.reserved is not None for item in queued)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
