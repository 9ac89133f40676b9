"""Every error of the snapshot store; see `events.errors` for how they are made.

HourglassError
└── StoreError
    ├── StoreUnavailable          the folder or the URL can't be used
    ├── StoreBusy                 an upload and a prune exclude each other
    ├── MarkLost                  whoever added or pruned stood still for too long
    ├── SnapshotNotStored         the store has no such snapshot
    ├── ManifestBroken            a manifest is not what was written
    ├── ChunkBroken               a chunk is missing or damaged
    ├── TreeRefused               a file tree that is not stored
    ├── TemplateRefused           likewise, a template's root
    ├── TreeNotRestored           an entry can't be made again
    ├── PruneRefused              something needs the snapshot
    └── PruneForeign              another home's snapshot
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class StoreError(HourglassError):
    """The snapshot store refused or failed."""


@dataclass(eq=False)
class StoreUnavailable(StoreError):
    """The snapshot store {store} can't be used: {detail}."""

    store: str
    detail: str
    next_step = "See to its disk, rights and credentials, or name another with HOURGLASS_SNAPSHOT_STORE."


@dataclass(eq=False)
class StoreBusy(StoreError):
    """The snapshot store {store} is in use: {holder}."""

    store: str
    holder: str
    next_step = (
        "Repeat it later: an upload takes seconds; what one that died has left at a URL stands there for an hour."
    )


@dataclass(eq=False)
class MarkLost(StoreError):
    """The mark {mark} in the snapshot store {store} keeps nobody out any more: {detail}."""

    store: str
    mark: str
    detail: str
    next_step = (
        "Nothing half-done of it is used: repeat it, as an upload does by itself. See to the connection and the clocks."
    )


@dataclass(eq=False)
class SnapshotNotStored(StoreError):
    """The snapshot store {store} has no snapshot {snapshot_id}."""

    store: str
    snapshot_id: str
    next_step = "`hourglass snapshots ls` shows what there is."


@dataclass(eq=False)
class ManifestBroken(StoreError):
    """The manifest of {snapshot_id} in {store} is damaged: {detail}."""

    store: str
    snapshot_id: str
    detail: str
    next_step = (
        "It is never used. `hourglass snapshots prune {snapshot_id}` takes it out; until then no prune can tell which "
        "chunks are free."
    )


@dataclass(eq=False)
class ChunkBroken(StoreError):
    """The chunk {chunk} of {snapshot_id} in {store} is damaged: {detail}."""

    store: str
    snapshot_id: str
    chunk: str
    detail: str
    next_step = (
        "`hourglass snapshots verify` says which other snapshots need it. Remove the damaged file: in a folder, the "
        "next snapshot of a sandbox that has the same piece puts it back, for all of them."
    )


@dataclass(eq=False)
class TreeRefused(StoreError):
    """The file tree of {whose} is not stored (snapshot {snapshot_id}): {detail}."""

    whose: str
    snapshot_id: str
    detail: str
    next_step = (
        "The sandbox is suspended and resumed on its node as ever, but no other node can take it over. Make its tree "
        "simpler (remove files, or pack them): its next snapshot is tried anew."
    )


@dataclass(eq=False)
class TemplateRefused(StoreError):
    """The template root {root} is not stored, nor are snapshots of sandboxes that were made from it: {detail}."""

    root: str
    detail: str
    next_step = (
        "These snapshots stay on their node. Build the template with fewer files (`hourglass template build`): new "
        "sandboxes start from a root that can be stored then."
    )


@dataclass(eq=False)
class TreeNotRestored(StoreError):
    """{path} of {snapshot_id} can't be made again: {detail}."""

    snapshot_id: str
    path: str
    detail: str
    next_step = "See to the room on the disk, and `hourglass doctor`; nothing of it was left."


@dataclass(eq=False)
class PruneRefused(StoreError):
    """The snapshot {snapshot_id} is needed: {need}."""

    snapshot_id: str
    need: str
    next_step = "`hourglass kill` ends the sandbox that needs it."


@dataclass(eq=False)
class PruneForeign(StoreError):
    """The snapshot {snapshot_id} is of {sandbox_id}, which this log does not know."""

    snapshot_id: str
    sandbox_id: str
    next_step = "Prune it with the home whose log has that sandbox (--home), or add --foreign where that log is lost."
