"""What changed a sandbox between two versions, and at which versions that shows: all that a bisect can tell apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replay.bisect.errors import NothingBetween
from replay.history.planned import Fate
from replay.history.planning import plan
from replay.history.text_diff import unified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.log import EventLog
    from replay.history.planned import Gap, PlannedCall

_MOST_LINES = 60
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Point:
    """A state between two changes."""

    version: int
    """At which it began."""
    until: int
    """Until where nothing changed; a snapshot in between is of the same state."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that made one state of another: a call, or what no call tells."""

    begun: int
    """Version of the sandbox's own stream."""
    version: int
    """At which it was done."""
    call: PlannedCall | None
    gap: Gap | None = None
    """Where it is no call."""

    @property
    def edited(self) -> str:
        """Of an `edit` or a `write`, what it says that it changes, as lines of a diff; "" for others."""
        if self.call is None or self.call.tool not in ("edit", "write"):
            return ""
        given = self.call.input
        return _diff(given.get("old_string", ""), given.get("new_string", given.get("content")))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = {"version": self.version, "begun": self.begun}
        if self.call is not None:
            call = self.call
            found |= {"tool_use_id": call.tool_use_id, "tool": call.tool, "input": call.input}
            found |= {"edited": self.edited or None, "what": call.because or None}
        elif self.gap is not None:
            found |= {"tool_use_id": None, "tool": None, "input": None, "edited": None, "what": self.gap.what}
        return found


def changes(log: EventLog, stream: str, good: int, bad: int) -> list[Change]:
    """What changed the sandbox after one version and up to another, in order; what only reads is none.

    Raises `HistoryError`, `LogError`.
    """
    whole = plan(log, stream, bad, lambda _: ())
    found = [
        # One that has not ended changes it all the same, nobody knows how far.
        Change(call.at.version, call.ended or bad, call)
        for call in whole.calls
        if call.at.stream == stream and call.fate is not Fate.SKIPPED
    ]
    found += [Change(gap.at.version, gap.at.version, None, gap) for gap in whole.gaps if gap.at.stream == stream]
    return sorted((one for one in found if one.version > good), key=lambda one: (one.version, one.begun))


def points(stream: str, good: int, bad: int, changed: Sequence[Change]) -> list[Point]:
    """The states from the good version to the bad one, both included, given all that changed in between.

    Raises `NothingBetween`.
    """
    if not changed:
        raise NothingBetween(stream=stream, good=good, bad=bad)
    starts = sorted({good, *(one.version for one in changed)})
    moments = sorted({moment for one in changed for moment in (one.begun, one.version)})
    found = []
    for start in starts:
        later = next((moment for moment in moments if moment > start), bad + 1)
        found.append(Point(start, later - 1))
    return [*found[:-1], replace(found[-1], until=bad)]


def between(changed: Sequence[Change], good: int, bad: int) -> list[Change]:
    """Those that were done after a state and up to another."""
    return [one for one in changed if good < one.version <= bad]


def _diff(old: object, new: object) -> str:
    if not isinstance(old, str) or not isinstance(new, str):
        return ""
    hunks = unified(old, new)
    if hunks is None:
        return "(too much to be shown)"
    # Where in the file they are, and whether a line ends there, the call does not say.
    lines = [line[:_LONGEST] for line in hunks if not line.startswith(("@@", "\\"))]
    more = [f"… {len(lines) - _MOST_LINES:,} more lines"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)
