"""The log on SQLite: one file in WAL mode, one writer, any number of readers."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from events.blobs import BlobStore
from events.codec import CODEC
from events.database import Durability, WriterLock, open_for_reading, open_for_writing, translated
from events.errors import LogClosed, LogReadOnly
from events.log import Append, Broken, CaughtUp, Expect
from events.requests import Request, check_ids, prepare
from events.rows import COLUMNS, Row, RowReader
from events.subscription import Signal, follow, follow_async
from events.verify import find_broken
from events.waiting import LoopWaiter, settle_futures
from events.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from events.codec import Codec
    from events.envelope import Event, NewEvent
    from events.requests import Waiter
    from events.types import EventData

_JOINED = (
    "group_concat(data, ',' ORDER BY version)" if sqlite3.sqlite_version_info >= (3, 44) else "group_concat(data, ',')"
)
"""The rows of a page in one text. Before 3.44 they come in the order of the subquery, which its LIMIT keeps."""

_PAGE = 1000
"""Rows read at once: a reader that takes its time holds no snapshot, which would keep the WAL from being emptied."""


class SqliteLog:
    """An `EventLog` in a file, and its blobs in a directory beside it; see `EventLog` for what each method promises.

    May be used from any thread. Each method that reads raises `LogCorrupt`, `LogBusy` or `LogUnavailable` where the
    file can't be read.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        durability: Durability = "full",
        blobs: Path | str | None = None,
        read_only: bool = False,
        codec: Codec = CODEC,
    ) -> None:
        """Open a log, and make it where it is not there and may be written.

        Args:
            path: the file; `-wal`, `-shm` and `.lock` lie beside it.
            durability: "full" survives a power cut; "normal" may lose the last appends to one, but not to a crash of
                this process.
            blobs: directory of large data; default: `blobs` beside the file.
            read_only: works beside a writer, after it, and on a copy that can't be written.
            codec: the event types; only tests have others.

        Raises:
            LogMissing: nothing is there, and it is opened for reading.
            NotALog, LogTooNew, LogCorrupt: what is there can't be used; it was not changed.
            LogLocked: another writer has it.
            LogBusy, LogFull, LogUnavailable: SQLite or the file system refused.
        """
        self.path = Path(path)
        self.read_only = read_only
        self.blobs = BlobStore(Path(blobs) if blobs is not None else self.path.with_name("blobs"))
        self._codec = codec
        self._rows = RowReader(self.path, self.blobs, codec)
        self._signal = Signal()
        self._gate = threading.Lock()
        self._closed = False
        self._loop_waiter: LoopWaiter | None = None
        self._lock: WriterLock | None = None
        self._writer: Writer | None = None
        if not read_only:
            self._open_writer(durability)
        try:
            self._connection = open_for_reading(self.path)
        except BaseException:
            self._close_writer()
            raise

    def _open_writer(self, durability: Durability) -> None:
        with translated(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.path)
        try:
            with translated(self.path):
                self.blobs.root.mkdir(parents=True, exist_ok=True)
                self.blobs.sweep()
            connection = open_for_writing(self.path, durability)
            try:
                with translated(self.path):
                    self._writer = Writer(self.path, connection, self.blobs, self._codec, self._signal.notify)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def append(self, stream: str, events: Sequence[NewEvent], *, expected: int | Expect, epoch: int = 0) -> list[Event]:
        """Append to one stream and wait until it is durable."""
        return self.append_many([Append(stream, events, expected, epoch)])[0]

    def append_many(self, writes: Sequence[Append]) -> list[list[Event]]:
        """Append to several streams in one transaction."""
        return self.submit(writes).result()

    def submit(self, writes: Sequence[Append]) -> Future[list[list[Event]]]:
        """Hand in an `append_many` without waiting."""
        future: Future[list[list[Event]]] = Future()
        self._hand_in(writes, settle_futures, future)
        return future

    async def append_async(
        self, stream: str, events: Sequence[NewEvent], *, expected: int | Expect, epoch: int = 0
    ) -> list[Event]:
        """`append` for a coroutine."""
        return (await self._submit_async([Append(stream, events, expected, epoch)]))[0]

    async def append_many_async(self, writes: Sequence[Append]) -> list[list[Event]]:
        """`append_many` for a coroutine."""
        return await self._submit_async(writes)

    def _submit_async(self, writes: Sequence[Append]) -> asyncio.Future[list[list[Event]]]:
        loop = asyncio.get_running_loop()
        waiter = self._loop_waiter
        if waiter is None or waiter.loop is not loop:
            # One for each loop, and nearly always the one of the last call; two loops that take turns are woken twice.
            waiter = self._loop_waiter = LoopWaiter(loop)
        future: asyncio.Future[list[list[Event]]] = loop.create_future()
        self._hand_in(writes, waiter, future)
        return future

    def _hand_in(self, writes: Sequence[Append], waiter: Waiter, token: Any) -> None:
        writer = self._writable()
        prepared = [prepare(write, self._codec) for write in writes]
        check_ids(prepared)
        writer.submit(Request(prepared, waiter, token))

    def next_epoch(self, name: str) -> int:
        """Count up a durable counter, from 1."""
        future: Future[int] = Future()
        self._writable().submit(Request([], settle_futures, future, counter=name))
        return future.result()

    def _writable(self) -> Writer:
        if self._writer is None:
            raise LogReadOnly(path=self.path)
        return self._writer

    # Reading

    def read(self, stream: str, after_version: int = 0, limit: int | None = None) -> Iterator[Event]:
        """Events of one stream, in order."""
        return map(self._rows.event, self._pages("stream = ? AND version > ?", "version", after_version, limit, stream))

    def read_data(self, stream: str, after_version: int = 0) -> Iterator[EventData]:
        """What happened in one stream, in order, without the envelopes."""
        return chain.from_iterable(self._data_pages(stream, after_version))

    def _data_pages(self, stream: str, after_version: int) -> Iterator[list[EventData]]:
        # One JSON array for a page, made where the rows are: a fifth of the reading time, against a row at a time.
        sql = (
            f"SELECT count(*), count(data), '[' || {_JOINED} || ']' FROM "
            f"(SELECT version, {self._codec.current_data} AS data FROM events WHERE stream = ? AND version > ? "
            f"ORDER BY version LIMIT {_PAGE})"
        )
        while True:
            [(rows, plain, page)] = self.query(sql, (stream, after_version))
            if not rows:
                return
            try:
                # Where one is left out, it is of an older schema, or in a blob.
                data = self._codec.decode_page(page) if plain == rows else []
            except ValueError:
                data = []  # one of them is not what its type promises: which one, row by row will tell
            yield data if len(data) == rows else [event.data for event in self.read(stream, after_version, _PAGE)]
            if rows < _PAGE:
                return
            after_version += _PAGE

    def read_all(self, after: int = 0, limit: int | None = None) -> Iterator[Event]:
        """Events of the whole log, in order of position."""
        return map(self._rows.event, self._pages("position > ?", "position", after, limit))

    def rows(self, after: int = 0, limit: int | None = None, *, stream: str | None = None) -> Iterator[Row]:
        """Rows as they are stored, in order of position: for readers that display, whatever wrote the log.

        Args:
            after: a position; with `stream`, a version.
        """
        if stream is None:
            return map(Row._make, self._pages("position > ?", "position", after, limit))
        return map(Row._make, self._pages("stream = ? AND version > ?", "version", after, limit, stream))

    def json(self, row: Row) -> Any:
        """A row's data as plain JSON, as it was written.

        Raises:
            BlobBroken: it is in a blob that is missing or damaged.
            EventInvalid: it is not JSON.
        """
        return self._rows.json(row)

    def version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where there is no such stream."""
        [(version,)] = self.query("SELECT coalesce(max(version), 0) FROM events WHERE stream = ?", (stream,))
        return int(version)

    def version_at(self, stream: str, *, position: int | None = None, time_us: int | None = None) -> int:
        """Version of the stream's last event at or before a position, or a time; 0 where there is none."""
        sql = (
            "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?1 "
            "AND (?2 IS NULL OR position <= ?2) AND (?3 IS NULL OR recorded_at <= ?3)"
        )
        [(version,)] = self.query(sql, (stream, position, time_us))
        return int(version)

    def position(self) -> int:
        """Position of the last event; 0 where there is none."""
        [(position,)] = self.query("SELECT coalesce(max(position), 0) FROM events")
        return int(position)

    def streams(self) -> list[str]:
        """Names of all streams, sorted."""
        return [name for (name,) in self.query("SELECT DISTINCT stream FROM events ORDER BY stream")]

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query that only reads, for example over the views `sessions`, `sandboxes` and `tool_calls`."""
        with self._gate, translated(self.path):
            if self._closed:
                raise LogClosed(path=self.path)
            return self._connection.execute(sql, parameters).fetchall()

    def query_dicts(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """As `query`, each row by the names of its columns."""
        with self._gate, translated(self.path):
            if self._closed:
                raise LogClosed(path=self.path)
            cursor = self._connection.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def _pages(
        self, where: str, key: str, after: int, limit: int | None, *parameters: object
    ) -> Iterator[tuple[Any, ...]]:
        column = COLUMNS.split(", ").index(key)
        sql = f"SELECT {COLUMNS} FROM events WHERE {where} ORDER BY {key} LIMIT ?"
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            page = self.query(sql, (*parameters, after, size))
            yield from page
            if len(page) < size:
                return
            after = page[-1][column]
            left = None if left is None else left - size

    # Following

    def subscribe(self, after: int = 0, *, timeout: float | None = None) -> Iterator[Event | CaughtUp]:
        """Events from `after` on, then each new one, with `CaughtUp` markers."""
        return follow(self._tail, self._signal, after, poll=self.read_only, timeout=timeout)

    def subscribe_async(self, after: int = 0, *, timeout: float | None = None) -> AsyncIterator[Event | CaughtUp]:
        """`subscribe` for a coroutine."""
        return follow_async(self._tail, self._signal, after, poll=self.read_only, timeout=timeout)

    def subscribe_rows(self, after: int = 0, *, timeout: float | None = None) -> Iterator[Row | CaughtUp]:
        """`subscribe` for readers that display: rows as they are stored, whatever wrote them."""
        return follow(self._tail_rows, self._signal, after, poll=self.read_only, timeout=timeout)

    def _tail_rows(self, after: int) -> list[Row]:
        return list(self.rows(after, _PAGE))

    def _tail(self, after: int) -> list[Event]:
        return list(self.read_all(after, _PAGE))

    # The whole

    def verify(self, progress: Callable[[int], None] | None = None) -> Broken | None:
        """Check every row, blob and version; the first broken place, or None."""
        return find_broken(self, progress)

    def close(self) -> None:
        """Wait until all that was handed in is durable, then let go of the file."""
        # The reading connection first: SQLite writes the WAL back and removes it with the last one, if that may write.
        with self._gate:
            if not self._closed:
                self._closed = True
                self._connection.close()
        self._close_writer()
        self._signal.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
