from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from tests.events.stores import draft
from tests.replay.history.boxes import A, B, call, created, put, resumed, started, suspended, taken
from tests.replay.history.worlds import world

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a session: a sandbox with two snapshots and files, a fork of it, and something in a blob."""
    path = tmp_path / "home"
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE", raising=False)
    monkeypatch.setenv("HOURGLASS_STORAGE", str(tmp_path / "storage"))
    store = SnapshotStore.open(str(path / "snapshots"))
    with SqliteLog(path / "log.db", durability="normal") as log:
        put(log, "sbx-other", [created(), started()])
        last = world(log, store, tmp_path)
        put(log, A, [taken("never-stored")])
        put(log, B, [created(A, last), suspended("turn-2", "fork"), resumed("turn-2"), *call("b1", text="x" * 100_000)])
    root = draft("template-base-1").model_copy(
        update={"kind": "template", "sandbox_id": "", "stream": "", "version": 0}
    )
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os").write_text("base\n")
    with store.shelf.adding() as adding:
        store.add(root, None, tmp_path / "root", {}, adding)
    return path
