"""File trees without btrfs: the kernel's overlay of a template and a disk image for each sandbox.

What a sandbox writes goes to an ext4 file system of its own in a sparse file, whose size is the disk limit. Starting
costs a `mkfs` and two mounts, and a snapshot copies what the sandbox has written: that is what `doctor` says of it.

A machine with user ids of its own mounts the overlay itself, of layers whose owners are translated, since Linux does
not translate those of an overlay. The tree is lent to it meanwhile, and the host mounts it to read alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors.machines import mounts
from actors.machines.locks import locked
from actors.machines.protocol import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPTIONS = "nosuid,nodev"
_GONE = ".gone-"
"""How the name of a root begins that is being removed, for good."""
_COPY = ("cp", "--sparse=always", "--reflink=auto")


class OverlayVolumes:
    """The trees of `overlay` in the storage folder: `templates/<root>`, `sandboxes/<sandbox id>`.

    A sandbox's folder holds `disk.img`, its mount `disk` (with `upper` and `work`), the mount `tree` of both, and
    `lower.json`, which names the template's root for the next mount.
    """

    kind: Final = "overlay"
    places_late: Final = False

    def __init__(self, storage: Path, templates: Path | None = None) -> None:
        self.storage = storage
        self.templates = templates or storage / "overlay" / "templates"
        self.slots = storage / "overlay" / "slots"
        self.snapshots = storage / "overlay" / "snapshots"
        self._sandboxes = storage / "overlay" / "sandboxes"

    def check(self) -> list[Finding]:
        """What the node lacks, and what this kind can't do."""
        findings = [
            Finding(
                "file trees",
                ok=False,
                detail="overlay and ext4, because there is no btrfs here",
                why="sandboxes start slower, and each pause and fork copies all that the sandbox has written",
                remedy="use a kernel with btrfs, and apt-get install btrfs-progs",
                required=False,
            )
        ]
        lacking = [name for name in ("overlay", "ext4") if not mounts.supports(name)]
        if shutil.which("mkfs.ext4") is None:
            lacking.append("mkfs.ext4")
        if lacking:
            why = "without btrfs, a sandbox's files are an overlay of its template and a disk image"
            findings.append(
                Finding("overlay", False, f"missing: {', '.join(lacking)}", why, "apt-get install e2fsprogs")
            )
        return findings

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.templates, self.slots, self.snapshots, self._sandboxes):
            folder.mkdir(parents=True, exist_ok=True)
        self.storage.chmod(0o700)

    def ensure(self, sandbox_id: str, template_root: Path, disk_bytes: int) -> Path:
        """Make the disk image where there is none, and mount both."""
        home = self._sandboxes / sandbox_id
        with locked(self.storage / "overlay" / "mount.lock"):
            if not home.exists():
                self._make(home, template_root, disk_bytes)
            return self._mount(home)

    def path(self, sandbox_id: str) -> Path | None:
        """The mounted tree; mounted again where a reboot has undone that.

        While a machine has it mounted itself, what there is to see of it at this moment, to be read alone.
        """
        home = self._sandboxes / sandbox_id
        if not home.is_dir():
            return None
        with locked(self.storage / "overlay" / "mount.lock"):
            return self._look(home) if self._is_lent(home) else self._mount(home)

    def place(self, sandbox_id: str, live: Path, *, own_ids: bool = False) -> list[Path]:
        """Mount it there as well; for a machine with ids of its own, have it nowhere else, since one upper layer may be
        in one overlay alone."""
        with locked(self.storage / "overlay" / "mount.lock"):
            home = self._sandboxes / sandbox_id
            tree = self._mount(home)
            (home / "same").unlink(missing_ok=True)
            (home / "at").write_text(str(live), encoding="utf-8")
            live.mkdir(exist_ok=True)
            if not own_ids:
                mounts.run(["mount", "--bind", tree, live])
                return []
            mounts.unmount(tree)
            return [Path(self._lower(home)), home / "disk"]

    def placed(self, sandbox_id: str) -> Path | None:
        """What was written down, where it is so."""
        try:
            live = Path((self._sandboxes / sandbox_id / "at").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return live if live.is_dir() else None

    def take_back(self, sandbox_id: str, *, same_as: str = "") -> None:
        """Unmount it there."""
        home = self._sandboxes / sandbox_id
        live = self.placed(sandbox_id)
        if live is not None:
            with locked(self.storage / "overlay" / "mount.lock"):
                if self._is_lent(home):
                    mounts.unmount(home / "tree")
                mounts.unmount(live)
                live.rmdir()
            if same_as:
                (home / "same").write_text(same_as, encoding="utf-8")
        (home / "at").unlink(missing_ok=True)

    def keep(self, sandbox_id: str, folder: Path) -> None:
        """Copy the disk image, holes left out, while its file system holds still."""
        home = self._sandboxes / sandbox_id
        with locked(self.storage / "overlay" / "mount.lock"):
            self._mount_disk(home)
        mounts.run(["fsfreeze", "--freeze", home / "disk"])
        try:
            mounts.run([*_COPY, home / "disk.img", folder / "tree.img"], timeout=600)
        finally:
            mounts.run(["fsfreeze", "--unfreeze", home / "disk"])
        (folder / "lower.json").write_bytes((home / "lower.json").read_bytes())
        mounts.run(["sync", folder / "tree.img", folder / "lower.json"], timeout=600)

    def bring_back(self, sandbox_id: str, snapshot_id: str, folder: Path, disk_bytes: int) -> None:
        """Copy the disk image back; its size, which is the limit, is that of the snapshot's sandbox."""
        del disk_bytes
        home = self._sandboxes / sandbox_id
        with locked(self.storage / "overlay" / "mount.lock"):
            if home.exists() and not self.gives_up(sandbox_id, snapshot_id):
                return
            self._remove(home)
            fresh = home.with_name(home.name + ".new")
            self._remove(fresh)
            fresh.mkdir()
            mounts.run([*_COPY, folder / "tree.img", fresh / "disk.img"], timeout=600)
            (fresh / "disk").mkdir()
            (fresh / "tree").mkdir()
            (fresh / "lower.json").write_bytes((folder / "lower.json").read_bytes())
            fresh.rename(home)

    def gives_up(self, sandbox_id: str, snapshot_id: str) -> bool:
        """Not where a file says that they are the same."""
        home = self._sandboxes / sandbox_id
        same = home / "same"
        return home.exists() and not (same.exists() and same.read_text(encoding="utf-8") == snapshot_id)

    @contextmanager
    def view(self, folder: Path) -> Iterator[Path]:
        """The disk image's upper layer over the template, both read-only."""
        home = folder / f"view-{secrets.token_hex(4)}"
        disk, tree = home / "disk", home / "tree"
        for path in (disk, tree):
            path.mkdir(parents=True)
        try:
            mounts.run(["mount", "-t", "ext4", "-o", f"loop,ro,{_OPTIONS}", folder / "tree.img", disk])
            parts = f"lowerdir={disk}/upper:{self._lower(folder)},ro,{_OPTIONS}"
            mounts.run(["mount", "-t", "overlay", "-o", parts, "overlay", tree])
            yield tree
        finally:
            _unmount(home)

    @contextmanager
    def compose(self, folder: Path, template_root: Path, disk_bytes: int) -> Iterator[Path]:
        """A disk image with an overlay on it, which is unmounted in the end."""
        home = folder / "view-composed"
        self._make(home, template_root, disk_bytes)
        try:
            yield self._mount(home)
            mounts.unmount(home / "tree")
            mounts.unmount(home / "disk")
            (home / "disk.img").rename(folder / "tree.img")
            (home / "lower.json").rename(folder / "lower.json")
            mounts.run(["sync", folder / "tree.img", folder / "lower.json"], timeout=600)
        finally:
            _unmount(home)

    def copy(self, source: Path, folder: Path) -> None:
        """Copy the disk image, holes left out."""
        for name in ("tree.img", "lower.json"):
            mounts.run([*_COPY, source / name, folder / name], timeout=600)
        mounts.run(["sync", folder / "tree.img", folder / "lower.json"], timeout=600)

    def forget(self, folder: Path) -> None:
        """Remove the disk image, and what somebody that died was looking at."""
        for left in folder.glob("view-*"):
            _unmount(left)
        for name in ("tree.img", "lower.json"):
            (folder / name).unlink(missing_ok=True)

    def remove(self, sandbox_id: str) -> None:
        """Unmount both and remove the image. Nothing of the guest's is walked."""
        home = self._sandboxes / sandbox_id
        self.take_back(sandbox_id)
        with locked(self.storage / "overlay" / "mount.lock"):
            self._remove(home)

    def sandboxes(self) -> list[str]:
        """Every sandbox that has an image."""
        if not self._sandboxes.is_dir():
            return []
        return sorted(entry.name for entry in self._sandboxes.iterdir() if not entry.name.endswith(".new"))

    def roots_in_use(self) -> set[str]:
        """The lower halves of the trees, and those of snapshots."""
        kept = [path for path in self.snapshots.iterdir() if (path / "lower.json").exists()]
        return {Path(self._lower(home)).name for home in [*map(self._sandboxes.joinpath, self.sandboxes()), *kept]}

    def lower_root(self, sandbox_id: str) -> str:
        """As it was written down when the tree was made."""
        return Path(self._lower(self._sandboxes / sandbox_id)).name

    def new_root(self, name: str) -> Path:
        """An empty folder."""
        (self.templates / name).mkdir()
        return self.templates / name

    def clone_root(self, source: str, name: str) -> Path:
        """A copy."""
        mounts.run(["cp", "--archive", "--reflink=auto", self.templates / source, self.templates / name], timeout=600)
        return self.templates / name

    def root_of(self, sandbox_id: str, name: str) -> Path:
        """A copy of the mounted tree."""
        tree = self.path(sandbox_id)
        if tree is None:
            raise FileNotFoundError(f"the sandbox {sandbox_id} has no file tree")
        root = self.new_root(name)
        mounts.run(["cp", "--archive", "--no-target-directory", tree, root], timeout=600)
        return root

    def seal_root(self, name: str) -> None:
        """Write it to the disk."""
        mounts.run(["sync", "--file-system", self.templates / name], timeout=600)

    def drop_root(self, name: str) -> None:
        """Remove the folder. Out of the way first: half of one would pass for a root."""
        root = self.templates / name
        if root.exists():
            root.rename(root.with_name(f"{_GONE}{root.name}-{secrets.token_hex(4)}"))
        for left in root.parent.glob(f"{_GONE}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _make(self, home: Path, template_root: Path, disk_bytes: int) -> None:
        fresh = home.with_name(home.name + ".new")
        self._remove(fresh)
        fresh.mkdir()
        with (fresh / "disk.img").open("wb") as file:
            file.truncate(disk_bytes)
        # No journal: a sandbox whose node lost power starts from what is there, and the log knows what was done.
        features = ["-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-O", "^has_journal"]
        mounts.run(["mkfs.ext4", "-q", *features, fresh / "disk.img"])
        (fresh / "disk").mkdir()
        (fresh / "tree").mkdir()
        (fresh / "lower.json").write_text(json.dumps({"lower": str(template_root)}), encoding="utf-8")
        fresh.rename(home)

    def _is_lent(self, home: Path) -> bool:
        """Whether a machine has, or is about to have, the tree mounted in its own view of the mounts."""
        live = self.placed(home.name)
        return live is not None and not os.path.ismount(live)

    def _look(self, home: Path) -> Path:
        """The layers as they are, mounted anew: what an overlay has seen of its layers it need not see change."""
        disk, tree = self._mount_disk(home), home / "tree"
        mounts.unmount(tree)
        parts = f"lowerdir={disk}/upper:{self._lower(home)},ro,{_OPTIONS}"
        mounts.run(["mount", "-t", "overlay", "-o", parts, "overlay", tree])
        return tree

    def _mount_disk(self, home: Path) -> Path:
        disk = home / "disk"
        if mounts.mounted_at(disk) is None:
            mounts.run(["mount", "-t", "ext4", "-o", f"loop,{_OPTIONS}", home / "disk.img", disk])
        for name in ("upper", "work"):
            # Looked at first: on a file system that holds still, even a folder that is there can't be made.
            if not (disk / name).is_dir():
                (disk / name).mkdir()
        return disk

    def _mount(self, home: Path) -> Path:
        disk, tree = self._mount_disk(home), home / "tree"
        if mounts.mounted_at(tree) is None:
            parts = f"lowerdir={self._lower(home)},upperdir={disk}/upper,workdir={disk}/work,{_OPTIONS}"
            mounts.run(["mount", "-t", "overlay", "-o", parts, "overlay", tree])
        return tree

    def _remove(self, home: Path) -> None:
        """Half-removed it is called `.new`, which nobody takes for a tree."""
        if not home.exists():
            return
        mounts.unmount(home / "tree")
        mounts.unmount(home / "disk")
        if home.suffix != ".new":
            self._remove(home.with_name(home.name + ".new"))
            home = home.rename(home.with_name(home.name + ".new"))
        for name in ("lower.json", "disk.img", "at", "same"):
            (home / name).unlink(missing_ok=True)
        for name in ("tree", "disk"):
            if (home / name).exists():
                (home / name).rmdir()
        home.rmdir()

    def _lower(self, home: Path) -> str:
        return str(json.loads((home / "lower.json").read_text(encoding="utf-8"))["lower"])


def _unmount(home: Path) -> None:
    """Remove a folder with a disk and an overlay of it. Nothing of the guest's is walked: both are unmounted before."""
    for name in ("tree", "disk"):
        mounts.unmount(home / name)
        if (home / name).exists():
            (home / name).rmdir()
    for name in ("disk.img", "lower.json"):
        (home / name).unlink(missing_ok=True)
    if home.exists():
        home.rmdir()
