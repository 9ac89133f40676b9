"""A host: what runs a node's sessions and sandboxes, and owns the writer of its log.

With `isolation = "host"` sessions and sandboxes are entities in the host's own process: made in microseconds, each with
its own queue. With `isolation = "process"` each is a Ray actor (see `actors.isolation`). Either way the host holds one
handle for each, so that nothing else knows the difference.

A host that dies takes no machine with it: the next one folds the log, finds the machines again, and goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from actors.call_spans import name_method, of_no_claim
from actors.claim import Claim, Outcome
from actors.entity import Replaced
from actors.forks import HostForks
from actors.handle import SandboxFailed
from actors.isolation import Placement, local_actors
from actors.journal import LocalJournal
from actors.keeping import forks_of
from actors.life import sandbox_entity
from actors.machines.protocol import MachineError
from actors.operations import Operations
from actors.records import session_entity
from actors.suspender import Suspender
from actors.trace import TracedJournal, claim_command
from actors.uploads import Uploads
from events import sandbox as sandboxes
from events import session as fold
from events.errors import HourglassError
from events.home import LOG_NAME, home_id
from events.sqlite_log import SqliteLog
from events.types import SessionAttached, SessionClaimed

if TYPE_CHECKING:
    from actors.handle import SandboxHandle
    from actors.isolation import Actors, SessionRun
    from actors.journal import Journal
    from actors.records import SessionEntity
    from actors.settings import Settings
    from events.envelope import Event
    from events.log import Append

log = logging.getLogger(__name__)

ReleaseReason = Literal["idle", "stop_requested", "shutdown", "abandoned", "not_served"]
MakeActors = Callable[[Placement, "Journal"], "Actors"]
LostReason = Literal["precondition_failed", "no_heartbeat_succeeded", "credential_rejected"]


class HostGone(Exception):
    """Raised to whoever asked a host that died, or is being replaced; asking its replacement is safe."""


@dataclass(slots=True)
class Kept:
    """A sandbox that has, or had, a machine on this node."""

    handle: SandboxHandle
    used_at: float


class Host:
    """The sessions and sandboxes of one node. Open it once, then serve claims until `close`."""

    def __init__(self, settings: Settings, *, node: str, make_actors: MakeActors = local_actors) -> None:
        self.settings = settings
        self.node = node
        settings.home.mkdir(parents=True, exist_ok=True)
        self._log = SqliteLog(settings.home / LOG_NAME, durability=settings.durability)
        self.journal = TracedJournal(LocalJournal(self._log))
        self._home_id = home_id(settings.home)
        self._epoch = self._log.next_epoch("host")
        self.metadata = {"node": node, "pid": str(os.getpid()), "version": version("hourglass-agents")}
        placement = Placement(settings, node, self._epoch, self.metadata)
        self.actors = make_actors(placement, self.journal)
        self.actors.door.find = Operations(self).find
        self.kept: dict[str, Kept] = {}
        self.runs: dict[str, SessionRun] = {}
        self._cancelled: set[str] = set()
        self._serving: dict[str, str] = {}
        """Sandboxes in use, by claim id."""
        self.lent: dict[str, str] = {}
        """Forks that are in use, and by which claim, or whom."""
        self.room = asyncio.Lock()
        self._sandbox_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._recovered = False
        self._tasks: list[asyncio.Task[None]] = []
        self.suspender = Suspender(self)

    @property
    def epoch(self) -> int:
        """This host's incarnation: what it writes is refused once a later one has written."""
        return self._epoch

    async def recover(self) -> None:
        """Find the machines again that a host before this one left running. Once: later calls return at once."""
        with of_no_claim():  # the tasks that begin here go on, though a claim may be what asks for it first
            async with self.room:
                if self._recovered:
                    return
                for sandbox_id in await self.actors.running():
                    events = await self.journal.read(f"sandbox-{sandbox_id}")
                    if not events:
                        continue  # another home's, on the same storage
                    try:
                        state = sandboxes.fold(sandboxes.SandboxState(sandbox_id), events)
                        handle = await self.sandbox(sandbox_id, state.session_id)
                        await handle.recover()
                    except (HourglassError, SandboxFailed, MachineError, OSError) as error:
                        # One that can't be found again must not keep the others from being served.
                        log.warning("machine not found again sandbox_id=%s %s", sandbox_id, error)
                        await self.drop(sandbox_id)
                await self.actors.door.open()
                self._recovered = True
                self._tasks = [
                    asyncio.create_task(self.suspender.run(), name="suspender"),
                    asyncio.create_task(self._prepare(), name="prepare"),
                ]
                if self.settings.store_url is not None:
                    uploads = Uploads(self, self.actors.driver, self._log)
                    self._tasks.append(asyncio.create_task(uploads.run(), name="uploads"))

    # --- the log, for actors in processes of their own -------------------------------------------------------------

    async def append(self, writes: list[Append]) -> list[list[Event]]:
        """Append for an actor that has no log of its own."""
        return await self.journal.append(*writes)

    async def read(self, stream: str, after_version: int) -> list[Event]:
        """Read for an actor that has no log of its own."""
        return await self.journal.read(stream, after_version)

    # --- claims ----------------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> None:
        """Make a claim durable. Before the item is acknowledged: whoever dies after this is found out by the log."""
        await self._record(
            claim.session_id,
            claim_command(claim.claim_id),
            fold.Claim(
                environment_id=claim.environment_id,
                work_id=claim.work_id,
                claim_id=claim.claim_id,
                worker_id=claim.worker_id,
                credential=claim.credential,
            ),
        )

    async def release(self, claim: Claim, reason: ReleaseReason) -> None:
        """Record that the item is given back. Before the queue is told."""
        await self._record(
            claim.session_id, f"{claim.claim_id}/release", fold.Release(claim_id=claim.claim_id, reason=reason)
        )

    async def lose_lease(self, claim: Claim, reason: LostReason, detail: str) -> None:
        """Record that the item is somebody else's."""
        await self._record(
            claim.session_id,
            f"{claim.claim_id}/lose",
            fold.LoseLease(claim_id=claim.claim_id, reason=reason, detail=detail),
        )

    async def fail(
        self, claim: Claim, reason: Literal["credential_rejected", "api_error", "internal"], detail: str
    ) -> None:
        """Record that a claim could not be served, for a person to read."""
        await self._record(
            claim.session_id, f"{claim.claim_id}/fail", fold.Fail(reason=reason, detail=detail, next_step="")
        )

    async def open_claims(self) -> list[Claim]:
        """Claims that the log holds open: made by a controller that is gone."""
        claims = []
        for stream in self._log.streams():
            if not stream.startswith("session-"):
                continue
            session_id = stream.removeprefix("session-")
            events = await self.journal.read(stream)
            held = fold.fold(fold.SessionState(session_id), events).claim_id
            attached = (one.data for one in events if isinstance(one.data, SessionAttached))
            acknowledged = {one.claim_id: one.acknowledged_at for one in attached}
            claims += [
                Claim(
                    held,
                    session_id,
                    data.work_id,
                    data.environment_id,
                    data.worker_id,
                    data.credential,
                    acknowledged_at=acknowledged.get(held, ""),
                )
                for event in events
                if isinstance(data := event.data, SessionClaimed) and held and data.claim_id == held
            ]
        return claims

    async def serve(self, claim: Claim, tokens: list[str]) -> Outcome:
        """Serve a claim until it ends; `tokens[0]` serves the session, the others may fetch skills.

        Does not raise for what goes wrong with the session: that is an outcome, and recorded.
        """
        sandbox_id = await self.sandbox_of(claim.session_id)
        run: SessionRun | None = None
        self._cancelled.discard(claim.claim_id)
        self._serving[claim.claim_id] = sandbox_id
        try:
            twin = self.runs.pop(claim.claim_id, None)
            if twin is not None:
                # Asked twice, as after a controller died: two runs of one claim would pass for repeats of each other.
                await twin.cancel()
            await self.recover()
            await self.suspender.make_room(sandbox_id)
            sandbox = await self.sandbox(sandbox_id, claim.session_id)
            if claim.claim_id in self._cancelled:
                return Outcome("cancelled")
            forks = HostForks(self, claim.session_id, claim.claim_id)
            run = self.runs[claim.claim_id] = await self.actors.session(claim, tokens, sandbox, forks)
            outcome = await run.outcome()
            if outcome.session_over:
                await self._bury_forks(self._serving[claim.claim_id], claim.session_id)
                await self.drop(self._serving[claim.claim_id])
            return outcome
        except Replaced as error:
            log.warning("session is served elsewhere session_id=%s %s", claim.session_id, error)
            return Outcome("failed", str(error))
        except Exception as error:
            # The last resort of one session: a bug in it must neither end the others nor stay unseen.
            log.exception("session broke session_id=%s", claim.session_id)
            await self.fail(claim, "internal", f"{type(error).__name__}: {error}"[:500])
            return Outcome("failed", str(error))
        finally:
            if run is not None and self.runs.get(claim.claim_id) is run:
                del self.runs[claim.claim_id]
            self._cancelled.discard(claim.claim_id)
            self.lent = {fork: by for fork, by in self.lent.items() if by != claim.claim_id}
            sandbox_id = self._serving.pop(claim.claim_id, sandbox_id)
            if sandbox_id in self.kept:
                self.kept[sandbox_id].used_at = time.monotonic()

    async def cancel(self, claim_id: str) -> None:
        """Stop serving a claim now; returns when nothing of it runs but a tool call in the machine."""
        run = self.runs.get(claim_id)
        if run is not None:
            await run.cancel()
        else:
            self._cancelled.add(claim_id)  # it may still be preparing

    async def drain(self) -> None:
        """Start no further tool call; each `serve` returns once the call that runs is posted."""
        await asyncio.gather(*(run.drain() for run in list(self.runs.values())))

    # --- sandboxes -------------------------------------------------------------------------------------------------

    async def read_file(self, session_id: str, path: str, max_bytes: int) -> bytes:
        """A file of a session's sandbox. Raises `SandboxFailed`, and `OSError` with the guest's reason."""
        sandbox = await self.sandbox(await self.sandbox_of(session_id), session_id)
        return await sandbox.read_file(path, max_bytes)

    async def status(self) -> dict[str, Any]:
        """What this host has in hand."""
        return {
            "node": self.node,
            "epoch": self._epoch,
            "sessions": len(self.runs),
            "sandboxes": len(self.kept),
        }

    async def close(self) -> None:
        """Suspend every machine, and close the log."""
        for task in self._tasks:
            task.cancel()
        await self.actors.door.close()
        bounded = asyncio.Semaphore(os.cpu_count() or 1)

        async def close(handle: SandboxHandle) -> None:
            async with bounded:
                await self._close_one(handle)

        await asyncio.gather(*(close(kept.handle) for kept in list(self.kept.values())))
        await self.actors.close()
        self._log.close()

    async def _prepare(self) -> None:
        """Boot the template and create the first containers before anybody waits for them."""
        try:
            await self.actors.prepare()
        except MachineError as error:
            # Whoever needs a machine hears it again.
            log.warning("machines could not be prepared: %s", error)

    async def _close_one(self, handle: SandboxHandle) -> None:
        try:
            await self.suspender.lay_down(handle, "shutdown")
        except Exception:
            # One machine that can't be stopped must not keep the others from it; the next start finds it.
            log.exception("sandbox not stopped sandbox_id=%s", handle.sandbox_id)
        await handle.release()

    def busy(self) -> set[str]:
        """Sandboxes of sessions that are served, or about to be, and the forks that they use."""
        return {*self._serving.values(), *self.lent}

    async def sandbox_of(self, session_id: str) -> str:
        """The session's sandbox: the one that was kept, or the first that it has."""
        state = fold.fold(fold.SessionState(session_id), await self.journal.read(f"session-{session_id}"))
        return state.sandbox_id or self._sandbox_id(session_id)

    def _sandbox_id(self, session_id: str) -> str:
        """The same for the same session in the same home, for ever; no two homes share one on a storage."""
        return "sbx-" + hashlib.sha256(f"{self._home_id}/{session_id}".encode()).hexdigest()[:16]

    async def sandbox(self, sandbox_id: str, session_id: str) -> SandboxHandle:
        """The handle of a sandbox, which is made where this host does not hold it."""
        async with self.sandbox_lock(sandbox_id):
            kept = self.kept.get(sandbox_id)
            if kept is not None and kept.handle.gone:
                await self.let_go(sandbox_id)
                kept = None
            if kept is None:
                handle = await self.actors.sandbox(sandbox_id, session_id)
                kept = self.kept.setdefault(sandbox_id, Kept(handle, time.monotonic()))
            return kept.handle

    def sandbox_lock(self, sandbox_id: str) -> asyncio.Lock:
        """Who makes a sandbox's actor, or writes its stream where it has none, holds this."""
        return self._sandbox_locks.setdefault(sandbox_id, asyncio.Lock())

    async def drop(self, sandbox_id: str) -> None:
        """Let go of a sandbox's actor; the machine, if there is one, runs on."""
        async with self.sandbox_lock(sandbox_id):
            await self.let_go(sandbox_id)

    async def let_go(self, sandbox_id: str) -> None:
        """As `drop`, with the sandbox's lock held."""
        kept = self.kept.pop(sandbox_id, None)
        if kept is not None:
            await kept.handle.release()

    def streams(self) -> list[str]:
        """Names of all streams of the log."""
        return self._log.streams()

    def serves(self, claim_id: str, sandbox_id: str) -> None:
        """A claim is served in another sandbox from now on."""
        if claim_id in self._serving:
            self._serving[claim_id] = sandbox_id

    async def ask_forks(self, claim: Claim, method: str, *arguments: Any) -> Any:
        """One of `Forks`."""
        name_method(method)
        return await getattr(HostForks(self, claim.session_id, claim.claim_id), method)(*arguments)

    async def operate(self, operation: str, *arguments: Any) -> Any:
        """One of `Operations`, by name."""
        return await getattr(Operations(self), operation)(*arguments)

    async def bury(self, session_id: str) -> None:
        """See to it that a session that is over has no sandbox: whoever ended it may have died on the way."""
        sandbox_id = await self.sandbox_of(session_id)
        await (await self.sandbox(sandbox_id, session_id)).kill("session_over")
        await self._bury_forks(sandbox_id, session_id)
        await self.drop(sandbox_id)

    async def _bury_forks(self, sandbox_id: str, session_id: str) -> None:
        """End the forks of a sandbox that is over, and theirs."""
        for child in forks_of(await self.journal.read(f"sandbox-{sandbox_id}")):
            await self._bury_forks(child, session_id)
            await self.end(child, session_id, "session_over")

    async def end(self, sandbox_id: str, session_id: str, reason: Literal["session_over", "not_kept"]) -> None:
        """Kill a sandbox, and let go of it. Raises `SandboxFailed`, `MachineError`.

        One that is not held gets no actor for that: on a node that is full there would be none to have.
        """
        kept = self.kept.get(sandbox_id)
        if kept is not None and not kept.handle.gone:
            await kept.handle.kill(reason)
            await self.drop(sandbox_id)
            return
        async with self.sandbox_lock(sandbox_id):
            entity = sandbox_entity(sandbox_id, session_id, self.journal, epoch=self._epoch, metadata=self.metadata)
            await entity.load()
            if entity.state.phase is not sandboxes.Phase.ABSENT:
                await entity.execute("kill", sandboxes.Kill(reason=reason))
        await self.actors.remove(sandbox_id)

    # --- records ---------------------------------------------------------------------------------------------------

    def session(self, session_id: str) -> SessionEntity:
        """A session's stream and state, not loaded yet."""
        return session_entity(session_id, self.journal, epoch=self._epoch, metadata=self.metadata)

    async def _record(self, session_id: str, command_id: str, command: fold.Command) -> None:
        entity = self.session(session_id)
        await entity.load()
        await entity.execute(command_id, command)
