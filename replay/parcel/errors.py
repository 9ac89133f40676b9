"""What an export or an import refuses, and why; see `events.errors` for how errors are made.

HourglassError
└── ParcelError
    ├── ParcelBroken          it is no export, or damaged
    ├── ParcelTooNew          written by a newer Hourglass
    ├── NotExportable         the log has what an import would refuse
    └── SnapshotDiffers       the store has another snapshot of that name
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class ParcelError(HourglassError):
    """An export or an import was refused."""


@dataclass(eq=False)
class ParcelBroken(ParcelError):
    """{path} can't be imported: {detail}."""

    path: str
    detail: str
    next_step = "Name a file that `hourglass export` wrote, or get it again from there; nothing of it was taken over."


@dataclass(eq=False)
class ParcelTooNew(ParcelError):
    """{path} has format {found}, and this version of Hourglass knows formats up to {supported}."""

    path: str
    found: int
    supported: int
    next_step = "Upgrade: pip install --upgrade hourglass-agents."


@dataclass(eq=False)
class NotExportable(ParcelError):
    """{name} can't be exported: {detail}."""

    name: str
    detail: str
    next_step = "`hourglass log export` writes the whole log, whatever is in it."


@dataclass(eq=False)
class SnapshotDiffers(ParcelError):
    """The snapshot store {store} has another snapshot of the name {snapshot_id}."""

    store: str
    snapshot_id: str
    next_step = "Import into another home, with a store of its own: --home DIR."
