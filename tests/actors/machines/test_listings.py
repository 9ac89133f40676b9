"""What was seen of a tree comes back whole, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from actors.machines.listings import Listing, Listings
from events.tree_reader import read_tree
from tests.events.stores import make_tree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_listing_comes_back(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    for name in (b"a\nb", b"a\rb", b"\xff", "\u2028\x85".encode(), b"\t"):
        (tree / os.fsdecode(name)).touch()
    seen = dict(read_tree(tree, {}, lambda content: f"{len(content):064x}"))
    kept = Listings(tmp_path / "listings")
    made = Listing("snap-1", "0" * 64, seen)
    kept.save("sbx-a", made)
    assert kept.load("sbx-a") == made
    assert [path.name for path in (tmp_path / "listings").iterdir()] == ["sbx-a"]
    kept.drop("sbx-a")
    assert kept.load("sbx-a") == Listing()


def test_one_that_is_damaged_or_cut_off_is_none(tmp_path: Path) -> None:
    seen = dict(read_tree(make_tree(tmp_path / "tree", files=3000), {}, lambda content: f"{len(content):064x}"))
    kept = Listings(tmp_path / "listings")
    kept.save("sbx-a", Listing("snap-1", "0" * 64, seen))
    path = tmp_path / "listings/sbx-a"
    whole = path.read_bytes()
    for broken in (*(whole[: len(whole) * part // 20] for part in range(20)), b"\xff" * 100, whole[:-9] + b"\0" * 9):
        path.write_bytes(broken)
        assert kept.load("sbx-a") == Listing()


def test_one_that_can_not_be_kept_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    Listings(tmp_path / "file").save("x", Listing("snap-1", "ab", {}))
    assert "listing not kept name=x" in caplog.text
    assert Listings(tmp_path / "file").load("x") == Listing()
