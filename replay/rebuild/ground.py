"""Where rebuilds happen: this node's driver, and the snapshots that can be reached from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from actors.machines.gvisor import GvisorDriver
from actors.machines.volumes import Kind
from replay.history.presence import Snapshots, default_storage
from replay.rebuild.throwaway import Place

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ground:
    """A node, as rebuilds use it. Any number of them may, beside the service."""

    driver: GvisorDriver
    snapshots: Snapshots

    @classmethod
    def of(cls, home: Path | None, store: str | None = None, storage: Path | None = None, waiting: int = 0) -> Ground:
        """That of a home; store and storage are named, or where the service has them by default.

        Args:
            waiting: how many containers wait for a rebuild, from the first one on; for whoever makes many.

        Of the settings, only HOURGLASS_VOLUMES counts here. Raises `StoreUnavailable`.
        """
        snapshots = Snapshots.of(home, store, storage)
        named = os.environ.get("HOURGLASS_VOLUMES", "auto")
        kind = cast("Kind", named if named in get_args(Kind) else "auto")
        place = (storage or default_storage()).absolute()
        return cls(GvisorDriver(place, volumes=kind, waiting=waiting, store=snapshots.store), snapshots)

    @property
    def place(self) -> Place:
        """Of the throw-away machines."""
        return Place(self.driver.storage)
