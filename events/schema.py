"""The tables and views of a log file, made and migrated by sqlite-utils.

A view is for people and for SQL: it shows what the rows say and is no part of the log's truth. Times in views are ISO
8601 in UTC; data above 64 KiB lies in a blob and is NULL here.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from events import views

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Packages that are not loaded yet can't be for a moment."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


# It loads both where they are installed: half a second for each command, and 60 MiB for each host, for nothing.
with _without("pandas", "numpy"):
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

APPLICATION_ID = 0x48474C53
"""In the file's header, "HGLS": tells a log from any other SQLite file."""

SCHEMA_VERSION = 1
"""In the file's header (`PRAGMA user_version`): counted up by each migration that older versions can't live with."""

migrations = Migrations("hourglass-log")


@migrations(name="0001_log")
def _log(db: Database) -> None:
    # In SQL, since sqlite-utils makes no AUTOINCREMENT: without it SQLite gives the number of a dropped last row again.
    db.execute(
        """
        CREATE TABLE events (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            stream TEXT NOT NULL,
            version INTEGER NOT NULL,
            event_id TEXT NOT NULL,
            type TEXT NOT NULL,
            schema_version INTEGER NOT NULL,
            recorded_at INTEGER NOT NULL, -- microseconds since the epoch, UTC
            correlation_id TEXT NOT NULL,
            causation_id TEXT NOT NULL,
            epoch INTEGER NOT NULL,
            data TEXT,                    -- JSON, or NULL where it is in a blob
            blob TEXT,                    -- SHA-256 of the data, in hex: blobs/ab/abcd...
            metadata TEXT NOT NULL,       -- JSON
            hash BLOB NOT NULL,           -- SHA-256 over the previous row's hash and this row
            CHECK ((data IS NULL) <> (blob IS NULL))
        ) STRICT
        """
    )
    db.table("events").create_index(["stream", "version"], index_name="events_stream_version", unique=True)
    db.table("events").create_index(["event_id"], index_name="events_event_id", unique=True)
    for change in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON events "
            "BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
        )
    db.table("epochs").create({"name": str, "epoch": int}, pk="name", not_null={"epoch"}, strict=True)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")


@migrations(name="0002_views")
def _views(db: Database) -> None:
    db.create_view("tool_calls", views.TOOL_CALLS)
    db.create_view("sessions", views.SESSIONS)
    db.create_view("sandboxes", views.SANDBOXES)


@migrations(name="0003_views_of_pauses_and_forks")
def _views_of_pauses_and_forks(db: Database) -> None:
    db.create_view("sessions", views.SESSIONS, replace=True)
    db.create_view("sandboxes", views.SANDBOXES, replace=True)


@migrations(name="0004_view_of_what_branches_run_again")
def _view_of_what_branches_run_again(db: Database) -> None:
    db.create_view("tool_calls", views.TOOL_CALLS, replace=True)


@migrations(name="0005_view_of_egress")
def _view_of_egress(db: Database) -> None:
    db.create_view("egress", views.EGRESS)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file to this schema, from any older one or from nothing."""
    migrations.apply(Database(connection, execute_plugins=False))
