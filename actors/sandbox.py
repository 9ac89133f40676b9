"""A sandbox: the one isolated computer of a session, and the place where each tool call happens once.

It outlives every process that runs it. Its stream says what was done to it, so that a version of the stream names a
machine state; a call is `started` in the log before the machine hears of it, and `completed` before anybody outside is
told. Whoever asks for a call that the log has completed gets the recorded result, and nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from actors.due import DueSnapshots
from actors.handle import SandboxBusy, SandboxFailed
from actors.life import Life
from actors.machines.protocol import EndReason, GuestProtocolError, MachineEnd, MachineError, MachineGone
from actors.outcome import (
    MEMORY_LOST,
    CallOutcome,
    InterruptReason,
    crash_reason,
    half_way,
    machine_lost_text,
    out_of_memory_text,
    recorded_outcome,
)
from actors.spool import Spool, spool_path
from actors.visits.records import end_visits_of_the_dead, record_end
from actors.visits.registry import Visits
from events import sandbox as fold
from events.egress_view import egress_view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from actors.conversation import ToolCall
    from actors.life import FreezeReason, SandboxContext, SuspendReason
    from actors.machines.protocol import Machine, ToolResult
    from actors.visits.records import End
    from events.types import JsonObject

log = logging.getLogger(__name__)

_END_WAIT_S = 10.0
"""How long a machine whose stream broke has to show why it ended."""


class Sandbox:
    """The entity. `load` it, then use it; calls run one at a time, as the SDK's runner has them (contract §11.4)."""

    def __init__(self, sandbox_id: str, session_id: str, context: SandboxContext) -> None:
        self.sandbox_id = sandbox_id
        self._session_id = session_id
        self._context = context
        self._entity = context.entity(sandbox_id, session_id)
        self._call_turn = asyncio.Lock()
        self._life = Life(self._entity, context)
        self._interrupts: dict[str, InterruptReason] = {}
        self.visits = Visits()
        self._rests: FreezeReason | None = None
        """Why it is to rest again once its visitors are gone; None where it is in use."""
        self._due = DueSnapshots(self._life, self._call_turn, self.visits, self._rest_again)

    @property
    def state(self) -> fold.SandboxState:
        """The folded state."""
        return self._entity.state

    async def load(self) -> None:
        """Fold the stream; make the sandbox known where it is new."""
        await self._entity.load()
        self._due.loaded()
        follow = fold.FollowSettings(settings=self._context.given_egress.to(self.state.egress_agent))
        if self.state.phase is fold.Phase.ABSENT:
            create = fold.Create(
                session_id=self._session_id,
                driver=self._context.driver.name,
                template=self._context.template,
                limits=self._context.limits,
            )
            await self._entity.execute("create", create, follow)
        else:
            await self._life.record(follow)
        await end_visits_of_the_dead(self._entity, self._context.journal)

    @property
    def gone(self) -> bool:
        """Never: it lives in this process."""
        return False

    # --- machine ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See to it that a machine runs: the one that is there, thawed or found again, one resumed, or a new one.

        Raises `SandboxFailed` where none can be started, or where the sandbox was killed.
        """
        async with self._life.turn:
            # Not before: who has the turn may say how it rests.
            self._rests = None
            await self._life.run()

    async def recover(self) -> None:
        """Find a machine again that a host before this one left; end it where the log says that none should run."""
        async with self._life.turn:
            if self.state.phase is fold.Phase.KILLED:
                await self._life.kill("session_over")
            else:
                await self._life.recover()

    async def rest(self, reason: FreezeReason, force: bool = False) -> None:
        """Nothing is asked of it for now: freeze it, where that is wanted and nothing runs in it.

        Where a person asks, what runs is awaited, or with `force` ended.
        """
        if reason == "requested":
            async with self._alone(force):
                self._due.resting()
                await self._life.freeze(reason)
            return
        if self._context.freeze not in {"idle": ("turn", "call"), "call": ("call",)}[reason]:
            return
        self._rests = reason
        if self._call_turn.locked() or self.visits:
            return
        async with self._call_turn, self._life.turn:
            if not self.visits:
                self._due.resting()
                await self._life.freeze(reason)

    async def snapshot_due(self, after: Literal["turn", "call"]) -> None:
        """Take a snapshot where the settings want one: after a call at once, after a turn soon.

        One that could not be taken is a warning, and nothing else.
        """
        if after == "turn":
            self._due.after_turn()
        else:
            await self._due.after_call()

    async def stored(self, kept: fold.StoreSnapshot) -> None:
        """Record that the snapshot store has a snapshot of it."""
        await self._entity.execute(f"stored-{kept.snapshot_id}", kept)

    async def suspend(self, reason: SuspendReason, force: bool = False) -> None:
        """Put memory, processes and files to disk. What runs is awaited, or with `force` ended.

        By policy alone, one that has visitors is left as it is; they are sent away where the service stops. Raises
        `SandboxBusy`, and `SandboxFailed` where there is nothing to suspend, or it could not be: it goes on as it was.
        """
        if reason == "shutdown":
            await self.end_visits()
        async with self._alone(force, by_policy=reason in ("idle", "pressure")):
            await self._life.suspend(reason)
            self._due.taken()

    @asynccontextmanager
    async def _alone(self, force: bool, *, by_policy: bool = False) -> AsyncIterator[None]:
        """Nothing runs in it, and nothing begins. Raises `SandboxBusy` where a policy would wait for visitors."""
        if force:
            for call in self.state.open_calls:
                await self.interrupt(call.tool_use_id, "user")
            await self.visits.end_all()
        while True:
            if by_policy and self.visits:
                raise SandboxBusy(f"sandbox {self.sandbox_id} has visitors")
            # Without the turn of the calls: an agent must not wait for a person's shell.
            await self.visits.wait_none()
            async with self._call_turn, self._life.turn:
                if not self.visits:
                    yield
                    return

    @asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """No call runs in it, and no file is half-copied. Programs of visitors go on: a snapshot stops them for it."""
        while True:
            await self.visits.wait_none(copies=True)
            async with self._call_turn, self._life.turn:
                if not self.visits.copying:
                    yield
                    return

    async def snapshot(self) -> str:
        """Take a snapshot, and go on; its id. A call that runs is awaited. Raises `SandboxFailed`."""
        async with self._still():
            return await self._life.snapshot("requested")

    async def fork(self, count: int, asked_by: str = "") -> list[str]:
        """Make sandboxes from this one, as `Life.fork`. A call that runs is awaited. Raises `SandboxFailed`."""
        async with self._still():
            return await self._life.fork(count, asked_by)

    async def forked(self) -> None:
        """See `Life.forked`."""
        async with self._life.turn:
            await self._life.forked()

    async def stop(self, reason: Literal["shutdown", "requested"]) -> None:
        """End the machine and keep the files. A call that runs is awaited, visitors are sent away."""
        await self.visits.end_all()
        async with self._call_turn, self._life.turn:
            await self._life.stop(reason)

    # --- what it may reach ------------------------------------------------------------------------------------------

    async def served_for(self, agent_id: str, agent_name: str) -> None:
        """The session's agent is known: what the settings give it is added, before anything runs for the session."""
        agent = (agent_id, agent_name)
        async with self._life.turn:
            await self._life.record(fold.FollowSettings(settings=self._context.given_egress.to(agent), agent=agent))
        self._life.egress_changed()

    async def change_egress(self, add: tuple[str, ...], remove: tuple[str, ...], by: str) -> dict[str, Any]:
        """Add entries to what it may reach, and take entries out; what is in force when it returns (`egress_view`).

        Raises `SandboxFailed` where the sandbox was killed.
        """
        # With the turn held, a fork has the list from before or from after.
        async with self._life.turn:
            if self.state.phase is fold.Phase.KILLED:
                raise SandboxFailed(f"sandbox {self.sandbox_id} was killed: nothing runs in it any more")
            await self._life.record(fold.EditEgress(add=add, remove=remove, by=by))
        self._life.egress_changed()
        return egress_view(self.state)

    async def kill(self, reason: Literal["session_over", "requested", "not_kept"]) -> None:
        """The end: machine and files are removed. A call that runs is cut off, visitors are sent away."""
        await self.visits.end_all()
        await self._due.close()
        async with self._life.turn:
            await self._life.kill(reason)
        await self._life.close_egress()

    async def release(self) -> None:
        """Let go of the machine, which runs on for the next host."""
        await self.end_visits()
        self._context.door.dismiss(self)
        await self._due.close()
        async with self._life.turn:
            await self._life.snapshotting.settled()
            machine = self._life.let_go()
            if machine is not None:
                await machine.release()
        await self._life.close_egress()

    async def view(self) -> dict[str, object]:
        """What there is to say of it now."""
        machine = self._life.machine
        usage = await machine.usage() if machine is not None else None
        return {
            "sandbox_id": self.sandbox_id,
            "session_id": self.state.session_id,
            "phase": self.state.phase.value,
            "parent": self.state.parent,
            "calls": len(self.state.calls),
            "busy": self._call_turn.locked(),
            "visits": len(self.visits),
            "cpu_seconds": usage.cpu_seconds if usage else None,
            "memory_bytes": usage.memory_bytes if usage else None,
        }

    # --- calls --------------------------------------------------------------------------------------------------

    async def run_call(self, call: ToolCall) -> CallOutcome:
        """Run one tool call exactly once, or give the outcome that the log has.

        A command that fails is an outcome; raises `SandboxFailed` where no machine can be had, and nothing is recorded
        of the call then.
        """
        async with self._call_turn:
            known = self.state.calls.get(call.tool_use_id)
            if known is not None and (outcome := recorded_outcome(known)) is not None:
                return outcome
            async with self._context.pace.begin(), self._machine_in_use():
                if known is not None and self.state.memory_lost:
                    return await self._interrupted(call, "host_lost", half_way(call.tool))
                await self._execute_call(
                    call, "start", fold.StartCall(tool_use_id=call.tool_use_id, tool=call.tool, input=call.input)
                )
                if self.state.memory_lost and call.tool == "bash":
                    return await self._interrupted(call, "machine_lost", MEMORY_LOST)
                return await self._run(call)

    @asynccontextmanager
    async def _machine_in_use(self) -> AsyncIterator[None]:
        """A machine runs, and a call finds out by itself where it ends."""
        await self.start()
        self._life.no_call.clear()
        try:
            yield
        finally:
            self._life.no_call.set()

    async def begin_call(self, call: ToolCall, *, needs_memory: bool) -> CallOutcome | None:
        """Record that a call is served which runs elsewhere, in forks of this sandbox; the outcome that the log has.

        A call that was begun and has no outcome is begun again. Where `needs_memory` and the machine's memory was lost
        unseen, the agent is told instead. Raises `SandboxFailed`.
        """
        async with self._call_turn:
            known = self.state.calls.get(call.tool_use_id)
            if known is not None and (outcome := recorded_outcome(known)) is not None:
                return outcome
            await self.start()
            await self._execute_call(
                call, "start", fold.StartCall(tool_use_id=call.tool_use_id, tool=call.tool, input=call.input)
            )
            if needs_memory and self.state.memory_lost:
                return await self._interrupted(call, "machine_lost", MEMORY_LOST)
            return None

    async def end_call(
        self, call: ToolCall, outcome: CallOutcome, seconds: float, reason: InterruptReason = "user"
    ) -> CallOutcome:
        """Record how a call ended that was begun with `begin_call`; `reason` is of an interrupted one."""
        if outcome.interrupted:
            return await self._interrupted(call, reason, list(outcome.content))
        told = fold.CompleteCall(
            tool_use_id=call.tool_use_id, content=list(outcome.content), is_error=outcome.is_error, seconds=seconds
        )
        await self._execute_call(call, "complete", told)
        return outcome

    async def interrupt(self, tool_use_id: str, reason: InterruptReason) -> None:
        """End a call that runs; it is recorded as interrupted. No error where it does not run."""
        known = self.state.calls.get(tool_use_id)
        machine = self._life.machine
        if known is None or known.status is not fold.CallStatus.STARTED or machine is None:
            return
        self._interrupts[tool_use_id] = reason
        try:
            await machine.guest.interrupt(tool_use_id)
        except MachineError as error:
            log.info("interrupt did not reach the machine sandbox_id=%s %s", self.sandbox_id, error)

    async def _run(self, call: ToolCall) -> CallOutcome:
        machine = self._life.machine
        if machine is None:
            raise SandboxFailed(f"sandbox {self.sandbox_id} was stopped while a call waited")
        began = time.monotonic()
        try:
            with Spool(spool_path(self._context.home, self.sandbox_id, call.tool_use_id)) as spool:
                result = await machine.guest.run_tool(
                    call.tool_use_id,
                    call.tool,
                    call.input,
                    timeout=self._life.limits.tool_seconds,
                    on_output=spool.write,
                )
                return await self._ended(call, result, time.monotonic() - began)
        except MachineError as error:
            return await self._machine_failed(call, machine, error)

    async def _ended(self, call: ToolCall, result: ToolResult, seconds: float) -> CallOutcome:
        await self._life.tell_egress()
        reason = self._interrupts.pop(call.tool_use_id, None)
        if reason is not None:
            return await self._interrupted(call, reason, list(result.content))
        await self._execute_call(
            call,
            "complete",
            fold.CompleteCall(
                tool_use_id=call.tool_use_id,
                content=list(result.content),
                is_error=result.is_error,
                seconds=seconds,
                output_bytes=result.output_bytes,
            ),
        )
        return CallOutcome(result.content, result.is_error, exit_code=result.exit_code)

    async def _machine_failed(self, call: ToolCall, machine: Machine, error: MachineError) -> CallOutcome:
        """The machine went away under a call. What it did is on the disk, what it said is lost: tell the agent so."""
        end = await self._why_ended(machine, error)
        self._interrupts.pop(call.tool_use_id, None)
        async with self._life.turn:
            self._life.machine = None
            await machine.kill()
            if self.state.phase is fold.Phase.KILLED:
                raise SandboxFailed(f"sandbox {self.sandbox_id} was killed while a call ran") from error
            await self._life.record(
                fold.Crash(reason=crash_reason(error, end), detail=end.detail if end else str(error)[:500])
            )
        # The agent is told that the sandbox was restarted once it was.
        await self.start()
        if end is not None and end.reason is EndReason.OUT_OF_MEMORY:
            return await self._interrupted(call, "out_of_memory", out_of_memory_text(self._life.limits))
        return await self._interrupted(call, "machine_lost", machine_lost_text(end))

    async def _why_ended(self, machine: Machine, error: MachineError) -> MachineEnd | None:
        """How the machine ended; None where it has not, and must be ended."""
        if not isinstance(error, MachineGone):
            return None
        try:
            return await asyncio.wait_for(machine.wait_ended(), timeout=_END_WAIT_S)
        except TimeoutError:
            return None

    async def _interrupted(
        self,
        call: ToolCall,
        reason: Literal["user", "thread_terminated", "machine_lost", "out_of_memory", "host_lost"],
        content: list[JsonObject],
    ) -> CallOutcome:
        await self._execute_call(
            call,
            "interrupt",
            fold.InterruptCall(tool_use_id=call.tool_use_id, reason=reason, content=tuple(content)),
        )
        return CallOutcome(content, is_error=True, interrupted=True)

    async def _execute_call(self, call: ToolCall, step: str, *commands: fold.Command) -> None:
        if step != "start":
            self._due.called()
        await self._entity.execute(f"{call.tool_use_id}/{step}", *commands, causation_id=call.tool_use_id)

    # --- files --------------------------------------------------------------------------------------------------

    async def write_tree(self, root: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Replace the folder `root` of the guest by `files`: relative path → (content, mode).

        Raises `SandboxFailed`, and `OSError` with the guest's reason.
        """
        async with self._transfer("files could not be written") as machine:
            await machine.guest.remove_tree(root)
            for path, (content, mode) in files.items():
                await machine.guest.write_file(f"{root}/{path}", content, mode=mode)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """A file of the guest. Raises `SandboxFailed`, and `OSError` with the guest's reason."""
        async with self._transfer(f"{path} could not be read") as machine:
            return await machine.guest.read_file(path, max_bytes=max_bytes)

    @asynccontextmanager
    async def _transfer(self, what: str) -> AsyncIterator[Machine]:
        """A machine that runs, and is not put to rest meanwhile."""
        try:
            async with self._used(copies=True, guest=False) as machine:
                yield machine
        except MachineError as error:
            raise SandboxFailed(f"{what}: {error}") from error

    # --- visits -------------------------------------------------------------------------------------------------

    async def door(self) -> str:
        """Where visitors come in, on this node: a unix socket. Raises `OSError`."""
        self._context.door.admit(self)
        return await self._context.door.open()

    async def end_visits(self) -> None:
        """Send all visitors away, for good; the end of what they did is recorded when it returns."""
        self.visits.closed = f"sandbox {self.sandbox_id} is let go of by this process; try again"
        await self.visits.end_all()

    @asynccontextmanager
    async def visit(self, *opened: fold.Command, copies: bool = False) -> AsyncIterator[Machine]:
        """A machine that runs, resumed where it rested, and `opened` recorded before anybody has it.

        While a visitor is in, the sandbox is not idle; the task that called this is cancelled to send it away. Raises
        `SandboxFailed` where no machine can be had.
        """
        async with self._used(*opened, copies=copies, guest=True) as machine:
            try:
                yield machine
            except GuestProtocolError as error:
                await self._visit_failed(machine, error)
                raise

    @property
    def turn(self) -> asyncio.Lock:
        """Held while the machine is put to rest, snapshotted or brought back."""
        return self._life.turn

    async def record_visit(self, told: End) -> None:
        """Record how a visit ended."""
        await record_end(self._entity, told)

    @asynccontextmanager
    async def _used(self, *opened: fold.Command, copies: bool, guest: bool) -> AsyncIterator[Machine]:
        try:
            with self.visits.entered(copies=copies, guest=guest):
                async with self._life.turn:
                    rested = self.state.phase in (fold.Phase.FROZEN, fold.Phase.SUSPENDED)
                    machine = await self._life.run()
                    if guest and rested:
                        self._rests = "idle"
                    if opened:
                        await self._entity.execute(secrets.token_hex(8), *opened)
                yield machine
        finally:
            try:
                await self._rest_again()
            except SandboxFailed as error:
                # It goes to disk later, or its end is recorded by whoever watches it.
                log.warning("not at rest again sandbox_id=%s %s", self.sandbox_id, error)

    async def _rest_again(self) -> None:
        if self._rests and not self.visits and not self.visits.closed:
            await self.rest(self._rests)

    async def _visit_failed(self, machine: Machine, error: GuestProtocolError) -> None:
        """An agent that broke the protocol is not to be spoken to again; under a call, the call sees to it."""
        if not self._life.no_call.is_set():
            return
        try:
            await machine.guest.ping()
            return  # It refused, as an agent of an older version may, and serves on.
        except MachineGone:
            return
        except GuestProtocolError:
            log.info("machine given up sandbox_id=%s %s", self.sandbox_id, error)
        async with self._life.turn:
            if self._life.machine is machine and self.state.phase is fold.Phase.RUNNING:
                self._life.machine = None
                await machine.kill()
                await self._life.record(fold.Crash(reason="protocol_violation", detail=str(error)[:500]))
