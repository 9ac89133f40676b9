"""The values of a plan: where a version would be rebuilt from, and what becomes of each call on the way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from events.types import JsonObject
    from replay.history.lineage import Segment
    from replay.history.presence import Where


class Fate(StrEnum):
    """What becomes of a call."""

    IN_SNAPSHOT = "in_snapshot"
    AGAIN = "again"
    SKIPPED = "skipped"
    LOST = "lost"

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS = {
    Fate.IN_SNAPSHOT: "in the snapshot",
    Fate.AGAIN: "will be run again",
    Fate.SKIPPED: "read-only, skipped",
    Fate.LOST: "can't be reproduced",
}


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a stream."""

    stream: str
    version: int

    def __str__(self) -> str:
        return f"{self.stream}@{self.version}"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One tool call of the line, and what becomes of it."""

    at: Version
    """Of its `tool_call.started`."""
    ended: int
    """Version of its outcome, in the same stream; 0 where it has none by the version that is planned."""
    tool_use_id: str
    tool: str
    input: JsonObject
    fate: Fate
    because: str = ""
    """Of a lost call, always; of others, where there is something to say."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that happened after the beginning and is no call: no rebuild repeats it."""

    at: Version
    type: str
    """Of the event."""
    what: str


@dataclass(frozen=True, slots=True)
class Start:
    """Where a rebuild begins."""

    kind: Literal["snapshot", "template", "nothing"]
    at: Version | None
    """What the snapshot is of; None for the others."""
    snapshot_id: str = ""
    where: tuple[Where, ...] = ()
    template: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot by what it is of."""

    snapshot_id: str
    at: Version


@dataclass(frozen=True, slots=True)
class Plan:
    """How one version would be brought back."""

    target: Version
    start: Start
    line: tuple[Segment, ...]
    """Whose events lead to it, oldest first; the last one is its own stream."""
    gone: tuple[Snapshot, ...]
    """Snapshots between the start and the version that exist no more, newest first."""
    calls: tuple[PlannedCall, ...]
    """Every call of the line, in the order in which they began."""
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    """What is good to know, and stands in nobody's way."""
    before: Version | None
    """Where this one is not reproducible: the last one before it that is."""
    after: Snapshot | None
    """The next snapshot of the same stream that exists."""

    @property
    def reproducible(self) -> bool:
        """Whether a rebuild can give what was there."""
        return self.start.kind != "nothing" and not self.gaps and not self.of(Fate.LOST)

    def of(self, fate: Fate) -> list[PlannedCall]:
        """The calls with one fate, in order."""
        return [call for call in self.calls if call.fate is fate]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        start = self.start
        return {
            "stream": self.target.stream,
            "version": self.target.version,
            "reproducible": self.reproducible,
            "start": {
                "kind": start.kind,
                **(_at(start.at) if start.at else {"stream": None, "version": None}),
                "snapshot_id": start.snapshot_id,
                "where": list(start.where),
                "template": start.template,
            },
            "line": [{"stream": one.stream, "until": one.until, "how": one.how} for one in self.line],
            "gone": [_snapshot(one) for one in self.gone],
            "calls": [
                {
                    **_at(call.at),
                    "ended": call.ended or None,
                    "tool_use_id": call.tool_use_id,
                    "tool": call.tool,
                    "input": call.input,
                    "fate": call.fate.value,
                    "because": call.because,
                }
                for call in self.calls
            ],
            "gaps": [{**_at(gap.at), "type": gap.type, "what": gap.what} for gap in self.gaps],
            "notes": list(self.notes),
            "before": _at(self.before) if self.before else None,
            "after": _snapshot(self.after) if self.after else None,
        }


def _at(version: Version) -> dict[str, Any]:
    return {"stream": version.stream, "version": version.version}


def _snapshot(snapshot: Snapshot) -> dict[str, Any]:
    return {"snapshot_id": snapshot.snapshot_id, **_at(snapshot.at)}
