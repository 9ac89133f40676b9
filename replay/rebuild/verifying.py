"""Verify: all calls of a sandbox run again, from each snapshot to the next, and everything compared.

A leg begins at a snapshot, or the template, and ends at the next snapshot, whose work tree is the one to reach. So what
one leg can't repeat, as a crash, is nothing to the others. What fails is an outcome, and ends nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from actors.machines.protocol import MachineError
from events.errors import HourglassError
from events.types import ReplayDiverged, ReplayVerified
from replay.history.lineage import Place, line_to
from replay.history.planned import Fate
from replay.history.planning import plan
from replay.rebuild.checks import Verdict
from replay.rebuild.errors import CallHung
from replay.rebuild.preparing import hiding, reasons
from replay.rebuild.rebuilding import rebuild
from replay.rebuild.trees import some

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.log import EventLog
    from events.types import EventData
    from replay.history.planned import Plan
    from replay.rebuild.ground import Ground
    from replay.rebuild.rebuilding import Rebuilt, Step

_DETAIL = 4000


class Status(StrEnum):
    """What a verification came to."""

    VERIFIED = "verified"
    """All that can be repeated gave the same."""
    DIVERGED = "diverged"
    NOTHING = "nothing"
    """It has no call that could be run again."""
    FAILED = "failed"
    """It could not be found out."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of a history, from one snapshot to the next."""

    plan: Plan
    """Reproducible, and with calls to run again; else nothing is run."""
    lost: int
    """Calls of this part that are not run."""
    because: str
    """Why not; "" where all are."""

    @property
    def calls(self) -> int:
        """How many run again."""
        return len(self.plan.of(Fate.AGAIN)) if self.plan.reproducible else 0


@dataclass
class Outcome:
    """What came of the verification of one sandbox."""

    stream: str
    version: int
    status: Status = Status.NOTHING
    snapshot_id: str = ""
    """What the first leg began from, or the one that diverged."""
    calls: int = 0
    """Run again, and compared."""
    aside: dict[str, int] = field(default_factory=dict)
    """How many of them were equal but for what differs by nature, by its kind."""
    lost: int = 0
    because: list[str] = field(default_factory=list)
    """Why calls are lost."""
    tree_digest: str = ""
    seconds: float = 0.0
    at: str = ""
    """Where it diverged: `STREAM@VERSION`."""
    tool_use_id: str = ""
    """The first call that differs; "" where the work tree does."""
    recorded: str = ""
    rebuilt: str = ""
    detail: str = ""
    """How they differ, or what failed, for people."""
    files_aside: list[str] = field(default_factory=list)
    """Files of the work trees that differ by nature alone, with the kind of each."""
    asides: int = 0

    def event(self) -> EventData | None:
        """What is recorded of it; nothing where nothing was found out."""
        if self.status is Status.VERIFIED:
            return ReplayVerified(
                version=self.version,
                snapshot_id=self.snapshot_id,
                calls=self.calls,
                tree_digest=self.tree_digest,
                seconds=self.seconds,
                aside=self.asides,
                lost=self.lost,
            )
        if self.status is Status.DIVERGED:
            return ReplayDiverged(
                version=self.version,
                snapshot_id=self.snapshot_id,
                calls=self.calls,
                tool_use_id=self.tool_use_id,
                recorded=self.recorded,
                rebuilt=self.rebuilt,
                detail=self.detail,
            )
        return None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        hidden = {"asides"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in hidden}


def legs(log: EventLog, stream: str, version: int, ground: Ground) -> list[Leg]:
    """The parts of a sandbox's history up to a version that have anything to run, in order.

    Raises `HistoryError`, `LogError`, `StoreUnavailable`.
    """
    where = cache(ground.snapshots.where)
    line = line_to(log, stream, version)
    own = len(line.segments) - 1
    known = [one for one in line.snapshots() if one.place <= line.end and where(one.snapshot_id)]
    ends = {one.place.version for one in known if one.place.segment == own} | {version}
    found = []
    for end in sorted(ends):
        # Begun before it: the snapshot at its end is what is to be reached.
        later = {one.snapshot_id for one in line.snapshots() if one.place >= Place(own, end)}
        seen = hiding(where, later)
        made = plan(log, stream, end, seen)
        asked = len(made.of(Fate.AGAIN)) + len(made.of(Fate.LOST))
        if not asked:
            continue
        whole, because = made, ""
        if not made.reproducible:
            because = reasons(made) or "nothing is left to begin from"
            if made.before is not None and made.before.stream == stream:
                made = plan(log, stream, made.before.version, seen)
        leg = Leg(made, 0, because)
        found.append(Leg(made if leg.calls else whole, asked - leg.calls, because))
    return found


async def verify(
    log: EventLog,
    stream: str,
    version: int,
    ground: Ground,
    *,
    heard: Callable[[Step], None] = lambda step: None,
) -> Outcome:
    """Run a sandbox's calls again, up to a version, until the first that differs. Raises nothing of ours."""
    began = time.monotonic()
    outcome = Outcome(stream, version)
    try:
        await _verify(log, outcome, ground, heard)
    except CallHung as error:
        outcome.status, outcome.at, outcome.tool_use_id = Status.DIVERGED, error.at, error.tool_use_id
        outcome.detail = str(error)
    except (HourglassError, MachineError, OSError) as error:
        outcome.status = Status.FAILED
        outcome.detail = f"{error} {getattr(error, 'advice', '')}".strip()
    outcome.seconds = round(time.monotonic() - began, 3)
    outcome.detail = outcome.detail[:_DETAIL]
    return outcome


async def _verify(log: EventLog, outcome: Outcome, ground: Ground, heard: Callable[[Step], None]) -> None:
    parts = legs(log, outcome.stream, outcome.version, ground)
    outcome.lost = sum(leg.lost for leg in parts)
    outcome.because = [leg.because for leg in parts if leg.because]
    for number, leg in enumerate(parts):
        if not leg.calls:
            continue
        start = leg.plan.start.snapshot_id
        outcome.snapshot_id = start if not outcome.calls else outcome.snapshot_id
        found = await rebuild(log, leg.plan, ground, stop_at_first=True, heard=heard)
        _count(outcome, found)
        if found.verdict is Verdict.DIFFERS:
            outcome.snapshot_id = start
            _diverged(outcome, found)
            return
        outcome.status = Status.VERIFIED
        if number == len(parts) - 1 and not leg.lost:
            outcome.tree_digest = found.tree.digest


def _count(outcome: Outcome, found: Rebuilt) -> None:
    outcome.calls += len(found.checks)
    outcome.files_aside += [path for path in found.tree.aside if path not in outcome.files_aside]
    for one in found.checks:
        outcome.asides += one.verdict is Verdict.ASIDE
        for kind in one.aside:
            outcome.aside[kind] = outcome.aside.get(kind, 0) + 1


def _diverged(outcome: Outcome, found: Rebuilt) -> None:
    outcome.status = Status.DIVERGED
    notes = "".join(f"\n({note})" for note in found.plan.notes)
    first = found.first
    if first is not None:
        outcome.at, outcome.tool_use_id = str(first.recorded.call.at), first.recorded.call.tool_use_id
        outcome.recorded, outcome.rebuilt = first.recorded.digest, first.digest
        outcome.detail = first.diff + notes
        return
    tree = found.tree
    outcome.at, outcome.recorded, outcome.rebuilt = str(found.plan.target), tree.expected, tree.digest
    changed = "\n".join(some(tree.changed))
    outcome.detail = f"the work tree is not that of {tree.of}:\n{changed}{notes}"
