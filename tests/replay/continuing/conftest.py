from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db", durability="normal") as opened:
        yield opened
