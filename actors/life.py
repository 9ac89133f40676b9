"""The life of a sandbox's machine: started, found again, frozen, suspended to disk, resumed, ended.

What is done to the machine is an event of the sandbox's stream. A suspend is recorded while the guest still stands
still, and only then the machine ends: whoever dies in between leaves either a machine that can be woken, or a snapshot
that the log knows. A resume that fails leaves the sandbox suspended, its snapshot as it was.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from actors.egress.serving import serve_egress
from actors.egress_settings import GivenEgress
from actors.entity import Entity, Fold, execute_together, to_its_end
from actors.handle import SandboxFailed
from actors.machines.protocol import EndReason, MachineError, MachineSpec
from actors.snapshotting import Snapshotting
from events import sandbox as fold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actors.egress.gateway import Gateway
    from actors.journal import Journal
    from actors.machines.protocol import Driver, Machine, Taken
    from actors.pace import Pace
    from actors.visits.door import Door
    from events.types import Limits

log = logging.getLogger(__name__)

SuspendReason = Literal["idle", "shutdown", "requested", "pressure"]
FreezeReason = Literal["idle", "requested", "call"]


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
    pace: Pace
    """For calls that begin."""
    metadata: Mapping[str, str]
    door: Door
    """Where visitors come in."""
    freeze: Literal["turn", "call", "never"] = "turn"
    snapshots: str = "never"
    """The setting of that name."""
    snapshots_local: int = 2
    """How many of a sandbox's stay on the node."""
    stores: bool = False
    """Whether there is a snapshot store."""
    gateway: Gateway | None = None
    """The way to the network, for what a sandbox is allowed; None: there is none."""
    given_egress: GivenEgress = field(default_factory=GivenEgress)
    """What the settings let sandboxes reach."""

    def entity(self, sandbox_id: str, session_id: str) -> SandboxEntity:
        """A sandbox's stream and state, not loaded yet."""
        return sandbox_entity(sandbox_id, session_id, self.journal, epoch=self.epoch, metadata=self.metadata)


SandboxEntity = Entity[fold.SandboxState, fold.Command]
_FOLD: Fold[fold.SandboxState, fold.Command] = Fold(fold.decide, fold.evolve)


def sandbox_entity(
    sandbox_id: str, session_id: str, journal: Journal, *, epoch: int, metadata: Mapping[str, str]
) -> SandboxEntity:
    """A sandbox's stream and state, not loaded yet."""
    state = fold.SandboxState(sandbox_id)
    return Entity(state.stream, state, _FOLD, journal, epoch=epoch, correlation_id=session_id, metadata=metadata)


class Life:
    """A sandbox's machine. Its methods that change it must be called with `turn` held."""

    def __init__(self, entity: SandboxEntity, context: SandboxContext) -> None:
        self.entity = entity
        self.machine: Machine | None = None
        self.turn = asyncio.Lock()
        self.context = context
        self.snapshotting = Snapshotting(self)
        self.egress = serve_egress(entity, context.gateway) if context.gateway is not None else None
        self.no_call = asyncio.Event()
        """Set where no call uses the machine: one that does finds out by itself that it ended."""
        self.no_call.set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> fold.SandboxState:
        """The folded state."""
        return self.entity.state

    @property
    def sandbox_id(self) -> str:
        """Of the sandbox."""
        return self.state.sandbox_id

    @property
    def limits(self) -> Limits:
        """As they were when the sandbox was made: a changed setting is for new sandboxes."""
        return self.state.limits or self.context.limits

    async def record(self, *commands: fold.Command, causation_id: str = "") -> None:
        """Commands that belong to this life of the sandbox. Each time is a command of its own.

        Not told apart by the version that it saw: an append that was cancelled may be in the log by now, and the next
        command, which saw the same version, would pass for its repeat and be lost.
        """
        command_id = f"v{self.entity.version}-{secrets.token_hex(4)}"
        await self.entity.execute(command_id, *commands, causation_id=causation_id)

    # --- to run -----------------------------------------------------------------------------------------------------

    async def run(self) -> Machine:
        """A machine that runs: the one that is there, thawed, found again, resumed, or a new one on the kept files.

        Raises `SandboxFailed` where there can be none.
        """
        began = time.monotonic()
        if self.state.phase is fold.Phase.KILLED:
            raise SandboxFailed(f"sandbox {self.sandbox_id} was killed; its session needs a new one")
        if self.machine is None and self.state.phase in (fold.Phase.RUNNING, fold.Phase.FROZEN):
            await self._adopt(began)
        if self.machine is not None:
            if self.state.phase is fold.Phase.FROZEN:
                await self._thaw(self.machine, began)
        elif self.state.phase is fold.Phase.SUSPENDED:
            await self._resume()
        else:
            await self._start()
        if self.machine is None:
            raise SandboxFailed(f"the machine of {self.sandbox_id} ended as soon as it was there")
        return self.machine

    async def recover(self) -> None:
        """Find a machine again that a host before this one left; end it where the log says that none should run."""
        if self.state.phase in (fold.Phase.RUNNING, fold.Phase.FROZEN):
            await self._adopt(time.monotonic())
            if self.machine is None:
                await self.run()
            return
        machine = await self.context.driver.adopt(self.sandbox_id)
        if machine is not None:
            await machine.kill()

    async def _adopt(self, began: float) -> None:
        """The log says that a machine runs, but not in this process: its host died. Find it, or record the loss."""
        await to_its_end(self._find(began))

    async def _find(self, began: float) -> None:
        frozen = self.state.phase is fold.Phase.FROZEN
        try:
            machine = await self.context.driver.adopt(self.sandbox_id, egress=self.egress)
        except MachineError as error:
            # It runs and does not answer; starting a new one ends it.
            await self.record(fold.Crash(reason="unresponsive", detail=str(error)[:500]))
            return
        if machine is None or machine.machine_id != self.state.machine_id:
            await self.record(fold.Crash(reason="lost", detail="no machine was found after its host died"))
            return
        self._use(machine)
        await self.record(
            fold.Recover(
                machine_id=machine.machine_id,
                node=self.context.node,
                kept="memory_and_files",
                seconds=time.monotonic() - began,
            )
        )
        if machine.frozen and not frozen:
            await machine.thaw()  # whoever froze it died before it was written down
        elif frozen:
            # To the log it runs again now; it goes on to rest as it did.
            await self.freeze("idle")

    async def _thaw(self, machine: Machine, began: float) -> None:
        try:
            await machine.thaw()
        except MachineError as error:
            raise SandboxFailed(str(error)) from error
        await self.record(fold.Thaw(seconds=time.monotonic() - began))

    async def _start(self) -> None:
        machine, seconds = await self._begin(None)
        if self.state.phase is fold.Phase.CRASHED:
            told: fold.Command = fold.Recover(
                machine_id=machine.machine_id, node=self.context.node, kept="files", seconds=seconds
            )
        else:
            told = fold.Start(
                machine_id=machine.machine_id,
                node=self.context.node,
                seconds=seconds,
                agent_version=machine.guest.info.agent_version,
            )
        await self._begun(machine, told)

    async def _resume(self) -> None:
        snapshot_id = self.state.snapshot_id
        machine, seconds = await self._begin(snapshot_id)
        await self._begun(
            machine,
            fold.Resume(
                machine_id=machine.machine_id, node=self.context.node, snapshot_id=snapshot_id, seconds=seconds
            ),
        )

    async def _begin(self, snapshot_id: str | None) -> tuple[Machine, float]:
        spec = MachineSpec(self.sandbox_id, self.state.template, self.limits)
        # A fork's first machine has the memory of another sandbox.
        fresh = snapshot_id is not None and not self.state.machine_id
        async with self.context.start_slots:
            began = time.monotonic()
            try:
                machine = await self.context.driver.start(
                    spec, snapshot_id=snapshot_id, fresh=fresh, egress=self.egress
                )
            except MachineError as error:
                raise SandboxFailed(str(error)) from error
            return machine, time.monotonic() - began

    async def _begun(self, machine: Machine, told: fold.Command) -> None:
        """Record a machine and use it: both, or neither."""

        async def both() -> None:
            try:
                await self.record(told)
            except BaseException:
                await machine.kill()  # nobody would know of it
                raise
            self._use(machine)

        await to_its_end(both())

    def _use(self, machine: Machine) -> None:
        self.machine = machine
        self._watch = asyncio.create_task(self._watch_end(machine), name=f"watch {machine.machine_id}")

    async def _watch_end(self, machine: Machine) -> None:
        """Record a machine that ends between calls when it ends; under a call, the call finds out by itself."""
        end = await machine.wait_ended()
        await self.no_call.wait()
        async with self.turn:
            if self.machine is machine and self.state.phase in (fold.Phase.RUNNING, fold.Phase.FROZEN):
                self.machine = None
                used = await self.used(machine)
                await machine.kill()
                reason: Literal["out_of_memory", "exited"] = (
                    "out_of_memory" if end.reason is EndReason.OUT_OF_MEMORY else "exited"
                )
                await self.record(fold.Crash(reason=reason, detail=end.detail, used=used))

    def let_go(self) -> Machine | None:
        """The machine, no longer ours to watch."""
        machine, self.machine = self.machine, None
        if self._watch is not None:
            self._watch.cancel()
        return machine

    # --- to rest ----------------------------------------------------------------------------------------------------

    async def freeze(self, reason: FreezeReason) -> None:
        """Give the machine no CPU. Nothing where none runs. Raises `SandboxFailed`."""
        machine = self.machine
        if machine is None or self.state.phase is not fold.Phase.RUNNING:
            return
        # Half of it is in a thread, which goes on: it would freeze a machine that was thawed meanwhile.
        await to_its_end(self._freeze(machine, reason))

    async def _freeze(self, machine: Machine, reason: FreezeReason) -> None:
        used = await self.used(machine)
        try:
            await machine.freeze()
        except MachineError as error:
            raise SandboxFailed(str(error)) from error
        await self.record(fold.Freeze(reason=reason, used=used))

    async def suspend(self, reason: SuspendReason) -> None:
        """Memory, processes and files into a snapshot; then no machine. Nothing where it is suspended.

        Raises `SandboxFailed` where it has no memory to keep, or no snapshot could be taken: it goes on as it was.
        """
        if self.state.phase is fold.Phase.SUSPENDED:
            return
        machine = await self._alive("suspended")
        frozen = self.state.phase is fold.Phase.FROZEN
        taken, version = await self.snapshotting.take(machine, "suspend", hold=True, frozen=frozen)
        await to_its_end(self._lay_down(machine, taken, version, reason, frozen))

    async def _lay_down(
        self, machine: Machine, taken: Taken, version: int, reason: SuspendReason, frozen: bool
    ) -> None:
        """Record a suspend and end the machine: both, or neither."""
        used = fold.Used(taken.usage.cpu_seconds, taken.usage.memory_high_bytes)
        try:
            await self.record(
                self.snapshotting.told(taken, "suspend", version),
                fold.Suspend(reason=reason, snapshot_id=taken.snapshot_id, seconds=taken.seconds, used=used),
            )
        except BaseException:
            await machine.wake()
            if frozen:
                await machine.freeze()
            raise
        self.let_go()
        await machine.kill()
        await self.snapshotting.tidy()

    async def snapshot(self, reason: Literal["requested", "fork"]) -> str:
        """Take a snapshot of the machine, which goes on; its id. The snapshot that it lies in, where it is suspended.

        Raises `SandboxFailed` as `suspend`.
        """
        if self.state.phase is fold.Phase.SUSPENDED:
            return self.state.snapshot_id
        machine = await self._alive("snapshotted")
        frozen = self.state.phase is fold.Phase.FROZEN
        taken, version = await self.snapshotting.take(machine, reason, hold=False, frozen=frozen)
        if frozen:
            await machine.freeze()
        await self.record(self.snapshotting.told(taken, reason, version))
        return taken.snapshot_id

    async def snapshot_soon(self, reason: Literal["turn", "call", "every"], of_version: int = 0) -> bool:
        """Take a snapshot of a machine that is in memory; whether there is one, and it could be taken.

        Returns when it is as it was, running or frozen; the snapshot is recorded later. It is of the version
        `of_version`; 0: of the moment's.
        """
        if self.machine is None or self.state.phase not in (fold.Phase.RUNNING, fold.Phase.FROZEN):
            return False
        frozen = self.state.phase is fold.Phase.FROZEN
        return await self.snapshotting.begin(self.machine, reason, frozen=frozen, of_version=of_version)

    async def _alive(self, what: str) -> Machine:
        if self.machine is None and self.state.phase in (fold.Phase.RUNNING, fold.Phase.FROZEN):
            await self._adopt(time.monotonic())
        if self.machine is None:
            raise SandboxFailed(
                f"sandbox {self.sandbox_id} can't be {what}: it is {self.state.phase} and has no memory to keep; "
                "`hourglass resume` starts it"
            )
        return self.machine

    async def fork(self, count: int, asked_by: str = "") -> list[str]:
        """Make sandboxes from this one as it is now; their ids. They lie suspended on its snapshot, to be started.

        `asked_by` is the tool call that wants them; "" where a person does. The parent is held only for the snapshot.
        All of them are made in one append. Raises `SandboxFailed`.
        """
        snapshot_id = await self.snapshot("fork")
        parent_version = self.entity.version
        children = [f"sbx-{secrets.token_hex(8)}" for _ in range(count)]
        state = self.state
        create = fold.Create(
            session_id=state.session_id,
            driver=state.driver,
            template=state.template,
            limits=self.limits,
            parent=self.sandbox_id,
            parent_version=parent_version,
        )
        inherits = fold.ChangeEgress(
            allow=state.egress, settings=state.egress_settings, by="fork", agent=state.egress_agent
        )
        asleep = fold.Suspend(reason="fork", snapshot_id=snapshot_id)
        forked = tuple(fold.Fork(child=child, snapshot_id=snapshot_id) for child in children)
        made: list[tuple[SandboxEntity, tuple[fold.Command, ...]]] = [
            (self.context.entity(child, state.session_id), (create, inherits, asleep)) for child in children
        ]
        # Not by the snapshot's id alone: a sandbox that lies suspended in it can be forked again.
        command_id = f"fork-{snapshot_id}-{secrets.token_hex(4)}"
        await execute_together(self.context.journal, command_id, (self.entity, forked), *made, causation_id=asked_by)
        return children

    async def forked(self) -> None:
        """Every child of the last fork was started: what they began with is theirs now."""
        if self.context.stores:
            return  # it goes when the store has it
        try:
            for one in await self.context.driver.snapshots():
                mine = one.sandbox_id == self.sandbox_id and one.snapshot_id.startswith("fork-")
                if mine and one.snapshot_id != self.state.snapshot_id:
                    await self.context.driver.drop_snapshot(one.snapshot_id)
        except (MachineError, OSError) as error:
            # One that stays costs room, no more.
            log.warning("snapshots not removed sandbox_id=%s %s", self.sandbox_id, error)

    # --- to end -----------------------------------------------------------------------------------------------------

    async def stop(self, reason: Literal["shutdown", "requested"]) -> None:
        """End the machine and keep the files. Memory that lies in a snapshot is given up."""
        await to_its_end(self._stop(reason))

    async def _stop(self, reason: Literal["shutdown", "requested"]) -> None:
        await self.snapshotting.settled()
        if self.state.phase not in (fold.Phase.RUNNING, fold.Phase.FROZEN, fold.Phase.SUSPENDED):
            return
        used = await self.used(self.machine)
        # First the record: a machine that ends unrecorded would read as a crash.
        await self.record(fold.Stop(reason=reason, used=used))
        machine = self.let_go() or await self.context.driver.adopt(self.sandbox_id)
        if machine is not None:
            await machine.kill()

    async def kill(self, reason: Literal["session_over", "requested", "not_kept", "replaced"]) -> None:
        """The end: machine, files and the node's snapshots are removed."""
        await to_its_end(self._kill(reason))

    async def _kill(self, reason: Literal["session_over", "requested", "not_kept", "replaced"]) -> None:
        await self.snapshotting.settled()
        if self.state.phase not in (fold.Phase.KILLED, fold.Phase.ABSENT):
            used = await self.used(self.machine)
            await self.record(fold.Kill(reason=reason, used=used))
        machine = self.let_go()
        if machine is not None:
            await machine.kill()
        await self.context.driver.remove(self.sandbox_id)

    def egress_changed(self) -> None:
        """What it may reach is another list now: connections that are not allowed any more end."""
        if self.egress is not None:
            self.egress.policy_changed()

    async def tell_egress(self) -> None:
        """Record what became of connections so far, so that it does not seem later than what comes now."""
        if self.egress is not None:
            await self.egress.tell()

    async def close_egress(self) -> None:
        """End connections that outlived their machine, and record what was not recorded yet of the others."""
        if self.egress is not None:
            await self.egress.close()

    async def used(self, machine: Machine | None) -> fold.Used:
        """What a machine has used so far, as far as anybody counted."""
        if machine is None:
            return fold.Used()
        usage = await machine.usage()
        return fold.Used(round(usage.cpu_seconds, 6), usage.memory_high_bytes)
