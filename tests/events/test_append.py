from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from events.envelope import Event, NewEvent, new_events
from events.errors import (
    EventIdTaken,
    EventNotStorable,
    LogClosed,
    LogReadOnly,
    StaleEpoch,
    WrongExpectedVersion,
)
from events.log import Append, Expect
from events.sqlite_log import SqliteLog
from events.types import SessionIdled, ToolCallStarted

if TYPE_CHECKING:
    from pathlib import Path

STREAM = "session-s"


def some(command: str, count: int = 1) -> list[NewEvent]:
    return new_events(command, [SessionIdled(stop_reason=f"{command} {n}") for n in range(count)], correlation_id="s")


def test_what_is_appended_is_read_back(log: SqliteLog) -> None:
    new = new_events(
        "c",
        [SessionIdled(stop_reason="end_turn")],
        correlation_id="sesn_1",
        causation_id="toolu_1",
        metadata={"node": "n1", "host": "h1"},
    )
    [event] = log.append(STREAM, new, expected=Expect.NO_STREAM, epoch=3)
    assert event == Event(
        position=1,
        stream=STREAM,
        version=1,
        event_id=new[0].event_id,
        type="session.idled",
        schema_version=1,
        recorded_at_us=event.recorded_at_us,
        correlation_id="sesn_1",
        causation_id="toolu_1",
        epoch=3,
        data=SessionIdled(stop_reason="end_turn"),
        metadata={"node": "n1", "host": "h1"},
        hash=event.hash,
    )
    assert event.recorded_at.tzinfo is not None
    assert list(log.read(STREAM)) == [event]
    assert list(log.read_all()) == [event]
    assert list(log.read_data(STREAM)) == [event.data]


@pytest.mark.parametrize("expected", [0, Expect.NO_STREAM, Expect.ANY])
def test_a_new_stream_may_be_expected_in_three_ways(log: SqliteLog, expected: int | Expect) -> None:
    assert [event.version for event in log.append(STREAM, some("c", 2), expected=expected)] == [1, 2]


@pytest.mark.parametrize("expected", [2, Expect.STREAM_EXISTS, Expect.ANY])
def test_an_existing_stream_may_be_expected_in_three_ways(log: SqliteLog, expected: int | Expect) -> None:
    log.append(STREAM, some("c", 2), expected=0)
    assert [event.version for event in log.append(STREAM, some("d"), expected=expected)] == [3]


@pytest.mark.parametrize(
    ("before", "expected"), [(0, Expect.STREAM_EXISTS), (0, 1), (2, Expect.NO_STREAM), (2, 0), (2, 1), (2, 3)]
)
def test_a_conflict_names_stream_expected_and_actual(log: SqliteLog, before: int, expected: int | Expect) -> None:
    if before:
        log.append(STREAM, some("c", before), expected=0)
    with pytest.raises(WrongExpectedVersion) as caught:
        log.append(STREAM, some("d"), expected=expected)
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == (STREAM, expected, before)
    assert log.version(STREAM) == before


@pytest.mark.parametrize("expected", [0, 7, Expect.NO_STREAM, Expect.STREAM_EXISTS, Expect.ANY])
def test_a_repeat_appends_nothing_and_gets_the_first_result(log: SqliteLog, expected: int | Expect) -> None:
    first = log.append(STREAM, some("c", 2), expected=0, epoch=4)
    log.append(STREAM, some("d"), expected=2, epoch=5)
    assert log.append(STREAM, some("c", 2), expected=expected, epoch=1) == first
    assert log.version(STREAM) == 3


def test_a_part_of_an_earlier_append_is_no_repeat(log: SqliteLog) -> None:
    log.append(STREAM, some("c", 2), expected=0)
    with pytest.raises(EventIdTaken) as caught:
        log.append(STREAM, some("c", 3), expected=2)
    assert str(some("c")[0].event_id) in caught.value.taken
    assert log.version(STREAM) == 2


def test_an_id_of_another_stream_is_no_repeat(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0)
    with pytest.raises(EventIdTaken):
        log.append("session-other", some("c"), expected=Expect.ANY)
    assert log.streams() == [STREAM]


def test_an_older_epoch_is_refused_even_where_the_version_fits(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0, epoch=2)
    with pytest.raises(StaleEpoch) as caught:
        log.append(STREAM, some("d"), expected=1, epoch=1)
    assert (caught.value.epoch, caught.value.last) == (1, 2)
    log.append(STREAM, some("e"), expected=1, epoch=2)


def test_the_fence_holds_after_a_restart(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.append(STREAM, some("c"), expected=0, epoch=2)
    with SqliteLog(tmp_path / "log.db") as log, pytest.raises(StaleEpoch):
        log.append(STREAM, some("d"), expected=1, epoch=1)


def test_several_streams_are_written_together(log: SqliteLog) -> None:
    parent, child = log.append_many([Append("sandbox-a", some("c"), 0), Append("sandbox-b", some("d", 2), 0)])
    assert [event.position for event in parent + child] == [1, 2, 3]
    assert log.streams() == ["sandbox-a", "sandbox-b"]


def test_several_streams_are_written_together_or_not_at_all(log: SqliteLog) -> None:
    log.append("sandbox-b", some("b"), expected=0)
    with pytest.raises(WrongExpectedVersion):
        log.append_many([Append("sandbox-a", some("c"), 0), Append("sandbox-b", some("d"), 0)])
    assert log.streams() == ["sandbox-b"]
    [event] = log.append("sandbox-a", some("c"), expected=0)
    assert event.position == 2


def test_one_stream_may_be_written_twice_in_one_transaction(log: SqliteLog) -> None:
    first, second = log.append_many([Append(STREAM, some("c", 2), 0), Append(STREAM, some("d"), 2)])
    assert [event.version for event in first + second] == [1, 2, 3]
    with pytest.raises(WrongExpectedVersion):
        log.append_many([Append(STREAM, some("e"), 3), Append(STREAM, some("f"), 3)])
    assert log.version(STREAM) == 3


def test_nothing_to_append_is_nothing_to_check(log: SqliteLog) -> None:
    assert log.append(STREAM, [], expected=42) == []
    assert log.append_many([]) == []
    assert log.append_many([Append(STREAM, [], 9), Append(STREAM, some("c"), 0)])[0] == []


def test_mistakes_of_the_caller(log: SqliteLog) -> None:
    [event] = some("c")
    with pytest.raises(ValueError, match="stands twice"):
        log.append(STREAM, [event, event], expected=0)
    with pytest.raises(ValueError, match="needs a name"):
        log.append("", [event], expected=0)
    with pytest.raises(ValueError, match="0 or more"):
        log.append(STREAM, [event], expected=-1)


@pytest.mark.parametrize("given", [{"command": "\ud800"}, {"n": 10**5000}], ids=["lone surrogate", "number too long"])
def test_data_that_nobody_could_read_back_is_refused(log: SqliteLog, given: dict[str, object]) -> None:
    data = ToolCallStarted(tool_use_id="t", tool="bash", input=given)
    with pytest.raises(EventNotStorable, match=r"tool_call\.started"):
        log.append("sandbox-a", new_events("c", [data]), expected=0)
    assert log.streams() == []


def test_data_deeper_than_the_parser_goes_is_refused(log: SqliteLog) -> None:
    refused = []
    for depth in (50, 150, 190, 240, 2000):
        nested: dict[str, object] = {}
        for _ in range(depth):
            nested = {"a": nested}
        data = ToolCallStarted(tool_use_id="t", tool="bash", input=nested)
        try:
            log.append("sandbox-a", new_events(f"c{depth}", [data]), expected=Expect.ANY)
        except EventNotStorable:
            refused.append(depth)
    assert 2000 in refused
    assert 50 not in refused
    # Whatever was accepted can be read.
    assert len(list(log.read("sandbox-a"))) == 5 - len(refused)
    assert log.verify() is None


def test_metadata_is_small(log: SqliteLog) -> None:
    [event] = some("c")
    with pytest.raises(EventNotStorable, match="metadata"):
        log.append(STREAM, [replace(event, metadata={"node": "x" * 70_000})], expected=0)
    with pytest.raises(EventNotStorable, match="metadata"):
        log.append(STREAM, [replace(event, metadata={"node": object()})], expected=0)  # type: ignore[dict-item]


def test_one_conflict_in_a_batch_fails_alone(log: SqliteLog) -> None:
    log.append(STREAM, some("before"), expected=0)
    blocker = sqlite3.connect(log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    # Handed in while the writer can't write: from the second on, one transaction.
    good = [log.submit([Append(f"session-{n}", some(f"g{n}"), 0)]) for n in range(10)]
    bad = log.submit([Append(STREAM, some("bad"), 0)])
    repeat = log.submit([Append("session-3", some("g3"), 0)])
    more = log.submit([Append(STREAM, some("more"), 1)])
    blocker.execute("ROLLBACK")
    blocker.close()
    with pytest.raises(WrongExpectedVersion):
        bad.result(10)
    assert [future.result(10)[0][0].version for future in good] == [1] * 10
    assert repeat.result(10) == good[3].result()
    assert more.result(10)[0][0].version == 2
    assert log.verify() is None


def test_a_cancelled_future_does_not_stop_the_writer(log: SqliteLog) -> None:
    blocker = sqlite3.connect(log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    future = log.submit([Append(STREAM, some("c"), 0)])
    assert future.cancel()
    blocker.execute("ROLLBACK")
    blocker.close()
    log.append(STREAM, some("d"), expected=Expect.STREAM_EXISTS)
    assert log.version(STREAM) == 2


async def test_coroutines_append(log: SqliteLog) -> None:
    async def caller(number: int) -> list[int]:
        events = [await log.append_async(f"session-{number}", some(f"{number}.{n}"), expected=n) for n in range(5)]
        return [event.version for [event] in events]

    assert await asyncio.gather(*(caller(number) for number in range(40))) == [[1, 2, 3, 4, 5]] * 40
    with pytest.raises(WrongExpectedVersion):
        await log.append_async("session-0", some("late"), expected=0)
    assert len(await log.append_many_async([Append("session-x", some("x"), 0), Append("session-y", some("y"), 0)])) == 2
    assert len({event.position for event in log.read_all()}) == 202
    assert log.verify() is None


async def test_a_cancelled_coroutine_can_repeat_to_know(log: SqliteLog) -> None:
    task = asyncio.create_task(log.append_async(STREAM, some("c"), expected=0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [event] = await log.append_async(STREAM, some("c"), expected=0)
    assert event.version == 1


def test_a_loop_that_is_gone_does_not_stop_the_writer(log: SqliteLog) -> None:
    blocker = sqlite3.connect(log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    loop = asyncio.new_event_loop()

    async def hand_in() -> asyncio.Task[list[Event]]:
        task = asyncio.create_task(log.append_async(STREAM, some("c"), expected=0))
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(hand_in())
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    blocker.execute("ROLLBACK")
    blocker.close()
    assert log.append(STREAM, some("d"), expected=1)[0].version == 2


def test_epochs_count_up_and_survive(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        assert [log.next_epoch("host-1"), log.next_epoch("host-1"), log.next_epoch("host-2")] == [1, 2, 1]
    with SqliteLog(tmp_path / "log.db") as log:
        assert log.next_epoch("host-1") == 3


def test_close_waits_for_what_was_handed_in(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    futures = [log.submit([Append(STREAM, some(f"c{n}"), n)]) for n in range(100)]
    log.close()
    log.close()
    assert all(future.done() for future in futures)
    with pytest.raises(LogClosed):
        log.append(STREAM, some("late"), expected=100)
    with pytest.raises(LogClosed):
        log.version(STREAM)
    with SqliteLog(tmp_path / "log.db") as again:
        assert again.version(STREAM) == 100


def test_a_log_opened_for_reading_is_not_written(log: SqliteLog) -> None:
    with SqliteLog(log.path, read_only=True) as reader:
        with pytest.raises(LogReadOnly):
            reader.append(STREAM, some("c"), expected=0)
        with pytest.raises(LogReadOnly):
            reader.next_epoch("host")
        with pytest.raises(sqlite3.OperationalError):
            reader._connection.execute("DELETE FROM events")


def test_reading_in_pages_and_slices(log: SqliteLog) -> None:
    log.append(STREAM, some("c", 2500), expected=0)
    assert [event.version for event in log.read(STREAM)] == list(range(1, 2501))
    assert len(list(log.read_data(STREAM))) == 2500
    assert len(list(log.read_data(STREAM, 1999))) == 501
    assert [event.version for event in log.read(STREAM, 999, 2)] == [1000, 1001]
    assert [event.position for event in log.read_all(2498, 10)] == [2499, 2500]
    assert [row.version for row in log.rows(2499, stream=STREAM)] == [2500]
    assert list(log.read(STREAM, limit=0)) == []
    assert list(log.read("session-none")) == []
    assert log.version("session-none") == 0


def test_ids_need_not_come_from_a_command(log: SqliteLog) -> None:
    event = NewEvent(data=SessionIdled(stop_reason="x"), event_id=uuid4())
    assert log.append(STREAM, [event], expected=0)[0].event_id == event.event_id
