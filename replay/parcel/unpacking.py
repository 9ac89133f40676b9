"""Taking an exported session into a home: its events into the log, its snapshots into the store.

What if the process dies on the way? Chunks and manifests come first and are harmless: nothing refers to them, and the
next import finds them. Events become part of the log last, all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.adoption import adopting
from events.blobs import BlobStore
from events.manifest import decode, template_id
from replay.parcel.checking import Parcel
from replay.parcel.errors import ParcelBroken, SnapshotDiffers
from replay.parcel.layout import BLOBS, CHUNKS, MANIFESTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from events.snapshots import SnapshotStore
    from replay.parcel.layout import Header

_TEMPLATE = template_id("")


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    session_id: str
    streams: dict[str, int]
    """How many events of each the file has."""
    added: int
    """Events that are new in the log."""
    there: int
    """Events that it had already, the same."""
    snapshots: tuple[str, ...]
    """Snapshots that are new in the store."""


def import_session(
    path: Path, log: Path, store: SnapshotStore | None, *, progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Take over a session that `export_session` wrote; again changes nothing.

    Nothing is written before all of the file is checked.

    Args:
        log: the log file; made where it is not there.
        store: None: without snapshots.
        progress: called with how many chunks were checked, of how many.

    Raises:
        ParcelBroken, ParcelTooNew, UnknownEventType, EventTooNew: the file can't be taken over.
        StreamDiffers: the log has another history of one of its streams.
        SnapshotDiffers: the store has another snapshot of the same name.
        LogLocked: a service writes the log.
        LogError, StoreError: log or store failed.
    """
    with Parcel(path) as parcel:
        header = parcel.check(progress)
        fresh = _fresh(parcel, store) if store is not None else set()
        with adopting(log) as adoption:
            for row in parcel.rows():
                adoption.take(row)
            _write_blobs(parcel, log)
            if store is not None and fresh:
                _write_snapshots(parcel, store, fresh)
            parcel.unchanged()
            adoption.commit()
    return _told(header, adoption.added, adoption.there, fresh)


def _told(header: Header, added: int, there: int, fresh: set[str]) -> Imported:
    snapshots = sorted(one for one in fresh if not one.startswith(_TEMPLATE))
    return Imported(header.session_id, header.streams, added, there, tuple(snapshots))


def _fresh(parcel: Parcel, store: SnapshotStore) -> set[str]:
    """The snapshots and templates that the store does not have."""
    found: set[str] = set()
    for _, name, content in parcel.members(MANIFESTS):
        snapshot_id = name.removesuffix(".json")
        if not store.has(snapshot_id):
            found.add(snapshot_id)
        # A template's root is only what trees are begun with: each is made what its own listing says.
        elif not snapshot_id.startswith(_TEMPLATE) and not store.knows(snapshot_id, _digest(parcel, content)):
            raise SnapshotDiffers(store=store.shelf.url, snapshot_id=snapshot_id)
    return found


def _write_blobs(parcel: Parcel, log: Path) -> None:
    blobs = BlobStore(log.with_name("blobs"))
    for _, _, content in parcel.members(BLOBS):
        blobs.root.mkdir(parents=True, exist_ok=True)
        blobs.put(content)


def _write_snapshots(parcel: Parcel, store: SnapshotStore, fresh: set[str]) -> None:
    """Chunks first, then the manifests that name them."""
    with store.shelf.adding() as adding:
        for _, name, packed in parcel.members(CHUNKS):
            try:
                store.chunks.keep(name, packed, adding)
            except ValueError as error:
                raise ParcelBroken(path=str(parcel.path), detail=f"the chunk {name}: {error}") from None
        adding.settle()
        parcel.unchanged()
        for _, name, content in parcel.members(MANIFESTS):
            if name.removesuffix(".json") in fresh:
                _digest(parcel, content)
                store.adopt(content, adding)
        adding.settle()


def _digest(parcel: Parcel, content: bytes) -> str:
    try:
        return decode(content)[1]
    except ValueError as error:
        raise ParcelBroken(path=str(parcel.path), detail=str(error)) from None
