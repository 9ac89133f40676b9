"""The files of a version, read from the nearest snapshot in the store, with no machine started.

A snapshot is of one version. The files of a later one are the same only where nothing in between may have changed them;
where something may have, that is said, and refused unless the nearest is asked for. What background processes did in
between is not in the log, and nobody can tell. Pipes and sockets that a guest of gVisor made are memory of its machine,
and in no tree.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.entries import KINDS, encoded
from events.listing import Listing, NotThere, TooManyLinks
from replay.history.errors import FilesMayDiffer, NoSuchFile, NoTree
from replay.history.planned import Fate, Version
from replay.history.planning import plan

if TYPE_CHECKING:
    from events.entries import Entry
    from events.listing import Key
    from events.log import EventLog
    from replay.history.planned import Plan
    from replay.history.presence import Snapshots, Where
    from replay.history.target import Target

_TYPES = {kind: bits for bits, kind in KINDS.items()}
_KEEP_FILES = ("sandbox.crashed", "sandbox.stopped")
"""Ends of a machine: they take its memory, and leave the files."""
_IN_MEMORY = (b"tmp", b"dev", b"proc", b"sys")
"""Folders of the root that are memory of the machine, and in no tree."""


@dataclass(frozen=True, slots=True)
class FileTree:
    """The files of a version, or of the nearest one before it."""

    asked: Version
    of: Version
    """What the snapshot is of."""
    snapshot_id: str
    listing: Listing
    changed_by: str
    """What may have changed the files since; "" where nothing has."""

    def find(self, path: str, *, follow: bool = True) -> tuple[Key, Entry]:
        """What is at a path of the guest. Raises `NoSuchFile`."""
        try:
            return self.listing.resolve(path or "/", last=follow)
        except NotThere as error:
            detail = f"{encoded(str(error))} is not there, or is no folder"
        except TooManyLinks:
            detail = "its links lead in a circle"
        raise NoSuchFile(path=encoded(path), target=str(self.asked), detail=detail) from None


def in_memory(key: Key) -> bool:
    """Whether a path lies in the machine's memory, and not in its tree."""
    return key[:1] != () and key[0] in _IN_MEMORY


def mode_of(entry: Entry) -> str:
    """As `ls -l` shows it."""
    return stat.filemode(_TYPES[entry.kind] | entry.mode)


def shown_path(key: Key) -> str:
    """A path as JSON has it: what is not printable UTF-8 stands as `%XX`, and `%` as `%25`."""
    return "/" + "/".join(encoded(os.fsdecode(name)) for name in key)


def tree_at(log: EventLog, target: Target, snapshots: Snapshots, *, nearest: bool = False) -> FileTree:
    """The files of a version.

    Args:
        nearest: take those of the nearest snapshot, whatever was done since.

    Raises:
        NoTree: the store has no snapshot at or before it.
        FilesMayDiffer: something may have changed them since the nearest one.
        HistoryError, LogError: as `plan`. StoreError: the store, or what it has of the snapshot.
    """
    store = snapshots.store
    if store is None:
        raise NoTree(store="that was not named", target=f"{target.stream}@{target.version}", left="Name one.")

    def stored(snapshot_id: str) -> tuple[Where, ...]:
        return ("store",) if "store" in snapshots.where(snapshot_id) else ()

    made = plan(log, target.stream, target.version, stored)
    start = made.start
    if start.at is None:
        raise NoTree(store=store.shelf.url, target=str(made.target), left=_left(made, snapshots))
    what = _changing(made)
    if what and not nearest:
        raise FilesMayDiffer(found=str(start.at), target=str(made.target), what=what)
    listing = Listing(store, store.manifest(start.snapshot_id)[0])
    return FileTree(made.target, start.at, start.snapshot_id, listing, what)


def _changing(made: Plan) -> str:
    """What may have changed the files since the plan's start, for people; "" where nothing has."""
    # A call that begins with the version itself has done nothing yet.
    calls = [one for one in made.calls if one.fate in (Fate.AGAIN, Fate.LOST) and one.at != made.target]
    gaps = [one for one in made.gaps if one.type not in _KEEP_FILES]
    told = [f"what happened at {one.at} ({one.type})" for one in gaps[:1]]
    if calls:
        first = calls[0]
        told.insert(0, f"{len(calls):,} call{'s' if len(calls) > 1 else ''} (the first is {first.tool} at {first.at})")
    return " and ".join(told)


def _left(made: Plan, snapshots: Snapshots) -> str:
    here = next((one for one in made.gone if snapshots.where(one.snapshot_id)), None)
    if here is not None:
        return (
            f"The snapshot {here.snapshot_id} of {here.at} lies on this node alone: the service puts it into the store "
            "where a store is set."
        )
    if made.after is not None:
        return f"The next one that it has is {made.after.snapshot_id} of {made.after.at}."
    return f"`hourglass plan {made.target}` shows how it would be rebuilt without one."
