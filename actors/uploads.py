"""Putting the snapshots of a node into the store, in the background, and dropping those here that the store has.

What was snapshotted is heard from the log. One at a time, in a thread: a guest never waits for it, and neither does a
call. A host that dies in the middle begins again when it starts: the snapshot still lies whole on its node, and the
chunks that arrived are found.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from actors.entity import Replaced
from actors.handle import SandboxFailed
from actors.life import sandbox_entity
from actors.machines.protocol import MachineError, SnapshotBroken, SnapshotMissing
from events import sandbox as fold
from events.errors import HourglassError
from events.log import CaughtUp
from events.store_errors import MarkLost, StoreBusy, StoreUnavailable, TreeRefused
from events.types import SandboxSnapshotStored, SandboxSnapshotted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.host import Host
    from actors.machines.protocol import Driver
    from events.envelope import Event
    from events.sqlite_log import SqliteLog

log = logging.getLogger(__name__)

_AGAIN_S = 30.0
"""After how long a store that failed is tried again."""
_SANDBOX = "sandbox-"


class Uploads:
    """Of one host."""

    def __init__(self, host: Host, driver: Driver, events: SqliteLog) -> None:
        self._host = host
        self._driver = driver
        self._events = events
        self._refused: set[str] = set()
        """Snapshots that will never be in the store."""

    async def run(self) -> None:
        """Until it is cancelled: what is on this node and not in the store, then each new one."""
        try:
            after = await asyncio.to_thread(self._events.position)
            for snapshot_id, event in await self._left_over():
                await self._upload(snapshot_id, event)
            async for heard in self._events.subscribe_async(after):
                if not isinstance(heard, CaughtUp) and isinstance(heard.data, SandboxSnapshotted):
                    await self._upload(heard.data.snapshot_id, heard)
        except Exception:
            # A bug here must end nothing but the uploads; what is not in the store stays on the node.
            log.exception("no snapshot is put into the store any more")

    async def _left_over(self) -> list[tuple[str, Event]]:
        """The snapshots on this node that the log knows, and that it does not know to be in the store."""
        found = []
        mine: dict[str, list[Event]] = {}
        for one in sorted(await self._driver.snapshots(), key=lambda one: one.taken_at):
            if one.sandbox_id not in mine:
                mine[one.sandbox_id] = await self._host.journal.read(_SANDBOX + one.sandbox_id)
            taken = _event_of(mine[one.sandbox_id], one.snapshot_id, SandboxSnapshotted)
            if taken is not None and _event_of(mine[one.sandbox_id], one.snapshot_id, SandboxSnapshotStored) is None:
                found.append((one.snapshot_id, taken))
        return found

    async def _upload(self, snapshot_id: str, taken: Event) -> None:
        """Put one into the store, however often the store fails; one that is gone, or can't be, is let be."""
        while not await self._try(snapshot_id, taken):  # noqa: ASYNC110 - a store tells nobody that it is back
            await asyncio.sleep(_AGAIN_S)
        await self._drop_older(taken.stream.removeprefix(_SANDBOX))

    async def _try(self, snapshot_id: str, taken: Event) -> bool:
        """Whether there is nothing left to do."""
        data = taken.data
        of_version = data.of_version if isinstance(data, SandboxSnapshotted) else 0
        began = time.monotonic()
        try:
            kept = await self._driver.store_snapshot(
                snapshot_id, stream=taken.stream, version=of_version or taken.version - 1
            )
        except SnapshotMissing:
            log.info("snapshot went before it was in the store snapshot_id=%s", snapshot_id)
            return True
        except (TreeRefused, SnapshotBroken) as error:
            log.warning("snapshot not in the store snapshot_id=%s %s", snapshot_id, error)
            self._refused.add(snapshot_id)
            return True
        except (StoreUnavailable, StoreBusy, MarkLost) as error:
            log.warning("snapshot not in the store yet snapshot_id=%s %s", snapshot_id, error)
            return False
        except (HourglassError, MachineError) as error:
            # It must not hold up the others; the next start of a host tries it again.
            log.warning("snapshot not in the store snapshot_id=%s %s", snapshot_id, error)
            return True
        told = fold.StoreSnapshot(
            snapshot_id=snapshot_id,
            manifest=kept.digest,
            size=kept.bytes,
            new_size=kept.new_bytes,
            seconds=round(time.monotonic() - began, 6),
        )
        try:
            await self._record(taken.stream.removeprefix(_SANDBOX), taken.correlation_id, told)
        except (HourglassError, SandboxFailed, Replaced) as error:
            # It is there; the next start of a host records it.
            log.warning("snapshot in the store, and not recorded snapshot_id=%s %s", snapshot_id, error)
        return True

    async def _record(self, sandbox_id: str, session_id: str, told: fold.StoreSnapshot) -> None:
        """In the sandbox's stream; a sandbox that has no actor gets none for that."""
        host = self._host
        async with host.alone_with(sandbox_id):
            kept = host.kept.get(sandbox_id)
            if kept is not None and not kept.handle.gone:
                await kept.handle.stored(told)
                return
            # Behind the door, so that nobody loads it meanwhile, and believes in another version.
            entity = sandbox_entity(sandbox_id, session_id, host.journal, epoch=host.epoch, metadata=host.metadata)
            await entity.load()
            await entity.execute(f"stored-{told.snapshot_id}", told)

    async def _drop_older(self, sandbox_id: str) -> None:
        """Of a sandbox's snapshots, leave the newest here, and those that the store does not have."""
        try:
            mine = [one for one in await self._driver.snapshots() if one.sandbox_id == sandbox_id]
            mine.sort(key=lambda one: one.taken_at, reverse=True)
            history = await self._host.journal.read(_SANDBOX + sandbox_id)
            for one in mine[self._host.settings.snapshots_local :]:
                stored = _event_of(history, one.snapshot_id, SandboxSnapshotStored) is not None
                if stored or one.snapshot_id in self._refused:
                    await self._driver.drop_snapshot(one.snapshot_id)
        except (MachineError, OSError) as error:
            log.warning("snapshots not removed sandbox_id=%s %s", sandbox_id, error)


def _event_of(
    history: Sequence[Event], snapshot_id: str, kind: type[SandboxSnapshotted | SandboxSnapshotStored]
) -> Event | None:
    for event in history:
        if isinstance(event.data, kind) and event.data.snapshot_id == snapshot_id:
            return event
    return None
