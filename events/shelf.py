"""Where the snapshot store puts its objects: a folder, or any URL that fsspec knows.

An object is there whole or not at all, and is never changed. Names are `folder/…/name`, made by us alone.

In a folder, what is added lies in `new/` until its content is durable, and only then gets its name: whatever has a name
is whole, even after a power cut, and needs no look at its content before it is used again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from events.store_errors import StoreBusy, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_LIBC = ctypes.CDLL(None, use_errno=True)
_WAIT_SECONDS = 60.0
_LOCK = "lock"
_NEW = "new"
_BATCH = 10_000
_BATCH_BYTES = 64 * 1024**2
"""What is settled at the latest: so much of an upload that dies is done again."""


class Stored(NamedTuple):
    """An object that is there."""

    name: str
    """Without its folder."""
    size: int
    """Bytes."""


class Adding(Protocol):
    """What one thread adds while nobody prunes. Its methods raise `StoreUnavailable`."""

    def has(self, name: str) -> bool:
        """Whether an object is there, or was written here."""
        ...

    def holds(self, name: str) -> bool:
        """Whether an object is there that was seen there before; where to ask is a request, it is believed."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put an object. It is there after the next `settle` at the latest, and durable when the context has ended."""
        ...

    def settle(self) -> None:
        """Give what was written its names, for all to see: none outlives a power cut without its content.

        Raises `MarkLost` where somebody may have pruned meanwhile.
        """
        ...


class Pruning(Protocol):
    """What one thread removes while nobody adds. Its methods raise `StoreUnavailable`, and `MarkLost`: somebody may
    be adding by now."""

    def remove(self, name: str) -> None:
        """Remove an object. No error where there is none."""
        ...

    def settle(self) -> None:
        """Make durable what was removed."""
        ...


class Shelf(Protocol):
    """Objects by name. Its methods raise `StoreUnavailable` where the place itself fails."""

    url: str
    """As it is named to people; without credentials."""

    def read(self, name: str) -> bytes | None:
        """An object; None where there is none."""
        ...

    def has(self, name: str) -> bool:
        """Whether an object is there."""
        ...

    def list(self, folder: str) -> Iterator[Stored]:
        """The objects below a folder, in no order."""
        ...

    def adding(self) -> AbstractContextManager[Adding]:
        """A context in which nobody prunes. Raises `StoreBusy` where somebody does for long."""
        ...

    def pruning(self) -> AbstractContextManager[Pruning]:
        """A context in which nobody adds. Raises `StoreBusy` where somebody does for long."""
        ...


class FolderShelf:
    """Objects as files of a folder. Any number of processes of a node may use it."""

    def __init__(self, folder: Path, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        """`wait_seconds`: how long adding waits for a prune to end, and a prune for what is being added."""
        self.folder = folder
        self.url = str(folder)
        self._wait_seconds = wait_seconds

    def read(self, name: str) -> bytes | None:
        """A file's content."""
        with self.failing():
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.folder / name).is_file()

    def list(self, folder: str) -> Iterator[Stored]:
        """The files below it."""
        with self.failing():
            for parent, _, names in os.walk(self.folder / folder):
                for name in names:
                    yield Stored(name, os.stat(os.path.join(parent, name)).st_size)

    @contextmanager
    def adding(self) -> Iterator[Adding]:
        """A shared lock, which the kernel drops with its holder."""
        with self._lock() as fd:
            if _flock(fd, fcntl.LOCK_EX):
                self._clear()
            self._wait(fd, fcntl.LOCK_SH, "it is being pruned")
            made = _FolderAdding(self, fd)
            try:
                yield made
                made.finish()
            finally:
                shutil.rmtree(made.fresh, ignore_errors=True)

    @contextmanager
    def pruning(self) -> Iterator[Pruning]:
        """An exclusive lock."""
        with self._lock() as fd:
            self._wait(fd, fcntl.LOCK_EX, "a snapshot is being added to it")
            self._clear()
            yield _FolderPruning(self, fd)

    def _clear(self) -> None:
        """Remove what writers that died left. Only with the lock to ourselves."""
        with self.failing():
            if (self.folder / _NEW).is_dir():
                shutil.rmtree(self.folder / _NEW)

    @contextmanager
    def _lock(self) -> Iterator[int]:
        with self.failing():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _wait(self, fd: int, how: int, holder: str) -> None:
        until = time.monotonic() + self._wait_seconds
        while not _flock(fd, how):
            if time.monotonic() >= until:
                raise StoreBusy(store=self.url, holder=holder)
            time.sleep(0.05)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong in it is the store's failure."""
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(store=self.url, detail=str(error)) from error


class _FolderAdding:
    def __init__(self, shelf: FolderShelf, fd: int) -> None:
        """`fd`: an open file of the file system. Opened before all that is written: it hears of each failed write."""
        self.fresh = shelf.folder / _NEW / secrets.token_hex(8)
        self._shelf = shelf
        self._fd = fd
        self._waiting: dict[str, Path] = {}
        self._count = 0
        self._bytes = 0
        self._named = False

    def has(self, name: str) -> bool:
        return name in self._waiting or self._shelf.has(name)

    def holds(self, name: str) -> bool:
        return name in self._waiting or os.path.isfile(f"{self._shelf.folder}/{name}")

    def write(self, name: str, content: bytes) -> None:
        with self._shelf.failing():
            self.fresh.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._count += 1
            path = self.fresh / str(self._count)
            path.write_bytes(content)
        self._waiting[name] = path
        self._bytes += len(content)
        if self._bytes >= _BATCH_BYTES or len(self._waiting) >= _BATCH:
            self.settle()

    def settle(self) -> None:
        """Everything of the file system at once: far cheaper than file by file."""
        if not self._waiting:
            return
        with self._shelf.failing():
            _syncfs(self._fd)
            for name, path in self._waiting.items():
                target = self._shelf.folder / name
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.rename(target)
        self._waiting.clear()
        self._bytes = 0
        self._named = True

    def finish(self) -> None:
        self.settle()
        if self._named:
            with self._shelf.failing():
                _syncfs(self._fd)


class _FolderPruning:
    def __init__(self, shelf: FolderShelf, fd: int) -> None:
        self._shelf = shelf
        self._fd = fd

    def remove(self, name: str) -> None:
        with self._shelf.failing():
            (self._shelf.folder / name).unlink(missing_ok=True)

    def settle(self) -> None:
        with self._shelf.failing():
            _syncfs(self._fd)


def _flock(fd: int, how: int) -> bool:
    """Whether the lock could be had at once. The one that was held is given up for it."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _syncfs(fd: int) -> None:
    if _LIBC.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_shelf(url: str) -> Shelf:
    """The objects of a folder (a path or a `file://` URL) or of any other URL of fsspec.

    Raises `StoreUnavailable` where no such protocol is installed.
    """
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" not in url:
        return FolderShelf(Path(url).expanduser().absolute())
    # Only where it is needed: reading a log should not load it.
    from events.remote_shelf import RemoteShelf

    return RemoteShelf(url)
