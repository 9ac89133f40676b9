"""A session as a file: what goes in comes out, elsewhere and again; what does not fit is refused, and not written."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from events.adoption import adopting
from events.cli import build
from events.envelope import new_events
from events.errors import FileNotWritten, LogCorrupt, LogLocked, StreamDiffers
from events.log import Append
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from replay import Snapshots, export_session, import_session, plan, state_at, tree_at
from replay.history.target import parse
from replay.parcel.errors import NotExportable, SnapshotDiffers
from replay.timeline.source import NotInLog
from tests.replay.history.boxes import SESSION, A, B, C, begin, branched, call, created, put, rewrite, started
from tests.replay.history.worlds import FIRST, SECOND

if TYPE_CHECKING:
    from pathlib import Path

    from replay.parcel.packing import Exported


def exported(home: Path, to: Path, name: str = A, *, snapshots: bool = True) -> Exported:
    with SqliteLog(home / "log.db", read_only=True) as log:
        return export_session(log, name, to, SnapshotStore.open(str(home / "snapshots")) if snapshots else None)


def imported(path: Path, home: Path) -> object:
    return import_session(path, home / "log.db", SnapshotStore.open(str(home / "snapshots")))


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files of a folder."""
    return {
        str(one.relative_to(folder)): sha256(one.read_bytes()).hexdigest()
        for one in sorted(folder.rglob("*"))
        if one.is_file() and one.suffix not in (".db-shm", ".db-wal")
    }


@pytest.fixture
def parcel(home: Path, tmp_path: Path) -> Path:
    exported(home, tmp_path / "x.hourglass")
    return tmp_path / "x.hourglass"


def test_a_session_comes_out_as_it_went_in(home: Path, tmp_path: Path) -> None:
    before = contents(home)
    done = exported(home, tmp_path / "x.hourglass")
    assert contents(home) == before
    assert done.session_id == SESSION
    assert set(done.streams) == {f"sandbox-{one}" for one in (A, B, "sbx-other")}
    assert done.snapshots == ("turn-1", "turn-2")
    assert done.left_out == ("never-stored",)
    other = tmp_path / "other"
    taken_over = import_session(
        tmp_path / "x.hourglass", other / "log.db", SnapshotStore.open(str(other / "snapshots"))
    )
    assert (taken_over.added, taken_over.there) == (done.events, 0)
    assert taken_over.snapshots == ("turn-1", "turn-2")
    with SqliteLog(home / "log.db", read_only=True) as old, SqliteLog(other / "log.db", read_only=True) as new:
        assert new.verify() is None
        for stream in done.streams:
            kept = [one._replace(position=0, hash=b"") for one in new.rows(stream=stream)]
            assert kept == [one._replace(position=0, hash=b"") for one in old.rows(stream=stream)]
            assert state_at(new, stream) == state_at(old, stream)
        store = SnapshotStore.open(str(other / "snapshots"))
        here = Snapshots(store)
        made = plan(new, f"sandbox-{B}", new.version(f"sandbox-{B}"), here.where)
        assert made.start.snapshot_id == "turn-2"
        tree = tree_at(new, parse(new, f"{A}@{SECOND}:/workspace", path=True), here)
        _, entry = tree.find("/workspace/new/file.txt")
        assert b"".join(tree.listing.read(entry)) == b"hello\n"
        assert [store.verify(one, set()) for one in ("turn-1", "turn-2", "template-base-1")] == [[], [], []]


def test_the_commands_work_on_what_was_imported(parcel: Path, tmp_path: Path) -> None:
    run = CliRunner()
    other = ["--home", str(tmp_path / "other")]
    done = run.invoke(build(), ["import", str(parcel), "--json", *other])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["session_id"] == SESSION
    for command in (
        ["timeline", A],
        ["state", A, "--version", "4"],
        ["plan", f"{A}@{SECOND}"],
        ["ls", f"{A}@{FIRST}:/workspace"],
        ["cat", f"{A}@{FIRST}:/workspace/a.py"],
        ["diff", f"{A}@{FIRST}", f"{A}@{SECOND}"],
        ["log", "verify"],
    ):
        done = run.invoke(build(), [*command, *other])
        assert done.exit_code == 0, (command, done.output)
    # And out again, the same.
    again = run.invoke(build(), ["export", A, "-o", str(tmp_path / "y.hourglass"), "--json", *other])
    assert json.loads(again.stdout)["snapshots"] == ["turn-1", "turn-2"]
    done = run.invoke(build(), ["import", str(tmp_path / "y.hourglass"), *other])
    assert "0 events" in done.stdout
    assert "0 new snapshots" in done.stdout


def test_a_second_import_changes_nothing(parcel: Path, tmp_path: Path, home: Path) -> None:
    other = tmp_path / "other"
    imported(parcel, other)
    for place in (other, home):
        before = contents(place)
        again = import_session(parcel, place / "log.db", SnapshotStore.open(str(place / "snapshots")))
        assert again.added == 0
        assert again.snapshots == ()
        after = contents(place)
        with SqliteLog(place / "log.db", read_only=True) as log:
            assert log.verify() is None
        assert {one: after[one] for one in before if "log.db" not in one} == {
            one: before[one] for one in before if "log.db" not in one
        }


def test_a_later_export_adds_what_is_new(home: Path, parcel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    imported(parcel, other)
    with SqliteLog(home / "log.db", durability="normal") as log:
        put(log, A, call("late"))
    exported(home, tmp_path / "y.hourglass")
    again = import_session(tmp_path / "y.hourglass", other / "log.db", None)
    assert again.added == 2
    # The older file has nothing to add, and takes nothing back.
    assert import_session(parcel, other / "log.db", None).added == 0
    with SqliteLog(other / "log.db", read_only=True) as log:
        assert log.verify() is None


def test_another_history_of_a_stream_is_refused_and_nothing_is_written(parcel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with SqliteLog(other / "log.db", durability="normal") as log:
        put(log, A, [created(), started("another")])
    before = contents(other)
    with pytest.raises(StreamDiffers, match=f"another history of sandbox-{A}: they differ at version 1") as caught:
        imported(parcel, other)
    assert "--home" in caught.value.advice
    assert contents(other) == before
    assert not list((other / "snapshots").rglob("*.json"))


def test_another_snapshot_of_the_same_name_is_refused(parcel: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "snapshots/manifests").mkdir(parents=True)
    shutil.copy(home / "snapshots/manifests/turn-2.json", other / "snapshots/manifests/turn-1.json")
    with pytest.raises(SnapshotDiffers, match="another snapshot of the name turn-1"):
        imported(parcel, other)
    assert not (other / "log.db").exists()


def test_a_log_that_a_service_writes_is_refused(parcel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with SqliteLog(other / "log.db", durability="normal"), pytest.raises(LogLocked):
        imported(parcel, other)
    assert not list((other / "snapshots").rglob("*.json"))


def test_an_import_that_dies_before_the_end_leaves_the_log_as_it_was(
    parcel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("events.chunks.Chunks.keep", full)
        with pytest.raises(OSError, match="No space"):
            imported(parcel, other)
    with SqliteLog(other / "log.db", read_only=True) as log:
        assert log.streams() == []
    assert SnapshotStore.open(str(other / "snapshots")).ids() == []
    imported(parcel, other)
    with SqliteLog(other / "log.db", read_only=True) as log:
        assert log.verify() is None
        assert len(log.streams()) == 3


def test_a_branch_of_another_session_takes_along_what_led_to_it(home: Path, tmp_path: Path) -> None:
    """And no more of it than that."""
    with SqliteLog(home / "log.db", durability="normal") as log:
        made = branched(A, SECOND, "turn-2").model_copy(update={"session_id": "sesn_02"})
        told = new_events("branch", [made, started()], correlation_id="sesn_02")
        log.append_many([Append(f"sandbox-{C}", told, 0)])
    done = exported(home, tmp_path / "x.hourglass", C)
    assert done.session_id == "sesn_02"
    # With the event that tells of the snapshot.
    assert done.streams == {f"sandbox-{C}": 2, f"sandbox-{A}": SECOND + 1}
    other = tmp_path / "other"
    imported(tmp_path / "x.hourglass", other)
    with SqliteLog(other / "log.db", read_only=True) as log:
        made_plan = plan(log, f"sandbox-{C}", 2, Snapshots.of(other).where)
        assert made_plan.start.snapshot_id == "turn-2"
    # The rest of the parent fits behind it.
    exported(home, tmp_path / "y.hourglass", A)
    imported(tmp_path / "y.hourglass", other)
    with SqliteLog(other / "log.db", read_only=True) as log:
        assert log.verify() is None
        assert log.version(f"sandbox-{A}") > SECOND + 1


def test_without_snapshots_the_history_alone_goes_along(home: Path, tmp_path: Path) -> None:
    done = exported(home, tmp_path / "x.hourglass", snapshots=False)
    assert done.snapshots == ()
    assert done.bytes < 130_000
    other = tmp_path / "other"
    imported(tmp_path / "x.hourglass", other)
    assert not (other / "snapshots/chunks").exists()


def test_what_can_not_be_exported_is_said(home: Path, tmp_path: Path) -> None:
    with pytest.raises(NotInLog):
        exported(home, tmp_path / "x", "nobody")
    with pytest.raises(FileNotWritten):
        exported(home, tmp_path / "no/such/folder/x")
    with SqliteLog(home / "log.db", durability="normal") as log:
        put(log, "../evil", [created()])
    with pytest.raises(NotExportable, match=r"sandbox-\.\./evil"):
        exported(home, tmp_path / "x")
    assert list(tmp_path.glob("x*")) == []


def test_a_log_that_was_changed_is_not_exported(home: Path, tmp_path: Path) -> None:
    rewrite(
        home / "log.db", f"UPDATE events SET recorded_at = recorded_at + 1 WHERE stream = 'sandbox-{A}' AND version = 3"
    )
    with pytest.raises(LogCorrupt, match="is not what its hash says"):
        exported(home, tmp_path / "x")
    assert list(tmp_path.glob("x*")) == []


def test_events_that_are_not_committed_are_not_taken_over(home: Path, tmp_path: Path) -> None:
    with SqliteLog(home / "log.db", read_only=True) as log:
        rows = list(log.rows(stream=f"sandbox-{A}"))
    with adopting(tmp_path / "log.db") as adoption:
        for row in rows[:3]:
            adoption.take(row)
        assert adoption.added == 3
    with SqliteLog(tmp_path / "log.db", read_only=True) as log:
        assert log.streams() == []
    with adopting(tmp_path / "log.db") as adoption:
        with pytest.raises(StreamDiffers, match="which is missing"):
            adoption.take(rows[1])
        adoption.take(rows[0])
        adoption.commit()
    with adopting(tmp_path / "log.db") as adoption, pytest.raises(StreamDiffers, match="whose id"):
        adoption.take(rows[0]._replace(stream="sandbox-another"))
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        put(log, "sbx-later", [created(), started(), begin("x")])
        assert log.verify() is None
