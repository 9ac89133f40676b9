"""Files of a version, for a notebook: a folder as a table, a file as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.console import size
from events.entries import encoded
from replay.history.errors import FileRefused
from replay.history.trees import mode_of, shown_path
from replay.notebook.extra import needed

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.history.trees import FileTree

_MOST_BYTES = 256 * 1024**2
"""A guest may make a file of 8 EiB that has nothing in it."""
_LATEST_NS = 2**63 - 1


def table(tree: FileTree, path: str) -> pa.Table:
    """The entries of a folder, or the one that is there. Raises `NoSuchFile`, `StoreError`, `ExtraMissing`."""
    arrow = needed("pyarrow")
    key, entry = tree.find(path)
    rows = list(tree.listing.children(key)) if entry.kind == "folder" else [(key, entry)]
    # A guest may set any time.
    times = [one.mtime_ns if abs(one.mtime_ns) <= _LATEST_NS else None for _, one in rows]
    return arrow.table(
        {
            "path": arrow.array([shown_path(one) for one, _ in rows], arrow.string()),
            "kind": arrow.array([one.kind for _, one in rows], arrow.string()),
            "mode": arrow.array([mode_of(one) for _, one in rows], arrow.string()),
            "uid": arrow.array([one.uid for _, one in rows], arrow.int64()),
            "gid": arrow.array([one.gid for _, one in rows], arrow.int64()),
            "size": arrow.array(
                [tree.listing.content_of(one).size if one.kind == "file" else None for _, one in rows], arrow.uint64()
            ),
            "changed_at": arrow.array(times, arrow.timestamp("ns", tz="UTC")),
            "target": arrow.array([one.target or None for _, one in rows], arrow.string()),
        }
    )


def content(tree: FileTree, path: str) -> bytes:
    """A file, whole. Raises `NoSuchFile`, `FileRefused`, `StoreError`."""
    _, entry = tree.find(path)

    def refused(detail: str, remedy: str) -> FileRefused:
        return FileRefused(path=encoded(path), target=str(tree.asked), detail=detail, remedy=remedy)

    if entry.kind != "file":
        raise refused(f"it is no file but a {entry.kind}", "`History.ls` shows it.")
    entry = tree.listing.content_of(entry)
    if entry.size > _MOST_BYTES:
        raise refused(f"it has {size(entry.size)}, too many for a notebook", "`hourglass cat` writes it to a file.")
    return b"".join(tree.listing.read(entry))
