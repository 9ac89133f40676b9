"""Putting an archive into a root: a tarball, or one layer of an image, with its whiteouts.

An archive is hostile. Its paths can't lead out (`actors.template.rooted`), what it unpacks to is bounded, and devices
are left out: a machine has its own `/dev`. Set-user-id bits are kept, since they mean something inside, and on the host
the trees are mounted without them. Extended attributes are not kept.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import zstandard

from actors.template.archives import Member
from actors.template.manifest import TemplateError
from actors.template.rooted import BadPath, Rooted, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BYTES_MAX = 64 * 1024**3
"""Of all files of one archive together, unpacked."""
ENTRIES_MAX = 4_000_000
NAMES_MAX = 1_000_000
"""Of one layer of an image: they are in memory, for its whiteouts."""
_PIECE = 1024**2
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MAGIC_BYTES = 6


_Names = dict[str, "_Names"]


@dataclass(slots=True)
class Unpacked:
    """What was in an archive."""

    entries: int = 0
    bytes: int = 0
    left_out: int = 0
    """Devices."""


def decompressed(stream: io.BufferedReader[Any]) -> IO[bytes]:
    """The bytes of a stream that may be compressed with gzip, zstd or xz, or not at all."""
    magic = stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb"))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True))
    if magic.startswith(b"\xfd7zXZ\x00"):
        return cast("IO[bytes]", lzma.LZMAFile(stream))
    return stream


def unpack(
    stream: IO[bytes], root: Rooted, *, whiteouts: bool, what: str, progress: Callable[[int], None] = lambda _: None
) -> Unpacked:
    """Unpack a tar stream over what is in the root.

    Args:
        whiteouts: whether `.wh.` names take away what lower layers had, as in OCI images.
        what: for errors.
        progress: hears how many bytes there are by now, before they are written; what it raises ends it.

    Raises:
        TemplateError: it is no archive, is cut short, or has what no root may be given.
    """
    layer = _Layer(root, what, progress)
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=Member) as archive:
            while (member := archive.next()) is not None:
                layer.take(archive, member, whiteouts=whiteouts)
                cast("Any", archive).members.clear()  # it keeps every one of them, headers and all
        # To its end: a digest is that of the whole.
        while stream.read(_PIECE):
            continue
        layer.finish()
    except BadPath as error:
        raise TemplateError(f"{what} is refused: {error}; nothing of it is used") from None
    except (*_UNREADABLE, zstandard.ZstdError) as error:
        raise TemplateError(
            f"{what} can't be read: {str(error) or type(error).__name__}; is it a whole tar archive?"
        ) from None
    except OSError as error:
        raise TemplateError(f"{what} can't be unpacked: {error}") from error
    return layer.done


_UNREADABLE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, OverflowError, RecursionError)
"""What the readers raise for archives that are none, are cut, or say of a time or a size what can't be."""


class _Layer:
    def __init__(self, root: Rooted, what: str, progress: Callable[[int], None]) -> None:
        self.done = Unpacked()
        self._root = root
        self._what = what
        self._progress = progress
        self._written: _Names = {}
        """What this layer has brought: names in folders, in folders."""
        self._names = 0
        self._times: list[tuple[str, float]] = []

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, *, whiteouts: bool) -> None:
        """One entry of the archive."""
        self.done.entries += 1
        self.done.bytes += member.size if member.isreg() else 0
        if self.done.entries > ENTRIES_MAX or self.done.bytes > BYTES_MAX:
            raise BadPath(f"it unpacks to more than {ENTRIES_MAX:,} entries or {BYTES_MAX // 1024**3} GiB")
        self._progress(self.done.bytes)
        parts = parts_of(member.name)
        path = "/".join(parts)
        if whiteouts and parts and parts[-1].startswith(_WHITEOUT):
            self._white_out("/".join(parts[:-1]), parts[-1])
            return
        if not (0 <= member.uid < 2**32 - 1 and 0 <= member.gid < 2**32 - 1):
            raise BadPath(f"{path[:200]!r} belongs to user {member.uid}, group {member.gid}")
        if member.isdir():
            self._root.make_folder(path, mode=member.mode, uid=member.uid, gid=member.gid)
            self._times.append((path, member.mtime))
        elif not self._make(archive, member, path):
            self.done.left_out += 1
            return
        if whiteouts:
            self._note(parts)

    def _note(self, parts: Sequence[str]) -> None:
        """What a whiteout of the same layer does not take away."""
        at = self._written
        for part in parts:
            if part not in at:
                self._names += 1
                if self._names > NAMES_MAX:
                    raise BadPath(f"it brings more than {NAMES_MAX:,} names")
                at[part] = {}
            at = at[part]

    def _has_brought(self, path: str) -> bool:
        at: _Names | None = self._written
        for part in path.split("/"):
            at = at.get(part) if at is not None else None
        return at is not None

    def finish(self) -> None:
        """The times of folders, which what is put into them changes."""
        for path, mtime in reversed(self._times):
            try:
                with self._root.folder(path) as fd:
                    os.utime(fd, (mtime, mtime))
            except OSError:
                continue  # Its time alone: a later entry has put something else there.

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> bool:
        if member.isreg():
            self._file(archive, member, path)
        elif member.issym():
            self._root.make_link(path, member.linkname, uid=member.uid, gid=member.gid)
        elif member.islnk():
            try:
                self._root.link(path, member.linkname)
            except FileNotFoundError:
                raise BadPath(
                    f"{path[:200]!r} is a hard link to {member.linkname[:200]!r}, which is not in it"
                ) from None
        elif member.isfifo():
            self._root.make_pipe(path, mode=member.mode, uid=member.uid, gid=member.gid)
        elif member.isdev():
            return False
        else:
            raise BadPath(f"{path[:200]!r} is of an unknown kind ({member.type!r})")
        return True

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        content = archive.extractfile(member)
        if content is None:
            raise BadPath(f"{path[:200]!r} has no content")
        how = {"mode": member.mode, "uid": member.uid, "gid": member.gid}
        with self._root.new_file(path, **how, mtime=member.mtime) as fd, open(fd, "wb", closefd=False) as file:
            while piece := content.read(_PIECE):
                self._progress(self.done.bytes)
                file.write(piece)

    def _white_out(self, folder: str, name: str) -> None:
        if name == _OPAQUE:
            for one in self._root.names(folder):
                self._hide(f"{folder}/{one}".lstrip("/"))
        elif not name.startswith(".wh..wh."):  # The rest of those are some builder's own.
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise BadPath(f"{name!r} hides nothing that a name can have")
            self._hide(f"{folder}/{hidden}".lstrip("/"))

    def _hide(self, path: str) -> None:
        """Take away what lower layers had; what this one has brought stays."""
        if not self._has_brought(path):
            self._root.remove(path)
        else:
            for one in self._root.names(path):
                self._hide(f"{path}/{one}")
