"""Putting the snapshots of a node into the store, in the background, and dropping those here that the store has.

What was snapshotted is heard from the log. One at a time, in a thread: a guest never waits for it, and neither does a
call. A host that dies in the middle begins again when it starts: the snapshot still lies whole on its node, and the
chunks that arrived are found.

The only copy of a snapshot is dropped where it would else cost room without end, and nothing is lost but a place to
look back at: a newer one lies whole here, nobody asked for it, and by the log nothing goes on from it. So of a sandbox
that the store refuses, as many stay as of one without a store; where the store fails or is slow, some more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from actors.entity import Replaced
from actors.handle import SandboxFailed
from actors.life import sandbox_entity
from actors.machines.protocol import MachineError, SnapshotBroken, SnapshotMissing
from actors.snapshotting import BY_ITSELF
from events import sandbox as fold
from events.errors import HourglassError
from events.log import CaughtUp
from events.needs import begun_with
from events.store_errors import MarkLost, StoreBusy, StoreUnavailable, TemplateRefused, TreeRefused
from events.types import SandboxSnapshotStored, SandboxSnapshotted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.host import Host
    from actors.machines.protocol import Driver, SnapshotRecord
    from events.envelope import Event
    from events.sqlite_log import SqliteLog

log = logging.getLogger(__name__)

_AGAIN_S = 30.0
"""After how long a store that failed is tried again."""
_SANDBOX = "sandbox-"
_GIVEN_UP = (*BY_ITSELF, "fork-")
"""Beginnings of the ids of snapshots that nobody looks for by name."""


class Uploads:
    """Puts the snapshots of one host into the store, one at a time, and drops local copies that the store has."""

    def __init__(self, host: Host, driver: Driver, events: SqliteLog) -> None:
        self._host = host
        self._driver = driver
        self._events = events
        self._refused: set[str] = set()
        """Snapshots that will never be in the store."""
        self._broken: set[str] = set()
        """Of those, the ones that are of no use here either."""
        self._queue: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
        self._waiting: Counter[str] = Counter()
        """How many of each sandbox are in the queue."""
        self._current = ""
        """The snapshot that is being put into the store."""
        self._dropping = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled: what is on this node and not in the store, then each new one."""
        while True:
            try:
                await self._run()
            except Exception:
                # Whatever it is, it must end nothing but this round; what is not in the store stays on the node.
                log.exception("uploads of snapshots failed, and begin again in %.0f s", _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)
            self._queue = asyncio.Queue()
            self._waiting.clear()
            self._current = ""

    async def _run(self) -> None:
        after = await asyncio.to_thread(self._events.position)
        for snapshot_id, event in await self._left_over():
            await self._enqueue(snapshot_id, event)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(after))
            tasks.create_task(self._work())

    async def _hear(self, after: int) -> None:
        async for heard in self._events.subscribe_async(after):
            if not isinstance(heard, CaughtUp) and isinstance(heard.data, SandboxSnapshotted):
                await self._enqueue(heard.data.snapshot_id, heard)

    async def _enqueue(self, snapshot_id: str, taken: Event) -> None:
        """Put one into the queue; more of its sandbox than may wait are given up."""
        self._queue.put_nowait((snapshot_id, taken))
        sandbox_id = _sandbox_of(taken)
        self._waiting[sandbox_id] += 1
        if self._waiting[sandbox_id] > self._host.settings.snapshots_waiting:
            await self._drop_older(sandbox_id)

    async def _work(self) -> None:
        while True:
            self._current, taken = await self._queue.get()
            await self._upload(self._current, taken)
            self._current = ""
            sandbox_id = _sandbox_of(taken)
            self._waiting[sandbox_id] -= 1
            if not self._waiting[sandbox_id]:
                del self._waiting[sandbox_id]
            await self._drop_older(sandbox_id)

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
        except (TreeRefused, TemplateRefused, SnapshotBroken) as error:
            advice = error.advice if isinstance(error, HourglassError) else ""
            log.warning("snapshot not in the store snapshot_id=%s %s %s", snapshot_id, error, advice)
            self._refused.add(snapshot_id)
            if isinstance(error, SnapshotBroken):
                self._broken.add(snapshot_id)
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
            await self._record(_sandbox_of(taken), taken.correlation_id, told)
        except (HourglassError, SandboxFailed, Replaced) as error:
            # It is there; the next start of a host records it.
            log.warning("snapshot in the store, and not recorded snapshot_id=%s %s", snapshot_id, error)
        return True

    async def _record(self, sandbox_id: str, session_id: str, told: fold.StoreSnapshot) -> None:
        """In the sandbox's stream; a sandbox that has no actor gets none for that."""
        host = self._host
        async with host.sandbox_lock(sandbox_id):
            kept = host.kept.get(sandbox_id)
            if kept is not None and not kept.handle.gone:
                await kept.handle.stored(told)
                return
            # With its lock held, so that nobody loads it meanwhile, and believes in another version.
            entity = sandbox_entity(sandbox_id, session_id, host.journal, epoch=host.epoch, metadata=host.metadata)
            await entity.load()
            await entity.execute(f"stored-{told.snapshot_id}", told)

    async def _drop_older(self, sandbox_id: str) -> None:
        """Of a sandbox's snapshots, leave the newest here, and those that the store does not have, within bounds."""
        async with self._dropping:
            try:
                mine = [one for one in await self._driver.snapshots() if one.sandbox_id == sandbox_id]
                history = await self._host.journal.read(_SANDBOX + sandbox_id)
                spare, alone = self._droppable(mine, history)
                needed = await self._needed(sandbox_id, history, alone)
                given_up = [one for one in alone if one not in needed]
                if given_up:
                    log.warning(
                        "snapshots that the store does not have were given up sandbox_id=%s snapshots=%s",
                        sandbox_id,
                        ",".join(given_up),
                    )
                for one in (*spare, *given_up):
                    await self._driver.drop_snapshot(one)
                self._refused.difference_update(given_up)
                self._broken.difference_update(given_up)
            except (HourglassError, MachineError, OSError) as error:
                log.warning("snapshots not removed sandbox_id=%s %s", sandbox_id, error)

    def _droppable(self, mine: list[SnapshotRecord], history: Sequence[Event]) -> tuple[list[str], list[str]]:
        """Of the snapshots of a sandbox: those that go, and those that would if they were not the only copy."""
        settings = self._host.settings
        stored = {event.data.snapshot_id for event in history if isinstance(event.data, SandboxSnapshotStored)}
        spare: list[str] = []
        alone: list[str] = []
        newer = waiting = 0
        for one in sorted(mine, key=lambda one: one.taken_at, reverse=True):
            name = one.snapshot_id
            if name in stored:
                if newer >= settings.snapshots_local:
                    spare.append(name)
            elif name in self._refused:
                if newer >= settings.snapshots_local and name.startswith(_GIVEN_UP):
                    alone.append(name)
            else:
                waiting += 1
                if waiting > settings.snapshots_waiting and name.startswith(_GIVEN_UP) and name != self._current:
                    alone.append(name)
            newer += name not in self._broken
        return spare, alone

    async def _needed(self, sandbox_id: str, history: Sequence[Event], snapshots: list[str]) -> set[str]:
        """Those that a sandbox goes on from, or that a fork or a branch began with."""
        if not snapshots:
            return set()
        own = fold.fold(fold.SandboxState(sandbox_id), history).snapshot_id
        return {own} | await asyncio.to_thread(begun_with, self._events, snapshots)


def _sandbox_of(taken: Event) -> str:
    return taken.stream.removeprefix(_SANDBOX)


def _event_of(
    history: Sequence[Event], snapshot_id: str, kind: type[SandboxSnapshotted | SandboxSnapshotStored]
) -> Event | None:
    for event in history:
        if isinstance(event.data, kind) and event.data.snapshot_id == snapshot_id:
            return event
    return None
