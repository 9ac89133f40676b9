"""How a version would be brought back: where to begin, and what becomes of each call after that. Nothing is done here.

A plan begins at the nearest snapshot at or before the version that still exists, on the sandbox's line of parents;
where none does, at the template. Each call is marked:

| fate | meaning |
| --- | --- |
| `in_snapshot` | what it did is in the snapshot |
| `again` | it will be run again, in the order of the log |
| `skipped` | it changes nothing in its sandbox |
| `lost` | it can't be reproduced; `because` says why |

*Gaps* are what else happened in between and no call tells: a crash, a person's program, a file copied in. A version is
reproducible where there is neither a lost call nor a gap; only then may it pass for what it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from replay.history.errors import NoMachine
from replay.history.lineage import Place, line_to
from replay.history.planned import Plan, Snapshot, Start, Version
from replay.history.states import version_of
from replay.history.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.log import EventLog
    from replay.history.lineage import Line, SnapshotTaken
    from replay.history.presence import Where
    from replay.history.walk import Walk

_BEGINNING = Place(0, 0)


def plan(log: EventLog, stream: str, version: int, where: Callable[[str], tuple[Where, ...]]) -> Plan:
    """How a version of a sandbox would be brought back.

    Args:
        stream: `sandbox-<id>`.
        where: where a snapshot still is, by its id; `Snapshots.where` knows.

    Raises:
        StreamNotThere, VersionNotThere: there is no such version.
        NoMachine: it is a session's.
        LineageBroken: its parents can't be.
        LogError: as `EventLog.read`. `StoreUnavailable`: as `where`.
    """
    if stream.startswith("session-"):
        raise NoMachine(stream=stream, sandbox="`hourglass sandboxes` shows them")
    version_of(log, stream, version=version)
    line = line_to(log, stream, version)
    known = line.snapshots()
    gone: list[SnapshotTaken] = []
    chosen: SnapshotTaken | None = None
    found: tuple[Where, ...] = ()
    for one in reversed([one for one in known if one.place <= line.end]):
        found = where(one.snapshot_id)
        if found:
            chosen = one
            break
        gone.append(one)
    walked = walk(line, chosen.place if chosen else _BEGINNING)
    after = next((one for one in known if one.place > line.end and where(one.snapshot_id)), None)
    made = Plan(
        target=Version(stream, version),
        start=_start(line, chosen, found),
        line=line.segments,
        gone=tuple(Snapshot(one.snapshot_id, _version(line, one.place)) for one in gone),
        calls=tuple(walked.planned()),
        gaps=tuple(gap for _, gap in walked.gaps),
        notes=tuple(_notes(line, chosen, walked)),
        before=None,
        after=Snapshot(after.snapshot_id, _version(line, after.place)) if after else None,
    )
    good = walked.good_until()
    if made.reproducible or made.start.kind == "nothing" or not good.version:
        return made
    return replace(made, before=_version(line, good))


def _start(line: Line, chosen: SnapshotTaken | None, found: tuple[Where, ...]) -> Start:
    if chosen is not None:
        return Start("snapshot", _version(line, chosen.place), chosen.snapshot_id, found, line.template)
    if line.missing:
        return Start("nothing", None)
    return Start("template", None, template=line.template)


def _notes(line: Line, chosen: SnapshotTaken | None, walked: Walk) -> list[str]:
    notes = list(walked.notes)
    if chosen is None and line.missing:
        notes.append(f"the log has no {line.missing}, which its history begins with, and no snapshot of it is left")
    elif chosen is None:
        notes.append(
            f"no snapshot up to there is left, so all of it is run again on the template {line.template!r}, "
            "which may have been built anew since"
        )
    first = chosen.place.segment if chosen else 0
    return notes + [
        f"{segment.stream} was {segment.how} with a hostname, a machine-id and entropy of its own"
        for segment in line.segments[first + 1 :]
    ]


def _version(line: Line, place: Place) -> Version:
    return Version(line.segments[place.segment].stream, place.version)
