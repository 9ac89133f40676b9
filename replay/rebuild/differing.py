"""What differs between two versions in memory: each is rebuilt in a throw-away machine, and asked.

Processes have no name but their number, which differs by nature where a call ran again. So two are the same where both
number and command are; else, in order, those with the same command; else those with the same number.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replay.history.planning import plan
from replay.rebuild.preparing import checked, hiding
from replay.rebuild.processes import Process, Seen, look
from replay.rebuild.rebuilding import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Sequence

    from actors.machines.protocol import Machine
    from events.log import EventLog
    from replay.history.target import Target
    from replay.rebuild.ground import Ground
    from replay.rebuild.rebuilding import Rebuilt, Step

Values = dict[str, tuple[str | None, str | None]]
"""Variables that differ, with both values; None where one side has none of that name."""


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """A process that only one version has, or that is another in the other."""

    change: Literal["added", "removed", "changed"]
    before: Process | None
    after: Process | None
    what: tuple[str, ...]
    """Of what changed: `command`, `state`, `environment`."""
    environment: Values
    """What changed of it."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "change": self.change,
            "before": self.before.plain() if self.before else None,
            "after": self.after.plain() if self.after else None,
            "what": list(self.what),
            "environment": _plain(self.environment),
        }


@dataclass(frozen=True, slots=True)
class Live:
    """Two versions in machines, and what differs between them."""

    a: Rebuilt
    """How exactly each came back."""
    b: Rebuilt
    processes: tuple[ProcessChange, ...]
    environment: Values | None
    """Of the shell that runs the agent's commands; None where one of them does not tell."""
    because: str
    """Why not, for people."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "processes": [one.plain() for one in self.processes],
            "environment": None if self.environment is None else _plain(self.environment),
            "environment_unknown": self.because or None,
            "rebuilt": {"a": _rebuilt(self.a), "b": _rebuilt(self.b)},
        }


async def _look(machine: Machine, found: Rebuilt) -> Seen:
    await machine.guest.wake()
    return await look(machine, target=str(found.plan.target))


async def compare_live(
    log: EventLog,
    a: Target,
    b: Target,
    ground: Ground,
    *,
    anyway: bool = False,
    without: Collection[str] = (),
    heard: Callable[[Step], None] = lambda step: None,
) -> Live:
    """Rebuild two versions, one after the other, and compare their processes and their shells' environment.

    Args:
        anyway, without, heard: as for `rebuild` and `hiding`.

    Raises:
        ProcessesUnreadable: a guest does not tell, or tells nonsense.
        RebuildError, LogError, StoreError, HistoryError: as `rebuild` and `plan`.
    """
    where = hiding(ground.snapshots.where, without)
    plans = [plan(log, one.stream, one.version, where) for one in (a, b)]
    for made in plans:
        # Neither is started where one of them can't be.
        checked(log, made, ground.driver.name, anyway=anyway)
    one, other = [await rebuild(log, made, ground, anyway=anyway, heard=heard, then=_look) for made in plans]
    before: Seen = one.then
    after: Seen = other.then
    because = "; ".join(
        f"{found.plan.target}: {seen.because}" for found, seen in ((one, before), (other, after)) if seen.because
    )
    environment = None
    if before.environment is not None and after.environment is not None:
        environment = _values(before.environment, after.environment)
    return Live(one, other, tuple(process_changes(before.processes, after.processes)), environment, because)


def process_changes(before: Sequence[Process], after: Sequence[Process]) -> Iterator[ProcessChange]:
    """What differs: what went, what came, and what changed, each by pid."""
    old, new = list(before), list(after)
    pairs: list[tuple[Process, Process]] = []
    for key in _SAME:
        old, new = _paired(old, new, key, pairs)
    yield from (ProcessChange("removed", one, None, (), {}) for one in old)
    yield from (ProcessChange("added", None, one, (), {}) for one in new)
    for one, other in sorted(pairs, key=lambda pair: pair[0].pid):
        what = tuple(name for name in ("command", "state", "environment") if getattr(one, name) != getattr(other, name))
        if what:
            yield ProcessChange("changed", one, other, what, _values(one.environment, other.environment))


_SAME: tuple[Callable[[Process], Hashable], ...] = (
    lambda one: (one.pid, one.name, one.command),
    lambda one: (one.name, one.command),
    lambda one: one.pid,
)


def _paired(
    old: list[Process], new: list[Process], key: Callable[[Process], Hashable], pairs: list[tuple[Process, Process]]
) -> tuple[list[Process], list[Process]]:
    """Pair those that have the same key, in order; what is left of both."""
    waiting: defaultdict[Hashable, deque[Process]] = defaultdict(deque)
    for one in old:
        waiting[key(one)].append(one)
    left = []
    for other in new:
        if waiting[key(other)]:
            pairs.append((waiting[key(other)].popleft(), other))
        else:
            left.append(other)
    return sorted((one for queue in waiting.values() for one in queue), key=lambda one: one.pid), left


def _values(a: dict[str, str], b: dict[str, str]) -> Values:
    return {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def _plain(values: Values) -> dict[str, Any]:
    return {name: {"a": a, "b": b} for name, (a, b) in values.items()}


def _rebuilt(found: Rebuilt) -> dict[str, Any]:
    first = found.first
    return {
        "reproducible": found.plan.reproducible,
        "verdict": found.verdict.value,
        "first_that_differs": str(first.recorded.call.at) if first else None,
        "seconds": found.seconds,
    }
