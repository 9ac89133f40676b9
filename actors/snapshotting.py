"""Taking the snapshots of one sandbox's machine: at once, or with the last part of it in the background.

A snapshot holds the guest for its image and its tree; to make both durable takes as long again, and nobody has to wait
for that: the machine runs on, calls and all, and the snapshot is recorded when it is whole, with the version that it is
of. Whatever else is done with the machine's snapshots waits for that first.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from actors.entity import Replaced, to_its_end
from actors.handle import SandboxFailed
from actors.machines.protocol import MachineError, MachineGone
from events import sandbox as fold
from events.errors import HourglassError

if TYPE_CHECKING:
    from actors.life import Life
    from actors.machines.protocol import Machine, Taken

log = logging.getLogger(__name__)

Reason = Literal["turn", "call", "every", "requested", "fork", "suspend"]
_KINDS: dict[Reason, str] = {
    "turn": "turn",
    "call": "turn",
    "every": "turn",
    "requested": "snap",
    "fork": "fork",
    "suspend": "rest",
}
"""What the id of a snapshot begins with, by its reason."""
BY_ITSELF = ("turn-", "rest-")
"""Beginnings of the ids of snapshots that nobody asked for."""


def policy_wants(policy: str, after: Literal["turn", "call"], calls: int) -> Literal["turn", "call", "every"] | None:
    """Whether the setting `snapshots` wants a snapshot now, and as what.

    Args:
        policy: `turn`, `call`, `every:<n>` or `never`.
        after: what has just ended.
        calls: how many tool calls have ended since the last snapshot.
    """
    if not calls:
        return None
    kind, _, every = policy.partition(":")
    if kind == "every" and after == "call" and calls >= int(every):
        return "every"
    if kind == "turn" and after == "turn":
        return "turn"
    return "call" if kind == "call" and after == "call" else None


class Snapshotting:
    """Of one sandbox. Its methods must be called with `Life.turn` held."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._pending: asyncio.Task[None] | None = None
        self._lost = False
        """Whether the machine was another host's, or nobody's, when the last one was to be taken."""

    async def take(self, machine: Machine, reason: Reason, *, hold: bool, frozen: bool) -> tuple[Taken, int]:
        """Take one, and return when it is durable, with the version that it is of.

        Raises `SandboxFailed`; the machine is as it was then.
        """
        await self.settled()
        await self._life.tell_egress()
        # Not when it is recorded: what the guest reaches in the meantime comes into the log before that.
        version = self._life.entity.version
        try:
            return await machine.snapshot(_new_id(reason), hold=hold), version
        except MachineError as error:
            if frozen and machine is self._life.machine:
                await machine.freeze()
            raise SandboxFailed(str(error)) from error

    async def begin(self, machine: Machine, reason: Reason, *, frozen: bool, of_version: int = 0) -> bool:
        """Take one, and return when the guest runs again, or is `frozen` again; the rest is done in the background.

        Of the version of the moment, unless `of_version` says which the guest has been as it is since.

        One that can't be taken is a warning, and the machine runs on; False then.
        """
        await self.settled()
        await self._life.tell_egress()
        self._lost = False
        awake = asyncio.Event()
        taking = self._take(machine, reason, awake, of_version)
        self._pending = asyncio.create_task(taking, name=f"snapshot {machine.sandbox_id}")
        waiting = asyncio.create_task(awake.wait())
        try:
            await asyncio.wait([self._pending, waiting], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not awake.is_set():
                # Nobody may use a guest that stands still: it is woken, and nothing is left of the snapshot.
                self._pending.cancel()
                await asyncio.wait([self._pending])
            raise
        finally:
            waiting.cancel()
            if frozen and machine is self._life.machine and not self._lost:
                # It was thawed for it. Where it ended meanwhile, whoever watches it records that.
                with suppress(MachineError):
                    await to_its_end(machine.freeze())
        return awake.is_set()

    async def settled(self) -> None:
        """Wait until nothing is done in the background."""
        if self._pending is not None:
            await asyncio.wait([self._pending])
            if not self._pending.cancelled() and (error := self._pending.exception()):
                log.error("a snapshot failed sandbox_id=%s", self._life.sandbox_id, exc_info=error)
            self._pending = None

    async def tidy(self) -> None:
        """Without a store, remove all but the newest of those that nobody asked for. What stays costs room, no more.

        With one, `actors.uploads` does, once they are there.
        """
        context = self._life.context
        if context.stores:
            return
        try:
            mine = [
                one
                for one in await context.driver.snapshots()
                if one.sandbox_id == self._life.sandbox_id and one.snapshot_id.startswith(BY_ITSELF)
            ]
            mine.sort(key=lambda one: one.taken_at, reverse=True)
            for one in mine[context.snapshots_local :]:
                await context.driver.drop_snapshot(one.snapshot_id)
        except (MachineError, OSError) as error:
            log.warning("snapshots not removed sandbox_id=%s %s", self._life.sandbox_id, error)

    def told(self, taken: Taken, reason: Reason, of_version: int) -> fold.Snapshot:
        """The command that records one."""
        return fold.Snapshot(
            snapshot_id=taken.snapshot_id,
            node=self._life.context.node,
            image_bytes=taken.image_bytes,
            held_seconds=taken.held_seconds,
            reason=reason,
            of_version=of_version,
        )

    async def _take(self, machine: Machine, reason: Reason, awake: asyncio.Event, of_version: int) -> None:
        life = self._life
        versions: list[int] = []

        def woken() -> None:
            versions.append(of_version or life.entity.version)
            awake.set()

        snapshot_id = _new_id(reason)
        try:
            taken = await machine.snapshot(snapshot_id, awake=woken)
            await life.record(self.told(taken, reason, versions[0]))
        except (MachineError, HourglassError, Replaced) as error:
            # Whoever spoke to the guest meanwhile has it now, and may have thawed it.
            self._lost = isinstance(error, (MachineGone, Replaced))
            log.warning("no snapshot taken sandbox_id=%s %s", life.sandbox_id, error)
            return
        await self.tidy()


def _new_id(reason: Reason) -> str:
    return f"{_KINDS[reason]}-{secrets.token_hex(8)}"
