"""Branch: a past version goes on as a sandbox of its own. It is a rebuild that stays, and its parent is not touched.

What must run again on the way runs as its parent, and is compared; a branch that would begin with something else is
refused. With a what-if, the machine is then made the branch's own, and runs the other calls as the branch. In the end
it lies suspended on this node, like any sandbox. Where a snapshot is of the very version, that is copied, and no
machine starts: a suspended sandbox that never ran is made itself when it does, as a fork is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.machines.protocol import MachineError, MachineSpec, SnapshotBroken, SnapshotMissing
from events.errors import HourglassError
from events.types import Limits, SandboxBranched, SandboxSnapshotStored, SandboxStarted
from replay.branching.errors import NotTheSame
from replay.branching.running import run_on
from replay.branching.stream import Resting, append, append_stored, beginning
from replay.history.planned import Fate
from replay.rebuild.checks import Verdict
from replay.rebuild.errors import MachineFailed, SnapshotUnusable
from replay.rebuild.preparing import checked, nearest_left
from replay.rebuild.rebuilding import Rebuilt, Step, rebuild
from replay.rebuild.throwaway import throwaway
from replay.rebuild.trees import some

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.machines.protocol import Machine
    from events.log import EventLog
    from events.sandbox_state import SandboxState
    from replay.branching.running import Run
    from replay.branching.what_if import WhatIf
    from replay.history.planned import Plan, Version
    from replay.rebuild.ground import Ground

_log = logging.getLogger(__name__)
_SANDBOX = "sandbox-"


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that was made."""

    sandbox_id: str
    begin: Version
    """Of the parent: what it is a branch of."""
    version: int
    """Of its own stream."""
    snapshot_id: str
    """Its own, in which it lies suspended."""
    rebuilt: Rebuilt | None
    """How it came back; None where a snapshot is of the very version."""
    runs: tuple[Run, ...]
    """Of a what-if: its own calls."""
    seconds: float
    not_stored: str = ""
    """Why the store does not have its snapshot yet; "" where it has, or the service sees to it."""

    @property
    def diverged(self) -> Run | None:
        """The first call, after those that were replaced, with another result than the parent's."""
        return next((one for one in self.runs if one.diverged and not one.call.replaced), None)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        diverged = self.diverged
        return {
            "sandbox_id": self.sandbox_id,
            "parent": self.begin.stream.removeprefix(_SANDBOX),
            "parent_version": self.begin.version,
            "version": self.version,
            "snapshot_id": self.snapshot_id,
            "rebuilt": self.rebuilt.plain() if self.rebuilt else None,
            "runs": [one.plain() for one in self.runs],
            "diverged_at": diverged.check.recorded.call.at.version if diverged else None,
            "seconds": self.seconds,
            "not_stored": self.not_stored or None,
        }


@dataclass
class _Making:
    """A branch that is being made."""

    log: EventLog
    made: Plan
    ground: Ground
    state: SandboxState
    anyway: bool
    what_if: WhatIf | None
    heard: Callable[[Step], None]
    began: float = field(default_factory=time.monotonic)
    sandbox_id: str = field(default_factory=lambda: f"sbx-{secrets.token_hex(8)}")
    snapshot_id: str = field(default_factory=lambda: f"branch-{secrets.token_hex(8)}")
    runs: tuple[Run, ...] = ()
    version: int = 0
    by_service: bool = False

    @property
    def spec(self) -> MachineSpec:
        """Of the branch."""
        return MachineSpec(self.sandbox_id, self.state.template, self.state.limits or Limits())

    async def copied(self) -> None:
        """From a snapshot of the very version."""
        start, target = self.made.start, self.made.target
        driver = self.ground.driver
        self.heard(Step("copying the snapshot", 0, 0))
        async with throwaway(driver, self.ground.place, target, self.sandbox_id):
            try:
                record = await driver.copy_snapshot(start.snapshot_id, self.snapshot_id, sandbox_id=self.sandbox_id)
            except (SnapshotMissing, SnapshotBroken) as error:
                left = await asyncio.to_thread(nearest_left, self.log, self.made, self.ground.snapshots.where)
                raise SnapshotUnusable(
                    target=str(target), snapshot_id=start.snapshot_id, of=str(start.at), detail=str(error), left=left
                ) from error
            except MachineError as error:
                raise MachineFailed(target=str(target), when="before it was there", detail=str(error)) from error
            await self._append(None, Resting(self.snapshot_id, record.image_bytes))

    async def rebuilt(self) -> Rebuilt:
        """From a machine."""
        return await rebuild(
            self.log,
            self.made,
            self.ground,
            anyway=self.anyway,
            stop_at_first=not self.anyway,
            heard=self.heard,
            named=self.sandbox_id,
            then=self._settle,
        )

    async def _settle(self, machine: Machine, found: Rebuilt) -> None:
        """Go on from what was rebuilt, and lay it down."""
        if found.verdict is Verdict.DIFFERS and not self.anyway:
            raise _not_the_same(found)
        started = None
        digest = found.tree.digest
        if self.what_if is not None:
            started = SandboxStarted(
                machine_id=machine.machine_id,
                node=socket.gethostname(),
                seconds=found.restore_seconds,
                agent_version=machine.guest.info.agent_version,
            )
            known = {call.tool_use_id for call in self.made.calls}
            self.runs = await run_on(machine, self.spec, self.what_if, known, self.heard)
            digest = ""
        self.heard(Step("laying it down", len(self.runs), len(self.runs)))
        try:
            taken = await machine.snapshot(self.snapshot_id, hold=True)
            # First the machine: as soon as the log has the branch, its service may start one.
            await machine.kill()
        except (MachineError, OSError) as error:
            raise MachineFailed(target=str(found.plan.target), when="as it was laid down", detail=str(error)) from error
        usage = taken.usage
        resting = Resting(
            self.snapshot_id,
            taken.image_bytes,
            taken.held_seconds,
            taken.seconds,
            round(usage.cpu_seconds, 6),
            usage.memory_high_bytes,
            digest,
        )
        await self._append(started, resting)

    async def _append(self, started: SandboxStarted | None, resting: Resting) -> None:
        target = self.made.target
        branched = SandboxBranched(
            parent=target.stream.removeprefix(_SANDBOX),
            parent_version=target.version,
            snapshot_id=self.made.start.snapshot_id,
            session_id="",
            driver=self.ground.driver.name,
            template=self.state.template,
            limits=self.spec.limits,
        )
        told = beginning(branched, started, self.runs, resting)
        self.by_service = await append(self.log, self.ground.place, self.sandbox_id, str(target), told)
        self.version = len(told)

    async def stored(self) -> str:
        """Put its snapshot into the store, where no service does; why it is not there, "" where that is no matter.

        Whoever dies before this has made a branch; the service that starts next stores it.
        """
        if self.by_service or self.ground.snapshots.store is None:
            return ""
        self.heard(Step("putting its snapshot into the store", 0, 0))
        began = time.monotonic()
        stream = _SANDBOX + self.sandbox_id
        try:
            kept = await self.ground.driver.store_snapshot(self.snapshot_id, stream=stream, version=self.version - 2)
            told = SandboxSnapshotStored(
                snapshot_id=self.snapshot_id,
                manifest=kept.digest,
                bytes=kept.bytes,
                new_bytes=kept.new_bytes,
                seconds=round(time.monotonic() - began, 6),
            )
            await append_stored(self.log, self.sandbox_id, self.version, told)
        except (HourglassError, MachineError) as error:
            _log.info("snapshot of a branch not stored sandbox_id=%s %s", self.sandbox_id, error)
            return f"{error}"
        self.version += 1
        return ""


async def branch(
    log: EventLog,
    made: Plan,
    ground: Ground,
    *,
    what_if: WhatIf | None = None,
    anyway: bool = False,
    heard: Callable[[Step], None] = lambda step: None,
) -> Branch:
    """Make a branch at the version that a plan is of.

    Args:
        log: of the parent, and of the branch. Where it is open for reading alone, the branch is appended through a
            writer of its own, or by the service that has the log.
        made: with a what-if, of the version that it begins at.
        what_if: the calls that the branch runs as its own.
        anyway: also where the plan, or the rest of a what-if, has calls or gaps that nothing repeats, which are left
            out, and where what came back differs from what was there.
        heard: told what is being done.

    Raises:
        NotReproducible, NothingLeft, OtherDriver, RestNotRepeatable: refused; nothing was started.
        NotTheSame: a result, or the work tree, is not what it was.
        SnapshotUnusable, CallHung, MachineFailed, TreeUnreadable: as `rebuild`.
        NotAppended: it could not be written into the log.
        LogError, StoreError.
        ValueError: the what-if begins elsewhere.
    """
    if what_if is not None:
        if what_if.begin != made.target:
            msg = f"the what-if begins at {what_if.begin}, and the plan is of {made.target}"
            raise ValueError(msg)
        if not anyway:
            what_if.check()
    state = checked(log, made, ground.driver.name, anyway=anyway)
    making = _Making(log, made, ground, state, anyway, what_if, heard)
    rebuilt = None
    if what_if is None and made.start.kind == "snapshot" and not made.of(Fate.AGAIN):
        await making.copied()
    else:
        rebuilt = await making.rebuilt()
    seconds = time.monotonic() - making.began
    not_stored = await making.stored()
    return Branch(
        making.sandbox_id,
        made.target,
        making.version,
        making.snapshot_id,
        rebuilt,
        making.runs,
        seconds,
        not_stored,
    )


def _not_the_same(found: Rebuilt) -> NotTheSame:
    first = found.first
    if first is not None:
        detail = f"{first.recorded.call.tool} at {first.recorded.call.at} gave something else"
    else:
        detail = f"its work tree is not that of {found.tree.of}: {', '.join(some(found.tree.changed))}"
    return NotTheSame(target=str(found.plan.target), detail=detail, found=found)
