"""Which snapshots there are: on this node, in the store, and what needs them. Needs no service, and no Ray."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from actors.machines.boots import PREFIX
from actors.machines.images import Images
from actors.machines.volumes import open_volumes
from events.needs import needs, sandboxes_of
from events.store_errors import ManifestBroken
from events.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from actors.settings import Settings
    from events.log import EventLog
    from events.manifest import Manifest
    from events.payload import JsonObject
    from events.snapshots import SnapshotStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One snapshot."""

    snapshot_id: str
    sandbox_id: str
    """Empty where its manifest is damaged, and it is nowhere else."""
    version: int | None = None
    """Of the sandbox's stream, that it is the state of; None where only the node has it."""
    taken_at: float = 0.0
    """Seconds since the epoch."""
    image_bytes: int = 0
    tree_bytes: int | None = None
    """Of its files, as the store has them; None where only the node has it."""
    local: bool
    """Whether it lies whole on this node."""
    stored: bool
    broken: str = ""
    """What is wrong with its manifest; empty where nothing is."""
    needed_by: tuple[str, ...]
    """What needs it, for people; empty: it may be pruned."""

    def as_json(self) -> JsonObject:
        """Its fields."""
        return {**asdict(self), "needed_by": list(self.needed_by)}


def inventory(
    settings: Settings, log: EventLog, store: SnapshotStore | None, sandboxes: Collection[str] | None = None
) -> list[Row]:
    """Every snapshot, the oldest first; with `sandboxes`, of these alone.

    Raises `StoreError` where the store can't be read, `LogError`, `OSError`.
    """
    manifests, broken = _manifests(store) if store is not None else ([], {})
    needed = needs(log, manifests)
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    local = {one.snapshot_id: one for one in Images(volumes.snapshots).records()}
    rows = [
        Row(
            snapshot_id=one.snapshot_id,
            sandbox_id=one.sandbox_id,
            version=one.version,
            taken_at=one.taken_at,
            image_bytes=one.image_bytes,
            tree_bytes=one.tree.bytes,
            local=one.snapshot_id in local,
            stored=True,
            needed_by=tuple(needed.get(one.snapshot_id, ())),
        )
        for one in manifests
    ]
    rows += [
        Row(
            snapshot_id=name,
            sandbox_id="",
            local=name in local,
            stored=True,
            broken=why,
            needed_by=tuple(needed.get(name, ())),
        )
        for name, why in broken.items()
    ]
    listed = {row.snapshot_id for row in rows}
    known = set(log.streams())
    rows += [
        Row(
            snapshot_id=name,
            sandbox_id=one.sandbox_id,
            taken_at=one.taken_at,
            image_bytes=one.image_bytes,
            local=True,
            stored=False,
            needed_by=tuple(needed.get(name, ())),
        )
        for name, one in local.items()
        # Of other homes on the same storage, and boots of templates: none of ours.
        if name not in listed and not name.startswith(PREFIX) and f"sandbox-{one.sandbox_id}" in known
    ]
    wanted = (row for row in rows if sandboxes is None or row.sandbox_id in sandboxes)
    return sorted(wanted, key=lambda row: (row.taken_at, row.snapshot_id))


def sandboxes_named(log: EventLog, target: str) -> set[str]:
    """Those whose id, or whose session's, is `target`; else those where it begins so."""
    found = [usage_of(one, log.read(f"sandbox-{one}"), 0) for one in sandboxes_of(log)]
    exact = {one.sandbox_id for one in found if target in (one.sandbox_id, one.session_id)}
    begins = (one for one in found if one.sandbox_id.startswith(target) or one.session_id.startswith(target))
    return exact or {one.sandbox_id for one in begins}


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
