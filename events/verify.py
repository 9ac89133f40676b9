"""Checking a log from its first row to its last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from events.chain import GENESIS
from events.errors import BlobBroken, EventInvalid, LogCorrupt
from events.log import Broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from events.rows import Row

_PROGRESS_ROWS = 1000


class _Rows(Protocol):
    def rows(self, after: int = 0, limit: int | None = None, *, stream: str | None = None) -> Iterator[Row]: ...
    def json(self, row: Row) -> Any: ...
    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...


def find_broken(log: _Rows, progress: Callable[[int], None] | None) -> Broken | None:
    """The first broken place of a log, or None.

    Found: a changed field or data byte, a row dropped, added or moved, rows dropped at the end, a blob missing or
    changed, a stream with a hole, damage of the SQLite file. Not found: a log rewritten as a whole with a chain of its
    own, by somebody who may write the file; keep the last hash elsewhere to notice that.
    """
    position, stream = 0, ""
    try:
        last, versions = GENESIS, dict[str, int]()
        for count, row in enumerate(log.rows(), start=1):
            position, stream = row.position, row.stream
            reason = _reason(log, row, last, versions.get(stream, 0))
            if reason:
                return Broken(position, stream, reason)
            last, versions[stream] = row.hash, row.version
            if progress and count % _PROGRESS_ROWS == 0:
                progress(count)
        return _broken_end(log, position) or _broken_file(log, position)
    except LogCorrupt as error:
        return Broken(position + 1, "", error.detail)


def _reason(log: _Rows, row: Row, last: bytes, version: int) -> str:
    if row.hash != row.expected_hash(last):
        return "its hash does not follow: this row was changed, or rows before it were dropped, added or moved"
    if row.version != version + 1:
        return f"version {row.version} follows version {version} in its stream"
    try:
        log.json(row)
    except BlobBroken as error:
        return f"blob {error.digest}: {error.detail}"
    except EventInvalid as error:
        return f"its data is not JSON: {error.detail}"
    return ""


def _broken_end(log: _Rows, position: int) -> Broken | None:
    """SQLite counts every position ever given, in the transaction that gives it: the last rows can't go unnoticed."""
    ever = log.query("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    if ever and ever[0][0] > position:
        return Broken(position + 1, "", f"the last rows are missing: positions up to {ever[0][0]} were written")
    return None


def _broken_file(log: _Rows, position: int) -> Broken | None:
    [(finding,)] = log.query("PRAGMA integrity_check(1)")
    return None if finding == "ok" else Broken(position, "", f"SQLite: {finding}")
