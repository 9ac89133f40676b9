"""The file trees of this node, left without the layers that tests made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.machines.volumes import Volumes
from tests.conformance.drivers import node_volumes


@pytest.fixture(scope="module")
def node_trees() -> Iterator[Volumes]:
    """As `make setup` made them."""
    volumes = node_volumes()
    volumes.prepare()
    folder = volumes.templates / "layers"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    yield volumes
    for path in set(folder.iterdir()) - before:
        if path.suffix == ".used":
            path.unlink()
        else:
            volumes.drop_root(f"layers/{path.name}")
    assert not [name for name in volumes.sandboxes() if name.startswith("build-")]
