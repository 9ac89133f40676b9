"""Snapshots as they lie whole on this node: one folder each, with an image, a file tree and a record of both.

| in `snapshots/<id>` | what |
| --- | --- |
| `image/` | memory and processes: what `runsc checkpoint` wrote |
| `tree…` | the file tree, as the volumes keep it |
| `snapshot.json` | `SnapshotRecord`, with a digest for each file of the image |

A snapshot is made beside its place, as `<id>.new`, and moved there once all of it is durable: one that was interrupted
is never taken for a snapshot. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from actors.machines.protocol import FileRecord, SnapshotBroken, SnapshotForeign, SnapshotMissing, SnapshotRecord
from events.types import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORD = "snapshot.json"
IMAGE = "image"
_NEW = ".new"
_SMALL_BYTES = 16 * 1024**2
_DISK = ThreadPoolExecutor(max_workers=16, thread_name_prefix="durable")
"""Who waits for the disk. They stay, since to begin a thread costs a snapshot more than most of what it does."""


class Images:
    """The snapshots of one storage folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, snapshot_id: str) -> Path:
        """Where a snapshot lies, or would."""
        return self.folder / _checked(snapshot_id)

    def begin(self, snapshot_id: str) -> Path:
        """An empty folder for a snapshot, with one for its image. Raises `FileExistsError` where it is taken."""
        if self.path(snapshot_id).exists():
            raise FileExistsError(f"there is a snapshot {snapshot_id} already")
        fresh = self.folder / f"{_checked(snapshot_id)}{_NEW}"
        (fresh / IMAGE).mkdir(parents=True)
        return fresh

    def seal(self, fresh: Path, record_of: Callable[[dict[str, FileRecord]], SnapshotRecord]) -> SnapshotRecord:
        """Make a folder that has an image and a tree a durable snapshot. Returns the record as it was written.

        `record_of` makes the record from the size and digest of each file of the image; what it raises is raised. The
        guest may run on meanwhile.
        """
        paths = sorted((fresh / IMAGE).iterdir(), key=lambda path: path.stat().st_size)
        # Digests need a CPU and durability a disk, and the small files need not wait for the large one.
        durable = [_DISK.submit(_sync, *paths[-1:]), _DISK.submit(_sync, *paths[:-1], fresh / IMAGE)]
        try:
            record = record_of({path.name: _digest(path) for path in paths})
            _write_record(fresh, record)
        finally:
            # Also where that failed: whoever removes the files is to find nobody at them.
            wait(durable)
        for one in durable:
            one.result()
        fresh.rename(self.path(record.snapshot_id))
        _sync(self.folder)
        return self._read(record.snapshot_id)

    def record(self, snapshot_id: str) -> SnapshotRecord:
        """What a snapshot is; its files are not looked at. Raises `SnapshotMissing`, `SnapshotBroken`."""
        try:
            return self._read(snapshot_id)
        except FileNotFoundError:
            raise SnapshotMissing(
                f"the snapshot {snapshot_id} is not on this node; `hourglass snapshots ls` shows those in the store"
            ) from None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise _broken(snapshot_id, f"its {RECORD} can't be read ({error})") from None

    def verified(self, snapshot_id: str, driver: str, driver_version: str) -> SnapshotRecord:
        """A snapshot whose image is what it was when it was taken, for this driver to use.

        Raises `SnapshotMissing`, `SnapshotBroken`.
        """
        record = self.record(snapshot_id)
        check_driver(snapshot_id, (record.driver, record.driver_version), (driver, driver_version))
        self.verify(record)
        return record

    def verify(self, record: SnapshotRecord) -> None:
        """Raise `SnapshotBroken` where an image is not what it was when it was taken."""
        for name, expected in record.files.items():
            try:
                found = _digest(record.image / name)
            except OSError as error:
                raise _broken(record.snapshot_id, f"{name} can't be read ({error.strerror})") from None
            if found != expected:
                raise _broken(record.snapshot_id, f"{name} is not what it was")

    def ids(self) -> list[str]:
        """Of every whole snapshot."""
        return sorted(path.name for path in self._folders() if not path.name.endswith(_NEW))

    def records(self) -> list[SnapshotRecord]:
        """Of every whole snapshot; one whose record can't be read is no use to anybody and left out."""
        found = []
        for snapshot_id in self.ids():
            with contextlib.suppress(SnapshotMissing, SnapshotBroken):
                found.append(self.record(snapshot_id))
        return found

    def unfinished(self) -> list[Path]:
        """Folders of snapshots that are being made, or were when somebody died."""
        return [path for path in self._folders() if path.name.endswith(_NEW)]

    def retire(self, snapshot_id: str) -> Path | None:
        """Take a snapshot out of use at once; the folder to be removed, None where there is no such snapshot."""
        gone = self.folder / f"{_checked(snapshot_id)}.gone{_NEW}"
        try:
            self.path(snapshot_id).rename(gone)
        except FileNotFoundError:
            return gone if gone.exists() else None
        return gone

    def erase(self, folder: Path) -> None:
        """Remove what is ours in a snapshot's folder; its tree must have been removed before."""
        shutil.rmtree(folder / IMAGE, ignore_errors=True)
        (folder / RECORD).unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()

    def _folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in self.folder.iterdir() if path.is_dir())

    def _read(self, snapshot_id: str) -> SnapshotRecord:
        folder = self.path(snapshot_id)
        told = json.loads((folder / RECORD).read_bytes())
        if told["format"] != 1:
            raise ValueError(f"format {told['format']} is of a newer Hourglass")
        return SnapshotRecord(
            snapshot_id=told["snapshot_id"],
            sandbox_id=told["sandbox_id"],
            template_root=told["template_root"],
            driver=told["driver"],
            driver_version=told["driver_version"],
            limits=Limits.model_validate(told["limits"]),
            taken_at=told["taken_at"],
            files={name: FileRecord(size, digest) for name, (size, digest) in told["files"].items()},
            image=folder / IMAGE,
            tree=folder / "tree",
        )


def check_driver(snapshot_id: str, taken: tuple[str, str], here: tuple[str, str]) -> None:
    """Raise `SnapshotForeign` where another driver, or another release of it, took the snapshot than is here."""
    if taken != here:
        raise SnapshotForeign(
            f"the snapshot {snapshot_id} is one of {' '.join(taken)}, and this node has {' '.join(here)}: memory can't "
            "be brought back by another release; install that one, or stop the sandbox, which keeps its files"
        )


def _write_record(fresh: Path, record: SnapshotRecord) -> None:
    """Into the folder of a snapshot that is being made; durable, as is that the folder has it."""
    told = {
        "format": 1,
        "snapshot_id": record.snapshot_id,
        "sandbox_id": record.sandbox_id,
        "template_root": record.template_root,
        "driver": record.driver,
        "driver_version": record.driver_version,
        "limits": record.limits.model_dump(),
        "taken_at": record.taken_at,
        "files": {name: [file.size, file.blake3] for name, file in record.files.items()},
    }
    with (fresh / RECORD).open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    _sync(fresh)


def _broken(snapshot_id: str, how: str) -> SnapshotBroken:
    return SnapshotBroken(
        f"the snapshot {snapshot_id} is broken: {how}; `hourglass snapshots verify` says whether the store has it whole"
    )


def _checked(snapshot_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", snapshot_id):
        raise ValueError(f"{snapshot_id!r} can't name a snapshot: 1 to 100 of a-z, A-Z, 0-9 and '-'")
    return snapshot_id


def _sync(*paths: Path) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _digest(path: Path) -> FileRecord:
    size = path.stat().st_size
    # Threads that sleep take as long to wake as a small file to read.
    hasher = blake3(max_threads=blake3.AUTO if size > _SMALL_BYTES else 1)
    if size:
        hasher.update_mmap(path)
    return FileRecord(size, hasher.hexdigest())
