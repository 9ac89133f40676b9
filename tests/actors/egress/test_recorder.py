"""What is written of connections and refusals, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.egress import recorder as module
from actors.egress.recorder import REFUSALS_MAX, EgressRecorder
from actors.egress.refused import Refused
from actors.entity import Replaced
from events import sandbox as fold


class Log:
    """Appends when it is told to."""

    def __init__(self) -> None:
        self.appends: list[tuple[Any, ...]] = []
        self.durable = asyncio.Event()
        self.durable.set()
        self.error: Exception | None = None

    async def __call__(self, *commands: Any) -> None:
        await self.durable.wait()
        if self.error is not None:
            raise self.error
        self.appends.append(commands)

    @property
    def commands(self) -> list[Any]:
        return [command for append in self.appends for command in append]


@pytest.fixture
def log() -> Log:
    return Log()


async def test_a_connection_is_durable_before_it_carries_anything(log: Log) -> None:
    recorder = EgressRecorder(log)
    log.durable.clear()
    waiting = [asyncio.create_task(recorder.connected("a.example", 443, "9.9.9.9", "a.example")) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    log.durable.set()
    await asyncio.gather(*waiting)
    # All of them within the window are one event; another port is another.
    await recorder.connected("a.example", 443, "9.9.9.9", "a.example")
    await recorder.connected("a.example", 80, "9.9.9.9", "a.example")
    assert log.commands == [
        fold.ConnectEgress(host="a.example", port=port, address="9.9.9.9", rule="a.example") for port in (443, 80)
    ]


async def test_each_tool_call_has_an_event_of_its_own(log: Log) -> None:
    calls = ["toolu_1", "toolu_1", "toolu_2", ""]
    recorder = EgressRecorder(log, lambda: calls.pop())
    for _ in range(4):
        await recorder.connected("a.example", 443, "9.9.9.9", "a.example")
    assert len(log.commands) == 3


async def test_what_is_pending_is_told_when_it_is_wanted(log: Log) -> None:
    recorder = EgressRecorder(log)
    recorder.closed("a.example", 443, 1, 2, 0.5)
    await recorder.tell()
    assert len(log.commands) == 1
    await recorder.tell()
    await recorder.close()
    assert len(log.appends) == 1


async def test_after_the_window_a_connection_is_an_event_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.02)
    recorder = EgressRecorder(log)
    for _ in range(2):
        await recorder.connected("a.example", 443, "9.9.9.9", "a.example")
        await asyncio.sleep(0.03)
    assert len(log.commands) == 2


async def test_a_connection_that_can_not_be_recorded_is_not_made_and_the_next_one_tries_again(log: Log) -> None:
    recorder = EgressRecorder(log)
    log.error = Replaced("another host's")
    with pytest.raises(Replaced):
        await recorder.connected("a.example", 443, "9.9.9.9", "a.example")
    log.error = None
    await recorder.connected("a.example", 443, "9.9.9.9", "a.example")
    assert len(log.commands) == 1


async def test_who_is_cancelled_leaves_the_others_their_event(log: Log) -> None:
    recorder = EgressRecorder(log)
    log.durable.clear()
    first, second = (
        asyncio.create_task(recorder.connected("a.example", 443, "9.9.9.9", "a.example")) for _ in range(2)
    )
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    log.durable.set()
    await second
    assert len(log.commands) == 1


async def test_ends_are_told_together_with_their_sums(log: Log) -> None:
    recorder = EgressRecorder(log)
    for count in range(1, 4):
        recorder.closed("a.example", 443, count, 10 * count, 0.5)
    recorder.closed("b.example", 80, 1, 1, 1.0)
    await recorder.close()
    assert log.appends == [
        (
            fold.CloseEgress(host="a.example", port=443, connections=3, bytes_sent=6, bytes_received=60, seconds=1.5),
            fold.CloseEgress(host="b.example", port=80, connections=1, bytes_sent=1, bytes_received=1, seconds=1.0),
        )
    ]


async def test_a_storm_of_refusals_is_a_few_events(log: Log) -> None:
    recorder = EgressRecorder(log)
    for number in range(10 * REFUSALS_MAX):
        for _ in range(3):
            recorder.refused(f"n{number}.example", None, "dns", Refused("not_allowed", "no entry lists it"))
    await recorder.close()
    (append,) = log.appends
    assert len(append) == REFUSALS_MAX + 1
    assert sum(command.count for command in append) == 30 * REFUSALS_MAX
    assert (append[0].host, append[0].count, append[-1].host) == ("n0.example", 3, "*")


async def test_what_can_not_be_written_is_written_later(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.02)
    recorder = EgressRecorder(log)
    log.error = OSError("the disk is full")
    recorder.closed("a.example", 443, 1, 2, 3.0)
    await asyncio.sleep(0.1)
    recorder.closed("a.example", 443, 1, 2, 3.0)
    recorder.refused("b.example", 80, "tcp", Refused("not_allowed", ""))
    await asyncio.sleep(0.05)
    log.error = None
    await asyncio.sleep(0.1)
    closed, refused = log.commands
    assert (closed.connections, closed.bytes_received, closed.seconds) == (2, 4, 6.0)
    assert refused.count == 1
    await recorder.close()
    assert len(log.commands) == 2
