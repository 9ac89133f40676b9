"""The drivers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.machines.gvisor import GvisorDriver

if TYPE_CHECKING:
    from actors.machines.protocol import Driver
    from actors.settings import Settings


def make_driver(settings: Settings, *, waiting: int = 0) -> Driver:
    """The driver that the settings name. It looks at the node when it is first used, not here.

    `waiting`: how many containers it keeps for starts to come.
    """
    return GvisorDriver(settings.storage, volumes=settings.volumes, pool_bytes=settings.pool_bytes, waiting=waiting)
