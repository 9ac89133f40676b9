"""Every driver of this node by name, made the same way in the tests and in processes that the tests end."""

from __future__ import annotations

from pathlib import Path

from actors.machines.gvisor import GvisorDriver
from actors.machines.overlay import OverlayVolumes
from actors.machines.volumes import Volumes, open_volumes
from actors.settings import Settings
from events.snapshots import SnapshotStore

NAMES = ("gvisor-btrfs", "gvisor-overlay")


class OverlayOnSharedTemplates(OverlayVolumes):
    """Overlays whose lower halves are this node's own templates, of whichever kind: one build serves both."""

    def __init__(self, storage: Path, owner: Volumes) -> None:
        super().__init__(storage, owner.templates)
        self.new_root = owner.new_root  # type: ignore[method-assign]
        self.clone_root = owner.clone_root  # type: ignore[method-assign]
        self.seal_root = owner.seal_root  # type: ignore[method-assign]
        self.drop_root = owner.drop_root  # type: ignore[method-assign]


def node_volumes() -> Volumes:
    """The file trees of this node, as `make setup` made them."""
    settings = Settings.load()
    return open_volumes(settings.storage, settings.volumes, settings.pool_bytes)


def make(name: str, store: SnapshotStore | None = None) -> GvisorDriver:
    """A driver of `NAMES`."""
    volumes = node_volumes()
    volumes.prepare()
    if name == "gvisor-overlay" and volumes.kind != "overlay":
        volumes = OverlayOnSharedTemplates(volumes.storage, volumes)
    return GvisorDriver(volumes.storage, volumes=volumes, store=store)
