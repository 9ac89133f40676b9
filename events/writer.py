"""The one writer of a log file: a thread that commits, in one transaction, all that arrived while it wrote the last.

A batch is planned in memory first: versions, epochs, positions and hashes follow from the heads that the writer keeps.
Where every append of the batch fits, one `executemany` writes them all. Where one does not, or an event id is already
there, the batch starts over with care: each append looks up its event ids, is planned and written by itself, and fails
alone. Nothing an append does before it is accepted is visible to the next one, so no savepoint is needed.

What if the process dies here? The transaction is SQLite's: it is there whole or not at all, and nobody is told before
the commit is durable. Blobs are written before the transaction; at worst one is left that no row names.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from events.blobs import BlobStore
from events.chain import GENESIS, link
from events.database import translate
from events.envelope import Event
from events.errors import (
    EventIdTaken,
    LogClosed,
    LogCorrupt,
    LogError,
    StaleEpoch,
    WrongExpectedVersion,
)
from events.log import Expect
from events.requests import Outcome, Placed, Request
from events.rows import COLUMNS, RowReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from events.codec import Codec
    from events.requests import Waiter, Write

_BATCH = 4096
"""Appends in one transaction, at most: bounds how long the first of them waits for the last."""

_CROWD = 32
"""Waiting requests from which on it pays to write them in two transactions."""

_HEADS = 100_000
"""Streams whose last version and epoch are remembered; about 200 bytes each."""

_INSERT = f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class _Misfit(Exception):
    """An append does not fit the heads: a conflict, or the repeat of an earlier one."""

    def __init__(self, error: LogError) -> None:
        super().__init__()
        self.error = error


@dataclass(slots=True)
class _Plan:
    """What a batch will write, and the heads it leaves."""

    position: int
    hash: bytes
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Version and epoch of the streams that the plan touched."""
    rows: list[tuple[Any, ...]] = field(default_factory=list)


class Writer:
    """Owns the writing connection; everything but `submit` and `close` happens in its thread."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, blobs: BlobStore, codec: Codec, wake: Callable[[], None]
    ) -> None:
        """Read where the log ends.

        Args:
            wake: called in the writer's thread after each commit.

        Raises:
            LogCorrupt: the last rows are missing: appending would hide that.
        """
        self._path = path
        self._connection = connection
        self._blobs = blobs
        self._wake = wake
        self._reader = RowReader(path, blobs, codec)
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._heads: dict[str, tuple[int, int]] = {}
        self._untold: list[tuple[Request, Outcome]] = []
        self._position, self._hash, self._data_version = 0, GENESIS, 0
        self._load_tail()
        self._thread = threading.Thread(target=self._run, name=f"log-writer {path.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand in a request; its waiter is called once it is durable, or refused.

        Raises:
            LogClosed: after `close`.
        """
        with self._gate:
            if self._closed:
                raise LogClosed(path=self._path)
            self._queue.put(request)

    def close(self) -> None:
        """Commit what was handed in, then end the thread and close the connection."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._gather()
            if batch:
                outcomes = self._commit(batch)
                self._wake()
                self._untold = list(zip(batch, outcomes, strict=True))
        self._tell()
        self._connection.close()

    def _gather(self) -> tuple[list[Request], bool]:
        """Wait for the first request and take all that are there; False after the last one ever.

        Half of many, where nobody waits to be told of the last commit: so two crowds come to take turns, one handing in
        while the other's transaction is committed, where one crowd would leave the disk idle while it hands in.
        """
        batch: list[Request] = []
        limit = _BATCH
        while True:
            try:
                request = self._queue.get_nowait()
            except Empty:
                if batch:
                    return batch, True
                self._tell()
                request = self._queue.get()
            if request is None:
                return batch, False
            if not batch and not self._untold:
                waiting = self._queue.qsize() + 1
                limit = min(_BATCH, waiting if waiting < _CROWD else waiting // 2)
            batch.append(request)
            if len(batch) >= limit:
                return batch, True

    def _tell(self) -> None:
        """Give each waiter the outcomes of the last commit, all in one call: waking a loop costs more than a row.

        They hear of it while the next transaction is being committed, or at once where there is none: that is when this
        thread needs no Python, so that those who wake up can go on beside it. Told any earlier, they would take the
        interpreter's lock at the first row of the next transaction, and both would run one after the other.
        """
        by_waiter: dict[Waiter, list[tuple[Request, Outcome]]] = {}
        for request, outcome in self._untold:
            by_waiter.setdefault(request.waiter, []).append((request, outcome))
        self._untold = []
        for waiter, outcomes in by_waiter.items():
            waiter(outcomes)

    def _commit(self, batch: list[Request]) -> list[Outcome]:
        """Make a batch durable; whatever fails it as a whole is every request's outcome."""
        try:
            self._write_blobs(batch)
            self._connection.execute("BEGIN IMMEDIATE")
            self._notice_strangers()
            try:
                outcomes, plan = self._write_quickly(batch)
            except (_Misfit, sqlite3.IntegrityError):
                self._connection.execute("ROLLBACK")
                self._connection.execute("BEGIN IMMEDIATE")
                outcomes, plan = self._write_carefully(batch)
            self._tell()
            self._connection.execute("COMMIT")
        except BaseException as error:
            failure = translate(error, self._path) if isinstance(error, (sqlite3.Error, OSError)) else error
            self._start_over()
            self._tell()
            return [failure] * len(batch)
        self._position, self._hash = plan.position, plan.hash
        if len(self._heads) > _HEADS:
            self._heads.clear()
        self._heads.update(plan.heads)
        return outcomes

    def _start_over(self) -> None:
        """Forget all that a failed transaction may have made wrong; what is in the file holds."""
        # Where even this fails, so does the next BEGIN, and those who wait for that one hear why.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._heads.clear()
        self._data_version = -1

    def _write_quickly(self, batch: list[Request]) -> tuple[list[Outcome], _Plan]:
        plan = _Plan(self._position, self._hash)
        now = time.time_ns() // 1000
        outcomes: list[Outcome] = [
            self._count_up(request.counter) if request.counter else self._place(request, plan, now) for request in batch
        ]
        self._connection.executemany(_INSERT, plan.rows)
        return outcomes, plan

    def _write_carefully(self, batch: list[Request]) -> tuple[list[Outcome], _Plan]:
        plan = _Plan(self._position, self._hash)
        now = time.time_ns() // 1000
        outcomes: list[Outcome] = []
        for request in batch:
            if request.counter:
                outcomes.append(self._count_up(request.counter))
                continue
            try:
                outcome = self._repeated(request) or self._place(request, plan, now)
            except _Misfit as misfit:
                outcomes.append(misfit.error)
            except LogError as error:
                outcomes.append(error)
            else:
                self._connection.executemany(_INSERT, plan.rows)
                plan.rows.clear()
                outcomes.append(outcome)
        return outcomes, plan

    def _place(self, request: Request, plan: _Plan, now: int) -> Placed:
        """Add a request's rows to the plan, all or, with `_Misfit`, none of them."""
        if len(request.writes) == 1 and request.writes[0].events:
            # What nearly every request is, without the staging that several need.
            [write] = request.writes
            version = self._fit(write, self._head(write.stream, plan))
            plan.heads[write.stream] = (version + len(write.events), write.epoch)
            return Placed([(write, _rows(write, version, plan, now))])
        staged: dict[str, tuple[int, int]] = {}
        starts: list[int] = []
        for write in request.writes:
            if write.events:
                version = self._fit(write, staged.get(write.stream) or self._head(write.stream, plan))
                staged[write.stream] = (version + len(write.events), write.epoch)
                starts.append(version)
            else:
                starts.append(0)
        plan.heads.update(staged)
        return Placed(
            [(write, _rows(write, start, plan, now)) for write, start in zip(request.writes, starts, strict=True)]
        )

    @staticmethod
    def _fit(write: Write, head: tuple[int, int]) -> int:
        """The version that the stream has, where it is one that the write expects."""
        version, epoch = head
        if write.epoch < epoch:
            raise _Misfit(StaleEpoch(stream=write.stream, epoch=write.epoch, last=epoch))
        expected = write.expected
        if isinstance(expected, int):
            fits = version == expected
        else:
            fits = expected is Expect.ANY or (version > 0) is (expected is Expect.STREAM_EXISTS)
        if not fits:
            raise _Misfit(WrongExpectedVersion(stream=write.stream, expected=expected, actual=version))
        return version

    def _head(self, stream: str, plan: _Plan) -> tuple[int, int]:
        """Version and epoch of a stream's last event; zeros where there is none."""
        head = plan.heads.get(stream) or self._heads.get(stream)
        if head is None:
            row = self._connection.execute(
                "SELECT version, epoch FROM events WHERE stream = ? ORDER BY version DESC LIMIT 1", (stream,)
            ).fetchone()
            head = self._heads[stream] = row or (0, 0)
        return head

    def _repeated(self, request: Request) -> list[list[Event]] | None:
        """What a request got when it was handed in before; None where it is new."""
        result: list[list[Event]] = []
        found, wanted = 0, 0
        strangers: list[str] = []
        for write in request.writes:
            stored = [self._stored(prepared.event_id) for prepared in write.events]
            events = [event for event in stored if event is not None]
            strangers += [str(event.event_id) for event in events if event.stream != write.stream]
            found, wanted = found + len(events), wanted + len(stored)
            result.append(events)
        if found == 0:
            return None
        if found == wanted and not strangers:
            return result
        taken = strangers or [str(event.event_id) for events in result for event in events]
        raise EventIdTaken(stream=request.writes[0].stream, taken=", ".join(taken))

    def _stored(self, event_id: str) -> Event | None:
        row = self._connection.execute(f"SELECT {COLUMNS} FROM events WHERE event_id = ?", (event_id,)).fetchone()
        return self._reader.event(row) if row else None

    def _count_up(self, counter: str) -> int:
        row = self._connection.execute(
            "INSERT INTO epochs (name, epoch) VALUES (?, 1) "
            "ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
            (counter,),
        ).fetchone()
        return int(row[0])

    def _write_blobs(self, batch: list[Request]) -> None:
        for request in batch:
            for write in request.writes:
                for prepared in write.events:
                    if prepared.large:
                        self._blobs.put(prepared.large)

    def _notice_strangers(self) -> None:
        """Read the tail again where another program wrote to the file, whatever it wrote, or where a commit failed."""
        if self._connection.execute("PRAGMA data_version").fetchone()[0] != self._data_version:
            self._load_tail()

    def _load_tail(self) -> None:
        self._heads.clear()
        # First the number, then the rows: a change in between is noticed at the next batch.
        data_version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        last = self._connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
        ever = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        position, digest = last or (0, GENESIS)
        if ever is not None and ever[0] != position:
            detail = f"its last row is {position}, and rows up to {ever[0]} were written"
            raise LogCorrupt(path=self._path, detail=detail)
        self._position, self._hash, self._data_version = position, digest, data_version


def _rows(write: Write, version: int, plan: _Plan, now: int) -> list[tuple[Any, ...]]:
    """Make a write's rows after this version of its stream, and add them to the plan."""
    position, last = plan.position, plan.hash
    rows: list[tuple[Any, ...]] = []
    for prepared in write.events:
        position += 1
        version += 1
        last = link(last, position, version, now, write.epoch, prepared.sealed)
        rows.append(
            (
                position,
                write.stream,
                version,
                prepared.event_id,
                prepared.type,
                prepared.schema_version,
                now,
                prepared.event.correlation_id,
                prepared.event.causation_id,
                write.epoch,
                prepared.data,
                prepared.blob,
                prepared.metadata,
                last,
            )
        )
    plan.position, plan.hash = position, last
    plan.rows += rows
    return rows
