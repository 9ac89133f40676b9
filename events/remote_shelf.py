"""The objects of a snapshot store at a URL that fsspec knows: S3, GCS, Azure, SFTP, memory …

There are no locks there, so who adds and who prunes leave marks: each writes its own first, then looks for the other's,
and steps back where there is one. A mark that nobody has renewed for an hour is of somebody who died.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import fsspec
from fsspec.core import url_to_fs

from events.shelf import Stored
from events.store_errors import StoreBusy, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 60.0
_MARK_SECONDS = 3600.0
_RENEW_SECONDS = 600.0
_HOLDERS = {"adding": "a snapshot is being added to it", "pruning": "it is being pruned"}
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

    def settle(self) -> None:
        """Nothing: a write that returned is theirs to keep."""

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
    def adding(self) -> Iterator[None]:
        """A mark; see above."""
        with self._marked("adding", ("pruning",)):
            yield

    @contextmanager
    def pruning(self) -> Iterator[None]:
        """A mark; see above."""
        with self._marked("pruning", ("adding", "pruning")):
            yield

    @contextmanager
    def _marked(self, mine: str, others: tuple[str, ...]) -> Iterator[None]:
        until = time.monotonic() + self._wait_seconds
        name = f"{mine}-{secrets.token_hex(8)}"
        done = threading.Event()
        try:
            while True:
                self._mark(name)
                found = self._mark_of(others, but=name)
                if not found:
                    break
                self.remove(f"marks/{name}")
                if time.monotonic() >= until:
                    raise StoreBusy(store=self.url, holder=_HOLDERS[found])
                time.sleep(0.1 + secrets.randbelow(100) / 1000)
            threading.Thread(target=self._renew, args=(name, done), name=f"mark {name}", daemon=True).start()
            yield
        finally:
            done.set()
            self.remove(f"marks/{name}")

    def _mark(self, name: str) -> None:
        self.write(f"marks/{name}", json.dumps({"at": time.time()}).encode())

    def _renew(self, name: str, done: threading.Event) -> None:
        while not done.wait(_RENEW_SECONDS):
            try:
                self._mark(name)
            except StoreUnavailable as error:
                # The next time may do; whoever holds the mark finds out by its own work.
                _log.warning("mark not renewed store=%s %s", self.url, error)

    def _mark_of(self, kinds: tuple[str, ...], *, but: str) -> str:
        """Of which of these kinds somebody has a mark; "" where nobody has."""
        for mark in list(self.list("marks")):
            kind = mark.name.partition("-")[0]
            if kind not in kinds or mark.name == but:
                continue
            told = self.read(f"marks/{mark.name}")
            if told is not None and time.time() - float(json.loads(told)["at"]) < _MARK_SECONDS:
                return kind
            self.remove(f"marks/{mark.name}")
        return ""

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
