"""How many durable appends a second, with one caller and with 128.

Yardsticks: how often the disk makes 4 KiB durable (what one append can't beat by much), and bare sqlite3 with the very
rows that the log wrote, in the transactions it wrote them in (what group commit can't beat at all).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import ToolCallStarted
from replay.bench.frame import Result, in_turns, percentile, ratio, scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.envelope import NewEvent
    from replay.bench.frame import Progress

_ROUNDS = 7
_SINGLE = 1_000
_CALLERS = 128
_EACH = 160
_BLOCK = os.urandom(4096)
_COLUMNS = 14
_INSERT = f"INSERT INTO events VALUES ({', '.join('?' * _COLUMNS)})"


def run(progress: Progress) -> Result:
    """Both, in turns with their yardsticks."""
    result = Result("append")
    with scratch("append") as folder:
        progress("one caller, and fdatasync")
        single, sync = in_turns(_ROUNDS, lambda turn: _single(folder, turn), lambda turn: _fdatasync(folder, turn))
        progress(f"{_CALLERS} callers, and bare sqlite3")
        waits: list[float] = []
        many, bare = in_turns(_ROUNDS, lambda turn: _many(folder, turn, waits), lambda turn: _bare(folder, turn))
    result.figure("appends_1_caller", statistics.median(single), "1/s")
    result.figure("fdatasync_4_kib", statistics.median(sync), "1/s")
    result.figure("appends_128_callers", statistics.median(many), "1/s")
    result.figure("wait_128_callers_p99", percentile(waits, 0.99) * 1000, "ms")
    result.figure("bare_sqlite3_same_batches", statistics.median(bare), "1/s")
    result.at_least("appends of 1 caller for each fdatasync", ratio(single, sync), 0.4)
    result.at_least("appends of 128 callers for each of bare sqlite3", ratio(many, bare), 0.7)
    return result


def _event(number: int) -> list[NewEvent]:
    """About 200 bytes of data: a short command."""
    started = ToolCallStarted(
        tool_use_id=f"toolu_{number:024d}",
        tool="bash",
        input={"command": "python3 -m pytest -q tests/test_parser.py && echo done " + "x" * 60},
    )
    return new_events(f"bench-{number}", [started], correlation_id="sesn_bench")


def _single(folder: Path, turn: int) -> float:
    """Appends a second, each waited for."""
    events = [_event(number) for number in range(_SINGLE)]
    with SqliteLog(folder / f"single-{turn}" / "log.db") as log:
        began = time.perf_counter()
        for version, event in enumerate(events):
            log.append("sandbox-bench", event, expected=version)
        return _SINGLE / (time.perf_counter() - began)


def _fdatasync(folder: Path, turn: int) -> float:
    """How often a second 4 KiB more of a file are made durable."""
    with (folder / f"blocks-{turn}").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(_SINGLE):
            file.write(_BLOCK)
            os.fdatasync(file.fileno())
        return _SINGLE / (time.perf_counter() - began)


def _many(folder: Path, turn: int, waits: list[float]) -> float:
    """Appends a second by 128 callers on one loop, each waiting for its own; `waits` gets how long, in seconds."""
    events = [[_event(caller * _EACH + number) for number in range(_EACH)] for caller in range(_CALLERS)]
    with SqliteLog(folder / f"many-{turn}" / "log.db") as log:

        async def call(caller: int) -> None:
            for version, event in enumerate(events[caller]):
                began = time.perf_counter()
                await log.append_async(f"sandbox-{caller}", event, expected=version)
                waits.append(time.perf_counter() - began)

        async def everyone() -> float:
            began = time.perf_counter()
            await asyncio.gather(*(call(caller) for caller in range(_CALLERS)))
            return time.perf_counter() - began

        return _CALLERS * _EACH / asyncio.run(everyone())


def _bare(folder: Path, turn: int) -> float:
    """Rows a second, written by sqlite3 alone as the log wrote them in this turn."""
    batches = _transactions(folder / f"many-{turn}" / "log.db")
    path = folder / f"bare-{turn}" / "log.db"
    SqliteLog(path).close()  # the same tables, indexes and triggers
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = full")
        began = time.perf_counter()
        for rows in batches:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows)
            connection.execute("COMMIT")
        return sum(map(len, batches)) / (time.perf_counter() - began)
    finally:
        connection.close()


def _transactions(path: Path) -> list[Sequence[tuple[Any, ...]]]:
    """The rows of a log, by transaction: the writer stamps all rows of one with the same time."""
    connection = sqlite3.connect(path)
    try:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM events ORDER BY position").fetchall()
    finally:
        connection.close()
    return [[tuple(row) for row in group] for _, group in itertools.groupby(rows, lambda row: row["recorded_at"])]
