"""What the tests of the snapshot store share: trees, images, and snapshots made of both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from events.manifest import Manifest, Tree
from events.types import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from events.chunks import Chunks
    from events.snapshots import Kept, SnapshotStore
    from events.tree_reader import Seen

PAGE = 4096


def draft(snapshot_id: str, sandbox_id: str = "sbx-a", *, version: int = 7, taken_at: float = 1.0) -> Manifest:
    """All that is told of a snapshot before it is looked at."""
    return Manifest(
        snapshot_id=snapshot_id,
        kind="snapshot",
        sandbox_id=sandbox_id,
        stream=f"sandbox-{sandbox_id}",
        version=version,
        driver="gvisor",
        driver_version="runsc 1",
        template_root="base-1",
        limits=Limits(),
        taken_at=taken_at,
        tree=Tree(entries=0, bytes=0, pages=()),
    )


def make_image(folder: Path, seed: bytes = b"a", pages: int = 64) -> Path:
    """An image whose pages differ from each other, but for those of another seed at the end."""
    folder.mkdir(parents=True)
    body = b"".join(number.to_bytes(4, "big") * (PAGE // 4) for number in range(pages))
    (folder / "pages.img").write_bytes(body + seed * PAGE)
    (folder / "checkpoint.img").write_bytes(b"state of " + seed)
    (folder / "empty.img").touch()
    return folder


def make_tree(folder: Path, files: int = 50) -> Path:
    """A small tree."""
    folder.mkdir(parents=True)
    for number in range(files):
        path = folder / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"content of {number}\n" * 20)
    return folder


def add(
    store: SnapshotStore, made: Manifest, image: Path | None, tree: Path, known: Mapping[str, Seen] | None = None
) -> tuple[Kept, dict[str, Seen]]:
    """Add a snapshot."""
    with store.shelf.adding() as adding:
        return store.add(made, image, tree, known or {}, adding)


def put(chunks: Chunks, content: bytes) -> str:
    """Keep a chunk that no snapshot refers to; its name."""
    with chunks.shelf.adding() as adding:
        return chunks.put(content, adding)[0]


def as_told(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, for comparing; links are not followed."""
    told: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for parent, folders, files in os.walk(os.fsencode(root)):
        for name in (b".", *folders, *files):
            if name in folders and not os.path.islink(os.path.join(parent, name)):
                continue
            path = os.path.join(parent, name)
            status = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            link = os.readlink(path) if os.path.islink(path) else b""
            content = b""
            if os.path.isfile(path) and not link:
                with open(path, "rb") as file:
                    content = file.read(1024**2)
            same = inodes.setdefault(status.st_ino, key)
            attributes = {one: os.getxattr(path, one) for one in os.listxattr(path, follow_symlinks=False)}
            told[key] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_size if files and name != b"." else 0,
                status.st_rdev,
                status.st_mtime_ns,
                link,
                content,
                same,
                attributes if not link else {},
            )
    return told
