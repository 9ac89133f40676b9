"""Whatever is changed behind the log's back is found, and the place is named."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from events.blobs import BlobStore
from events.envelope import new_events
from events.errors import BlobBroken, LogCorrupt
from events.sqlite_log import SqliteLog
from events.types import SessionIdled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LARGE = 200_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of ten events in two streams; the fifth is large."""
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        for n in range(10):
            text = f"event {n} " + "x" * (LARGE if n == 4 else 10)
            stream = f"session-{n % 2}"
            log.append(stream, new_events(f"c{n}", [SessionIdled(stop_reason=text)]), expected=n // 2)
    return tmp_path / "log.db"


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP TRIGGER IF EXISTS events_no_update")
        connection.execute("DROP TRIGGER IF EXISTS events_no_delete")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def page_of(path: Path, name: str) -> tuple[int, int]:
    """First page of a table or an index, from 1, and the size of a page."""
    connection = sqlite3.connect(path)
    [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
    [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    return root, size


def broken_at(path: Path) -> tuple[int, str]:
    with SqliteLog(path, read_only=True) as log:
        broken = log.verify()
    assert broken is not None
    return broken.position, broken.reason


def test_a_whole_log(path: Path) -> None:
    seen: list[int] = []
    with SqliteLog(path, read_only=True) as log:
        assert log.verify(seen.append) is None


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[int] = []
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        log.append("session-s", new_events("c", [SessionIdled(stop_reason=str(n)) for n in range(2500)]), expected=0)
        assert log.verify(seen.append) is None
    assert seen == [1000, 2000]


@pytest.mark.parametrize(
    "change",
    [
        "data = replace(data, 'event 6', 'event 7')",
        "recorded_at = recorded_at + 1",
        "correlation_id = 'x'",
        "causation_id = 'x'",
        "epoch = 1",
        'metadata = \'{"a":"b"}\'',
        "type = 'session.failed'",
        "schema_version = 2",
        "event_id = 'other'",
        "stream = 'session-2'",
        "version = 99",
        "hash = zeroblob(32)",
    ],
)
def test_a_changed_field(path: Path, change: str) -> None:
    tamper(path, f"UPDATE events SET {change} WHERE position = 7")
    position, reason = broken_at(path)
    assert position == 7
    assert "hash" in reason


def test_a_flipped_byte_in_the_file(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b"event 6") == 1
    path.write_bytes(content.replace(b"event 6", b"event 6".replace(b"v", b"w")))
    assert broken_at(path)[0] == 7


@pytest.mark.parametrize("position", [1, 4, 9])
def test_a_dropped_row(path: Path, position: int) -> None:
    tamper(path, f"DELETE FROM events WHERE position = {position}")
    assert broken_at(path)[0] == position + 1


@pytest.mark.parametrize("first", [1, 8, 10])
def test_dropped_last_rows(path: Path, first: int) -> None:
    tamper(path, f"DELETE FROM events WHERE position >= {first}")
    position, reason = broken_at(path)
    assert position == first
    assert "positions up to 10" in reason
    # Appending would hide it for good.
    with pytest.raises(LogCorrupt, match="rows up to 10 were written"):
        SqliteLog(path)


def test_swapped_rows(path: Path) -> None:
    tamper(
        path,
        "UPDATE events SET position = 1000 WHERE position = 3",
        "UPDATE events SET position = 3 WHERE position = 6",
        "UPDATE events SET position = 6 WHERE position = 1000",
    )
    assert broken_at(path)[0] == 3


def test_an_added_row(path: Path) -> None:
    tamper(
        path,
        "INSERT INTO events SELECT 11, stream, 6, 'new', type, schema_version, recorded_at, correlation_id, "
        "causation_id, epoch, data, blob, metadata, hash FROM events WHERE position = 9",
    )
    assert broken_at(path)[0] == 11


def _delete(blob: Path) -> None:
    blob.unlink()


def _truncate(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:1000])


def _flip(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[LARGE // 2] ^= 1
    blob.write_bytes(content)


def _make_unreadable(blob: Path) -> None:
    blob.unlink()
    blob.mkdir()


@pytest.mark.parametrize("harm", [_delete, _truncate, _flip, _make_unreadable])
def test_a_harmed_blob(path: Path, harm: Callable[[Path], None]) -> None:
    [blob] = path.with_name("blobs").glob("??/*")
    assert blob.parent.name == blob.name[:2]
    harm(blob)
    position, reason = broken_at(path)
    assert position == 5
    assert blob.name in reason
    with SqliteLog(path, read_only=True) as log:
        assert len(list(log.read("session-1"))) == 5
        with pytest.raises(BlobBroken) as caught:
            list(log.read("session-0"))
        assert caught.value.digest == blob.name
        with pytest.raises(BlobBroken):
            list(log.read_data("session-0"))


def test_a_hole_in_a_stream_is_found_even_with_a_chain_of_its_own(path: Path) -> None:
    """Somebody who recomputes every hash must still get the versions right."""
    with SqliteLog(path, read_only=True) as log:
        row = next(log.rows(9))._replace(version=7)
        [(previous,)] = log.query("SELECT hash FROM events WHERE position = 9")
    digest = row.expected_hash(previous).hex()
    tamper(path, f"UPDATE events SET version = 7, hash = x'{digest}' WHERE position = 10")
    assert broken_at(path) == (10, "version 7 follows version 4 in its stream")


def test_data_that_is_no_json_is_found_even_with_a_chain_of_its_own(path: Path) -> None:
    with SqliteLog(path, read_only=True) as log:
        row = next(log.rows(9))._replace(data="{")
        [(previous,)] = log.query("SELECT hash FROM events WHERE position = 9")
    tamper(path, f"UPDATE events SET data = '{{', hash = x'{row.expected_hash(previous).hex()}' WHERE position = 10")
    position, reason = broken_at(path)
    assert position == 10
    assert "not JSON" in reason


def test_a_damaged_index(path: Path) -> None:
    """SQLite's own structure: every row is whole, but a look-up would miss one."""
    root, size = page_of(path, "events_event_id")
    content = bytearray(path.read_bytes())
    start = content.index(b"-", (root - 1) * size)
    content[start] ^= 0x10
    path.write_bytes(content)
    position, reason = broken_at(path)
    assert position == 10
    assert "SQLite" in reason


def test_a_page_that_is_gone(path: Path) -> None:
    root, size = page_of(path, "events")
    content = bytearray(path.read_bytes())
    content[(root - 1) * size : root * size] = bytes(size)
    path.write_bytes(content)
    assert broken_at(path) == (1, "database disk image is malformed")


def test_blobs_are_stored_once_and_mended(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    store.root.mkdir()
    digest = store.put(b"content")
    assert store.put(b"content") == digest
    assert store.get(digest) == b"content"
    assert [found.name for found in store.root.glob("*/*")] == [digest]
    store.path(digest).write_bytes(b"cut off by a power cut")
    store.put(b"content")
    assert store.get(digest) == b"content"


def test_a_write_that_was_cut_off_is_swept_away(path: Path) -> None:
    blobs = path.with_name("blobs")
    (blobs / "writing-abc").write_bytes(b"half")
    with SqliteLog(path, read_only=True):
        assert (blobs / "writing-abc").exists()
    with SqliteLog(path):
        assert not (blobs / "writing-abc").exists()


def test_large_data_is_in_a_blob_and_small_data_is_not(path: Path) -> None:
    with SqliteLog(path, read_only=True) as log:
        assert [row.position for row in log.rows() if row.blob is not None] == [5]
        events = list(log.read("session-0"))
    assert isinstance(events[2].data, SessionIdled)
    assert len(events[2].data.stop_reason) > LARGE
