"""Where the snapshot store puts its objects: a folder, or any URL that fsspec knows.

An object is there whole or not at all, and is never changed. Names are `folder/…/name`, made by us alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
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
_NEW = ".new"


class Stored(NamedTuple):
    """An object that is there."""

    name: str
    """Without its folder."""
    size: int
    """Bytes."""


class Shelf(Protocol):
    """Objects by name. Its methods raise `StoreUnavailable` where the place itself fails."""

    url: str
    """As it is named to people; without credentials."""

    def read(self, name: str) -> bytes | None:
        """An object; None where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put an object, at once and whole; durable after the next `settle` at the latest."""
        ...

    def has(self, name: str) -> bool:
        """Whether an object is there."""
        ...

    def settle(self) -> None:
        """Make durable what was written."""
        ...

    def list(self, folder: str) -> Iterator[Stored]:
        """The objects below a folder, in no order."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object. No error where there is none."""
        ...

    def adding(self) -> AbstractContextManager[None]:
        """A context in which nobody prunes. Raises `StoreBusy` where somebody does for long."""
        ...

    def pruning(self) -> AbstractContextManager[None]:
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
        with self._failing():
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write beside, then rename."""
        target = self.folder / name
        fresh = target.with_name(f"{target.name}-{secrets.token_hex(4)}{_NEW}")
        with self._failing():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                fresh.write_bytes(content)
                fresh.rename(target)
            finally:
                fresh.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.folder / name).is_file()

    def settle(self) -> None:
        """Everything of the file system at once: far cheaper than file by file."""
        with self._failing():
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _syncfs(fd)
            finally:
                os.close(fd)

    def list(self, folder: str) -> Iterator[Stored]:
        """Files that are whole."""
        with self._failing():
            for parent, _, names in os.walk(self.folder / folder):
                for name in names:
                    if not name.endswith(_NEW):
                        yield Stored(name, os.stat(os.path.join(parent, name)).st_size)

    def remove(self, name: str) -> None:
        """Remove the file."""
        with self._failing():
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """A shared lock, which the kernel drops with its holder."""
        with self._locked(fcntl.LOCK_SH, "it is being pruned"):
            yield

    @contextmanager
    def pruning(self) -> Iterator[None]:
        """An exclusive lock; what writers that died left half-written goes with it."""
        with self._locked(fcntl.LOCK_EX, "a snapshot is being added to it"):
            for left in self.folder.rglob(f"*{_NEW}"):
                left.unlink(missing_ok=True)
            yield

    @contextmanager
    def _locked(self, how: int, holder: str) -> Iterator[None]:
        with self._failing():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + self._wait_seconds
            while True:
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise StoreBusy(store=self.url, holder=holder) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(store=self.url, detail=str(error)) from error


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
