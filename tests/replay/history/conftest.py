from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, found by the commands; no store and no storage but the ones in it."""
    path = tmp_path / "home"
    monkeypatch.setenv("HOURGLASS_HOME", str(path))
    monkeypatch.setenv("HOURGLASS_STORAGE", str(path / "storage"))
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE", raising=False)
    return path


@pytest.fixture
def log(home: Path) -> Iterator[SqliteLog]:
    with SqliteLog(home / "log.db", durability="normal") as opened:
        yield opened


@pytest.fixture
def store(home: Path) -> SnapshotStore:
    return SnapshotStore.open(str(home / "snapshots"))


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()
