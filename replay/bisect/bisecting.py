"""Bisect: rounds of probes that split what is left, until a good and a bad state are neighbours.

Both were seen to be so: an end of the range that none of the probes has taken the place of is probed last.

What is found of a version is durable in the bisect's own stream before the next is chosen by it. Neither the sandbox's
stream nor its files are written, and no machine has a network.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from events.types import BisectBegun, BisectFound
from replay.bisect.changes import between, changes, points
from replay.bisect.errors import (
    BadIsGood,
    CommandDied,
    CommandHung,
    CommandRefused,
    EndUntold,
    GoodIsBad,
    RangeReversed,
)
from replay.bisect.probing import Probe, probe
from replay.bisect.search import Search, Told
from replay.history.planning import plan
from replay.history.states import version_of
from replay.rebuild.preparing import checked
from replay.rebuild.rebuilding import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from events.log import EventLog
    from events.types import BisectProbed
    from replay.bisect.changes import Change, Point
    from replay.bisect.evidence import Evidence
    from replay.history.planned import Plan
    from replay.rebuild.ground import Ground

DEFAULT_SECONDS = 120.0
"""How long a command may run in each machine, where nothing else is said."""
_SAID = 200


@dataclass(frozen=True, slots=True)
class Bisected:
    """What a bisect came to."""

    begun: BisectBegun
    probes: tuple[Probe, ...]
    """In the order in which they were found."""
    good: int
    """The last version at which the command succeeds."""
    bad: int
    """The first after that at which it fails."""
    blamed: tuple[Change, ...]
    """What was done in between; the one to blame, where it is one."""
    skipped: tuple[int, ...]
    """Versions in between that can't be told."""
    good_after_bad: tuple[int, ...]
    """Versions after `bad` that are good all the same."""
    stream: str
    """Of the evidence; "" where nothing was recorded."""
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether one change is to blame."""
        return len(self.blamed) == 1

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "stream": self.begun.stream,
            "command": self.begun.command,
            "exact": self.exact,
            "good": self.good,
            "bad": self.bad,
            "blamed": [one.plain() for one in self.blamed],
            "skipped": list(self.skipped),
            "good_after_bad": list(self.good_after_bad),
            "probes": [one.plain() for one in self.probes],
            "evidence": self.stream or None,
            "seconds": self.seconds,
        }


def asked(
    log: EventLog,
    stream: str,
    good: int,
    bad: int,
    command: Sequence[str],
    *,
    driver: str,
    jobs: int = 1,
    seconds: float = DEFAULT_SECONDS,
    anyway: bool = False,
) -> BisectBegun:
    """What a bisect is to find, checked.

    Raises `CommandRefused`, `RangeReversed`, `HistoryError`, `LogError`; `ValueError` for a time or a number of jobs
    that is none.
    """
    if jobs < 1 or not (math.isfinite(seconds) and seconds > 0):
        raise ValueError("a bisect needs one job or more, and a time above 0")
    _runnable(command)
    for one in (good, bad):
        version_of(log, stream, version=one)
    if good >= bad:
        raise RangeReversed(stream=stream, good=good, bad=bad)
    return BisectBegun(
        stream=stream,
        good=good,
        bad=bad,
        command=list(command),
        driver=driver,
        timeout_seconds=seconds,
        jobs=jobs,
        anyway=anyway,
    )


def _runnable(command: Sequence[str]) -> None:
    if not command or not command[0]:
        raise CommandRefused(command=repr(shlex.join(command)), detail="it has no program")
    try:
        text = shlex.join(command).encode()
    except UnicodeEncodeError:
        raise CommandRefused(command=repr(list(command)), detail="it is not UTF-8, and the log has only that") from None
    if b"\0" in text:
        raise CommandRefused(command=repr(list(command)), detail="no argument of a program has a zero byte")


async def bisect(
    log: EventLog,
    begun: BisectBegun,
    ground: Ground,
    evidence: Evidence,
    *,
    heard: Callable[[Step], None] = lambda step: None,
    found: Callable[[Probe], None] = lambda probe: None,
) -> Bisected:
    """Find the first version at which a command fails.

    Args:
        begun: what `asked` made.
        heard: told what is being done.
        found: told of each version that was probed, once that is durable.

    Raises:
        NothingBetween: there is nothing to find.
        GoodIsBad, BadIsGood, EndUntold, NotReproducible, NothingLeft, OtherDriver: the range is not one.
        CommandHung, CommandDied: at any version.
        MachineFailed, NotRecorded: started again, it goes on where it was.
        HistoryError, LogError, StoreError.
    """
    return await _Bisect(log, begun, ground, evidence, heard, found).run()


@dataclass
class _Bisect:
    """One bisect under way."""

    log: EventLog
    begun: BisectBegun
    ground: Ground
    evidence: Evidence
    heard: Callable[[Step], None]
    found: Callable[[Probe], None]
    probes: list[Probe] = field(default_factory=list)
    plans: dict[int, Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.where = cache(self.ground.snapshots.where)

    async def run(self) -> Bisected:
        began = time.monotonic()
        begun = self.begun
        changed = changes(self.log, begun.stream, begun.good, begun.bad)
        states = {one.version: one for one in points(begun.stream, begun.good, begun.bad, changed)}
        good, *inner, bad = states
        search = Search(good, inner, bad)
        for end in (good, bad):
            checked(self.log, self._plan(states[end]), begun.driver, anyway=begun.anyway)
        await self.evidence.begin()
        while versions := search.next(begun.jobs):
            left = len(self.probes) + search.rounds(begun.jobs)
            for one in await self._probed([states[version] for version in versions], left):
                search.tell(one.version, Told(one.told.verdict))
        # What is claimed of an end is seen to be so, where the result rests on it.
        if search.low == good:
            await self._end(states[good], "good")
        if search.high == bad:
            await self._end(states[bad], "bad")
        blamed = between(changed, self._faithful(states, search.low), search.high)
        result = Bisected(
            begun,
            tuple(self.probes),
            search.low,
            search.high,
            tuple(blamed),
            tuple(search.skipped),
            tuple(search.good_after_bad),
            self.evidence.stream,
            round(time.monotonic() - began, 3),
        )
        await self.evidence.add(_event(result))
        return result

    def _faithful(self, states: dict[int, Point], low: int) -> int:
        """The last version, `low` at most, that was seen to be good and left nothing out.

        What was left out before `low` may be what broke it, though without it all is good.
        """
        good = [one.version for one in self.probes if one.told.verdict == "good" and one.version <= low]
        whole = [version for version in good if self._plan(states[version]).reproducible]
        return max(whole, default=self.begun.good)

    async def _probed(self, states: Sequence[Point], total: int) -> list[Probe]:
        """Probe some states, as many at once as may be; in their order."""
        free = asyncio.Semaphore(self.begun.jobs)

        async def one(state: Point) -> Probe:
            async with free:
                return await self._probe(state, total)

        return await _all(one(state) for state in states)

    async def _probe(self, state: Point, total: int) -> Probe:
        known = self.evidence.known.get(state.version)
        if known is not None:
            return self._took(Probe(known, recorded=True))
        begun = self.begun

        def heard(step: Step) -> None:
            self.heard(Step(f"version {state.version}, {step.doing}", len(self.probes), total))

        made = self._plan(state)
        one = await probe(
            self.log,
            made,
            state,
            begun.command,
            self.ground,
            seconds=begun.timeout_seconds,
            anyway=begun.anyway,
            heard=heard,
        )
        await self.evidence.add(one.told)
        self._took(one)
        if one.told.verdict == "ended":
            target, said = f"{begun.stream}@{state.version}", _said(one.told)
            if one.hung:
                raise CommandHung(target=target, seconds=begun.timeout_seconds, said=said)
            raise CommandDied(target=target, how=one.told.because, said=said)
        return one

    def _took(self, one: Probe) -> Probe:
        self.probes.append(one)
        self.found(one)
        return one

    def _plan(self, state: Point) -> Plan:
        if state.until not in self.plans:
            self.plans[state.until] = plan(self.log, self.begun.stream, state.until, self.where)
        return self.plans[state.until]

    async def _end(self, state: Point, called: Literal["good", "bad"]) -> None:
        [one] = await self._probed([state], len(self.probes) + 1)
        told = one.told
        version = self.begun.good if called == "good" else self.begun.bad
        target = f"{self.begun.stream}@{version}"
        if told.verdict == "skipped":
            raise EndUntold(target=target, called=called, because=told.because)
        if called == "good" and told.verdict == "bad":
            raise GoodIsBad(target=target, code=told.exit_code or 0, said=_said(told))
        if called == "bad" and told.verdict == "good":
            raise BadIsGood(target=target, said=_said(told))


async def _all(doing: Iterable[Coroutine[Any, Any, Probe]]) -> list[Probe]:
    """The results of all; where one fails, the others are ended, to their last step, before it is told."""
    tasks = [asyncio.ensure_future(one) for one in doing]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _event(result: Bisected) -> BisectFound:
    return BisectFound(
        good=result.good,
        bad=result.bad,
        tool_use_ids=[one.call.tool_use_id for one in result.blamed if one.call is not None],
        skipped=list(result.skipped),
        probes=len(result.probes),
        seconds=result.seconds,
    )


def _said(told: BisectProbed) -> str:
    """The last of what it printed, in a line."""
    return " ".join(told.output.split())[-_SAID:] or "it printed nothing"
