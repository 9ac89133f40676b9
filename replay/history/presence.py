"""Which snapshots still exist: whole on this node, or in the snapshot store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from events.home import default_state_dir
from events.manifest import is_snapshot_id
from events.snapshots import SnapshotStore, default_store

Where = Literal["node", "store"]

_KINDS = ("pool", "overlay")
"""Folders of the storage, by the kind of its volumes; see `actors.machines.images` for what is in them."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots that can be reached from here."""

    store: SnapshotStore | None = None
    storage: Path | None = None
    """Of this node: trees and snapshots of its sandboxes."""

    @classmethod
    def of(cls, home: Path | None, store: str | None = None, storage: Path | None = None) -> Snapshots:
        """Those of a home; store and storage are named, or where the service has them by default.

        `none` is no store, as for the service.
        """
        url = store or default_store(home)
        return cls(None if url == "none" else SnapshotStore.open(url), storage or default_storage())

    def where(self, snapshot_id: str) -> tuple[Where, ...]:
        """Where a snapshot is: on this node, in the store, both or neither. Raises `StoreUnavailable`.

        Whether it is whole there, whoever uses it finds out.
        """
        if not is_snapshot_id(snapshot_id):
            return ()
        found: list[Where] = []
        if self.storage is not None:
            folders = (self.storage / kind / "snapshots" / snapshot_id for kind in _KINDS)
            found += ["node"] if any((folder / "snapshot.json").is_file() for folder in folders) else []
        if self.store is not None and self.store.has(snapshot_id):
            found.append("store")
        return tuple(found)


def default_storage() -> Path:
    """HOURGLASS_STORAGE, else the service's default."""
    named = os.environ.get("HOURGLASS_STORAGE", "")
    return Path(named) if named else default_state_dir() / "storage"
