"""Opening a log file: for the one writer, or for reading whatever is there, and what SQLite's errors mean.

Reading must work on the file alone: beside the running service, after it is gone, and on a copy that can't be written.
SQLite reads a file in WAL mode only where the `-shm` file is there or can be made, so a copy on read-only storage is
opened as immutable where it has no WAL, and otherwise copied to a temporary directory first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from events.errors import (
    LogBusy,
    LogCorrupt,
    LogError,
    LogFull,
    LogLocked,
    LogMissing,
    LogTooNew,
    LogUnavailable,
    NotALog,
)
from events.schema import APPLICATION_ID, SCHEMA_VERSION, migrate, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator

Durability = Literal["full", "normal"]
"""`full` survives a power cut; `normal` may lose the last appends to one, but not to a crash of the process."""

BUSY_SECONDS = 5.0
"""How long a writer waits for another program's write lock."""

_WAL_PAGES = 4000
"""Pages of 4 KiB in the WAL before it is written back: at SQLite's 1000, a fifth of the writer's time goes there."""

_PRIMARY_CODE = 0xFF
"""SQLite's extended error codes carry the primary one in their lowest byte."""


class WriterLock:
    """An advisory lock beside the log (`<log>.lock`): one writer for a file. The kernel drops it with the process."""

    def __init__(self, path: Path) -> None:
        """Take it.

        Raises:
            LogLocked: another process, or another log object of this one, has it.
        """
        self._handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise LogLocked(path=path, holder=holder) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"pid {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next writer in. The file stays: removing it would let two in at once."""
        os.close(self._handle)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into the log's own errors."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error


def translate(error: sqlite3.Error | OSError, path: Path) -> LogError:
    """The log's error for SQLite's or the file system's."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return LogFull(path=path)
        return LogUnavailable(path=path, detail=f"{error.strerror or error}")
    match getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE:
        case sqlite3.SQLITE_FULL:
            return LogFull(path=path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return LogBusy(path=path, seconds=BUSY_SECONDS)
        case sqlite3.SQLITE_CORRUPT:
            return LogCorrupt(path=path, detail=str(error))
        case sqlite3.SQLITE_NOTADB:
            return NotALog(path=path, reason="it is no SQLite file, or its first page is damaged")
        case sqlite3.SQLITE_ERROR if str(error) == "malformed JSON":
            # From a view, over a row that was changed behind the log's back.
            return LogCorrupt(path=path, detail="a row holds what is not JSON")
        case _:
            return LogUnavailable(path=path, detail=str(error))


def open_for_writing(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open or make a log; the caller holds the `WriterLock`.

    Raises:
        NotALog, LogTooNew, LogCorrupt, LogBusy, LogFull, LogUnavailable.
    """
    with translated(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            _check_header(connection, path, empty_is_fine=True)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {durability}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a log that may be in use, at rest, or on storage that can't be written.

    Raises:
        LogMissing, NotALog, LogTooNew, LogCorrupt, LogUnavailable.
    """
    if not path.exists():
        raise LogMissing(path=path)
    with translated(path):
        connection = _connect_read_only(path)
        try:
            _check_header(connection, path, empty_is_fine=False)
        except BaseException:
            connection.close()
            raise
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    try:
        return _connect_uri(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & _PRIMARY_CODE not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return _connect_uri(path, "mode=ro&immutable=1")
    with tempfile.TemporaryDirectory(prefix="hourglass-") as directory:
        copy = Path(directory) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, copy.with_name(wal.name))
        # The open files outlive their names, and with them the temporary directory can go at once.
        return _connect_uri(copy, "mode=rw")


def _connect_uri(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{options}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )
    try:
        # SQLite opens the file at the first read, not before.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _check_header(connection: sqlite3.Connection, path: Path, *, empty_is_fine: bool) -> None:
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID:
        # A writer that died while it made the log leaves an empty file, or one with the table of migrations alone.
        if tables == 0 or _is_half_made(connection):
            if empty_is_fine:
                return
            raise NotALog(path=path, reason="it is empty: no writer has finished making it")
        raise NotALog(path=path, reason="it is an SQLite file of another program")
    if version > SCHEMA_VERSION:
        raise LogTooNew(path=path, found=version, supported=SCHEMA_VERSION)


def _is_half_made(connection: sqlite3.Connection) -> bool:
    names = {name for (name,) in connection.execute("SELECT tbl_name FROM sqlite_master")}
    return names == {migrations.migrations_table}


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
