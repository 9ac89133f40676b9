"""The snapshots of a sandbox that the settings want: after a turn, after each call, or after every so many.

After a call it is taken before the next. After a turn nobody waits for it: the sandbox is put to rest first, and those
of a crowd whose turns end at once are taken one by one. So the snapshot is of the version before the rest, since that
changes nothing of the guest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal

from actors.handle import SandboxFailed
from actors.snapshotting import policy_wants
from events import sandbox as fold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.life import Life
    from actors.visits.registry import Visits

log = logging.getLogger(__name__)


class DueSnapshots:
    """Knows which snapshot of one sandbox is due, and takes it."""

    def __init__(
        self, life: Life, call_turn: asyncio.Lock, visits: Visits, rest_again: Callable[[], Awaitable[None]]
    ) -> None:
        """Args:
        call_turn: the lock that whoever runs a call in the sandbox holds.
        rest_again: puts it to rest where it is to be and nobody is in it; who left it during a snapshot could not.
        """
        self._life = life
        self._call_turn = call_turn
        self._visits = visits
        self._rest_again = rest_again
        self._calls = 0
        """How many ended since the last snapshot."""
        self._due = 0
        """How many had ended when the last turn did whose snapshot is still to be taken; 0 where none is."""
        self._rested_at = 0
        """The version from which on the machine has been frozen."""
        self._task: asyncio.Task[None] | None = None

    def loaded(self) -> None:
        """The sandbox was taken over: a snapshot may be due, since its last process may have died before taking it."""
        self._calls = min(len(self._life.state.calls), 1)

    def called(self) -> None:
        """A call ended."""
        self._calls += 1

    def taken(self) -> None:
        """A snapshot was taken, so none is due."""
        self._calls = 0

    def resting(self) -> None:
        """The machine is about to be frozen; the caller holds `Life.turn`."""
        if self._life.state.phase is fold.Phase.RUNNING:
            self._rested_at = self._life.entity.version

    async def after_call(self) -> None:
        """Take one, where one is wanted now. Returns when the machine runs on."""
        await self._take("call")

    def after_turn(self) -> None:
        """Take one soon, where one is wanted."""
        if self._wanted("turn"):
            self._due = self._calls
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._in_turn(), name=f"due {self._life.sandbox_id}")

    async def close(self) -> None:
        """Take none that was not begun."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _wanted(self, after: Literal["turn", "call"]) -> Literal["turn", "call", "every"] | None:
        return policy_wants(self._life.context.snapshots, after, self._calls)

    async def _in_turn(self) -> None:
        # Once another call has ended, the snapshot after its turn is as good.
        while self._due and self._due == self._calls:
            try:
                if await self._at_its_place():
                    self._due = 0
                    await self._rest_again()
            except SandboxFailed as error:
                self._due = 0
                log.warning("no snapshot taken, or not at rest sandbox_id=%s %s", self._life.sandbox_id, error)

    async def _at_its_place(self) -> bool:
        """Wait until nobody is in the way, then for a place, and take one; False where somebody was quicker."""
        await self._visits.wait_none(copies=True)
        async with self._call_turn:
            pass  # whoever has it may take long, and others are to have the place meanwhile
        async with self._life.context.pace.snapshot:
            return self._due == self._calls and await self._take("turn")

    async def _take(self, after: Literal["turn", "call"]) -> bool:
        """Whether it was tried, or is not wanted any more; not while somebody is at work in the sandbox."""
        if self._call_turn.locked() or self._visits.copying:
            return not self._wanted(after)
        async with self._call_turn, self._life.turn:
            reason = self._wanted(after)
            version = self._rested_at if self._life.state.phase is fold.Phase.FROZEN else 0
            if reason is not None and await self._life.snapshot_soon(reason, version):
                self._calls = 0
        return True
