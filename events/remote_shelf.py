"""The objects of a snapshot store at a URL that fsspec knows: S3, GCS, Azure, SFTP, memory …"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import fsspec
from fsspec.core import url_to_fs

from events.marks import marked
from events.shelf import Stored
from events.store_errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.marks import Mark
    from events.shelf import Adding, Pruning

_WAIT_SECONDS = 60.0
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Protocols whose objects appear whole or not at all; elsewhere they are written beside and moved."""


class RemoteShelf:
    """Objects below a URL."""

    def __init__(self, url: str, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        """`wait_seconds` as in `FolderShelf`. Raises `StoreUnavailable` where fsspec can't open the URL."""
        self.url = fsspec.core.strip_protocol(url) if "@" in url else url
        self._wait_seconds = wait_seconds
        self._whole = url.partition("://")[0] in _WHOLE
        with self._failing():
            self._fs, self._root = url_to_fs(url)

    def read(self, name: str) -> bytes | None:
        """An object's content."""
        with self._failing():
            try:
                content: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Put it; where that is not all at once, beside its place."""
        with self._failing():
            self._fs.makedirs(self._at(name.rpartition("/")[0]), exist_ok=True)
            if self._whole:
                self._fs.pipe_file(self._at(name), content)
                return
            fresh = self._at(f"{name}-{secrets.token_hex(4)}.new")
            self._fs.pipe_file(fresh, content)
            self._fs.mv(fresh, self._at(name))

    def has(self, name: str) -> bool:
        """Whether it is there, asked anew."""
        with self._failing():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(name)))

    def list(self, folder: str) -> Iterator[Stored]:
        """Every object, asked anew."""
        with self._failing():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._at(folder), detail=True)
            except FileNotFoundError:
                return
            for path, facts in found.items():
                if not path.endswith(".new"):
                    yield Stored(path.rpartition("/")[2], int(facts.get("size") or 0))

    def remove(self, name: str) -> None:
        """Remove it."""
        with self._failing():
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return

    @contextmanager
    def adding(self) -> Iterator[Adding]:
        """A mark; see `events.marks`."""
        with marked(self, "adding", self._wait_seconds) as mark:
            yield _RemoteAdding(self, mark)

    @contextmanager
    def pruning(self) -> Iterator[Pruning]:
        """A mark; see `events.marks`."""
        with marked(self, "pruning", self._wait_seconds) as mark:
            yield _RemotePruning(self, mark)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            # Each protocol has errors of its own library's, which have nothing else in common.
            raise StoreUnavailable(store=self.url, detail=str(error) or type(error).__name__) from error


class _RemoteAdding:
    def __init__(self, shelf: RemoteShelf, mark: Mark) -> None:
        self._shelf = shelf
        self._mark = mark

    def has(self, name: str) -> bool:
        return self._shelf.has(name)

    def holds(self, name: str) -> bool:
        del name
        return True

    def write(self, name: str, content: bytes) -> None:
        """At once: what a write returned for is theirs to keep."""
        self._mark.check_here()
        self._shelf.write(name, content)

    def settle(self) -> None:
        self._mark.check()


class _RemotePruning:
    def __init__(self, shelf: RemoteShelf, mark: Mark) -> None:
        self._shelf = shelf
        self._mark = mark

    def remove(self, name: str) -> None:
        self._mark.check_here()
        self._shelf.remove(name)

    def settle(self) -> None:
        self._mark.check()
