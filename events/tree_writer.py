"""Making a file tree what a listing says, beginning with another one that has much of it, as a template's root.

Everything is reached from the root by descriptors of folders, one name at a time, and no link is followed: an entry
below a name that is a link is refused by the kernel.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

from events.chunks import join
from events.entries import KINDS, Entry, name_of, parse, parts_of, path_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {kind: bits for bits, kind in KINDS.items()}


def write_tree(root: Path, present: Mapping[str, str], wanted: Iterable[str], get: Callable[[str], bytes]) -> None:
    """Make the tree at `root` what the lines say.

    Args:
        root: a folder that nobody else uses.
        present: the lines of what is in it now, by encoded path; what is as it should be is not touched.
        wanted: the lines of a listing, parents first.
        get: the content of a chunk.

    Raises:
        ValueError: a line is none, or has a path that is none.
        OSError: something can't be made: no room, or no such thing on this file system.
    """
    writer = _Writer(root, get)
    try:
        left = dict(present)
        folders: list[Entry] = []
        untouched: set[str] = set()
        for line in wanted:
            path = path_of(line)
            same = left.pop(path, None) == line
            if same and '"kind":"folder"' not in line and '"same_as":"' not in line:
                untouched.add(path)
                continue
            entry = parse(line)
            if same and entry.same_as in untouched:
                continue
            writer.make(entry)
            if entry.kind == "folder":
                folders.append(entry)
        for path in sorted(left, key=len, reverse=True):
            writer.remove(path)
        # Last, and the inner ones first: whatever is done in a folder changes its time.
        for entry in reversed(folders):
            writer.finish_folder(entry)
    finally:
        writer.close()


class _Writer:
    def __init__(self, root: Path, get: Callable[[str], bytes]) -> None:
        self._get = get
        self._open: list[tuple[str, int]] = [("", os.open(root, _FOLDER))]
        """The folders on the way to the last entry, by name, and their descriptors."""

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def make(self, entry: Entry) -> None:
        """Make an entry, in place of what has its name; a folder that is there stays, whatever is in it."""
        *parents, name = entry.parts or [""]
        if not name:
            if entry.kind != "folder":
                raise ValueError("the root of a tree is a folder")
            return
        folder = self._reach(parents)
        if self._clear(folder, name, keep_folder=entry.kind == "folder"):
            return
        if entry.kind == "folder":
            os.mkdir(name, 0o700, dir_fd=folder)
        elif entry.same_as:
            self._link(entry, folder, name)
        elif entry.kind == "file":
            self._write(entry, folder, name)
        else:
            if entry.kind == "link":
                os.symlink(name_of(entry.target), name, dir_fd=folder)
            else:
                os.mknod(name, _TYPES[entry.kind] | 0o600, entry.device, dir_fd=folder)
            self._finish(entry, folder, name)

    def remove(self, path: str) -> None:
        """Remove what is not in the listing. No error where it went with its folder."""
        *parents, name = parts_of(path)
        try:
            folder = self._reach(parents)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._clear(folder, name, keep_folder=False)

    def finish_folder(self, entry: Entry) -> None:
        """Give a folder what it is to have."""
        fd = self._reach(entry.parts)
        status = os.fstat(fd)
        is_now = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        has = {name: os.getxattr(fd, name) for name in _ours(os.listxattr(fd))}
        if is_now == (entry.mode, entry.uid, entry.gid, entry.mtime_ns) and has == _attributes(entry):
            return  # on an overlay, to touch it would copy it
        _dress(fd, entry, has)

    def _reach(self, parents: list[str]) -> int:
        """The descriptor of a folder; those on the way are kept open for what comes next."""
        shared = 0
        while shared < len(parents) and shared + 1 < len(self._open) and self._open[shared + 1][0] == parents[shared]:
            shared += 1
        while len(self._open) > shared + 1:
            os.close(self._open.pop()[1])
        for name in parents[shared:]:
            self._open.append((name, os.open(name, _FOLDER, dir_fd=self._open[-1][1])))
        return self._open[-1][1]

    def _clear(self, folder: int, name: str, *, keep_folder: bool) -> bool:
        """Remove what has this name; whether a folder was kept."""
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=folder)
            return False
        if not keep_folder:
            shutil.rmtree(name, dir_fd=folder)
        return keep_folder

    def _link(self, entry: Entry, folder: int, name: str) -> None:
        *parents, first = parts_of(entry.same_as)
        # By itself: the way to the first one is another, and the one that is open goes on being needed.
        source = os.dup(self._open[0][1])
        try:
            for one in parents:
                inner = os.open(one, _FOLDER, dir_fd=source)
                os.close(source)
                source = inner
            os.link(first, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)

    def _write(self, entry: Entry, folder: int, name: str) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            join(fd, entry.size, self._contents(entry))
            _dress(fd, entry, {})
        finally:
            os.close(fd)

    def _contents(self, entry: Entry) -> Iterator[tuple[int, int, bytes]]:
        for offset, length, chunk in entry.pieces:
            yield offset, length, self._get(chunk)

    def _finish(self, entry: Entry, folder: int, name: str) -> None:
        """What has no descriptor to be dressed by: links, pipes, sockets, devices."""
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if entry.kind != "link":
            # We have just made it, and nobody else is here: it is no link.
            os.chmod(name, entry.mode, dir_fd=folder)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)


def _dress(fd: int, entry: Entry, has: Mapping[str, bytes]) -> None:
    os.fchown(fd, entry.uid, entry.gid)
    # After the owner, whose change takes the set-user-id bit away.
    os.fchmod(fd, entry.mode)
    wanted = _attributes(entry)
    for name in has:
        if name not in wanted:
            os.removexattr(fd, name)
    for name, value in wanted.items():
        if has.get(name) != value:
            os.setxattr(fd, name, value)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _attributes(entry: Entry) -> dict[str, bytes]:
    return {name_of(name): value_of(value) for name, value in entry.attributes.items()}


def _ours(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if not name.startswith("trusted.overlay."))
