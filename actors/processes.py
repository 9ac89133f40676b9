"""`isolation = "process"`: each session and each sandbox in a Ray actor of its own, seen in `ray list actors`.

An actor costs 47 MiB and about a second of CPU to start, and a bug in it, or the kernel's out-of-memory killer, ends
one session and no other. It reaches the log through its host. A sandbox's machine is no child of its actor, and
outlives it.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from actors import call_spans
from actors.api import connect
from actors.claim import Outcome
from actors.cluster import prepare_process
from actors.handle import SandboxFailed
from actors.isolation import make_session, prepare, sandbox_context
from actors.journal import RemoteJournal
from actors.machines.drivers import make_driver
from actors.sandbox import Sandbox
from actors.visits.door import Door
from actors.visits.wire import FOLDER, HOST_DOOR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors.claim import Claim
    from actors.conversation import ToolCall
    from actors.forks import Forks
    from actors.handle import SandboxHandle
    from actors.isolation import Actors, Placement, SessionRun
    from actors.journal import Journal
    from actors.keeping import Choice
    from actors.life import FreezeReason, SuspendReason
    from actors.machines.protocol import Driver
    from actors.outcome import CallOutcome, InterruptReason
    from actors.session import Session
    from events.sandbox import StoreSnapshot

_SANDBOX_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "resources": {"sandbox": 1},
    "max_concurrency": 100,
    "enable_task_events": False,
}
_FAREWELL_S = 10.0
"""How long the visitors of a sandbox whose actor is to end have to be seen off."""
_SESSION_OPTIONS: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 100, "enable_task_events": False}


def own_words(error: SandboxFailed) -> SandboxFailed:
    """The error as the other process raised it: what Ray makes of it tells that process's whole traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SandboxFailed) else error


async def _export_last(actor: Any) -> None:
    """Have an actor that is to be killed export its last spans. A call of its own: the spans of one end with it."""
    if not call_spans.on():
        return
    with suppress(RayError, TimeoutError), call_spans.of_no_claim():
        async with asyncio.timeout(2 * call_spans.FLUSH_S):
            await actor.flush.remote()


class SandboxActor:
    """A sandbox in a Ray actor."""

    def __init__(self, sandbox_id: str, session_id: str, placement: Placement, host: Any) -> None:
        prepare_process(placement.settings)
        driver = make_driver(placement.settings)
        door = Door(placement.settings.home / FOLDER / f"{sandbox_id}.sock")
        self._sandbox = Sandbox(sandbox_id, session_id, sandbox_context(placement, RemoteJournal(host), driver, door))

    async def load(self) -> None:
        """See `Sandbox`."""
        await self._sandbox.load()

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Any method of `SandboxHandle`, by name: the caller is our own `RemoteSandbox`."""
        call_spans.name_method(method)
        return await getattr(self._sandbox, method)(*arguments, **options)

    async def flush(self) -> None:
        """See `call_spans`."""
        await call_spans.flush()


class RemoteSandbox:
    """A `SandboxHandle` on a `SandboxActor`; a dead actor is a failed sandbox, and its machine is found again later."""

    def __init__(self, sandbox_id: str, actor: Any) -> None:
        self.sandbox_id = sandbox_id
        self._actor = actor
        self._gone = False

    @property
    def gone(self) -> bool:
        """Whether its actor died."""
        return self._gone

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return await self._actor.call.remote(method, *arguments, **options)
        except RayActorError as error:
            self._gone = True
            raise SandboxFailed(f"the actor of {self.sandbox_id} died; its machine runs on") from error
        except SandboxFailed as error:
            raise own_words(error) from error

    async def start(self) -> None:
        """See `Sandbox`."""
        await self._call("start")

    async def run_call(self, call: ToolCall) -> CallOutcome:
        """See `Sandbox`."""
        outcome: CallOutcome = await self._call("run_call", call)
        return outcome

    async def begin_call(self, call: ToolCall, *, needs_memory: bool) -> CallOutcome | None:
        """See `Sandbox`."""
        known: CallOutcome | None = await self._call("begin_call", call, needs_memory=needs_memory)
        return known

    async def end_call(
        self, call: ToolCall, outcome: CallOutcome, seconds: float, reason: InterruptReason = "user"
    ) -> CallOutcome:
        """See `Sandbox`."""
        ended: CallOutcome = await self._call("end_call", call, outcome, seconds, reason)
        return ended

    async def interrupt(self, tool_use_id: str, reason: InterruptReason) -> None:
        """See `Sandbox`."""
        await self._call("interrupt", tool_use_id, reason)

    async def write_tree(self, root: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """See `Sandbox`."""
        await self._call("write_tree", root, dict(files))

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """See `Sandbox`."""
        content: bytes = await self._call("read_file", path, max_bytes)
        return content

    async def served_for(self, agent_id: str, agent_name: str) -> None:
        """See `Sandbox`."""
        await self._call("served_for", agent_id, agent_name)

    async def change_egress(self, add: tuple[str, ...], remove: tuple[str, ...], by: str) -> dict[str, Any]:
        """See `Sandbox`."""
        view: dict[str, Any] = await self._call("change_egress", add, remove, by)
        return view

    async def kill(self, reason: Literal["session_over", "requested", "not_kept"]) -> None:
        """See `Sandbox`."""
        await self._call("kill", reason)

    async def stop(self, reason: Literal["shutdown", "requested"]) -> None:
        """See `Sandbox`."""
        await self._call("stop", reason)

    async def rest(self, reason: FreezeReason, force: bool = False) -> None:
        """See `Sandbox`."""
        await self._call("rest", reason, force)

    async def snapshot_due(self, after: Literal["turn", "call"]) -> None:
        """See `Sandbox`."""
        await self._call("snapshot_due", after)

    async def stored(self, kept: StoreSnapshot) -> None:
        """See `Sandbox`."""
        await self._call("stored", kept)

    async def suspend(self, reason: SuspendReason, force: bool = False) -> None:
        """See `Sandbox`."""
        await self._call("suspend", reason, force)

    async def snapshot(self) -> str:
        """See `Sandbox`."""
        snapshot_id: str = await self._call("snapshot")
        return snapshot_id

    async def fork(self, count: int, asked_by: str = "") -> list[str]:
        """See `Sandbox`."""
        children: list[str] = await self._call("fork", count, asked_by)
        return children

    async def forked(self) -> None:
        """See `Sandbox`."""
        await self._call("forked")

    async def door(self) -> str:
        """See `Sandbox`."""
        place: str = await self._call("door")
        return place

    async def end_visits(self) -> None:
        """See `Sandbox`."""
        await self._call("end_visits")

    async def view(self) -> dict[str, object]:
        """See `Sandbox`."""
        shown: dict[str, object] = await self._call("view")
        return shown

    async def recover(self) -> None:
        """See `Sandbox`."""
        await self._call("recover")

    async def release(self) -> None:
        """End the actor; the machine, if any, runs on."""
        with suppress(SandboxFailed, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                # Visitors sent away, and a snapshot that is being taken recorded.
                await self._call("release")
        self._gone = True
        await _export_last(self._actor)
        ray.kill(self._actor)


class RemoteForks:
    """`Forks` behind the host's handle."""

    def __init__(self, host: Any, claim: Claim) -> None:
        self._host = host
        self._claim = claim

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await self._host.ask_forks.remote(self._claim, method, *arguments)
        except SandboxFailed as error:
            raise own_words(error) from error

    async def begin(self, sandbox_id: str, seconds: float) -> SandboxHandle:
        """See `Forks`."""
        handle: SandboxHandle = await self._ask("begin", sandbox_id, seconds)
        return handle

    async def rest(self, sandbox_id: str) -> None:
        """See `Forks`."""
        await self._ask("rest", sandbox_id)

    async def end(self, sandbox_ids: Sequence[str]) -> None:
        """See `Forks`."""
        await self._ask("end", list(sandbox_ids))

    async def let_go(self, sandbox_ids: Sequence[str]) -> None:
        """See `Forks`."""
        await self._ask("let_go", list(sandbox_ids))

    async def adopt(self, named: str) -> SandboxHandle | None:
        """See `Forks`."""
        handle: SandboxHandle | None = await self._ask("adopt", named)
        return handle

    async def kept(self, sandbox_id: str, ended: Sequence[str]) -> None:
        """See `Forks`."""
        await self._ask("kept", sandbox_id, list(ended))


class SessionActor:
    """A session in a Ray actor."""

    def __init__(self, claim: Claim, placement: Placement, host: Any) -> None:
        prepare_process(placement.settings)
        self._claim = claim
        self._placement = placement
        self._host = host
        self._session: Session | None = None

    async def run(self, tokens: list[str], sandbox: SandboxHandle) -> Outcome:
        """Serve the claim to its end; raises as `Session.run`."""
        client = connect(self._placement.settings.base_url, tokens[0])
        self._session = make_session(
            self._claim,
            self._placement,
            client=client,
            tokens=tokens,
            sandbox=sandbox,
            journal=RemoteJournal(self._host),
            forks=RemoteForks(self._host, self._claim),
        )
        try:
            return await self._session.run()
        finally:
            await client.close()

    async def drain(self) -> None:
        """See `Session`."""
        if self._session is not None:
            self._session.drain()

    async def keep(self, choice: Choice, sandbox: SandboxHandle) -> None:
        """See `Session`."""
        if self._session is not None:
            await self._session.keep(choice, sandbox)

    async def flush(self) -> None:
        """See `call_spans`."""
        await call_spans.flush()


class RemoteRun:
    """A `SessionRun` on a `SessionActor`."""

    def __init__(self, claim: Claim, actor: Any, run: Any) -> None:
        self.claim = claim
        self._actor = actor
        self._run = run
        self._cancelled = False

    async def outcome(self) -> Outcome:
        """See `SessionRun`. A dead actor is a failed session, which the queue offers again."""
        try:
            outcome: Outcome = await self._run
        except RayActorError as error:
            return Outcome("cancelled") if self._cancelled else Outcome("failed", f"the session's actor died: {error}")
        finally:
            await _export_last(self._actor)
            ray.kill(self._actor)
        return outcome

    async def cancel(self) -> None:
        """See `SessionRun`: the process ends, and with it whatever the session was at."""
        self._cancelled = True
        ray.kill(self._actor)

    async def drain(self) -> None:
        """See `SessionRun`."""
        await self._actor.drain.remote()

    async def keep(self, choice: Choice, sandbox: SandboxHandle) -> None:
        """See `SessionRun`."""
        await self._actor.keep.remote(choice, sandbox)


class ProcessActors:
    """`Actors` that makes a Ray actor for each session and each sandbox."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._host = ray.get_runtime_context().current_actor
        self.driver: Driver = make_driver(placement.settings)
        doors = placement.settings.home / FOLDER
        for left in doors.glob("*.sock"):
            left.unlink()  # of the actors of a host before this one, which ended with it
        self.door = Door(doors / HOST_DOOR)

    async def sandbox(self, sandbox_id: str, session_id: str) -> SandboxHandle:
        """See `Actors`."""
        actor = (
            ray.remote(SandboxActor)
            .options(name=f"sandbox-{sandbox_id}-{secrets.token_hex(4)}", **_SANDBOX_OPTIONS)
            .remote(sandbox_id, session_id, self._placement, self._host)
        )
        await actor.load.remote()
        return RemoteSandbox(sandbox_id, actor)

    async def session(self, claim: Claim, tokens: list[str], sandbox: SandboxHandle, forks: Forks) -> SessionRun:
        """See `Actors`."""
        del forks  # the session reaches them through the host's handle
        actor = (
            ray.remote(SessionActor)
            .options(name=f"session-{claim.session_id}-{claim.claim_id}", **_SESSION_OPTIONS)
            .remote(claim, self._placement, self._host)
        )
        return RemoteRun(claim, actor, actor.run.remote(tokens, sandbox))

    async def running(self) -> list[str]:
        """See `Actors`."""
        return await self.driver.running()

    async def prepare(self) -> None:
        """See `Actors`."""
        await prepare(self.driver, self._placement.settings)

    async def remove(self, sandbox_id: str) -> None:
        """See `Actors`."""
        await self.driver.remove(sandbox_id)

    async def close(self) -> None:
        """See `Actors`."""
        # The host releases every sandbox that it holds.


def process_actors(placement: Placement, journal: Journal) -> Actors:
    """For `Host`: the journal is reached through the host's handle instead."""
    del journal
    return ProcessActors(placement)
