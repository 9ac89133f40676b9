"""How long it takes to know what a sandbox was after 10,000 events: read, validated and folded, from an open log."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from events.envelope import new_events
from events.sqlite_log import SqliteLog
from replay.bench.frame import Result, scratch
from replay.bench.replay import history
from replay.history.states import state_at

if TYPE_CHECKING:
    from replay.bench.frame import Progress

_ROUNDS = 15
_CALLS = 5000
_MS = 1000.0


def run(progress: Progress) -> Result:
    """At the last version, and at one in the middle; the median of each."""
    result = Result("fold")
    with scratch("fold") as folder, SqliteLog(folder / "log.db") as log:
        progress("writing the events")
        log.append("sandbox-bench", new_events("bench", history(_CALLS), correlation_id="sesn_bench"), expected=0)
        last = log.version("sandbox-bench")
        progress("reading and folding")
        whole = [_look(log, last) for _ in range(_ROUNDS)]
        half = [_look(log, last // 2) for _ in range(_ROUNDS)]
    result.figure("events", last, "")
    result.figure("state_at_the_last_version", statistics.median(whole), "ms")
    result.figure("state_at_half_of_it", statistics.median(half), "ms")
    result.at_most("ms for the state at the last version", statistics.median(whole), 100.0)
    return result


def _look(log: SqliteLog, version: int) -> float:
    began = time.perf_counter()
    state = state_at(log, "sandbox-bench", version=version)
    took = time.perf_counter() - began
    assert state.version == version
    return took * _MS
