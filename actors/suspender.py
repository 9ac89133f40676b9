"""What puts the sandboxes of a host to disk: now and then those that nobody uses, and any on demand."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Literal

from actors.handle import SandboxBusy, SandboxFailed
from actors.machines.protocol import MachineError
from actors.resting import Idle, available_memory, to_suspend
from events.errors import HourglassError

if TYPE_CHECKING:
    from actors.handle import SandboxHandle
    from actors.host import Host, Kept

log = logging.getLogger(__name__)

_EVERY_S = 1.0


class Suspender:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def lay_down(self, handle: SandboxHandle, reason: Literal["idle", "shutdown", "pressure"]) -> bool:
        """Put a sandbox to disk; where that can't be, keep its files. False where it has visitors, and goes on."""
        view = await handle.view()
        if view["phase"] not in ("running", "frozen"):
            return not view["visits"]
        try:
            await handle.suspend(reason)
        except SandboxBusy:
            return False
        except SandboxFailed as error:
            log.warning("not suspended, stopped sandbox_id=%s %s", handle.sandbox_id, error)
            await handle.stop("shutdown" if reason == "shutdown" else "requested")
        return True

    async def make_room(self, sandbox_id: str) -> bool:
        """Suspend the machines that were used least recently where this node runs as many as it may.

        Returns whether there is room for this one: there is none where all are busy.
        """
        host = self._host
        async with host.room:
            if sandbox_id in host.kept:
                return True
            busy = host.busy() - {sandbox_id}
            idle = sorted(
                (kept for kept_id, kept in host.kept.items() if kept_id not in busy),
                key=lambda kept: kept.used_at,
            )
            allowed = host.settings.max_sandboxes
            while len(host.kept.keys() | busy) >= allowed and idle:
                kept = idle.pop(0)
                try:
                    await self._retire(kept, "pressure")
                except (HourglassError, SandboxFailed, MachineError) as error:
                    log.warning("machine not stopped sandbox_id=%s %s", kept.handle.sandbox_id, error)
                    await host.drop(kept.handle.sandbox_id)
            return len(host.kept.keys() | busy) < allowed

    async def run(self) -> None:
        """Again and again: what nobody uses goes to disk."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.once()
            except Exception:
                # A bug here must not keep the node's memory for good, nor end the host.
                log.exception("sandboxes could not be put to rest")

    async def once(self) -> None:
        """Look once, and suspend what is to be."""
        settings, now = self._host.settings, time.monotonic()
        busy = self._host.busy()
        kept = [one for sandbox_id, one in self._host.kept.items() if sandbox_id not in busy]
        views = [(one, await one.handle.view()) for one in kept if not one.handle.gone]
        for one, view in views:
            if view["visits"]:
                one.used_at = now
        idle = [
            Idle(one.handle.sandbox_id, now - one.used_at, int(str(view["memory_bytes"] or 0)))
            for one, view in views
            if view["phase"] in ("running", "frozen") and not view["busy"] and not view["visits"]
        ]
        for one, view in views:
            over = view["phase"] in ("suspended", "stopped", "killed") and now - one.used_at > settings.suspend_after
            if over and one.handle.sandbox_id not in self._host.busy():
                await self._host.drop(one.handle.sandbox_id)
        chosen = to_suspend(
            idle,
            suspend_after=settings.suspend_after,
            available_bytes=available_memory(),
            reserve_bytes=settings.memory_reserve_bytes,
        )
        for sandbox_id, reason in chosen:
            async with self._host.room:
                kept_still = self._host.kept.get(sandbox_id)
                if kept_still is None or sandbox_id in self._host.busy():
                    continue
                await self._retire(kept_still, reason)

    async def _retire(self, kept: Kept, reason: Literal["idle", "pressure"]) -> None:
        """Lay a sandbox down and let go of it, unless a visitor came, or is on the way."""
        used_at = kept.used_at
        laid = await self.lay_down(kept.handle, reason)
        if laid and not (await kept.handle.view())["visits"] and kept.used_at == used_at:
            await self._host.drop(kept.handle.sandbox_id)
