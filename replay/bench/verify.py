"""How many bytes a second a log is verified at: hashes, versions, data, blobs, and SQLite's own structure.

The yardstick is a bare loop over the same rows: `sqlite3` reads each, and SHA-256 is taken of the bytes that its hash
is of, made beforehand. Without the reading, which takes several times as long as the hashing, it is printed beside it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING

from events.chain import GENESIS, seal
from events.envelope import new_events
from events.rows import COLUMNS
from events.sqlite_log import SqliteLog
from replay.bench.frame import Result, in_turns, ratio, scratch
from replay.bench.replay import history

if TYPE_CHECKING:
    from replay.bench.frame import Progress

_ROUNDS = 5
_SANDBOXES = 20
_CALLS = 5000
"""Of each: two events for one, 200,000 in all."""
_MB = 1e6


def run(progress: Progress) -> Result:
    """In turns with the yardstick; the log is open, and in the page cache."""
    result = Result("verify")
    with scratch("verify") as folder, SqliteLog(folder / "log.db", durability="normal") as log:
        progress("writing the events")
        for number in range(_SANDBOXES):
            events = new_events(f"bench-{number}", history(_CALLS), correlation_id="sesn_bench")
            log.append(f"sandbox-{number}", events, expected=0)
        texts = _hashed(log)
        size = sum(map(len, texts))
        progress("verifying and hashing")
        ours, yardstick = in_turns(_ROUNDS, lambda _: size / _verify(log), lambda _: size / _read_and_hash(log, texts))
        hashed = [size / _hash(texts) for _ in range(_ROUNDS)]
    result.figure("events", len(texts), "")
    result.figure("log_verified", statistics.median(ours) / _MB, "MB/s")
    result.figure("events_verified", statistics.median(ours) / size * len(texts), "1/s")
    result.figure("read_and_hashed_in_a_loop", statistics.median(yardstick) / _MB, "MB/s")
    result.figure("hashed_in_a_loop", statistics.median(hashed) / _MB, "MB/s")
    result.at_least("a log verified, for each byte that is read and hashed in a loop", ratio(ours, yardstick), 0.5)
    return result


def _hashed(log: SqliteLog) -> list[bytes]:
    """For each row, the bytes that its hash is of."""
    previous, texts = GENESIS, []
    for row in log.rows():
        sealed = seal(
            row.stream,
            row.event_id,
            row.type,
            row.schema_version,
            row.correlation_id,
            row.causation_id,
            row.data,
            row.blob,
            row.metadata,
        )
        place = b"%d/%d/%d/%d/" % (row.position, row.version, row.recorded_at, row.epoch)
        texts.append(previous + place + sealed)
        previous = row.hash
        assert hashlib.sha256(texts[-1]).digest() == previous
    return texts


def _verify(log: SqliteLog) -> float:
    began = time.perf_counter()
    assert log.verify() is None
    return time.perf_counter() - began


def _read_and_hash(log: SqliteLog, texts: list[bytes]) -> float:
    with closing(sqlite3.connect(log.path)) as connection:
        began = time.perf_counter()
        rows = connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position")
        for _, text in zip(rows, texts, strict=True):
            hashlib.sha256(text).digest()
        return time.perf_counter() - began


def _hash(texts: list[bytes]) -> float:
    began = time.perf_counter()
    for text in texts:
        hashlib.sha256(text).digest()
    return time.perf_counter() - began
