"""A stored tree, read without a machine and without being made: its listing, and its files from their chunks.

Nothing here touches a file system, so a hostile tree has nothing to lead out of: a link is text, and where it is
followed, that is from name to name within the listing. Pages are looked up by halving: one file of a large tree costs a
few chunks.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

from events.entries import Entry, name_of, parse, path_of
from events.store_errors import ManifestBroken

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from events.manifest import Manifest
    from events.snapshots import SnapshotStore

Key = tuple[bytes, ...]
"""The names of a path, as bytes: entries are in the order of these, parents before what is in them."""
_PAGES_KEPT = 32
_BLOCK = 256 * 1024
"""Of zeros, at a time."""
_MOST_LINKS = 40
"""As the kernel follows on one path."""


class TooManyLinks(ValueError):
    """Raised where links lead in a circle."""


class NotThere(ValueError):
    """Raised where a path leads to nothing; the message is the part of it that is missing."""


class Listing:
    """The listing of one snapshot's tree. Its methods raise `StoreError` where the store fails."""

    def __init__(self, store: SnapshotStore, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self._pages: OrderedDict[int, tuple[list[Key], list[str]]] = OrderedDict()

    def lines(self, skip: Container[str] = ()) -> Iterator[tuple[Key, str]]:
        """Every line with its key, in order; pages whose chunks are in `skip` are left out, and not read."""
        for number, chunk in enumerate(self.manifest.tree.pages):
            if chunk not in skip:
                yield from zip(*self._page(number), strict=True)

    def entry(self, key: Key) -> Entry | None:
        """What has this path; no link is followed."""
        found = next(self._from(key), None)
        return self.parse(found[1]) if found is not None and found[0] == key else None

    def children(self, folder: Key) -> Iterator[tuple[Key, Entry]]:
        """What is in a folder, in order; what is deeper is passed over, and mostly not read."""
        at: Key = (*folder, b"")
        while True:
            found = next(self._from(at), None)
            if found is None or found[0][: len(folder)] != folder:
                return
            key = found[0][: len(folder) + 1]
            entry = self.parse(found[1])
            yield key, entry
            # No name has a zero in it, so this is after all that is below it, and before the next.
            at = (*key[:-1], key[-1] + b"\0")

    def resolve(self, path: str, *, last: bool = True) -> tuple[Key, Entry]:
        """Where a path of the guest leads from the root of the tree, links followed as the guest would.

        Args:
            path: as `os` takes it, relative ones from the root; `..` of the root is the root.
            last: whether the last name is followed where it is a link; before a slash, it always is.

        Raises:
            NotThere: it leads to nothing, or through what is no folder.
            TooManyLinks: in a circle.
        """
        left = [os.fsencode(name) for name in path.split("/")][::-1]
        at: Key = ()
        entry = self._there(())
        links = 0
        while left:
            name = left.pop()
            if entry.kind != "folder":
                raise NotThere(_shown(at))
            if name in (b"", b"."):
                continue
            if name == b"..":
                at = at[:-1]
                entry = self._there(at)
                continue
            inner = self._there((*at, name))
            if inner.kind == "link" and (last or left):
                links += 1
                if links > _MOST_LINKS:
                    raise TooManyLinks(path)
                target = os.fsencode(name_of(inner.target))
                at = () if target.startswith(b"/") else at
                entry = self._there(at)
                left += target.split(b"/")[::-1]
            else:
                at, entry = (*at, name), inner
        return at, entry

    def content_of(self, entry: Entry) -> Entry:
        """The entry that has a file's pieces: itself, or the first name of a hard link. Raises `ManifestBroken`."""
        if not entry.same_as:
            return entry
        first = self.entry(key_of(entry.same_as))
        if first is None or first.kind != "file" or first.same_as:
            raise self._broken(f"{entry.path} is said to be the same file as {entry.same_as}, which is none")
        return first

    def read(self, entry: Entry) -> Iterator[bytes]:
        """A file's bytes, in blocks of at most a chunk; holes are zeros. Raises `ChunkBroken`, `ManifestBroken`."""
        first, at = self.content_of(entry), 0
        for offset, length, chunk in first.pieces:
            if offset < at or offset + length > first.size:
                raise self._broken(f"the pieces of {first.path} do not fit")
            yield from _zeros(offset - at)
            content = self._store.chunks.get(chunk, self.manifest.snapshot_id)
            if len(content) != length:
                raise self._broken(f"a piece of {first.path} has {len(content)} bytes and not {length}")
            yield content
            at = offset + length
        yield from _zeros(first.size - at)

    def _from(self, key: Key) -> Iterator[tuple[Key, str]]:
        """The lines from the first one that is not before `key`."""
        number = bisect_right(range(len(self.manifest.tree.pages)), key, key=lambda page: self._page(page)[0][0]) - 1
        for page in range(max(number, 0), len(self.manifest.tree.pages)):
            keys, lines = self._page(page)
            first = bisect_right(keys, key)
            first -= first > 0 and keys[first - 1] == key
            yield from zip(keys[first:], lines[first:], strict=True)

    def _page(self, number: int) -> tuple[list[Key], list[str]]:
        found = self._pages.get(number)
        if found is None:
            content = self._store.chunks.get(self.manifest.tree.pages[number], self.manifest.snapshot_id)
            try:
                lines = [line for line in content.decode().split("\n") if line]
                found = [key_of(path_of(line)) for line in lines], lines
            except ValueError as error:
                raise self._broken(str(error)) from None
            if not lines:
                raise self._broken("a page of its listing is empty")
            self._pages[number] = found
            while len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(number)
        return found

    def _there(self, key: Key) -> Entry:
        found = self.entry(key)
        if found is None:
            raise NotThere(_shown(key))
        return found

    def parse(self, line: str) -> Entry:
        """The entry of one of its lines. Raises `ManifestBroken`."""
        try:
            return parse(line)
        except ValueError as error:
            raise self._broken(str(error)) from None

    def _broken(self, detail: str) -> ManifestBroken:
        return ManifestBroken(store=self._store.shelf.url, snapshot_id=self.manifest.snapshot_id, detail=detail)


def key_of(path: str) -> Key:
    """The key of an encoded path."""
    return tuple(os.fsencode(name_of(part)) for part in path.split("/")) if path else ()


def _shown(key: Key) -> str:
    return "/" + os.fsdecode(b"/".join(key))


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, _BLOCK))
        count -= _BLOCK
