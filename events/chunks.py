"""Chunks: pieces of files by content. A chunk's name is the BLAKE3 digest of its bytes; it lies compressed with zstd.

Memory images shift little between two turns, and are page-aligned; measured on four snapshots with one small tool call
between each two (8.7 MB each, 2.2 MB compressed), the next one adds, compressed:

| chunk | 4 KiB | 16 KiB | 64 KiB | 256 KiB | 1 MiB |
| --- | --- | --- | --- | --- | --- |
| bytes | 0.33 MB | 0.75 MB | 1.2 MB | 1.6 MB | 1.8 MB |
| chunks | 375 | 200 | 86 | 30 | 9 |

So images are cut at every 64 KiB: smaller saves bytes, and costs an object store a request for each chunk. Other files
are cut at every 256 KiB: most are one chunk, and few of them change a little in the middle.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from typing import TYPE_CHECKING, Annotated

import zstandard
from blake3 import blake3
from pydantic import Field

from events.store_errors import ChunkBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from events.shelf import Adding, Pruning, Shelf

IMAGE_BYTES = 64 * 1024
FILE_BYTES = 256 * 1024
LARGEST_BYTES = 64 * 1024**2
"""No chunk is larger; what claims to be is not read."""
_LEVEL = 3

Name = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Piece = tuple[Annotated[int, Field(ge=0, le=2**63)], Annotated[int, Field(gt=0, le=LARGEST_BYTES)], Name]
"""Offset in the file, length, chunk. What no piece covers is zeros."""


class Chunks:
    """The chunks of one store. Any number of threads may use it."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._local = threading.local()

    def put(self, content: bytes, adding: Adding) -> tuple[str, int]:
        """Keep a chunk; its name, and how many bytes that took: 0 where it was there.

        A manifest may name it while `adding` lasts, in which no prune takes it away, and after `settle`.
        """
        name = blake3(content).hexdigest()
        if adding.has(_at(name)):
            return name, 0
        packed: bytes = self._packer.compress(content)
        adding.write(_at(name), packed)
        return name, len(packed)

    @staticmethod
    def held(name: str, adding: Adding) -> bool:
        """Whether a chunk that was there before is there still, as far as that is cheap to tell."""
        return adding.holds(_at(name))

    def get(self, name: str, snapshot_id: str) -> bytes:
        """A chunk, checked against its name. Raises `ChunkBroken`, which names the snapshot that needs it."""
        return self._read(name, snapshot_id)[1]

    def packed(self, name: str, snapshot_id: str) -> bytes:
        """A chunk as it lies, checked as by `get`; `keep` takes it. Raises `ChunkBroken`."""
        return self._read(name, snapshot_id)[0]

    def keep(self, name: str, packed: bytes, adding: Adding) -> int:
        """Keep a chunk that is packed already; how many bytes that took: 0 where it was there. As `put`, otherwise.

        Raises:
            ValueError: it is not what its name says.
        """
        unpacked(name, packed)
        if adding.has(_at(name)):
            return 0
        adding.write(_at(name), packed)
        return len(packed)

    def _read(self, name: str, snapshot_id: str) -> tuple[bytes, bytes]:
        """Packed and unpacked."""

        def broken(detail: str) -> ChunkBroken:
            return ChunkBroken(store=self.shelf.url, snapshot_id=snapshot_id, chunk=name, detail=detail)

        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise broken("that is no chunk's name")
        packed = self.shelf.read(_at(name))
        if packed is None:
            raise broken("it is missing")
        try:
            return packed, unpacked(name, packed, self._unpacker)
        except ValueError as error:
            raise broken(str(error)) from None

    def names(self) -> dict[str, int]:
        """Every chunk that is there, and its size as it lies."""
        return {one.name: one.size for one in self.shelf.list("chunks")}

    def remove(self, name: str, pruning: Pruning) -> None:
        """Remove a chunk."""
        pruning.remove(_at(name))

    # Neither may be used by two threads at once.
    @property
    def _packer(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._local, "packer"):
            self._local.packer = zstandard.ZstdCompressor(level=_LEVEL)
        packer: zstandard.ZstdCompressor = self._local.packer
        return packer

    @property
    def _unpacker(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._local, "unpacker"):
            self._local.unpacker = zstandard.ZstdDecompressor()
        unpacker: zstandard.ZstdDecompressor = self._local.unpacker
        return unpacker


def unpacked(name: str, packed: bytes, unpacker: zstandard.ZstdDecompressor | None = None) -> bytes:
    """What a packed chunk has in it. Raises `ValueError` where that is not what its name says; never reads too much."""
    try:
        if zstandard.frame_content_size(packed) > LARGEST_BYTES:
            raise ValueError("it is larger than any chunk")
        content: bytes = (unpacker or zstandard.ZstdDecompressor()).decompress(packed, max_output_size=LARGEST_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if blake3(content).hexdigest() != name:
        raise ValueError("it is not what was written")
    return content


def cut(fd: int, chunk_bytes: int, put: Callable[[bytes], str]) -> Iterator[Piece]:
    """The pieces of an open file; holes and zeros are left out.

    Args:
        chunk_bytes: pieces begin at multiples of it, or where a hole ends, and are no longer.
        put: keeps a chunk, and gives its name.
    """
    for begin, end in _data(fd):
        at = begin
        while at < end:
            length = min(chunk_bytes - at % chunk_bytes, end - at)
            content = os.pread(fd, length, at)
            if len(content) < length:
                raise OSError(f"a file ended at {at + len(content)} instead of {end} while it was read")
            if content.count(0) != length:
                yield at, length, put(content)
            at += length


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole from here on
            raise
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        yield begin, at


def join(fd: int, size: int, pieces: Iterator[tuple[int, int, bytes]]) -> None:
    """Fill an open, empty file."""
    for offset, length, content in pieces:
        if len(content) != length or offset + length > size:
            raise OSError(f"a piece of {len(content)} bytes does not fit at {offset}, where {length} of {size} belong")
        written = 0
        while written < length:
            written += os.pwrite(fd, memoryview(content)[written:], offset + written)
    os.ftruncate(fd, size)


def _at(name: str) -> str:
    return f"chunks/{name[:2]}/{name}"
