"""Checking a log from its first row to its last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from events.chain import GENESIS, link, seal
from events.database import open_for_reading, translated
from events.errors import BlobBroken, EventInvalid, LogCorrupt
from events.log import Broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from events.rows import Row

_PROGRESS_ROWS = 1000


class _Rows(Protocol):
    path: Path

    def rows(self, after: int = 0, limit: int | None = None, *, stream: str | None = None) -> Iterator[Row]: ...
    def json(self, row: Row) -> Any: ...
    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...


def find_broken(log: _Rows, progress: Callable[[int], None] | None) -> Broken | None:
    """The first broken place of a log, or None.

    Found: a changed field or data byte, a row dropped, added or moved, rows dropped at the end, a blob missing or
    changed, a stream with a hole, damage of the SQLite file. Not found: a log rewritten as a whole with a chain of its
    own, by somebody who may write the file; keep the last hash elsewhere to notice that.
    """
    position = 0
    try:
        with _checking_file(log.path) as checked:
            last, versions = GENESIS, dict[str, int]()
            for count, row in enumerate(log.rows(), start=1):
                position = row[0]
                reason = _reason(log, row, last, versions)
                if reason:
                    return Broken(position, row.stream, reason)
                last = row[-1]
                if progress and count % _PROGRESS_ROWS == 0:
                    progress(count)
            end = _broken_end(log, position)
            finding = "ok" if end is not None else checked()
        return end or (None if finding == "ok" else Broken(position, "", f"SQLite: {finding}"))
    except LogCorrupt as error:
        return Broken(position + 1, "", error.detail)


def _reason(log: _Rows, row: Row, last: bytes, versions: dict[str, int]) -> str:
    """Why a row is broken; "" where it is not, and its stream's version is taken in."""
    # Unpacked once: this runs for every row, and the fields of a named tuple cost a look-up each.
    (
        position,
        stream,
        version,
        event_id,
        type_,
        schema,
        time,
        correlation,
        causation,
        epoch,
        data,
        blob,
        meta,
        digest,
    ) = row
    sealed = seal(stream, event_id, type_, schema, correlation, causation, data, blob, meta)
    if digest != link(last, position, version, time, epoch, sealed):
        return "its hash does not follow: this row was changed, or rows before it were dropped, added or moved"
    before = versions.get(stream, 0)
    if version != before + 1:
        return f"version {version} follows version {before} in its stream"
    versions[stream] = version
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


@contextmanager
def _checking_file(path: Path) -> Iterator[Callable[[], str]]:
    """SQLite's own check of the file, beside what is done meanwhile, on a second core; its finding is waited for.

    Ended where nobody asks for it. Asking raises `LogError`.
    """
    connection = open_for_reading(path)

    def check() -> str:
        with translated(path):
            [(finding,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
            return str(finding)

    with ThreadPoolExecutor(1) as beside:
        checking = beside.submit(check)
        try:
            yield checking.result
        finally:
            connection.interrupt()
            wait([checking])
            connection.close()
