"""File trees: templates, and the trees of sandboxes that are made from them.

Two kinds, behind one protocol. `BtrfsVolumes` (`btrfs.py`) is the one to have: a sandbox's tree is a copy-on-write
snapshot of its template, and of any version of it a snapshot can be kept. `OverlayVolumes` (`overlay.py`) is what a
node without btrfs falls back to.

A tree is hostile: its names, links and modes are a guest's. Nothing here opens a path inside one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from actors.machines import mounts
from actors.machines.btrfs import BtrfsVolumes
from actors.machines.overlay import OverlayVolumes

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from actors.machines.protocol import Finding

Kind = Literal["auto", "btrfs", "overlay"]


class Volumes(Protocol):
    """The file trees of one storage folder. Every method may block, and raises `OSError`."""

    storage: Path
    templates: Path
    """The folder of the templates' roots and manifests. Exists after `prepare`."""

    @property
    def kind(self) -> Literal["btrfs", "overlay"]:
        """Which of the two."""
        ...

    def check(self) -> list[Finding]:
        """What this kind needs of the node, and what it can't do."""
        ...

    def prepare(self) -> None:
        """Make and mount what is needed, once for all processes of the node; quick where it is there."""
        ...

    def ensure(self, sandbox_id: str, template_root: Path, disk_bytes: int) -> Path:
        """A sandbox's tree, ready to use: made from the template where there is none, and limited to `disk_bytes` of
        its own. There is a whole tree afterwards, or none."""
        ...

    @property
    def places_late(self) -> bool:
        """Whether a tree can be put into the root of a container that is there already."""
        ...

    @property
    def slots(self) -> Path:
        """The folder of the roots of containers: where `place` can put a tree."""
        ...

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots; see `actors.machines.images`."""
        ...

    def path(self, sandbox_id: str) -> Path | None:
        """A sandbox's tree, ready to read, wherever it is; None where there is none."""
        ...

    def place(self, sandbox_id: str, live: Path, *, own_ids: bool = False) -> list[Path]:
        """Put a sandbox's tree at `live`, in a slot's root, until `take_back`.

        Returns the two folders, for `LOWER` and `DISK` of `actors.machines.idmap`, from which a machine with `own_ids`
        mounts the tree there itself; empty where it is there.
        """
        ...

    def placed(self, sandbox_id: str) -> Path | None:
        """Where the tree was put, if it is in a slot."""
        ...

    def take_back(self, sandbox_id: str, *, same_as: str = "") -> None:
        """Put the tree back where it is kept, once its machine is gone. No error where it is there.

        `same_as`: the id of a snapshot that nothing has been written after.
        """
        ...

    def keep(self, sandbox_id: str, folder: Path) -> None:
        """Put a copy of the tree, as it is now, into a snapshot's folder, durable. Nothing may write meanwhile."""
        ...

    def bring_back(self, sandbox_id: str, snapshot_id: str, folder: Path, disk_bytes: int) -> None:
        """Make a sandbox's tree what it was in a snapshot; the tree that it has is given up, unless it is the same."""
        ...

    def gives_up(self, sandbox_id: str, snapshot_id: str) -> bool:
        """Whether `bring_back` would give up a tree that the sandbox has."""
        ...

    def view(self, folder: Path) -> AbstractContextManager[Path]:
        """The tree of a snapshot's folder, to read."""
        ...

    def compose(self, folder: Path, template_root: Path, disk_bytes: int) -> AbstractContextManager[Path]:
        """A tree like the template's, to be changed; a snapshot's folder has it, durable, when the context ends well.

        `disk_bytes` as in `ensure`.
        """
        ...

    def copy(self, source: Path, folder: Path) -> None:
        """Put a copy of the tree of a snapshot's folder into another one's, durable."""
        ...

    def forget(self, folder: Path) -> None:
        """Remove the tree of a snapshot's folder. No error where there is none."""
        ...

    def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox's tree. No error where there is none."""
        ...

    def sandboxes(self) -> list[str]:
        """Ids of the sandboxes that have a tree."""
        ...

    def roots_in_use(self) -> set[str]:
        """Names of template roots that sandboxes' trees can't do without."""
        ...

    def lower_root(self, sandbox_id: str) -> str:
        """The template root on which a sandbox's tree lies; "" where the tree stands by itself."""
        ...

    def new_root(self, name: str) -> Path:
        """An empty root for a template that is being built."""
        ...

    def clone_root(self, source: str, name: str) -> Path:
        """A root with the content of another, to be changed: files are to be replaced in it, not written in place."""
        ...

    def root_of(self, sandbox_id: str, name: str) -> Path:
        """A root with the content of a sandbox's tree, on which nothing runs; to be changed, as with `clone_root`."""
        ...

    def seal_root(self, name: str) -> None:
        """Make a root durable and, where the kind can, unchangeable."""
        ...

    def drop_root(self, name: str) -> None:
        """Remove a root. No error where there is none."""
        ...


def open_volumes(storage: Path, kind: Kind, pool_bytes: int) -> Volumes:
    """The file trees of a storage folder; `auto` takes btrfs where the node has it."""
    if kind == "btrfs" or (kind == "auto" and mounts.supports("btrfs")):
        return BtrfsVolumes(storage, pool_bytes)
    return OverlayVolumes(storage)
