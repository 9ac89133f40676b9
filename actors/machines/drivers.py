"""The drivers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.machines.gvisor import GvisorDriver
from events.snapshots import SnapshotStore

if TYPE_CHECKING:
    from actors.machines.protocol import Driver
    from actors.settings import Settings


def make_driver(settings: Settings, *, waiting: int = 0) -> Driver:
    """The driver that the settings name. It looks at the node when it is first used, not here.

    `waiting`: how many containers it keeps for starts to come. Raises `StoreUnavailable` where the snapshot store has
    a URL that can't be opened.
    """
    url = settings.store_url
    return GvisorDriver(
        settings.storage,
        volumes=settings.volumes,
        pool_bytes=settings.pool_bytes,
        waiting=waiting,
        store=None if url is None else SnapshotStore.open(url),
    )
