"""The line that leads to a version: a sandbox's own events, and before them those of its parents up to each fork.

A fork or a branch is a pointer, not a copy: its history is the parent's up to `parent_version`, then its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from events.errors import EventTooNew, LogCorrupt, UnknownEventType
from events.types import SandboxBranched, SandboxCreated, SandboxSnapshotted, SandboxSuspended
from replay.history.errors import LineageBroken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.envelope import Event
    from events.log import EventLog

_SANDBOX = "sandbox-"
_MOST_PARENTS = 1000


class Place(NamedTuple):
    """A version on a line; later ones are greater."""

    segment: int
    """Of the line, from 0: the oldest parent."""
    version: int
    """Of that segment's stream."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a line that lies in one stream."""

    stream: str
    until: int
    """The last version that belongs to the line."""
    how: str
    """How the stream began: `created`, `forked` or `branched`."""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A snapshot of a state on the line."""

    snapshot_id: str
    place: Place
    """What it is the state of."""


@dataclass(frozen=True, slots=True)
class Line:
    """All that led to a version of a sandbox."""

    segments: tuple[Segment, ...]
    """Oldest first; never empty."""
    events: tuple[tuple[Event, ...], ...]
    """Of each segment."""
    later: tuple[tuple[Event, ...], ...]
    """Of each segment's stream, what came after the line: a snapshot is recorded after the state that it is of."""
    missing: str
    """The parent that the log does not have, or not as far as needed; "" where it has all."""
    template: str

    @property
    def end(self) -> Place:
        """The version that it leads to."""
        return Place(len(self.segments) - 1, self.segments[-1].until)

    def all(self) -> Iterator[tuple[Place, Event]]:
        """Every event with its place, in order."""
        return chain.from_iterable(
            ((Place(number, event.version), event) for event in events) for number, events in enumerate(self.events)
        )

    def after(self, place: Place) -> Iterator[tuple[Place, Event]]:
        """Every later event with its place, in order."""
        return ((at, event) for at, event in self.all() if at > place)

    def name(self, place: Place) -> str:
        """`version 17`, or `STREAM@17` where that is of a parent."""
        own = place.segment == len(self.segments) - 1
        return f"version {place.version}" if own else f"{self.segments[place.segment].stream}@{place.version}"

    def snapshots(self) -> list[SnapshotTaken]:
        """Every snapshot of a state on the line, or after its end, newest state last.

        One that several streams have is at its last place: a fork begins with its parent's.
        """
        found: dict[str, Place] = {}
        last = len(self.segments) - 1
        for number, segment in enumerate(self.segments):
            mine: dict[str, Place] = {}
            for event in chain(self.events[number], self.later[number]):
                data = event.data
                if isinstance(data, SandboxSnapshotted):
                    mine.setdefault(data.snapshot_id, Place(number, data.of_version or event.version - 1))
                elif isinstance(data, SandboxSuspended):
                    mine.setdefault(data.snapshot_id, Place(number, event.version - 1))
            found |= {name: at for name, at in mine.items() if number == last or at.version <= segment.until}
        return sorted((SnapshotTaken(name, place) for name, place in found.items()), key=lambda one: one.place)


def line_to(log: EventLog, stream: str, version: int) -> Line:
    """All that led to a version that exists.

    Raises:
        LineageBroken: a sandbox that is its own ancestor, or too many of them.
        LogError: as `EventLog.read`.
    """
    segments: list[Segment] = []
    events: list[tuple[Event, ...]] = []
    later: list[tuple[Event, ...]] = []
    missing = template = ""
    until = version
    seen: set[str] = set()
    while True:
        if stream in seen or len(seen) >= _MOST_PARENTS:
            what = "it is its own ancestor" if stream in seen else f"it has more than {_MOST_PARENTS} ancestors"
            raise LineageBroken(stream=stream, detail=what)
        seen.add(stream)
        mine = tuple(log.read(stream, limit=until))
        if len(mine) < until:
            missing = f"{stream}@{until}"
            break
        parent, parent_version, how, template = _origin(mine[0])
        segments.append(Segment(stream, until, how))
        events.append(mine)
        later.append(tuple(_readable(log, stream, until)))
        if not parent:
            break
        if parent_version < 1:
            raise LineageBroken(stream=stream, detail=f"it was made from version {parent_version} of {parent}")
        stream, until = _SANDBOX + parent, parent_version
    return Line(tuple(reversed(segments)), tuple(reversed(events)), tuple(reversed(later)), missing, template)


def _readable(log: EventLog, stream: str, after: int) -> Iterator[Event]:
    """Events after the line, as far as this Hourglass can read them: they only help."""
    with suppress(UnknownEventType, EventTooNew, LogCorrupt):
        yield from log.read(stream, after)


def _origin(first: Event) -> tuple[str, int, str, str]:
    """Parent's id, its version, how the sandbox began, and its template."""
    data = first.data
    if isinstance(data, SandboxBranched):
        return data.parent, data.parent_version, "branched", data.template
    if isinstance(data, SandboxCreated):
        return data.parent, data.parent_version, "forked" if data.parent else "created", data.template
    raise LineageBroken(stream=first.stream, detail=f"it begins with a {first.type}")
