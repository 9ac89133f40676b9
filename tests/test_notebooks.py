"""The notebooks run, from their first cell to their last, and are kept without what they printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDS_MACHINES = "debug_a_regression"


def executed(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The notebook with its outputs. Raises where a cell does."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE", raising=False)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    return book


def shown(book: Any, kind: str) -> list[str]:
    return [one["data"][kind] for cell in book.cells for one in cell.get("outputs", []) if kind in one.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept(path: Path) -> None:
    book: Any = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert set(book.metadata) == {"kernelspec", "language_info"}


def test_explore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = sorted(FOLDER.iterdir())
    book = executed(FOLDER / "explore.ipynb", monkeypatch, tmp_path)
    assert len(shown(book, "image/png")) == 4
    pages = "\n".join(shown(book, "text/html"))
    for words in ("158 events of 2 sessions and 5 sandboxes", "forked from", "in_calls", "can be rebuilt"):
        assert words in pages
    assert not [one for cell in book.cells for one in cell.get("outputs", []) if one.get("name") == "stderr"]
    assert sorted(FOLDER.iterdir()) == there


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_debug_a_regression(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    book = executed(FOLDER / "debug_a_regression.ipynb", monkeypatch, tmp_path)
    pages = "\n".join(shown(book, "text/html"))
    for words in ("FAIL: test_garbage", "It can be rebuilt", "durations.py"):
        assert words in pages
    printed = [one["text"] for cell in book.cells for one in cell.get("outputs", []) if one.get("name") == "stdout"]
    said = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(printed)).split())
    for words in (r"+[smhdw]\s*)*", "begun at sandbox-", "is a branch of", "instead", "-FAIL: test_garbage"):
        assert words in said, said
