"""Rows of the log for tables: only the columns and streams that are asked for, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from events.errors import BlobBroken
from replay.timeline.source import NotInLog, find, sandboxes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from events.sqlite_log import SqliteLog

PAGE = 2000
"""Rows read at once, and of one batch: Arrow's strings have room for 2 GiB in each."""
_SESSION, _SANDBOX = "session-", "sandbox-"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the log is read."""

    until: int
    """The last position: what is appended meanwhile belongs to the next look."""
    streams: tuple[str, ...] | None = None
    """None: all."""


def scope(log: SqliteLog, session: str | None = None, sandbox: str | None = None) -> Scope:
    """The streams of a session (its own, and those of its sandboxes), of one sandbox, or of both.

    Args:
        session, sandbox: an id, a stream, or the beginning of one that no other has.

    Raises:
        NotInLog, Ambiguous: it names nothing, or several.
    """
    until = log.position()
    mine: tuple[str, ...] | None = None
    if session is not None:
        subject = find(log, session)
        if subject.sandbox_id:
            raise NotInLog(path=str(log.path), name=f"session {session}")
        mine = (_SESSION + subject.session_id, *(_SANDBOX + one for one in sandboxes_of(log, subject.session_id)))
    if sandbox is not None:
        found = find(log, sandbox).sandbox_id
        if not found:
            raise NotInLog(path=str(log.path), name=f"sandbox {sandbox}")
        mine = tuple(one for one in mine or (_SANDBOX + found,) if one == _SANDBOX + found)
    return Scope(until, mine)


def pages(
    log: SqliteLog, columns: Sequence[str], within: Scope, types: Sequence[str] | None = None
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows, some thousands at a time; in order of position within each stream, and of the log where all are read.

    Args:
        columns: of the table `events`.
        types: of events; None: all.

    Raises:
        LogError: as `SqliteLog.query`.
    """
    of_type = f" AND type IN ({', '.join('?' * len(types))})" if types is not None else ""
    names = ", ".join(columns)
    if within.streams is None:
        sql = (
            f"SELECT position, {names} FROM events WHERE position > ? AND position <= ?{of_type} "
            f"ORDER BY position LIMIT {PAGE}"
        )
        yield from _paged(log, sql, (), within.until, types)
        return
    for stream in within.streams:
        # By the index of streams; versions go up as positions do.
        sql = (
            f"SELECT version, {names} FROM events WHERE stream = ? AND version > ? AND position <= ?{of_type} "
            f"ORDER BY version LIMIT {PAGE}"
        )
        yield from _paged(log, sql, (stream,), within.until, types)


def _paged(
    log: SqliteLog, sql: str, first: tuple[object, ...], until: int, types: Sequence[str] | None
) -> Iterator[list[tuple[Any, ...]]]:
    after = 0
    while True:
        rows = log.query(sql, (*first, after, until, *(types or ())))
        if rows:
            yield [row[1:] for row in rows]
        if len(rows) < PAGE:
            return
        after = rows[-1][0]


def loaded(log: SqliteLog, data: str | None, blob: str | None) -> dict[str, Any] | None:
    """An event's data as plain JSON; None where its blob is broken, or it is no JSON object."""
    try:
        found = orjson.loads(data if data is not None else log.blobs.get(blob or ""))
    except (BlobBroken, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
