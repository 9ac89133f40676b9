"""Taking over events of another log, as they were recorded there: all at once, or none.

A row keeps everything but its position and its hash: it gets a place in this log's own chain. What this log has already
must be the same, event for event, so that taking over twice adds nothing.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from events.chain import GENESIS
from events.database import WriterLock, open_for_writing, translated
from events.errors import LogCorrupt, StreamDiffers
from events.rows import COLUMNS, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INSERT = f"INSERT INTO events ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"
_OF_ITS_OWN = ("position", "hash")
"""What a row has of the log that it is in."""


class Adoption:
    """Events that are being taken over; made by `adopting`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._position, self._hash = self._tail()
        self._heads: dict[str, int] = {}
        self.added = 0
        """Events that are new here."""
        self.there = 0
        """Events that were here already."""

    def take(self, row: Row) -> None:
        """Take over the next event of a stream, from its first on.

        Raises:
            StreamDiffers: this log has another event in its place, or its id in another.
            LogError: SQLite refused.
        """
        with translated(self._path):
            self._take(row)

    def _take(self, row: Row) -> None:
        head = self._head(row.stream)
        if row.version <= head:
            self._compare(row)
            self.there += 1
            return
        if row.version != head + 1:
            raise StreamDiffers(path=self._path, stream=row.stream, version=head + 1, detail=", which is missing")
        mine = row._replace(position=self._position + 1)
        mine = mine._replace(hash=mine.expected_hash(self._hash))
        try:
            self._connection.execute(_INSERT, mine)
        except sqlite3.IntegrityError:
            detail = f", whose id {row.event_id} is another event's here"
            raise StreamDiffers(path=self._path, stream=row.stream, version=row.version, detail=detail) from None
        self._position, self._hash = mine.position, mine.hash
        self._heads[row.stream] = row.version
        self.added += 1

    def commit(self) -> None:
        """Make all of it durable. Raises `LogError`."""
        with translated(self._path):
            self._connection.execute("COMMIT")

    def _head(self, stream: str) -> int:
        if stream not in self._heads:
            [(version,)] = self._connection.execute(
                "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?", (stream,)
            )
            self._heads[stream] = version
        return self._heads[stream]

    def _compare(self, row: Row) -> None:
        mine = self._connection.execute(
            f"SELECT {COLUMNS} FROM events WHERE stream = ? AND version = ?", (row.stream, row.version)
        ).fetchone()
        other = Row._make(mine)._asdict()
        if any(other[name] != value for name, value in row._asdict().items() if name not in _OF_ITS_OWN):
            raise StreamDiffers(path=self._path, stream=row.stream, version=row.version)

    def _tail(self) -> tuple[int, bytes]:
        last = self._connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
        ever = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        position, digest = last or (0, GENESIS)
        if ever is not None and ever[0] != position:
            raise LogCorrupt(
                path=self._path, detail=f"its last row is {position}, and rows up to {ever[0]} were written"
            )
        return position, digest


@contextmanager
def adopting(path: Path) -> Iterator[Adoption]:
    """Take over events into the log at `path`, which is made where it is not there; unless committed, nothing is kept.

    Raises:
        LogLocked: a service writes it.
        LogError: as `SqliteLog`, or as SQLite refuses a row or the commit.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path)
    try:
        connection = open_for_writing(path, "full")
        try:
            with translated(path):
                connection.execute("BEGIN IMMEDIATE")
                adoption = Adoption(path, connection)
            yield adoption
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.close()
    finally:
        lock.release()
