"""Reading a file tree into a listing. Hostile: no link is followed, and nothing but folders and plain files is opened.

Entries come parents first, the names of a folder in the order of their bytes, so that the same tree has the same
listing. Files that nobody touched since the last look are not read again: a guest can set every time but the one of the
last change of the inode (`ctime`), which is the kernel's.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from events.chunks import FILE_BYTES, cut
from events.entries import KINDS, Entry, attribute, encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MOST_LEVELS = 128
"""Each level takes a descriptor while it is read."""
MOST_ENTRIES = 500_000
MOST_LISTING_BYTES = 128 * 1024**2
"""Both together bound the memory that a guest's tree takes on the host while it is listed: some 0.6 KB for an entry,
and half a GB where all names are as long as can be."""
MOST_PIECES = 200_000
"""Of one file: 50 GB in a row, or a file with many holes."""
_CHUNK = re.compile(r'"([0-9a-f]{64})"')
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooMuch(ValueError):
    """Raised where a tree is beyond what is stored; the message says how."""


class Seen(NamedTuple):
    """An entry as it was when it was looked at."""

    stamp: tuple[int, ...]
    """Inode, its last change, modification, size, mode, names: of a file that has all of them again, nothing has
    changed. Empty for what is always looked at."""
    line: str
    bytes: int = 0
    """What its pieces have together."""


def read_tree(
    root: Path, known: Mapping[str, Seen], put: Callable[[bytes], str], holds: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, Seen]]:
    """The entries of a tree that nothing writes meanwhile, by their encoded paths.

    Args:
        known: by encoded path, of an earlier look at this tree or at the one that it was made from.
        put: keeps a chunk, and gives its name.
        holds: whether a chunk of a known entry is there still; a file is read again where one is not.

    Raises:
        TooMuch: too deep, too many entries or too long names, or a file in too many pieces.
        OSError: something can't be read.
    """
    listed = 0
    for path, one in _Reader(known, put, holds).folder(os.open(root, _FOLDER), "", 0):
        listed += len(one.line)
        if listed > MOST_LISTING_BYTES:
            raise TooMuch(f"its listing is longer than {MOST_LISTING_BYTES // 1024**2} MiB")
        yield path, one


class _Reader:
    def __init__(self, known: Mapping[str, Seen], put: Callable[[bytes], str], holds: Callable[[str], bool]) -> None:
        self._known = known
        self._put = put
        self._holds = holds
        self._first: dict[tuple[int, int], str] = {}
        """Files with several names: the first of each."""
        self._count = 0

    def folder(self, fd: int, path: str, level: int) -> Iterator[tuple[str, Seen]]:
        """A folder, and what is in it. Closes `fd`."""
        try:
            if level > MOST_LEVELS:
                raise TooMuch(f"folders lie more than {MOST_LEVELS} deep")
            yield path, Seen((), _entry(path, os.fstat(fd), attributes=_attributes(fd)).line())
            for name in self._names(fd):
                inner = f"{path}/{encoded(name)}" if path else encoded(name)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    yield from self.folder(os.open(name, _FOLDER, dir_fd=fd), inner, level + 1)
                else:
                    yield inner, self._other(fd, name, inner, status)
        finally:
            os.close(fd)

    def _names(self, fd: int) -> list[str]:
        """Of a folder. Counted while they are read: a folder of millions is never in memory."""
        names = []
        with os.scandir(fd) as entries:
            for entry in entries:
                self._count += 1
                if self._count > MOST_ENTRIES:
                    raise TooMuch(f"it has more than {MOST_ENTRIES:,} entries")
                names.append(entry.name)
        return sorted(names, key=os.fsencode)

    def _other(self, folder: int, name: str, path: str, status: os.stat_result) -> Seen:
        stamp = (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_mode, status.st_nlink)
        if status.st_nlink == 1:
            seen = self._known.get(path)
            if seen is not None and seen.stamp == stamp and self._is_held(seen.line):
                return seen
        elif stat.S_ISREG(status.st_mode):
            first = self._first.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                return Seen((), _entry(path, status, same_as=first).line())
        entry = self._look(folder, name, path, status)
        return Seen(stamp, entry.line(), sum(length for _, length, _ in entry.pieces))

    def _is_held(self, line: str) -> bool:
        """Without parsing it: there are many, and a name that looks like a chunk's only costs a look at its file."""
        return all(map(self._holds, _CHUNK.findall(line.partition('"pieces"')[2])))

    def _look(self, folder: int, name: str, path: str, status: os.stat_result) -> Entry:
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        if kind == "link":
            return _entry(path, status, target=encoded(os.readlink(name, dir_fd=folder)))
        if kind in ("character", "block"):
            return _entry(path, status, device=status.st_rdev)
        if kind != "file":
            return _entry(path, status)
        fd = os.open(name, _FILE, dir_fd=folder)
        try:
            opened = os.fstat(fd)
            if (opened.st_ino, stat.S_IFMT(opened.st_mode)) != (status.st_ino, stat.S_IFREG):
                raise OSError(f"{path} changed while the tree was read")
            pieces = []
            for piece in cut(fd, FILE_BYTES, self._put):
                pieces.append(piece)
                if len(pieces) > MOST_PIECES:
                    raise TooMuch(f"{path[:200]} is in more than {MOST_PIECES:,} pieces")
            return _entry(path, status, size=status.st_size, pieces=tuple(pieces), attributes=_attributes(fd))
        finally:
            os.close(fd)


def _entry(path: str, status: os.stat_result, **more: object) -> Entry:
    # The values are the kernel's, and of the right types: to validate them takes longer than to read them.
    return Entry.model_construct(
        path=path,
        kind=KINDS[stat.S_IFMT(status.st_mode)],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        **more,  # type: ignore[arg-type]
    )


def _attributes(fd: int) -> dict[str, str]:
    try:
        names = os.listxattr(fd)
    except OSError:
        return {}  # a file system without any
    # An overlay's own say how it was made, not what is in it.
    return {
        encoded(name): attribute(os.getxattr(fd, name)) for name in names if not name.startswith("trusted.overlay.")
    }
