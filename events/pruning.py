"""Taking snapshots out of the store, and then the chunks that nothing refers to any more.

What is needed is never cut, nor is what this log does not know: other homes may share a store. A plan says first
what would go; carrying it out looks again, with nobody adding meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.manifest import Manifest, template_id
from events.snapshots import pieces_of_image, pieces_of_page
from events.store_errors import ManifestBroken, PruneForeign, PruneRefused, SnapshotNotStored

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from events.snapshots import SnapshotStore

_TEMPLATE = template_id("")


@dataclass(frozen=True, slots=True)
class Choice:
    """What may go, of what nothing needs."""

    ids: Collection[str] = ()
    """These alone; empty: any."""
    keep: int = 0
    """The newest of each sandbox that stay in any case."""
    taken_before: float | None = None
    """Seconds since the epoch."""
    foreign: bool = False
    """Of `ids`, also those of sandboxes that this log does not know."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes."""

    snapshots: list[str]
    templates: list[str]
    """Roots that no snapshot is left of, by their names in the store."""
    chunks: dict[str, int]
    """Chunks that nothing refers to then, and their sizes as they lie."""

    @property
    def bytes(self) -> int:
        """What the chunks take."""
        return sum(self.chunks.values())


def plan(
    store: SnapshotStore,
    choice: Choice,
    *,
    known: Collection[str],
    needs: Callable[[Sequence[Manifest]], Mapping[str, Sequence[str]]],
) -> Plan:
    """What would go.

    Args:
        known: the sandboxes of this log; the snapshots of others stay.
        needs: what is needed, of what the store has (`events.needs`).

    Raises:
        PruneRefused: a snapshot of `choice.ids` is needed.
        PruneForeign: its sandbox is not of this log.
        SnapshotNotStored: one of them is not there.
        ManifestBroken: what a snapshot refers to can't be told, so no chunk is known to be free; name it to be cut.
        ChunkBroken: likewise, a page of a listing.
    """
    manifests: dict[str, Manifest] = {}
    broken: dict[str, ManifestBroken] = {}
    ids = store.ids()
    for snapshot_id in ids:
        try:
            manifests[snapshot_id] = store.manifest(snapshot_id)[0]
        except ManifestBroken as error:
            broken[snapshot_id] = error
    for snapshot_id, why in broken.items():
        if snapshot_id not in choice.ids:
            raise why
    snapshots = [one for one in manifests.values() if one.kind == "snapshot"]
    cut = _chosen(store, choice, snapshots, set(ids), known, needs(snapshots), broken)
    left = [one for one in snapshots if one.snapshot_id not in cut]
    roots = {template_id(one.template_root) for one in left}
    templates = sorted(name for name, one in manifests.items() if one.kind == "template" and name not in roots)
    referred = _referred(store, [*left, *(manifests[name] for name in roots if name in manifests)])
    free = {name: size for name, size in store.chunks.names().items() if name not in referred}
    return Plan(cut, templates, free)


def prune(
    store: SnapshotStore,
    choice: Choice,
    *,
    known: Collection[str],
    needs: Callable[[Sequence[Manifest]], Mapping[str, Sequence[str]]],
) -> Plan:
    """Take out what `plan` says, made again while nobody adds; what went.

    Whoever dies in between leaves chunks that nothing refers to, which the next prune removes.

    Raises:
        StoreBusy: a snapshot is being added.
        StoreError: as `plan`.
    """
    with store.shelf.pruning() as pruning:
        made = plan(store, choice, known=known, needs=needs)
        pruning.settle()
        for name in (*made.snapshots, *made.templates):
            pruning.remove(f"manifests/{name}.json")
        # A manifest that came back after a power cut would name chunks that did not.
        pruning.settle()
        for name in made.chunks:
            store.chunks.remove(name, pruning)
    return made


def _chosen(
    store: SnapshotStore,
    choice: Choice,
    snapshots: Sequence[Manifest],
    ids: Collection[str],
    known: Collection[str],
    needed: Mapping[str, Sequence[str]],
    broken: Collection[str],
) -> list[str]:
    whose = {one.snapshot_id: one.sandbox_id for one in snapshots}
    for snapshot_id in choice.ids:
        # A template's root is never cut for itself; its manifest is where it is damaged, and in the way of all else.
        if snapshot_id not in ids or (snapshot_id.startswith(_TEMPLATE) and snapshot_id not in broken):
            raise SnapshotNotStored(store=store.shelf.url, snapshot_id=snapshot_id)
        if snapshot_id in needed:
            raise PruneRefused(snapshot_id=snapshot_id, need="; ".join(needed[snapshot_id]))
        if not choice.foreign and snapshot_id in whose and whose[snapshot_id] not in known:
            raise PruneForeign(snapshot_id=snapshot_id, sandbox_id=whose[snapshot_id])
    if choice.ids:
        return sorted(set(choice.ids))
    cut = []
    rank: dict[str, int] = {}
    for one in sorted(snapshots, key=lambda one: one.taken_at, reverse=True):
        rank[one.sandbox_id] = place = rank.get(one.sandbox_id, 0) + 1
        old = choice.taken_before is None or one.taken_at < choice.taken_before
        if one.sandbox_id in known and one.snapshot_id not in needed and place > choice.keep and old:
            cut.append(one.snapshot_id)
    return sorted(cut)


def _referred(store: SnapshotStore, manifests: Sequence[Manifest]) -> set[str]:
    """Every chunk that a snapshot or a template needs."""
    found: set[str] = set()
    pages: set[str] = set()
    for one in manifests:
        found.update(pieces_of_image(one))
        for page in one.tree.pages:
            # Not by `found`: a guest can have a file that is, byte for byte, a page.
            if page not in pages:
                pages.add(page)
                found.update(pieces_of_page(store.chunks.get(page, one.snapshot_id)))
    return found | pages
