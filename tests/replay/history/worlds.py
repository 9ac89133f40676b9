"""A sandbox with two snapshots in a real store: what ls, cat and diff look at. No machine is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.events.stores import add, draft, make_image
from tests.replay.history.boxes import A, call, created, put, started, taken

if TYPE_CHECKING:
    from pathlib import Path

    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog

FIRST, SECOND = 4, 11
"""Versions that the snapshots are of."""
EVIL = "\x1b]0;owned\x07[red]\u202e"


def first_tree(root: Path) -> Path:
    """As a guest may leave it."""
    work = root / "workspace"
    work.mkdir(parents=True)
    (work / "a.py").write_text("".join(f"line {n}\n" for n in range(1, 30)))
    (work / "gone.txt").write_text("soon\n")
    (work / "data.bin").write_bytes(bytes(range(256)) * 10)
    (work / "same.txt").write_text("the same\n")
    (work / "mode.sh").write_text("#!/bin/sh\n")
    (work / "link").symlink_to("a.py")
    (work / "escape").symlink_to("../../../../../../etc/hostname")
    (work / "nowhere").symlink_to("/no/such/file")
    (work / EVIL.replace("/", "")).write_text(f"{EVIL}\nsecond\n")
    with open(os.path.join(os.fsencode(work), b"\xff%"), "wb") as file:
        file.write(b"bytes")
    os.mkfifo(work / "pipe")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("tool\n")
    (root / "bin").symlink_to("usr/bin")
    (root / "tmp").mkdir()
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("guest\n")
    with (work / "sparse").open("wb") as sparse:
        sparse.truncate(3_000_000)
        sparse.seek(1_000_000)
        sparse.write(b"here")
    (work / "hard").hardlink_to(work / "data.bin")
    return root


def second_tree(root: Path) -> Path:
    """The same, after some calls."""
    first_tree(root)
    work = root / "workspace"
    (work / "a.py").write_text("".join(f"line {n}\n" if n != 15 else "changed\n" for n in range(1, 30)))
    (work / "gone.txt").unlink()
    (work / "new").mkdir()
    (work / "new/file.txt").write_text("hello\n")
    with (work / "data.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"XYZ")
    os.utime(work / "same.txt", ns=(0, 5))
    (work / "mode.sh").chmod(0o755)
    (work / "link").unlink()
    (work / "link").symlink_to("same.txt")
    return root


def world(log: SqliteLog, store: SnapshotStore, folder: Path) -> int:
    """Fill both; the sandbox's last version."""
    put(log, A, [created(), started(), *call("c1"), taken("turn-1"), *call("c2", "read", {"file_path": "a.py"})])
    put(log, A, [*call("c3", "edit", {"file_path": "a.py"}, "edited"), *call("c4", text="1 passed"), taken("turn-2")])
    last = put(log, A, [*call("c5", "grep", {"pattern": "x"}), *call("c6")])
    image = make_image(folder / "image", pages=1)
    add(store, draft("turn-1", A, version=FIRST), image, first_tree(folder / "first"))
    add(store, draft("turn-2", A, version=SECOND), image, second_tree(folder / "second"))
    return last
