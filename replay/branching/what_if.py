"""What if: other calls in place of some, and what becomes of those that came after them. Nothing is done here.

The branch begins right before the first call that is replaced. From there on its calls are its own: the replaced ones,
and all that came after them up to the version that was named, those that only look included, since they may see
something else now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from events.types import ToolCallCompleted, ToolCallInterrupted, ToolCallStarted
from replay.branching.errors import (
    CallTooLate,
    NoCallThere,
    ReplacedTwice,
    ReplacementUnreadable,
    RestNotRepeatable,
    UnknownTool,
)
from replay.history.lineage import Place, line_to
from replay.history.planned import Fate, Version
from replay.history.walk import READ_ONLY, REPEATABLE, walk
from replay.rebuild.checks import Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.log import EventLog
    from events.types import JsonObject
    from replay.history.lineage import Line
    from replay.history.planned import Gap, PlannedCall

TOOLS = READ_ONLY | REPEATABLE
_REPLACEMENT = re.compile(r"\s*(?P<at>[0-9]{1,18})\s*=\s*(?:(?P<tool>\w{1,100})\s*(?=\{))?(?P<input>.*)", re.DOTALL)
_MOST_REASONS = 3
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another call in place of one."""

    at: int
    """A version of the sandbox's stream: where the call was started, or where it ended."""
    input: JsonObject
    tool: str = ""
    """"": the same one."""


@dataclass(frozen=True, slots=True)
class NextCall:
    """A call that the branch runs as its own."""

    recorded: Recorded
    """What stood there, with its outcome; empty where it has none."""
    tool: str
    input: JsonObject
    replaced: bool


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a branch does after its beginning."""

    begin: Version
    """What it is a branch of: the version before the first call that is replaced."""
    target: Version
    """How far the parent's calls are gone through."""
    calls: tuple[NextCall, ...]
    """In the parent's order; never empty."""
    left_out: tuple[PlannedCall, ...]
    """Calls that nothing repeats, each with a reason."""
    gaps: tuple[Gap, ...]
    """What else happened there, and is not repeated."""

    @property
    def lost(self) -> list[PlannedCall]:
        """Of what is left out, that which did something to the sandbox."""
        return [call for call in self.left_out if call.fate is Fate.LOST]

    def check(self) -> None:
        """Raise `RestNotRepeatable` where something is lost."""
        told = [f"{call.tool} at {call.at}: {call.because}" for call in self.lost]
        told += [f"{gap.what} ({gap.at})" for gap in self.gaps]
        if not told:
            return
        more = [f"and {len(told) - _MOST_REASONS:,} more"] if len(told) > _MOST_REASONS else []
        first = min([one.at.version for one in self.lost] + [one.at.version for one in self.gaps])
        near = f"{self.target.stream}@{first - 1} can be." if first > self.calls[0].recorded.call.at.version else ""
        raise RestNotRepeatable(target=str(self.target), because="; ".join(told[:_MOST_REASONS] + more), near=near)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "begin": {"stream": self.begin.stream, "version": self.begin.version},
            "calls": [
                {
                    "version": one.recorded.call.at.version,
                    "tool_use_id": one.recorded.call.tool_use_id,
                    "tool": one.tool,
                    "input": one.input,
                    "replaced": one.replaced,
                }
                for one in self.calls
            ],
            "left_out": [
                {"version": one.at.version, "tool": one.tool, "because": one.because} for one in self.left_out
            ],
            "gaps": [{"version": one.at.version, "type": one.type, "what": one.what} for one in self.gaps],
        }


def parse_replacement(text: str) -> Replacement:
    """What `N={…}` or `N=TOOL {…}` says. Raises `ReplacementUnreadable`."""
    found = _REPLACEMENT.fullmatch(text)
    if found is None:
        raise ReplacementUnreadable(text=text, detail="a version and = come first")
    try:
        given = orjson.loads(found["input"])
    except orjson.JSONDecodeError as error:
        raise ReplacementUnreadable(text=text, detail=f"what follows = is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise ReplacementUnreadable(text=text, detail="what follows = is no JSON object")
    return Replacement(int(found["at"]), given, found["tool"] or "")


def what_if(log: EventLog, stream: str, version: int, replacements: Sequence[Replacement]) -> WhatIf:
    """What a branch of a sandbox does that goes up to a version, with other calls in place of some.

    Args:
        stream: `sandbox-<id>`; only its own calls can be replaced, and not those of its parents.
        version: it exists.
        replacements: at least one.

    Raises:
        NoCallThere, CallTooLate, ReplacedTwice, UnknownTool: a replacement that can't be.
        HistoryError, LogError: as `line_to`.
    """
    line = line_to(log, stream, version)
    instead: dict[int, Replacement] = {}
    for one in replacements:
        at, tool = _call_at(log, line, one.at)
        if at in instead:
            raise ReplacedTwice(tool=tool, at=f"{stream}@{at}")
        if (one.tool or tool) not in TOOLS:
            raise UnknownTool(tool=one.tool or tool, at=f"{stream}@{at}", known=", ".join(sorted(TOOLS)))
        instead[at] = one
    first = min(instead)
    # As if all up to the end of that call were done: whatever it led to then, as a crash, it led to with it.
    own = len(line.segments) - 1
    [begun] = [call for call in walk(line, Place(own, first)).planned() if _is(call, stream, first)]
    walked = walk(line, Place(own, begun.ended or first))
    calls: list[NextCall] = []
    left_out: list[PlannedCall] = []
    for call in walked.planned():
        if call.at.stream != stream or call.at.version < first:
            continue
        other = instead.get(call.at.version)
        if other is not None:
            calls.append(NextCall(_recorded(log, call), other.tool or call.tool, other.input, replaced=True))
        elif call.fate is Fate.AGAIN or call.tool in READ_ONLY:
            calls.append(NextCall(_recorded(log, call), call.tool, call.input, replaced=False))
        else:
            left_out.append(call)
    gaps = tuple(gap for _, gap in walked.gaps)
    return WhatIf(Version(stream, first - 1), Version(stream, version), tuple(calls), tuple(left_out), gaps)


def _is(call: PlannedCall, stream: str, version: int) -> bool:
    return (call.at.stream, call.at.version) == (stream, version)


def _call_at(log: EventLog, line: Line, version: int) -> tuple[int, str]:
    """Where the call was started that a version is the beginning or the end of, and its tool."""
    stream, until = line.segments[-1].stream, line.segments[-1].until
    last = log.version(stream)
    if not 1 <= version <= last:
        raise NoCallThere(
            stream=stream, version=version, detail=f"its versions are 1 to {last}", near=_near(line, version)
        )
    [event] = log.read(stream, version - 1, 1)
    data = event.data
    if isinstance(data, ToolCallCompleted | ToolCallInterrupted):
        # Its beginning is before it, wherever its end is.
        before = (
            one
            for one in log.read(stream, limit=version)
            if isinstance(one.data, ToolCallStarted) and one.data.tool_use_id == data.tool_use_id
        )
        event = next(before, event)
    if not isinstance(event.data, ToolCallStarted):
        raise NoCallThere(stream=stream, version=version, detail=f"it is {event.type}", near=_near(line, version))
    at, tool = event.version, event.data.tool
    if at > until:
        raise CallTooLate(at=f"{stream}@{at}", target=f"{stream}@{until}")
    return at, tool


def _near(line: Line, version: int) -> str:
    """The calls of the line's own stream that are nearest to a version, for people."""
    started = [event for event in line.events[-1] if isinstance(event.data, ToolCallStarted)]
    nearest = sorted(started, key=lambda event: abs(event.version - version))[:_MOST_NAMED]
    told = [f"{event.data.tool} at {event.version}" for event in sorted(nearest, key=lambda event: event.version)]  # type: ignore[union-attr]
    return f"Near it: {', '.join(told)}." if told else "It has no call of its own; what its parent did is its parent's."


def _recorded(log: EventLog, call: PlannedCall) -> Recorded:
    """A call with the outcome that the log has, if it has one."""
    data = next((event.data for event in log.read(call.at.stream, call.ended - 1, 1)), None) if call.ended else None
    if isinstance(data, ToolCallCompleted):
        return Recorded(call, data.content, data.is_error, data.seconds)
    if isinstance(data, ToolCallInterrupted):
        return Recorded(call, data.content, True, 0.0)
    return Recorded(call, [], False, 0.0)
