"""The snapshot store: snapshots of all sandboxes as chunks, in a folder or at any URL that fsspec knows.

| object | what |
| --- | --- |
| `chunks/ab/<blake3>` | a piece of an image, of a file, or a page of a listing; compressed |
| `manifests/<snapshot id>.json` | what a snapshot consists of; written last |
| `manifests/template-<root>.json` | likewise the root of a template, without which its sandboxes' trees can't be made |

A snapshot without a manifest is none: whoever dies while adding one leaves chunks that the next try finds again, or
that a prune removes. What is read is checked against its digest, and a snapshot that has anything broken is not used.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from events.chunks import IMAGE_BYTES, Chunks, cut, join
from events.entries import Entry
from events.home import default_home
from events.manifest import ImageFile, Manifest, Tree, decode, is_snapshot_id
from events.shelf import open_shelf
from events.store_errors import (
    ChunkBroken,
    ManifestBroken,
    SnapshotNotStored,
    StoreError,
    TreeNotRestored,
    TreeRefused,
)
from events.tree_reader import Seen, TooMuch, read_tree
from events.tree_writer import write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from events.shelf import Adding, Shelf

_PAGE_ONE_IN = 256
"""Entries of a page, on average. Where one ends is a matter of the path alone, so that pages stay what they are."""
_PAGE_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot that was added to the store."""

    snapshot_id: str
    digest: str
    """Of its manifest."""
    bytes: int
    """Image and files, whole."""
    new_bytes: int
    """What the store has grown by: its new chunks as they lie, and the manifest."""


def default_store(home: Path | None = None) -> str:
    """HOURGLASS_SNAPSHOT_STORE, else the folder `snapshots` in the home."""
    named = os.environ.get("HOURGLASS_SNAPSHOT_STORE", "")
    return named or str((home if home is not None else default_home()) / "snapshots")


class SnapshotStore:
    """A store. Every method blocks, and raises `StoreError`; any number of threads and processes may use it."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.chunks = Chunks(shelf)

    @classmethod
    def open(cls, url: str) -> SnapshotStore:
        """The store in a folder or at a URL; nothing is made before something is added."""
        return cls(open_shelf(url))

    # --- adding -----------------------------------------------------------------------------------------------------

    def add(
        self,
        draft: Manifest,
        image: Path | None,
        tree: Path,
        known: Mapping[str, Seen],
        adding: Adding,
        *,
        expected: Mapping[str, str] | None = None,
    ) -> tuple[Kept, dict[str, Seen]]:
        """Add a snapshot; the manifest comes last, and is durable when `adding` has ended.

        Args:
            draft: all but `image` and `tree`.
            image: the folder of the image's files; None for a template.
            tree: where the tree lies; nothing may write in it.
            known: what was seen of it before, all of whose chunks are in the store: `knows` said so, asked in `adding`.
            adding: of `shelf`.
            expected: digests of the image's files, by name, where they are known.

        Returns:
            What was added, and what was seen of the tree now.

        Raises:
            TreeRefused: a tree beyond what is stored.
            StoreError: the store failed.
            ValueError: a file of the image is not what is expected.
            OSError: image or tree could not be read.
        """
        counted = _Counted(self.chunks, adding)
        files = tuple(_image_file(path, counted.put) for path in sorted(image.iterdir())) if image else ()
        if expected is not None and {file.name: file.blake3 for file in files} != expected:
            raise ValueError("its image is not what it was when it was taken")
        try:
            seen, listing = _read(tree, known, counted)
        except TooMuch as error:
            whose = f"the sandbox {draft.sandbox_id}" if image else f"the template root {draft.template_root}"
            raise TreeRefused(whose=whose, snapshot_id=draft.snapshot_id, detail=str(error)) from error
        manifest = draft.model_copy(update={"image": files, "tree": listing})
        content, digest = manifest.encode()
        # A manifest that survives a power cut must not name a chunk that does not.
        adding.settle()
        adding.write(_manifest_at(draft.snapshot_id), content)
        adding.settle()
        whole = manifest.image_bytes + listing.bytes
        return Kept(draft.snapshot_id, digest, whole, counted.new_bytes + len(content)), seen

    def knows(self, snapshot_id: str, digest: str) -> bool:
        """Whether the store has exactly this snapshot, so that all of its chunks are there, until the next prune."""
        try:
            return self.manifest(snapshot_id)[1] == digest
        except (SnapshotNotStored, ManifestBroken):
            return False

    def adopt(self, content: bytes, adding: Adding) -> bool:
        """Take over a manifest of another store, all of whose chunks are here; False where it is here already.

        After `Adding.settle`: a manifest that survives a power cut must not name a chunk that does not.

        Raises:
            ValueError: it is no manifest.
        """
        manifest, digest = decode(content)
        if self.knows(manifest.snapshot_id, digest):
            return False
        adding.write(_manifest_at(manifest.snapshot_id), content)
        return True

    # --- reading ----------------------------------------------------------------------------------------------------

    def has(self, snapshot_id: str) -> bool:
        """Whether the store has a snapshot of that name, whole or broken."""
        return is_snapshot_id(snapshot_id) and self.shelf.has(_manifest_at(snapshot_id))

    def ids(self) -> list[str]:
        """Of every snapshot and template."""
        found = (one.name.removesuffix(".json") for one in self.shelf.list("manifests") if one.name.endswith(".json"))
        return sorted(name for name in found if is_snapshot_id(name))

    def manifest(self, snapshot_id: str) -> tuple[Manifest, str]:
        """What a snapshot consists of, and the manifest's digest. Raises `SnapshotNotStored`, `ManifestBroken`."""
        content = self.shelf.read(_manifest_at(snapshot_id)) if is_snapshot_id(snapshot_id) else None
        if content is None:
            raise SnapshotNotStored(store=self.shelf.url, snapshot_id=snapshot_id)
        try:
            manifest, digest = decode(content)
            if manifest.snapshot_id != snapshot_id:
                raise ValueError(f"it is that of {manifest.snapshot_id}")
        except ValueError as error:
            raise ManifestBroken(store=self.shelf.url, snapshot_id=snapshot_id, detail=str(error)) from None
        return manifest, digest

    def lines(self, manifest: Manifest) -> Iterator[str]:
        """The listing of a snapshot's tree, parents first. Raises `ChunkBroken`."""
        for page in manifest.tree.pages:
            content = self.chunks.get(page, manifest.snapshot_id).decode()
            yield from (line for line in content.split("\n") if line)

    def chunk(self, manifest: Manifest) -> Callable[[str], bytes]:
        """Reads chunks for a snapshot: errors name it."""
        return lambda name: self.chunks.get(name, manifest.snapshot_id)

    def fetch_image(self, manifest: Manifest, folder: Path) -> None:
        """Write the image's files into an empty folder. Raises `ChunkBroken`, `OSError`."""
        get = self.chunk(manifest)
        for file in manifest.image:
            fd = os.open(folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                join(fd, file.size, ((offset, length, get(chunk)) for offset, length, chunk in file.pieces))
            finally:
                os.close(fd)

    def fetch_tree(self, manifest: Manifest, root: Path, present: Mapping[str, Seen]) -> None:
        """Make the tree at `root`, of which `present` was seen, what it is in a snapshot.

        Raises `ChunkBroken`, and `TreeNotRestored`: the tree is neither then.
        """
        lines = {path: one.line for path, one in present.items()}
        try:
            write_tree(root, lines, self.lines(manifest), self.chunk(manifest))
        except (OSError, ValueError) as error:
            path = str(getattr(error, "filename", "") or "the tree")
            raise TreeNotRestored(snapshot_id=manifest.snapshot_id, path=path, detail=str(error)) from error

    # --- checking ---------------------------------------------------------------------------------------------------

    def verify(self, snapshot_id: str, good: set[str]) -> list[StoreError]:
        """Read everything of a snapshot again; what is wrong with it, chunk by chunk.

        Args:
            good: chunks that were found whole already; those of this one are added.
        """
        try:
            manifest, _ = self.manifest(snapshot_id)
        except (SnapshotNotStored, ManifestBroken) as error:
            return [error]
        bad: list[StoreError] = []
        told: set[str] = set()

        def look(name: str) -> bytes:
            content = b""
            try:
                content = self.chunks.get(name, snapshot_id)
                good.add(name)
            except ChunkBroken as error:
                if name not in told:
                    bad.append(error)
            told.add(name)
            return content

        for name in pieces_of_image(manifest):
            if name not in good:
                look(name)
        for page in manifest.tree.pages:
            for name in pieces_of_page(look(page)):
                if name not in good:
                    look(name)
        return bad


@dataclass(slots=True)
class _Counted:
    """What one snapshot adds."""

    chunks: Chunks
    adding: Adding
    new_bytes: int = 0

    def holds(self, name: str) -> bool:
        return self.chunks.held(name, self.adding)

    def put(self, content: bytes) -> str:
        name, grown = self.chunks.put(content, self.adding)
        self.new_bytes += grown
        return name


def pieces_of_image(manifest: Manifest) -> Iterator[str]:
    """The chunks of a snapshot's image."""
    return (chunk for file in manifest.image for _, _, chunk in file.pieces)


def pieces_of_page(page: bytes) -> Iterator[str]:
    """The chunks of the files of a page of a listing."""
    for line in page.split(b"\n"):
        if b'"pieces"' in line:
            yield from (chunk for _, _, chunk in Entry.model_validate_json(line).pieces)


def _image_file(path: Path, put: Callable[[bytes], str]) -> ImageFile:
    hasher = blake3()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        pieces = tuple(cut(fd, IMAGE_BYTES, put))
    finally:
        os.close(fd)
    if size:
        hasher.update_mmap(path)
    return ImageFile(name=path.name, size=size, blake3=hasher.hexdigest(), pieces=pieces)


def _read(tree: Path, known: Mapping[str, Seen], counted: _Counted) -> tuple[dict[str, Seen], Tree]:
    """Read a tree, and keep its listing."""
    seen: dict[str, Seen] = {}
    pages: list[str] = []
    page: list[str] = []
    held = files = 0

    def turn() -> None:
        pages.append(counted.put("\n".join(page).encode() + b"\n"))
        page.clear()

    for path, one in read_tree(tree, known, counted.put, counted.holds):
        if page and (zlib.crc32(path.encode()) % _PAGE_ONE_IN == 0 or held > _PAGE_BYTES):
            turn()
            held = 0
        page.append(one.line)
        held += len(one.line)
        seen[path] = one
        files += one.bytes
    turn()
    return seen, Tree(entries=len(seen), bytes=files, pages=tuple(pages))


def _manifest_at(snapshot_id: str) -> str:
    return f"manifests/{snapshot_id}.json"
