"""Rebuild: a plan carried out in a throw-away machine, each result compared, and the work tree at the end.

The machine has no network device, as no machine has, and nobody makes connections on its behalf. Neither the log nor
the sandbox's own trees and snapshots are written: a rebuild may run beside the live sandbox, and beside others.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.machines.protocol import MachineError, MachineSpec, SnapshotBroken, SnapshotMissing
from events.types import Limits
from replay.history.planned import Fate
from replay.rebuild.checks import Check, Verdict, check
from replay.rebuild.errors import CallHung, MachineFailed, SnapshotUnusable, TreeUnreadable
from replay.rebuild.preparing import call_ids, checked, nearest_left, recorded
from replay.rebuild.throwaway import USED, KeptRebuild, throwaway
from replay.rebuild.trees import TreeCheck, check_tree, expected_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from actors.machines.protocol import Machine
    from events.log import EventLog
    from events.types import JsonObject
    from replay.history.planned import Plan, Version
    from replay.rebuild.checks import Recorded
    from replay.rebuild.ground import Ground
    from replay.rebuild.throwaway import Place

Then = Callable[["Machine", "Rebuilt"], Awaitable[Any]]
"""What is done in the machine once all was compared. Where trees were, nothing runs in it until it is woken."""

_log = logging.getLogger(__name__)
_TIMED_OUT = re.compile(r"^(tool '\w+' timed out|bash: bash command timed out after [\d.]+s)$", re.MULTILINE)
"""What the guest agent says of a call that had to end; see `actors.guest.toolbox`."""


_NO_TREE = TreeCheck("", "", "", ())


@dataclass(frozen=True, slots=True)
class Step:
    """How far a rebuild has come."""

    doing: str
    """A few words."""
    done: int
    """Calls that ran."""
    total: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of a rebuild."""

    plan: Plan
    sandbox_id: str
    """Of the throw-away machine."""
    checks: tuple[Check, ...]
    """Of each call that ran again, in order."""
    tree: TreeCheck
    kept: KeptRebuild | None
    restore_seconds: float
    """Until the machine answered."""
    seconds: float
    """Until all was compared, which is before the machine is removed."""
    then: Any = None
    """What `then` gave; see `rebuild`."""

    @property
    def first(self) -> Check | None:
        """The first call that differs."""
        return _differing(self.checks)

    @property
    def verdict(self) -> Verdict:
        """Of all of it."""
        found = {self.tree.verdict, *(one.verdict for one in self.checks)}
        return next((one for one in (Verdict.DIFFERS, Verdict.ASIDE) if one in found), Verdict.EQUAL)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        kept = self.kept
        return {
            "verdict": self.verdict.value,
            "calls": [one.plain() for one in self.checks],
            "tree": self.tree.plain(),
            "kept": {"sandbox_id": kept.sandbox_id, "snapshot_id": kept.snapshot_id} if kept else None,
            "restore_seconds": self.restore_seconds,
            "seconds": self.seconds,
        }


async def rebuild(
    log: EventLog,
    made: Plan,
    ground: Ground,
    *,
    keep: bool = False,
    anyway: bool = False,
    stop_at_first: bool = False,
    heard: Callable[[Step], None] = lambda step: None,
    named: str = "",
    trees: bool = True,
    then: Then | None = None,
) -> Rebuilt:
    """Carry a plan out in a throw-away machine. Nothing of it is left afterwards.

    Args:
        keep: leave it on this node, suspended, until `hourglass rebuilds rm`: as `then` leaves it behind.
        anyway: also where the plan is not reproducible; what can't be repeated is left out.
        stop_at_first: run no more calls after the first whose result differs.
        heard: told what is being done.
        named: the sandbox id of the machine; see `throwaway`.
        trees: compare the work trees.
        then: uses the machine once all was compared, before it is ended; what it gives is in the result.

    Raises:
        NotReproducible, NothingLeft, OtherDriver: refused; nothing was started.
        SnapshotUnusable: gone, or broken; names the nearest one that is left.
        CallHung: a call did not end within its time.
        MachineFailed: the machine ended or broke on the way, or none could be started.
        TreeUnreadable: the work tree, or the one to compare it with, can't be read.
        LogError, StoreError.
    """
    began = time.monotonic()
    target = made.target
    state = checked(log, made, ground.driver.name, anyway=anyway)
    limits = state.limits or Limits()
    calls = list(zip((recorded(log, call) for call in made.of(Fate.AGAIN)), call_ids(made), strict=True))
    heard(Step("restoring", 0, len(calls)))
    with _failing(target, "before it was there"):
        await asyncio.to_thread(ground.driver.volumes.prepare)
        async with throwaway(ground.driver, ground.place, target, named) as sandbox_id:
            expected = partial(expected_tree, log, made, ground.snapshots, ground.driver)
            expecting = asyncio.create_task(asyncio.to_thread(expected if trees else lambda: None))
            try:
                # What runs in it may ask who it is, and is told what it was told then.
                hostname = target.stream.removeprefix("sandbox-")
                spec = MachineSpec(sandbox_id, made.start.template or state.template, limits, hostname)
                async with _machine(log, made, ground, spec) as machine:
                    restored = time.monotonic() - began
                    run = partial(_run, machine, seconds=limits.tool_seconds, target=target)
                    checks = await _each(calls, run, heard, stop_at_first=stop_at_first)
                    heard(Step("comparing", len(checks), len(calls)))
                    snapshot_id, tree = "", _NO_TREE
                    with _failing(target, "after its calls"):
                        if trees:
                            compare = partial(check_tree, ground.driver, sandbox_id, target, await expecting)
                            if not (checks or keep):
                                tree = await _at_once(compare)
                            if tree.verdict is not Verdict.EQUAL:
                                # A snapshot makes it quiet, too.
                                snapshot_id = await _hold(machine, keep=keep and then is None)
                                tree = await asyncio.to_thread(compare)
                    took = time.monotonic() - began
                    found = Rebuilt(made, sandbox_id, checks, tree, None, restored, took)
                    with _failing(target, "after it was compared"):
                        if then is not None:
                            found = replace(found, then=await then(machine, found))
                        if not keep:
                            return found
                        if then is not None or not trees:
                            snapshot_id = await _hold(machine, keep=True)
                        return await _kept(found, machine, snapshot_id, ground.place, used=then is not None)
            finally:
                # A thread can't be stopped, and reads what must not go away under it. Its error, where something else
                # failed before, is nobody's any more.
                await asyncio.wait([expecting])
                if not expecting.cancelled():
                    expecting.exception()


@asynccontextmanager
async def _machine(log: EventLog, made: Plan, ground: Ground, spec: MachineSpec) -> AsyncIterator[Machine]:
    """The machine where the plan starts; ended afterwards, its files are kept."""
    start = made.start
    try:
        machine = await ground.driver.start(spec, snapshot_id=start.snapshot_id or None, fresh=True)
    except (SnapshotMissing, SnapshotBroken) as error:
        raise SnapshotUnusable(
            target=str(made.target),
            snapshot_id=start.snapshot_id,
            of=str(start.at),
            detail=str(error),
            left=nearest_left(log, made, ground.snapshots.where),
        ) from error
    try:
        yield machine
    finally:
        try:
            await machine.kill()
        except (MachineError, OSError) as error:
            # Its removal, which comes now, tries again.
            _log.warning("the machine of a rebuild could not be ended: %s", error)


async def _each(
    calls: Sequence[tuple[Recorded, str]],
    run: Callable[[Recorded, str], Awaitable[Check]],
    heard: Callable[[Step], None],
    *,
    stop_at_first: bool,
) -> tuple[Check, ...]:
    """Run the calls in order."""
    checks: list[Check] = []
    for one, call_id in calls:
        heard(Step(f"{one.call.tool} at {one.call.at}", len(checks), len(calls)))
        checks.append(await run(one, call_id))
        if stop_at_first and checks[-1].verdict is Verdict.DIFFERS:
            break
    return tuple(checks)


async def _run(machine: Machine, one: Recorded, call_id: str, *, seconds: float, target: Version) -> Check:
    """Run one call again, and compare."""
    began = time.monotonic()
    with _failing(target, f"while {one.call.tool} at {one.call.at} ran again"):
        result = await machine.guest.run_tool(call_id, one.call.tool, one.call.input, timeout=seconds)
    took = time.monotonic() - began
    found = check(one, result.content, result.is_error, took)
    if found.verdict is Verdict.DIFFERS and result.is_error and _hung(result.content) and not _hung(one.content):
        raise CallHung(
            tool=one.call.tool,
            at=str(one.call.at),
            stream=one.call.at.stream,
            tool_use_id=one.call.tool_use_id,
            seconds=round(took, 1),
            recorded=one.seconds,
        )
    return found


def _differing(checks: Sequence[Check]) -> Check | None:
    return next((one for one in checks if one.verdict is Verdict.DIFFERS), None)


def _hung(content: Sequence[JsonObject]) -> bool:
    return any(_TIMED_OUT.search(str(block.get("text", ""))) for block in content)


async def _at_once(compare: Callable[[], TreeCheck]) -> TreeCheck:
    """The tree of a machine in which no call has run, not made quiet for it: few other programs write all the time."""
    try:
        return await asyncio.to_thread(compare)
    except TreeUnreadable:
        return _NO_TREE  # one of them wrote just then


async def _hold(machine: Machine, *, keep: bool) -> str:
    """Let nothing run in it any more; with `keep`, by a snapshot, whose id this is."""
    if not keep:
        await machine.guest.quiesce()
        return ""
    snapshot_id = f"kept-{secrets.token_hex(8)}"
    await machine.snapshot(snapshot_id, hold=True)
    return snapshot_id


async def _kept(found: Rebuilt, machine: Machine, snapshot_id: str, place: Place, *, used: bool) -> Rebuilt:
    """Suspended, and noted as one that stays."""
    await machine.kill()
    target = found.plan.target
    verdict = found.verdict.value if not used else USED
    kept = KeptRebuild(found.sandbox_id, target.stream, target.version, snapshot_id, verdict)
    await asyncio.to_thread(place.keep, kept)
    return replace(found, kept=kept)


@contextmanager
def _failing(target: Version, when: str) -> Iterator[None]:
    try:
        yield
    except (MachineError, OSError) as error:
        raise MachineFailed(target=str(target), when=when, detail=str(error) or type(error).__name__) from error
