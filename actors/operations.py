"""What a person, or a program, may ask of the sandboxes of a host: pause, resume, snapshot, fork, keep, kill.

A target is the id of a session or of a sandbox, or a beginning of one that only one has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.egress_changes import Edit
from actors.forks import HostForks
from actors.handle import SandboxFailed
from actors.keeping import choose, keep, read_state
from actors.life import sandbox_entity
from actors.machines.protocol import MachineError
from events import sandbox as fold
from events.errors import HourglassError
from events.targets import find

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actors.host import Host

log = logging.getLogger(__name__)

_PERSON = "person"
_ROOM_S = 60.0
"""How long a fork waits for room on a node that is full."""


@dataclass(eq=False)
class SandboxRefused(HourglassError):
    """{reason}."""

    reason: str
    next_step = "`hourglass timeline` shows what was done to it."


@dataclass(eq=False)
class TooManyForks(HourglassError):
    """{wanted} forks are more than the {allowed} that one call may make."""

    wanted: int
    allowed: int
    next_step = "Make fewer, or raise the setting fork_max."


class Operations:
    """On the sandboxes of one host. Every method raises `HourglassError` where it can't be done."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def sandboxes(self) -> list[dict[str, object]]:
        """What there is to say of each sandbox that this host holds."""
        return [await kept.handle.view() for kept in list(self._host.kept.values()) if not kept.handle.gone]

    async def pause(self, target: str, suspend: bool, force: bool) -> dict[str, Any]:
        """Freeze a sandbox, or put it to disk. What runs in it is awaited; `force` ends it."""
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        handle = await self._host.sandbox(sandbox_id, session_id)
        with _refusals():
            if suspend:
                await handle.suspend("requested", force)
            else:
                await handle.rest("requested", force)
        return await self._told(sandbox_id, session_id, began)

    async def find(self, target: str) -> dict[str, Any]:
        """Where visitors of a sandbox come in."""
        sandbox_id, session_id = await self._resolve(target)
        with _refusals():
            handle = await self._host.sandbox(sandbox_id, session_id)
            # Not to be let go of before the visitor is there.
            self._host.kept[sandbox_id].used_at = time.monotonic()
            return {"sandbox_id": sandbox_id, "session_id": session_id, "door": await handle.door()}

    async def door(self) -> dict[str, Any]:
        """Where visitors ask for a sandbox, on the node of this host."""
        return {"door": await self._host.actors.door.open(), "node": self._host.node}

    async def resume(self, target: str) -> dict[str, Any]:
        """See to it that its machine runs."""
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        with _refusals():
            await (await self._host.sandbox(sandbox_id, session_id)).start()
        return await self._told(sandbox_id, session_id, began)

    async def snapshot(self, target: str) -> dict[str, Any]:
        """Take a snapshot of it."""
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        with _refusals():
            snapshot_id = await (await self._host.sandbox(sandbox_id, session_id)).snapshot()
        return {**await self._told(sandbox_id, session_id, began), "snapshot_id": snapshot_id}

    async def fork(self, target: str, count: int) -> dict[str, Any]:
        """Make `count` sandboxes from it, each with a machine of its own that runs."""
        allowed = self._host.settings.fork_max
        if not 1 <= count <= allowed:
            raise TooManyForks(wanted=count, allowed=allowed)
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        with _refusals():
            parent = await self._host.sandbox(sandbox_id, session_id)
            children = await parent.fork(count)
        # It is not put to disk to make room for its own forks.
        self._host.lent[sandbox_id] = _PERSON
        try:
            outcomes = await asyncio.gather(*(self._start_child(child, session_id) for child in children))
            await parent.forked()
        finally:
            self._host.lent.pop(sandbox_id, None)
        return {**await self._told(sandbox_id, session_id, began), "children": outcomes}

    async def _start_child(self, child: str, session_id: str) -> dict[str, Any]:
        forks = HostForks(self._host, session_id, _PERSON)
        began = time.monotonic()
        try:
            await forks.begin(child, _ROOM_S)
        except SandboxFailed as error:
            # One that can't be made itself is nobody's; the others stand.
            log.warning("fork refused sandbox_id=%s %s", child, error)
            await forks.end([child])
            return {"sandbox_id": child, "error": str(error)}
        self._host.lent.pop(child, None)
        return {"sandbox_id": child, "seconds": round(time.monotonic() - began, 6)}

    async def keep(self, target: str) -> dict[str, Any]:
        """Make a fork its session's sandbox, and end its parent and the other forks; one append."""
        host = self._host
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        with _refusals():
            if not session_id:
                # Else its parent would end for it.
                raise SandboxFailed(f"sandbox {sandbox_id} belongs to no session, as a branch does: it stays as it is")
            of_session = host.session(session_id)
            await of_session.load()
            if of_session.state.open_calls:
                # Before anything is let go: the call may run in what would end.
                raise SandboxFailed("a tool call of the session has no posted result yet")
            choice = await choose(host.journal, sandbox_id)
            handle = await host.sandbox(sandbox_id, session_id)
            for one in choice.ended:
                # Whoever holds them writes their streams; from here on nobody does.
                await host.drop(one)
            run = next((run for run in host.runs.values() if run.claim.session_id == session_id), None)
            if run is not None:
                await run.keep(choice, handle)
                host.serves(run.claim.claim_id, sandbox_id)
            else:
                ended = [
                    sandbox_entity(one, session_id, host.journal, epoch=host.epoch, metadata=host.metadata)
                    for one in choice.ended
                ]
                await keep(host.journal, choice, of_session, ended)
        for one in choice.ended:
            try:
                await host.actors.remove(one)
            except MachineError as error:
                log.warning("not removed, the next start does sandbox_id=%s %s", one, error)
        return {**await self._told(sandbox_id, session_id, began), "ended": list(choice.ended)}

    async def change_egress(self, target: str, add: list[str], remove: list[str], by: str) -> dict[str, Any]:
        """Change what it may reach; the list that is in force then (`egress_view`)."""
        edit = Edit.of(add, remove)
        sandbox_id, session_id = await self._resolve(target)
        edit.check(await read_state(self._host.journal, sandbox_id))
        with _refusals():
            handle = await self._host.sandbox(sandbox_id, session_id)
            return await handle.change_egress(edit.add, edit.remove, by)

    async def kill(self, target: str) -> dict[str, Any]:
        """End it: machine, files and the node's snapshots."""
        sandbox_id, session_id = await self._resolve(target)
        began = time.monotonic()
        with _refusals():
            await (await self._host.sandbox(sandbox_id, session_id)).kill("requested")
        told = await self._told(sandbox_id, session_id, began)
        await self._host.drop(sandbox_id)
        return told

    async def _told(self, sandbox_id: str, session_id: str, began: float) -> dict[str, Any]:
        view: Mapping[str, object] = await (await self._host.sandbox(sandbox_id, session_id)).view()
        return {
            "sandbox_id": sandbox_id,
            "session_id": session_id,
            "phase": view["phase"],
            "seconds": round(time.monotonic() - began, 6),
        }

    async def _resolve(self, target: str) -> tuple[str, str]:
        """The sandbox that is meant, and its session."""
        kind, name = find(self._host.streams(), target)
        if kind == "session":
            return await self._host.sandbox_of(name), name
        state = fold.fold(fold.SandboxState(name), await self._host.journal.read(f"sandbox-{name}"))
        return name, state.session_id


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what a sandbox refuses into an error for a person."""
    try:
        yield
    except SandboxFailed as error:
        raise SandboxRefused(reason=str(error).rstrip(".")) from error
