"""Snapshots between this node and the snapshot store. All of it blocks.

Going up, a snapshot that lies whole here becomes chunks. A template's root goes first, under a name of its own, since
the sandboxes' trees have nearly all of it. Coming down, a tree is made from the template's root and the listing: on the
same kind of volumes or another, on the same node or another. Until it is whole it is called `.new`, as any snapshot.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from actors.machines.images import IMAGE
from actors.machines.listings import Listing
from actors.machines.locks import locked
from actors.machines.protocol import SnapshotBroken, SnapshotMissing, SnapshotRecord
from events.manifest import Manifest, Tree, template_id
from events.store_errors import SnapshotNotStored, StoreError, TemplateRefused, TreeRefused
from events.tree_reader import TooMuch, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actors.machines.node import Node
    from actors.machines.protocol import FileRecord
    from events.shelf import Adding
    from events.snapshots import Kept, SnapshotStore
    from events.types import Limits

_log = logging.getLogger(__name__)
_ROOT_TRIES = 3
_NO_TREE = Tree(entries=0, bytes=0, pages=())


class Exchange:
    """Between one node and one store. Any number of processes of the node may use it."""

    def __init__(self, node: Node, store: SnapshotStore) -> None:
        self.store = store
        self._node = node
        self._listings = node.listings
        self._locks = node.storage / "listings" / ".locks"
        self._refused: dict[str, str] = {}
        """Why roots of templates are not stored, and never will be: they don't change."""

    # --- up ---------------------------------------------------------------------------------------------------------

    def upload(self, snapshot_id: str, *, stream: str, version: int) -> Kept:
        """Put a snapshot of this node into the store.

        Args:
            stream: whose state it is, at `version`.

        Raises:
            SnapshotMissing: it is not on this node, or went while it was read.
            SnapshotBroken: its image is not what it was when it was taken.
            StoreError: the store failed, or its tree is beyond what is stored.
            OSError: it can't be read.
        """
        node = self._node
        node.prepare()
        record = node.images.record(snapshot_id)
        draft = Manifest(
            snapshot_id=snapshot_id,
            kind="snapshot",
            sandbox_id=record.sandbox_id,
            stream=stream,
            version=version,
            driver=record.driver,
            driver_version=record.driver_version,
            template_root=record.template_root,
            limits=record.limits,
            taken_at=record.taken_at,
            tree=_NO_TREE,
        )
        expected = {name: file.blake3 for name, file in record.files.items()}
        try:
            # One for all: between what the store says that it has and the manifest that names it, nobody may prune.
            with self.store.shelf.adding() as adding, node.volumes.view(node.images.path(snapshot_id)) as tree:
                known = self._known(record, adding)
                kept, seen = self.store.add(draft, record.image, tree, known.seen, adding, expected=expected)
        except OSError:
            node.images.record(snapshot_id)  # says so where it went
            raise
        except ValueError as error:
            raise SnapshotBroken(f"the snapshot {snapshot_id} is broken: {error}; it is not stored") from error
        self._listings.save(record.sandbox_id, Listing(snapshot_id, kept.digest, seen))
        if not node.images.path(snapshot_id).exists():
            self._listings.drop(record.sandbox_id)  # its sandbox was removed meanwhile
        return kept

    def _known(self, record: SnapshotRecord, adding: Adding) -> Listing:
        """What was seen of a sandbox's tree or its template's, all of which is in the store while `adding` lasts."""
        template = self._template(record.template_root, adding)
        known = self._listings.load(record.sandbox_id)
        return known if known.seen and self.store.knows(known.snapshot_id, known.digest) else template

    def _template(self, root: str, adding: Adding) -> Listing:
        """What is in a template's root, which is in the store then."""
        name = template_id(root)
        if root in self._refused:
            raise TemplateRefused(root=root, detail=self._refused[root])
        known = self._listings.load(root)
        if known.seen and self.store.knows(name, known.digest):
            return known
        with self._alone(root):
            known = self._listings.load(root)
            if known.seen and self.store.knows(name, known.digest):
                return known
            draft = Manifest(snapshot_id=name, kind="template", template_root=root, taken_at=0.0, tree=_NO_TREE)
            try:
                kept, seen = self.store.add(draft, None, self._node.volumes.templates / root, {}, adding)
            except TreeRefused as error:
                self._refused[root] = error.detail
                raise TemplateRefused(root=root, detail=error.detail) from error
            made = Listing(name, kept.digest, seen)
            self._listings.save(root, made)
            return made

    # --- down -------------------------------------------------------------------------------------------------------

    def download(self, snapshot_id: str) -> SnapshotRecord:
        """Get a snapshot that this node does not have, or has broken; it lies whole here then.

        Raises:
            SnapshotMissing: it is not in the store either.
            SnapshotBroken: it is another driver's, or something of it is damaged: nothing of it is left here.
            OSError: no room, for example; likewise.
        """
        node = self._node
        try:
            manifest, _ = self.store.manifest(snapshot_id)
        except SnapshotNotStored as error:
            raise SnapshotMissing(
                f"the snapshot {snapshot_id} is not on this node, and not in the store {error.store}; "
                "`hourglass snapshots ls` shows what there is"
            ) from error
        except StoreError as error:
            raise _broken(snapshot_id, error) from error
        node.check_driver(snapshot_id, manifest.driver, manifest.driver_version)
        with self._alone(snapshot_id):
            try:
                return node.images.verified(snapshot_id, node.driver, node.driver_version())
            except (SnapshotMissing, SnapshotBroken):
                _log.info("getting a snapshot from the store snapshot_id=%s", snapshot_id)
            try:
                return self._get(manifest)
            except StoreError as error:
                raise _broken(snapshot_id, error) from error

    def root(self, record: SnapshotRecord) -> Path:
        """The template's root that a snapshot of this node needs, got from the store where it is gone.

        Raises `SnapshotBroken` where it can't be had, `OSError`.
        """
        try:
            return self._root(record.template_root)
        except StoreError as error:
            raise SnapshotBroken(
                f"the snapshot {record.snapshot_id} needs the template root {record.template_root}, which is gone from "
                f"this node and can't be had from the store: {error} {error.advice}".rstrip(".")
            ) from error

    def _get(self, manifest: Manifest) -> SnapshotRecord:
        for tries_left in reversed(range(_ROOT_TRIES)):
            root = self._root(manifest.template_root)
            try:
                record = self._make(manifest, root)
                break
            except (OSError, StoreError):
                # What keeps a template's root on the node is whole snapshots, and this was none yet.
                if root.is_dir() or not tries_left:
                    raise
                _log.info("a template root went while a snapshot was made from it root=%s", root.name)
        self._root(manifest.template_root)
        return record

    def _make(self, manifest: Manifest, root: Path) -> SnapshotRecord:
        node, limits = self._node, manifest.limits
        if limits is None:
            raise SnapshotBroken(f"{manifest.snapshot_id} is the root of a template, and no snapshot")
        fresh = node.images.folder / f"{manifest.snapshot_id}.{secrets.token_hex(4)}.new"
        (fresh / IMAGE).mkdir(parents=True)
        try:
            self.store.fetch_image(manifest, fresh / IMAGE)
            with node.volumes.compose(fresh, root, limits.disk_bytes) as tree:
                self.store.fetch_tree(manifest, tree, self._present(root).seen)
            return node.images.seal(fresh, partial(self._record, manifest, limits, fresh))
        except BaseException:
            node.volumes.forget(fresh)
            node.images.erase(fresh)
            raise

    def _record(self, manifest: Manifest, limits: Limits, fresh: Path, files: dict[str, FileRecord]) -> SnapshotRecord:
        """Of what was fetched, where it is what was stored. The snapshot that is here in its place goes."""
        if {name: one.blake3 for name, one in files.items()} != {one.name: one.blake3 for one in manifest.image}:
            raise SnapshotBroken(f"the image of {manifest.snapshot_id} is not what was stored")
        # Only now: one that is broken here is better than none.
        self._node.drop_snapshot(manifest.snapshot_id)
        return SnapshotRecord(
            snapshot_id=manifest.snapshot_id,
            sandbox_id=manifest.sandbox_id,
            template_root=manifest.template_root,
            driver=manifest.driver,
            driver_version=manifest.driver_version,
            limits=limits,
            taken_at=manifest.taken_at,
            files=files,
            image=fresh / IMAGE,
            tree=fresh / "tree",
        )

    def _root(self, name: str) -> Path:
        """The template's root that a tree is made from, made itself where this node never had it."""
        volumes = self._node.volumes
        root = volumes.templates / name
        if root.is_dir():
            return root
        with self._alone(name):
            if root.is_dir():
                return root
            template, _ = self.store.manifest(template_id(name))
            fresh = f"{name}-fetched"
            volumes.drop_root(fresh)
            try:
                self.store.fetch_tree(template, volumes.new_root(fresh), {})
                volumes.seal_root(fresh)
                (volumes.templates / fresh).rename(root)
            except BaseException:
                volumes.drop_root(fresh)
                raise
            return root

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        path = self._locks / name
        with locked(path):
            yield
            path.unlink(missing_ok=True)

    def _present(self, root: Path) -> Listing:
        """What is in a template's root on this node, looked at where nobody has."""
        known = self._listings.load(root.name)
        if known.seen:
            return known
        try:
            made = Listing(seen=dict(read_tree(root, {}, lambda content: blake3(content).hexdigest())))
        except TooMuch as error:
            raise OSError(f"the template root {root.name} can't be used: {error}") from error
        self._listings.save(root.name, made)
        return made


def _broken(snapshot_id: str, error: StoreError) -> SnapshotBroken:
    return SnapshotBroken(f"the snapshot {snapshot_id} can't be had from the store: {error} {error.advice}".rstrip("."))
