from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from events.envelope import new_events
from events.log import CaughtUp
from events.sqlite_log import SqliteLog
from events.types import SessionIdled

if TYPE_CHECKING:
    from events.envelope import Event

STREAM = "session-s"


def fill(log: SqliteLog, first: int, count: int) -> None:
    data = [SessionIdled(stop_reason=str(n)) for n in range(count)]
    log.append(STREAM, new_events(f"c{first}", data), expected=first)


def told(item: Event | CaughtUp) -> str:
    return f"caught up at {item.position}" if isinstance(item, CaughtUp) else str(item.position)


def test_history_then_a_marker(log: SqliteLog) -> None:
    fill(log, 0, 3)
    assert [told(item) for item in log.subscribe(timeout=0)] == ["1", "2", "3", "caught up at 3"]
    assert [told(item) for item in log.subscribe(2, timeout=0)] == ["3", "caught up at 3"]


def test_an_empty_log_is_caught_up_at_once(log: SqliteLog) -> None:
    assert [told(item) for item in log.subscribe(timeout=0)] == ["caught up at 0"]


def test_a_long_history_has_one_marker(log: SqliteLog) -> None:
    fill(log, 0, 2500)
    items = list(log.subscribe(timeout=0))
    assert len(items) == 2501
    assert items[-1] == CaughtUp(2500)


def test_new_events_follow_and_closing_ends_it(log: SqliteLog) -> None:
    seen: list[str] = []
    caught_up = threading.Semaphore(0)

    def reader() -> None:
        for item in log.subscribe():
            seen.append(told(item))
            if isinstance(item, CaughtUp):
                caught_up.release()

    thread = threading.Thread(target=reader)
    thread.start()
    assert caught_up.acquire(timeout=10)
    fill(log, 0, 2)
    assert caught_up.acquire(timeout=10)
    log.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [item for item in seen if not item.startswith("caught")] == ["1", "2"]
    assert seen[0] == "caught up at 0"
    assert seen[-1] == "caught up at 2"


@pytest.mark.parametrize("rows", [False, True])
def test_appends_of_another_process_are_seen(tmp_path: Path, rows: bool) -> None:
    path = tmp_path / "log.db"
    SqliteLog(path).close()
    program = (
        "import sys\n"
        "from events.envelope import new_events\n"
        "from events.sqlite_log import SqliteLog\n"
        "from events.types import SessionIdled\n"
        "with SqliteLog(sys.argv[1]) as log:\n"
        "    for n in range(5):\n"
        "        sys.stdin.readline()\n"
        "        log.append('session-s', new_events(f'c{n}', [SessionIdled(stop_reason='x')]), expected=n)\n"
    )
    with SqliteLog(path, read_only=True) as log:
        subscription = log.subscribe_rows() if rows else log.subscribe()
        assert next(subscription) == CaughtUp(0)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as child:
            assert child.stdin is not None
            for n in range(5):
                child.stdin.write("\n")
                child.stdin.flush()
                assert next(subscription).position == n + 1
                assert next(subscription) == CaughtUp(n + 1)
        assert child.returncode == 0


def test_silence_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteLog(path) as log:
        fill(log, 0, 1)
        assert len(list(log.subscribe(timeout=0.01))) == 2
        with SqliteLog(path, read_only=True) as reader:
            assert len(list(reader.subscribe(timeout=0.12))) == 2


async def test_coroutines_subscribe(log: SqliteLog) -> None:
    fill(log, 0, 3)
    seen: list[str] = []
    caught_up = asyncio.Event()

    async def reader() -> None:
        async for item in log.subscribe_async(1):
            seen.append(told(item))
            if isinstance(item, CaughtUp):
                caught_up.set()

    task = asyncio.create_task(reader())
    await asyncio.wait_for(caught_up.wait(), 10)
    caught_up.clear()
    await log.append_async(STREAM, new_events("new", [SessionIdled(stop_reason="new")]), expected=3)
    await asyncio.wait_for(caught_up.wait(), 10)
    log.close()
    await asyncio.wait_for(task, 10)
    assert seen == ["2", "3", "caught up at 3", "4", "caught up at 4"]


async def test_a_coroutine_hears_of_silence(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteLog(path) as log, SqliteLog(path, read_only=True) as reader:
        fill(log, 0, 1)
        for one in (log, reader):
            assert [told(item) async for item in one.subscribe_async(timeout=0.12)] == ["1", "caught up at 1"]


async def test_a_cancelled_subscription_leaves_no_bell(log: SqliteLog) -> None:
    caught_up = asyncio.Event()

    async def reader() -> None:
        async for _ in log.subscribe_async():
            caught_up.set()

    task = asyncio.create_task(reader())
    await asyncio.wait_for(caught_up.wait(), 10)
    assert len(log._signal._loops) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if not log._signal._loops:
            break
        await asyncio.sleep(0)
    assert not log._signal._loops
    await log.append_async(STREAM, new_events("c", [SessionIdled(stop_reason="x")]), expected=0)
