"""A sandbox: the one isolated computer of a session, and the place where each tool call happens once.

It outlives every process that runs it. Its stream says what was done to it, so that a version of the stream names a
machine state; a call is `started` in the log before the machine hears of it, and `completed` before anybody outside is
told. Whoever asks for a call that the log has completed gets the recorded result, and nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actors.entity import Entity, Fold
from actors.handle import SandboxFailed
from actors.machines.protocol import (
    EndReason,
    MachineEnd,
    MachineError,
    MachineGone,
    MachineSpec,
)
from actors.outcome import (
    MEMORY_LOST,
    CallOutcome,
    InterruptReason,
    crash_reason,
    half_way,
    machine_lost_text,
    out_of_memory_text,
)
from actors.spool import Spool, spool_path
from events import sandbox as fold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actors.conversation import ToolCall
    from actors.journal import Journal
    from actors.machines.protocol import Driver, Machine, ToolResult
    from events.types import JsonObject, Limits

log = logging.getLogger(__name__)

_END_WAIT_S = 10.0
"""How long a machine whose stream broke has to show why it ended."""


@dataclass(frozen=True, slots=True)
class SandboxContext:
    """What the sandboxes of one host share."""

    driver: Driver
    journal: Journal
    home: Path
    node: str
    epoch: int
    template: str
    limits: Limits
    start_slots: asyncio.Semaphore
    """How many machines start at once: more would only slow each other down."""
    metadata: Mapping[str, str]


_FOLD: Fold[fold.SandboxState, fold.Command] = Fold(fold.decide, fold.evolve)


class Sandbox:
    """The entity. `load` it, then use it; calls run one at a time, as the SDK's runner has them (contract §11.4)."""

    def __init__(self, sandbox_id: str, session_id: str, context: SandboxContext) -> None:
        self.sandbox_id = sandbox_id
        self._session_id = session_id
        self._context = context
        state = fold.SandboxState(sandbox_id)
        self._entity = Entity(
            state.stream,
            state,
            _FOLD,
            context.journal,
            epoch=context.epoch,
            correlation_id=session_id,
            metadata=context.metadata,
        )
        self._machine: Machine | None = None
        self._watch: asyncio.Task[None] | None = None
        self._machine_turn = asyncio.Lock()
        self._call_turn = asyncio.Lock()
        self._interrupts: dict[str, InterruptReason] = {}

    @property
    def state(self) -> fold.SandboxState:
        """The folded state."""
        return self._entity.state

    @property
    def _limits(self) -> Limits:
        """As they were when the sandbox was made: a changed setting is for new sandboxes."""
        return self.state.limits or self._context.limits

    async def load(self) -> None:
        """Fold the stream; make the sandbox known where it is new."""
        await self._entity.load()
        if self.state.phase is fold.Phase.ABSENT:
            await self._entity.execute(
                "create",
                fold.Create(
                    session_id=self._session_id,
                    driver=self._context.driver.name,
                    template=self._context.template,
                    limits=self._context.limits,
                ),
            )

    # --- machine ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See to it that a machine runs: the one that is there, one found again, or a new one on the kept files.

        Raises `SandboxFailed` where none can be started, or where the sandbox was killed.
        """
        async with self._machine_turn:
            if self._machine is not None:
                return
            if self.state.phase is fold.Phase.KILLED:
                raise SandboxFailed(f"sandbox {self.sandbox_id} was killed; its session needs a new one")
            began = time.monotonic()
            if self.state.phase is fold.Phase.RUNNING:
                await self._adopt(began)
            if self._machine is None:
                await self._start_new(began)

    @property
    def gone(self) -> bool:
        """Never: it lives in this process."""
        return False

    async def recover(self) -> None:
        """Find a machine again that a host before this one left; end it where the log says that none should run."""
        if self.state.phase is fold.Phase.RUNNING:
            await self.start()
        elif self.state.phase is fold.Phase.KILLED:
            await self.kill("session_over")
        else:
            machine = await self._context.driver.adopt(self.sandbox_id)
            if machine is not None:
                await machine.kill()

    async def _adopt(self, began: float) -> None:
        """The log says that a machine runs, but not in this process: its host died. Find it, or record the loss."""
        try:
            machine = await self._context.driver.adopt(self.sandbox_id)
        except MachineError as error:
            # It runs and does not answer; starting a new one ends it.
            await self._record(fold.Crash(reason="unresponsive", detail=str(error)[:500]))
            return
        if machine is None or machine.machine_id != self.state.machine_id:
            await self._record(fold.Crash(reason="lost", detail="no machine was found after its host died"))
            return
        await self._record(
            fold.Recover(
                machine_id=machine.machine_id,
                node=self._context.node,
                kept="memory_and_files",
                seconds=time.monotonic() - began,
            )
        )
        self._use(machine)

    async def _start_new(self, began: float) -> None:
        async with self._context.start_slots:
            began_start = time.monotonic()
            try:
                machine = await self._context.driver.start(
                    MachineSpec(self.sandbox_id, self.state.template, self._limits)
                )
            except MachineError as error:
                raise SandboxFailed(str(error)) from error
            seconds = time.monotonic() - began_start
        log.debug("machine started sandbox_id=%s waited=%.3f", self.sandbox_id, began_start - began)
        try:
            if self.state.phase is fold.Phase.CRASHED:
                await self._record(
                    fold.Recover(machine_id=machine.machine_id, node=self._context.node, kept="files", seconds=seconds)
                )
            else:
                await self._record(
                    fold.Start(
                        machine_id=machine.machine_id,
                        node=self._context.node,
                        seconds=seconds,
                        agent_version=machine.guest.info.agent_version,
                    )
                )
        except BaseException:
            await machine.kill()  # nobody would know of it
            raise
        self._use(machine)

    def _use(self, machine: Machine) -> None:
        self._machine = machine
        self._watch = asyncio.create_task(self._watch_end(machine), name=f"watch {machine.machine_id}")

    async def _watch_end(self, machine: Machine) -> None:
        """Record a machine that ends between calls when it ends; under a call, the call finds out by itself."""
        end = await machine.wait_ended()
        if self._call_turn.locked():
            return
        async with self._machine_turn:
            if self._machine is machine and self.state.phase is fold.Phase.RUNNING:
                self._machine = None
                await machine.kill()
                reason: Literal["out_of_memory", "exited"] = (
                    "out_of_memory" if end.reason is EndReason.OUT_OF_MEMORY else "exited"
                )
                await self._record(fold.Crash(reason=reason, detail=end.detail))

    def _let_go(self) -> Machine | None:
        """The machine, no longer ours to watch."""
        machine, self._machine = self._machine, None
        if self._watch is not None:
            self._watch.cancel()
        return machine

    async def _record(self, *commands: fold.Command, causation_id: str = "") -> None:
        """Commands that belong to this life of the sandbox: a repeat is told apart by the version it saw."""
        await self._entity.execute(f"v{self._entity.version}", *commands, causation_id=causation_id)

    async def stop(self, reason: Literal["shutdown", "requested"]) -> None:
        """End the machine and keep the files. A call that runs is awaited."""
        async with self._call_turn, self._machine_turn:
            if self.state.phase is not fold.Phase.RUNNING:
                return
            # First the record: a machine that ends unrecorded would read as a crash.
            await self._record(fold.Stop(reason=reason))
            machine = self._let_go() or await self._context.driver.adopt(self.sandbox_id)
            if machine is not None:
                await machine.kill()

    async def kill(self, reason: Literal["session_over", "requested"]) -> None:
        """The end: machine and files are removed. A call that runs is cut off."""
        async with self._machine_turn:
            if self.state.phase not in (fold.Phase.KILLED, fold.Phase.ABSENT):
                await self._record(fold.Kill(reason=reason))
            machine = self._let_go()
            if machine is not None:
                await machine.kill()
            await self._context.driver.remove(self.sandbox_id)

    async def release(self) -> None:
        """Let go of the machine, which runs on for the next host."""
        async with self._machine_turn:
            machine = self._let_go()
            if machine is not None:
                await machine.release()

    # --- calls --------------------------------------------------------------------------------------------------

    async def run_call(self, call: ToolCall) -> CallOutcome:
        """Run one tool call exactly once, or give the outcome that the log has.

        A command that fails is an outcome; raises `SandboxFailed` where no machine can be had, and nothing is recorded
        of the call then.
        """
        async with self._call_turn:
            known = self.state.calls.get(call.tool_use_id)
            if known is not None and known.status is not fold.CallStatus.STARTED:
                interrupted = known.status is fold.CallStatus.INTERRUPTED
                return CallOutcome(known.content, known.is_error or interrupted, interrupted)
            await self.start()
            if known is not None and self.state.memory_lost:
                return await self._interrupted(call, "host_lost", half_way(call.tool))
            await self._execute_call(
                call, "start", fold.StartCall(tool_use_id=call.tool_use_id, tool=call.tool, input=call.input)
            )
            if self.state.memory_lost and call.tool == "bash":
                return await self._interrupted(call, "machine_lost", MEMORY_LOST)
            return await self._run(call)

    async def interrupt(self, tool_use_id: str, reason: InterruptReason) -> None:
        """End a call that runs; it is recorded as interrupted. No error where it does not run."""
        known = self.state.calls.get(tool_use_id)
        machine = self._machine
        if known is None or known.status is not fold.CallStatus.STARTED or machine is None:
            return
        self._interrupts[tool_use_id] = reason
        try:
            await machine.guest.interrupt(tool_use_id)
        except MachineError as error:
            log.info("interrupt did not reach the machine sandbox_id=%s %s", self.sandbox_id, error)

    async def _run(self, call: ToolCall) -> CallOutcome:
        machine = self._machine
        if machine is None:
            raise SandboxFailed(f"sandbox {self.sandbox_id} was stopped while a call waited")
        began = time.monotonic()
        try:
            with Spool(spool_path(self._context.home, self.sandbox_id, call.tool_use_id)) as spool:
                result = await machine.guest.run_tool(
                    call.tool_use_id,
                    call.tool,
                    call.input,
                    timeout=self._limits.tool_seconds,
                    on_output=spool.write,
                )
                return await self._ended(call, result, time.monotonic() - began)
        except MachineError as error:
            return await self._machine_failed(call, machine, error)

    async def _ended(self, call: ToolCall, result: ToolResult, seconds: float) -> CallOutcome:
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
        return CallOutcome(result.content, result.is_error)

    async def _machine_failed(self, call: ToolCall, machine: Machine, error: MachineError) -> CallOutcome:
        """The machine went away under a call. What it did is on the disk, what it said is lost: tell the agent so."""
        end = await self._why_ended(machine, error)
        self._interrupts.pop(call.tool_use_id, None)
        async with self._machine_turn:
            self._machine = None
            await machine.kill()
            if self.state.phase is fold.Phase.KILLED:
                raise SandboxFailed(f"sandbox {self.sandbox_id} was killed while a call ran") from error
            await self._record(
                fold.Crash(reason=crash_reason(error, end), detail=end.detail if end else str(error)[:500])
            )
        # The agent is told that the sandbox was restarted once it was.
        await self.start()
        if end is not None and end.reason is EndReason.OUT_OF_MEMORY:
            return await self._interrupted(call, "out_of_memory", out_of_memory_text(self._limits))
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
        await self._entity.execute(f"{call.tool_use_id}/{step}", *commands, causation_id=call.tool_use_id)

    # --- files --------------------------------------------------------------------------------------------------

    async def write_tree(self, root: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """Replace the folder `root` of the guest by `files`: relative path → (content, mode).

        Raises `SandboxFailed`, and `OSError` with the guest's reason.
        """
        machine = await self._running()
        try:
            await machine.guest.remove_tree(root)
            for path, (content, mode) in files.items():
                await machine.guest.write_file(f"{root}/{path}", content, mode=mode)
        except MachineError as error:
            raise SandboxFailed(f"files could not be written: {error}") from error

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """A file of the guest. Raises `SandboxFailed`, and `OSError` with the guest's reason."""
        machine = await self._running()
        try:
            return await machine.guest.read_file(path, max_bytes=max_bytes)
        except MachineError as error:
            raise SandboxFailed(f"{path} could not be read: {error}") from error

    async def _running(self) -> Machine:
        await self.start()
        if self._machine is None:
            raise SandboxFailed(f"sandbox {self.sandbox_id} was stopped")
        return self._machine
