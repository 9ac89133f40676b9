"""Which snapshots there are: on this node, in the store, and what needs them. Needs no service, and no Ray."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from actors.machines.boots import PREFIX
from actors.machines.images import Images
from actors.machines.volumes import open_volumes
from events.needs import needs
from events.store_errors import ManifestBroken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.settings import Settings
    from events.log import EventLog
    from events.manifest import Manifest
    from events.payload import JsonObject
    from events.snapshots import SnapshotStore


@dataclass(frozen=True, slots=True)
class Row:
    """One snapshot."""

    snapshot_id: str
    sandbox_id: str
    """"" where its manifest is damaged, and it is nowhere else."""
    version: int | None
    """Of the sandbox's stream, that it is the state of; None where only the node has it."""
    taken_at: float
    """Seconds since the epoch."""
    image_bytes: int
    tree_bytes: int | None
    """Of its files, as the store has them; None where only the node has it."""
    local: bool
    """Whether it lies whole on this node."""
    stored: bool
    broken: str
    """What is wrong with its manifest; "" where nothing is."""
    needed_by: tuple[str, ...]
    """What needs it, for people; empty: it may be pruned."""

    def as_json(self) -> JsonObject:
        """Its fields."""
        return {**asdict(self), "needed_by": list(self.needed_by)}


def inventory(settings: Settings, log: EventLog, store: SnapshotStore | None, sandbox_id: str = "") -> list[Row]:
    """Every snapshot, the oldest first; with `sandbox_id`, of that sandbox alone.

    Raises `StoreError` where the store can't be read, `LogError`, `OSError`.
    """
    manifests, broken = _manifests(store) if store is not None else ([], {})
    needed = needs(log, manifests)
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    local = {one.snapshot_id: one for one in Images(volumes.snapshots).records()}
    rows = [
        Row(
            one.snapshot_id,
            one.sandbox_id,
            one.version,
            one.taken_at,
            one.image_bytes,
            one.tree.bytes,
            one.snapshot_id in local,
            True,
            "",
            tuple(needed.get(one.snapshot_id, ())),
        )
        for one in manifests
    ]
    rows += [
        Row(name, "", None, 0.0, 0, None, name in local, True, why, tuple(needed.get(name, ())))
        for name, why in broken.items()
    ]
    listed = {row.snapshot_id for row in rows}
    known = set(log.streams())
    rows += [
        Row(
            name,
            one.sandbox_id,
            None,
            one.taken_at,
            one.image_bytes,
            None,
            True,
            False,
            "",
            tuple(needed.get(name, ())),
        )
        for name, one in local.items()
        # Of other homes on the same storage, and boots of templates: none of ours.
        if name not in listed and not name.startswith(PREFIX) and f"sandbox-{one.sandbox_id}" in known
    ]
    return sorted(_of(sandbox_id, rows), key=lambda row: (row.taken_at, row.snapshot_id))


def _of(sandbox_id: str, rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if not sandbox_id or row.sandbox_id == sandbox_id)


def _manifests(store: SnapshotStore) -> tuple[list[Manifest], dict[str, str]]:
    """Of the snapshots, and what is wrong with those that can't be read."""
    found: list[Manifest] = []
    broken: dict[str, str] = {}
    for name in store.ids():
        try:
            manifest, _ = store.manifest(name)
        except ManifestBroken as error:
            broken[name] = error.detail
            continue
        if manifest.kind == "snapshot":
            found.append(manifest)
    return found, broken
