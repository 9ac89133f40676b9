from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own; no store and no storage but the ones in it."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOURGLASS_HOME", str(path))
    monkeypatch.setenv("HOURGLASS_STORAGE", str(path / "storage"))
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE", raising=False)
    return path
