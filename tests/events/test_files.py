"""Opening, losing and sharing the file: what is there, what is refused, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlite_utils import Database

from events.envelope import NewEvent, new_events
from events.errors import (
    EventInvalid,
    EventTooNew,
    LogBusy,
    LogCorrupt,
    LogFull,
    LogLocked,
    LogMissing,
    LogTooNew,
    LogUnavailable,
    NotALog,
    UnknownEventType,
)
from events.log import Append, Expect
from events.schema import APPLICATION_ID, SCHEMA_VERSION, migrations
from events.sqlite_log import SqliteLog
from events.types import SessionIdled

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = "session-s"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


def some(command: str, text: str = "x") -> list[NewEvent]:
    return new_events(command, [SessionIdled(stop_reason=text)])


def fill(path: Path, count: int = 20) -> None:
    with SqliteLog(path, durability="normal") as log:
        for n in range(count):
            log.append(STREAM, some(f"c{n}"), expected=n)


@contextmanager
def small_disk(at: Path, kib: int) -> Iterator[None]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def _fill_up(log: SqliteLog, size: int) -> None:
    """Append until it fails."""
    for n in range(1000):
        log.append(STREAM, some(f"c{n}", f"{n}" + "x" * size), expected=n)


def crash_copy(log: SqliteLog, to: Path) -> Path:
    """The files as a killed process leaves them: nothing was closed, the WAL not written back."""
    to.mkdir()
    for name in ("log.db", "log.db-wal"):
        shutil.copyfile(log.path.with_name(name), to / name)
    if log.blobs.root.exists():
        shutil.copytree(log.blobs.root, to / "blobs")
    return to / "log.db"


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogMissing, match=r"log\.db") as caught:
        SqliteLog(tmp_path / "log.db", read_only=True)
    assert "hourglass up" in caught.value.advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_is_no_database(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "log.db"
    path.write_text("not a database, but somebody's text\n" * 100)
    with pytest.raises(NotALog):
        SqliteLog(path, read_only=read_only)
    assert path.read_text().startswith("not a database")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_database_of_another_program(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "log.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(NotALog, match="another program"):
        SqliteLog(path, read_only=read_only)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_log_that_was_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.touch()
    with pytest.raises(NotALog, match="empty"):
        SqliteLog(path, read_only=True)
    fill(path, 1)


def test_a_log_whose_making_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    migrations.ensure_migrations_table(Database(connection))
    connection.close()
    with pytest.raises(NotALog, match="empty"):
        SqliteLog(path, read_only=True)
    fill(path, 1)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_log_of_a_newer_version(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "log.db"
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(LogTooNew) as caught:
        SqliteLog(path, read_only=read_only)
    assert (caught.value.found, caught.value.supported) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)
    assert "pip install --upgrade" in caught.value.advice


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    fill(path, 200)
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LogCorrupt) as caught:
        SqliteLog(path)
    assert "hourglass log verify" in caught.value.advice
    with pytest.raises(LogCorrupt):
        list(SqliteLog(path, read_only=True).read_all())
    # The lock is free again: the next try hears of the damage, not of a lock.
    with pytest.raises(LogCorrupt):
        SqliteLog(path)


def test_a_folder_where_the_log_should_be(tmp_path: Path) -> None:
    (tmp_path / "log.db").mkdir()
    for read_only in (True, False):
        with pytest.raises(LogUnavailable):
            SqliteLog(tmp_path / "log.db", read_only=read_only)


def test_a_second_writer_is_told_who_has_it(log: SqliteLog) -> None:
    with pytest.raises(LogLocked) as caught:
        SqliteLog(log.path)
    assert caught.value.holder == f"pid {os.getpid()}"
    log.append(STREAM, some("c"), expected=0)


def test_another_program_that_holds_the_write_lock(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert log._writer is not None
    log._writer._connection.execute("PRAGMA busy_timeout = 10")
    blocker = sqlite3.connect(log.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogBusy):
        log.append(STREAM, some("c"), expected=0)
    blocker.execute("ROLLBACK")
    blocker.close()
    log.append(STREAM, some("c"), expected=0)


def test_what_another_program_writes_is_noticed(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0)
    stranger = sqlite3.connect(log.path)
    with stranger:
        stranger.execute(
            "INSERT INTO events SELECT 2, stream, 2, 'other', type, schema_version, recorded_at, correlation_id, "
            "causation_id, epoch, data, blob, metadata, zeroblob(32) FROM events"
        )
    stranger.close()
    [event] = log.append(STREAM, some("d"), expected=2)
    assert event.position == 3
    broken = log.verify()
    assert broken is not None
    assert broken.position == 2


def test_rows_are_never_changed_by_hand(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0)
    stranger = sqlite3.connect(log.path)
    for change in ("UPDATE events SET data = '{}'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            stranger.execute(change)
    stranger.close()


def test_a_full_disk_loses_nothing_and_the_log_goes_on(log: SqliteLog) -> None:
    assert log._writer is not None
    connection = log._writer._connection
    log.append(STREAM, some("c"), expected=0)
    [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LogFull) as caught:
        log.append(STREAM, some("d", "x" * 60_000), expected=1)
    assert "repeat" in caught.value.advice
    assert log.version(STREAM) == 1
    connection.execute("PRAGMA max_page_count = 1000000")
    assert log.append(STREAM, some("d", "x" * 60_000), expected=1)[0].version == 2
    assert log.verify() is None


@needs_root
@pytest.mark.parametrize("size", [3_000, 200_000], ids=["rows", "blobs"])
def test_a_disk_that_is_really_full(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "small", 2048):
        ballast = tmp_path / "small" / "ballast"
        ballast.write_bytes(b"x" * 1_000_000)
        with SqliteLog(tmp_path / "small" / "log.db", durability="normal") as log:
            with pytest.raises(LogFull):
                _fill_up(log, size)
            written = log.version(STREAM)
            assert written > 0
            ballast.unlink()
            log.append(STREAM, some(f"c{written}", f"{written}" + "x" * size), expected=written)
            assert log.verify() is None


@pytest.mark.parametrize("closed", [True, False], ids=["after the service", "beside the service"])
def test_reading_works_on_the_file_alone(tmp_path: Path, closed: bool) -> None:
    writer = SqliteLog(tmp_path / "log.db")
    writer.append(STREAM, some("c"), expected=0)
    if closed:
        writer.close()
    with SqliteLog(tmp_path / "log.db", read_only=True) as reader:
        assert reader.version(STREAM) == 1
        if not closed:
            writer.append(STREAM, some("d"), expected=1)
            assert reader.version(STREAM) == 2
    writer.close()


@needs_root
@pytest.mark.parametrize("crashed", [True, False], ids=["with a WAL", "without"])
def test_reading_works_on_a_copy_that_cannot_be_written(tmp_path: Path, crashed: bool) -> None:
    (tmp_path / "live").mkdir()
    log = SqliteLog(tmp_path / "live" / "log.db")
    log.append(STREAM, some("c"), expected=0)
    log.append(STREAM, some("d", "x" * 100_000), expected=1)
    with small_disk(tmp_path / "copy", 8192):
        if not crashed:
            log.close()
        for name in ("log.db", "log.db-wal"):
            if (tmp_path / "live" / name).exists():
                shutil.copyfile(tmp_path / "live" / name, tmp_path / "copy" / name)
        shutil.copytree(tmp_path / "live" / "blobs", tmp_path / "copy" / "blobs")
        assert (tmp_path / "copy" / "log.db-wal").exists() == crashed
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "copy"], check=True)
        with SqliteLog(tmp_path / "copy" / "log.db", read_only=True) as reader:
            assert [event.version for event in reader.read(STREAM)] == [1, 2]
            assert reader.verify() is None
        with pytest.raises(LogUnavailable, match=r"(?i)read-only"):
            SqliteLog(tmp_path / "copy" / "log.db")
    log.close()


def test_what_a_killed_process_leaves_is_whole(tmp_path: Path) -> None:
    """The child says what it knows to be durable, and is killed while it writes on."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from events.envelope import new_events\n"
        "from events.sqlite_log import SqliteLog\n"
        "from events.types import SessionIdled\n"
        "log = SqliteLog(Path(sys.argv[1]))\n"
        "for n in range(log.version('session-s'), 1_000_000):\n"
        "    text = 'x' * (100_000 if n % 7 == 0 else 100)\n"
        "    log.append('session-s', new_events(f'c{n}', [SessionIdled(stop_reason=text)]), expected=n, epoch=1)\n"
        "    print(n + 1, flush=True)\n"
    )
    path = tmp_path / "log.db"
    for more in (40, 25):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        told = 0
        for line, _ in zip(child.stdout, range(more), strict=False):
            told = int(line)
        child.kill()
        told = max([told, *map(int, child.stdout.read().split())])
        child.wait()
        child.stdout.close()
        with SqliteLog(path) as log:
            assert log.version(STREAM) >= told
            assert log.verify() is None


def test_a_crash_before_the_wal_was_written_back(log: SqliteLog, tmp_path: Path) -> None:
    for n in range(50):
        log.append(STREAM, some(f"c{n}"), expected=n, epoch=2)
    epoch = log.next_epoch("host")
    with SqliteLog(crash_copy(log, tmp_path / "crash")) as again:
        assert list(again.read_all()) == list(log.read_all())
        assert again.next_epoch("host") == epoch + 1
        assert again.append(STREAM, some("c49"), expected=49)[0].version == 50
        assert again.verify() is None


def test_an_event_type_of_a_newer_version(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0)
    stranger = sqlite3.connect(log.path)
    for position, event_type, schema in ((2, "session.teleported", 1), (3, "session.idled", 9)):
        with stranger:
            stranger.execute(
                "INSERT INTO events SELECT ?, stream, ?, ?, ?, ?, recorded_at, correlation_id, causation_id, epoch, "
                '\'{"to":"mars"}\', blob, metadata, hash FROM events WHERE position = 1',
                (position, position, f"id{position}", event_type, schema),
            )
    stranger.close()
    with pytest.raises(UnknownEventType) as unknown:
        list(log.read(STREAM))
    assert (unknown.value.type, unknown.value.position) == ("session.teleported", 2)
    with pytest.raises(UnknownEventType):
        list(log.read_data(STREAM))
    with pytest.raises(EventTooNew) as newer:
        list(log.read(STREAM, after_version=2))
    assert (newer.value.found, newer.value.supported, newer.value.position) == (9, 1, 3)
    with pytest.raises(EventTooNew):
        list(log.read_data(STREAM, 2))
    # Those who only display see it as it is.
    assert [log.json(row) for row in log.rows(1)] == [{"to": "mars"}] * 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [('{"type":"session.idled"}', "stop_reason: Field required"), ("{", "JSON"), ('{"type":"x"}', "type")],
)
def test_data_that_is_not_what_its_type_promises(log: SqliteLog, data: str, reason: str) -> None:
    log.append(STREAM, some("c"), expected=0)
    stranger = sqlite3.connect(log.path)
    with stranger:
        stranger.execute("DROP TRIGGER events_no_update")
        stranger.execute("UPDATE events SET data = ?", (data,))
    stranger.close()
    for read in (log.read, log.read_data):
        with pytest.raises(EventInvalid, match=reason) as caught:
            list(read(STREAM))
        assert caught.value.position == 1


def test_sqlite_utils_opens_it_as_it_is(log: SqliteLog) -> None:
    log.append(STREAM, some("c"), expected=0)
    other = Database(log.path)
    assert other.table("events").count == 1
    assert set(other.view_names()) == {"sessions", "sandboxes", "tool_calls", "egress"}
    assert other.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    other.close()


def test_a_batch_that_can_not_be_written_fails_as_a_whole_and_the_next_goes_on(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert log._writer is not None

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(log._writer, "_notice_strangers", fail)
        with pytest.raises(LogUnavailable, match="Input/output error"):
            log.append(STREAM, some("c"), expected=0)
    assert log.append_many([Append(STREAM, some("c"), Expect.NO_STREAM)])[0][0].version == 1
