"""File trees as btrfs subvolumes, in a sparse file mounted through a loop device, or on a btrfs disk of your own.

A disk of your own, mounted at `pool` in the storage folder, is used as it is. Otherwise `pool.btrfs` is made and
mounted there on demand, after every reboot too.

What a sandbox may write is bounded by a quota group. Where the kernel has simple quotas (6.7) these are used: a
snapshot starts at nothing there, and accounting costs nothing worth the name. Before, the old kind: a snapshot starts
at what it shares with its template, so that is added to the limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from actors.machines import mounts, subvolume
from actors.machines.images import Images
from actors.machines.locks import locked
from actors.machines.protocol import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

# `ssd`: without it, and a loop device has no such flag, every sync waits some milliseconds for others to join it.
_MOUNT_OPTIONS = "nosuid,nodev,noatime,ssd"
# `btrfs quota enable --simple` came with btrfs-progs 6.7, later than the kernel of some distributions.
_QUOTA_CTL = 0xC0109428  # _IOWR(0x94, 40, struct {u64 command; u64 status})
_QUOTA_ENABLE = 1
_QUOTA_ENABLE_SIMPLE = 4
_TREE = "tree"
_MADE = "made"
"""A tree that is being composed."""
_ROOM_TO_START = 2 * 1024**3


class BtrfsVolumes:
    """The subvolumes of one pool: `templates/<root>`, `sandboxes/<sandbox id>`, `snapshots/<id>/tree`.

    While a machine runs on a sandbox's tree, that lies in the machine's slot, and a link `sandboxes/<sandbox id>.at`
    says where; a link `<sandbox id>.same` names the snapshot that the tree has not changed since. Both are made before
    what they tell becomes true, or removed before it ends, in the same file system, so that a power cut leaves no lie.
    """

    kind: Final = "btrfs"
    places_late: Final = True

    def __init__(self, storage: Path, pool_bytes: int) -> None:
        self.storage = storage
        self.pool = storage / "pool"
        self.image = storage / "pool.btrfs"
        self.templates = self.pool / "templates"
        self.slots = self.pool / "slots"
        self.snapshots = self.pool / "snapshots"
        self._sandboxes = self.pool / "sandboxes"
        self._pool_bytes = pool_bytes
        self._simple_quotas: bool | None = None

    def check(self) -> list[Finding]:
        """The kernel's btrfs, its programs, and room on the disk."""
        why = "a sandbox's files are a btrfs snapshot, which makes starting and branching a matter of milliseconds"
        findings = [
            Finding("btrfs", ok=True, detail="the kernel has it")
            if mounts.supports("btrfs")
            else Finding("btrfs", False, "the kernel has no btrfs", why, "modprobe btrfs", required=False)
        ]
        missing = [name for name in ("btrfs", "mkfs.btrfs") if shutil.which(name) is None]
        findings.append(
            Finding("btrfs-progs", False, f"missing: {', '.join(missing)}", why, "apt-get install btrfs-progs")
            if missing
            else Finding("btrfs-progs", ok=True, detail="installed")
        )
        return findings

    def prepare(self) -> None:
        """Mount the pool, made where there is none."""
        # All the mounts of a node are a millisecond's reading; that something is mounted there is a glance.
        if self._simple_quotas is not None and os.path.ismount(self.pool):
            return
        with locked(self.storage / "pool.lock"):
            self.storage.chmod(0o700)
            self.pool.mkdir(exist_ok=True)
            if not self._is_mounted():
                if not self.image.exists():
                    self._make_image()
                self._mount_image()
            for folder in (self.templates, self.slots, self.snapshots, self._sandboxes):
                folder.mkdir(exist_ok=True)
            self._simple_quotas = self._enable_quotas()
            # A deleted subvolume leaves its quota group behind, on kernels before 6.13 or so and with simple quotas.
            with contextlib.suppress(mounts.CommandFailed):
                mounts.run(["btrfs", "qgroup", "clear-stale", self.pool])

    def _mount_image(self) -> None:
        mounts.run(["mount", "-t", "btrfs", "-o", f"loop,{_MOUNT_OPTIONS}", self.image, self.pool])
        mounted = mounts.mounted_at(self.pool)
        if mounted is not None:
            # Past the page cache of the file system below, which would keep everything twice and write it later. Not
            # every file system can.
            with contextlib.suppress(mounts.CommandFailed):
                mounts.run(["losetup", "--direct-io=on", mounted.source])

    def ensure(self, sandbox_id: str, template_root: Path, disk_bytes: int) -> Path:
        """Snapshot the template; a snapshot is there whole or not at all."""
        tree = self._sandboxes / sandbox_id
        if not tree.exists():
            subvolume.snapshot(template_root, tree)
        # Again for a tree that was there: we may have died between the two, and a limit may have been changed.
        self._limit(tree, disk_bytes, template_root)
        return tree

    def path(self, sandbox_id: str) -> Path | None:
        """The subvolume of a sandbox."""
        if self.image.exists() or os.path.ismount(self.pool):
            self.prepare()
        tree = self._sandboxes / sandbox_id
        return tree if tree.is_dir() else self.placed(sandbox_id)

    def place(self, sandbox_id: str, live: Path, *, own_ids: bool = False) -> list[Path]:
        """Move the subvolume. It shows in what a machine has mounted already, its owners translated there."""
        del own_ids
        same = self._link(sandbox_id, "same")
        same.unlink(missing_ok=True)
        at = self._link(sandbox_id, "at")
        at.unlink(missing_ok=True)
        at.symlink_to(live)
        (self._sandboxes / sandbox_id).rename(live)
        return []

    def placed(self, sandbox_id: str) -> Path | None:
        """What the link says, where it is so."""
        try:
            live = self._link(sandbox_id, "at").readlink()
        except FileNotFoundError:
            return None
        return live if live.is_dir() else None

    def take_back(self, sandbox_id: str, *, same_as: str = "") -> None:
        """Move it back."""
        live, tree = self.placed(sandbox_id), self._sandboxes / sandbox_id
        if live is not None and not tree.exists():
            live.rename(tree)
        self._link(sandbox_id, "at").unlink(missing_ok=True)
        if same_as and live is not None:
            self._link(sandbox_id, "same").symlink_to(same_as)

    def keep(self, sandbox_id: str, folder: Path) -> None:
        """A read-only snapshot. Making one writes out what the tree has in memory, and commits all of the pool."""
        tree = self.path(sandbox_id)
        if tree is None:
            raise FileNotFoundError(f"the sandbox {sandbox_id} has no file tree")
        subvolume.snapshot(tree, folder / _TREE, read_only=True)

    def bring_back(self, sandbox_id: str, snapshot_id: str, folder: Path, disk_bytes: int) -> None:
        """A snapshot of the snapshot, or nothing at all where the tree is the same: then its quota goes on, too."""
        tree = self._sandboxes / sandbox_id
        if tree.exists() and not self.gives_up(sandbox_id, snapshot_id):
            return
        self._link(sandbox_id, "same").unlink(missing_ok=True)
        self._delete(tree)
        subvolume.snapshot(folder / _TREE, tree)
        self._limit(tree, disk_bytes, folder / _TREE)

    def gives_up(self, sandbox_id: str, snapshot_id: str) -> bool:
        """Not where the link says that they are the same."""
        same = self._link(sandbox_id, "same")
        known = self.path(sandbox_id) is not None
        return known and not (same.is_symlink() and str(same.readlink()) == snapshot_id)

    @contextlib.contextmanager
    def view(self, folder: Path) -> Iterator[Path]:
        """The subvolume as it is."""
        yield folder / _TREE

    @contextlib.contextmanager
    def compose(self, folder: Path, template_root: Path, disk_bytes: int) -> Iterator[Path]:
        """A snapshot of the template, of which a read-only one is made in the end, as `keep` does."""
        made = folder / _MADE
        subvolume.snapshot(template_root, made)
        self._limit(made, disk_bytes, template_root)
        yield made
        subvolume.snapshot(made, folder / _TREE, read_only=True)
        self._delete(made)

    def copy(self, source: Path, folder: Path) -> None:
        """Another read-only snapshot."""
        subvolume.snapshot(source / _TREE, folder / _TREE, read_only=True)

    def forget(self, folder: Path) -> None:
        """Delete the subvolumes."""
        self._delete(folder / _MADE)
        self._delete(folder / _TREE)

    def remove(self, sandbox_id: str) -> None:
        """Delete the subvolume, and its quota group with it."""
        self.take_back(sandbox_id)
        self._link(sandbox_id, "same").unlink(missing_ok=True)
        self._delete(self._sandboxes / sandbox_id)

    def sandboxes(self) -> list[str]:
        """Every sandbox that has a subvolume."""
        if not self._sandboxes.is_dir():
            return []
        entries = {entry.name.removesuffix(".at") for entry in self._sandboxes.iterdir() if entry.suffix != ".same"}
        return sorted(name for name in entries if (self._sandboxes / name).is_dir() or self.placed(name))

    def roots_in_use(self) -> set[str]:
        """Those whose agent is in the memory of a snapshot; a tree stands by itself."""
        return {record.template_root for record in Images(self.snapshots).records()}

    def lower_root(self, sandbox_id: str) -> str:
        """None: a snapshot is a whole tree."""
        del sandbox_id
        return ""

    def new_root(self, name: str) -> Path:
        """An empty subvolume."""
        mounts.run(["btrfs", "subvolume", "create", self.templates / name])
        return self.templates / name

    def clone_root(self, source: str, name: str) -> Path:
        """A snapshot that may be written."""
        mounts.run(["btrfs", "subvolume", "snapshot", self.templates / source, self.templates / name])
        return self.templates / name

    def root_of(self, sandbox_id: str, name: str) -> Path:
        """A snapshot that may be written."""
        tree = self.path(sandbox_id)
        if tree is None:
            raise FileNotFoundError(f"the sandbox {sandbox_id} has no file tree")
        subvolume.snapshot(tree, self.templates / name)
        return self.templates / name

    def seal_root(self, name: str) -> None:
        """Write it to the disk, and make it read-only."""
        mounts.run(["btrfs", "filesystem", "sync", self.templates / name])
        mounts.run(["btrfs", "property", "set", "-ts", self.templates / name, "ro", "true"])

    def drop_root(self, name: str) -> None:
        """Delete the subvolume."""
        self._delete(self.templates / name)

    def _link(self, sandbox_id: str, kind: Literal["at", "same"]) -> Path:
        return self._sandboxes / f"{sandbox_id}.{kind}"

    def _limit(self, tree: Path, disk_bytes: int, origin: Path) -> None:
        subvolume.limit(tree, disk_bytes if self._simple_quotas else disk_bytes + self._referenced(origin))

    def _is_mounted(self) -> bool:
        mount = mounts.mounted_at(self.pool)
        if mount is not None and mount.filesystem != "btrfs":
            raise OSError(f"{self.pool} is a mounted {mount.filesystem}, not btrfs; unmount it, or set another storage")
        return mount is not None

    def _make_image(self) -> None:
        free = shutil.disk_usage(self.storage).free
        if free < _ROOM_TO_START:
            raise OSError(
                f"no room on the disk: {self.storage} has {free // 1024**2} MiB free, and the file trees need "
                f"{_ROOM_TO_START // 1024**2} MiB to begin with; free some, or set another storage"
            )
        fresh = self.image.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with fresh.open("wb") as file:
            file.truncate(self._pool_bytes)
        # The file lies on a disk that has its own ways to be safe: one copy of the metadata will do.
        mounts.run(["mkfs.btrfs", "--quiet", "--metadata", "single", "--label", "hourglass", fresh])
        fresh.replace(self.image)

    def _enable_quotas(self) -> bool:
        """Whether quotas are of the simple kind, once they are on."""
        mode = self._quota_mode()
        if mode is None:
            fd = os.open(self.pool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _QUOTA_CTL, struct.pack("QQ", _QUOTA_ENABLE_SIMPLE, 0))
            except OSError:
                fcntl.ioctl(fd, _QUOTA_CTL, struct.pack("QQ", _QUOTA_ENABLE, 0))
            finally:
                os.close(fd)
            mode = self._quota_mode()
        return mode == "squota"

    def _quota_mode(self) -> str | None:
        """`qgroup`, `squota`, or None where quotas are off."""
        shown = mounts.run(["btrfs", "filesystem", "show", "--raw", self.pool])
        uuid = re.search(r"uuid: ([0-9a-f-]{36})", shown)
        folder = Path("/sys/fs/btrfs") / (uuid.group(1) if uuid else "") / "qgroups"
        if uuid is None or not folder.is_dir():
            return None
        mode = folder / "mode"  # A kernel before 6.7 has one kind and no such file.
        return mode.read_text(encoding="ascii").strip() if mode.exists() else "qgroup"

    def _referenced(self, subvolume: Path) -> int:
        """Bytes that a subvolume holds, shared or not."""
        shown = mounts.run(["btrfs", "qgroup", "show", "--raw", "-f", subvolume])
        row = re.search(r"^0/\d+\s+(\d+)", shown, re.MULTILINE)
        if row is None:
            raise OSError(f"btrfs qgroup show said nothing of {subvolume}")
        return int(row.group(1))

    def _delete(self, path: Path) -> None:
        if subvolume.is_subvolume(path):
            # A template's root is read-only, and may be deleted all the same.
            subvolume.delete(path)
        elif path.exists():
            # What somebody copied here by hand. `rmtree` follows no link out of it.
            shutil.rmtree(path)
