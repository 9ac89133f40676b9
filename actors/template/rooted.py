"""Writing into a root that is not ours: every path means what it would mean inside, and none leads out.

Parents are opened by the kernel with the root as `/` (`openat2`, `RESOLVE_IN_ROOT`), so links in a root are followed
as a program inside would follow them. The last name of a path is never followed: it is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # The same on every architecture.
_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_NO_MAGICLINKS = 0x02
_BENEATH = 0x08
_IN_ROOT = 0x10
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LEVELS_MAX = 128


class BadPath(ValueError):
    """Raised for a path that no root may be given: it has `..`, or is too deep or too long."""


def parts_of(path: str) -> list[str]:
    """The names on the way to a path of an archive, taken from the root. Raises `BadPath`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or len(parts) > _LEVELS_MAX or any(len(os.fsencode(part)) > 255 for part in parts):
        raise BadPath(f"{path[:200]!r} is no path inside a root")
    return parts


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Open a path below a folder, by links that stay below it. Raises `OSError`: EXDEV where one leads out."""
    return _openat2(folder, path, flags, _BENEATH)


class Rooted:
    """One root, open for writing. Every method raises `BadPath` for a bad path, and `OSError`."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _FOLDER | os.O_NOFOLLOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """The descriptor of a folder, made with its parents where there is none."""
        fd = self._reach(parts_of(path))
        try:
            yield fd
        finally:
            os.close(fd)

    def make_folder(self, path: str, *, mode: int, uid: int = 0, gid: int = 0) -> None:
        """A folder that is there stays, with what is in it; anything else of that name is replaced."""
        *parents, name = parts_of(path) or [""]
        if not name:
            self._dress(self._root, uid, gid, mode)
            return
        with self._parent(parents) as folder:
            if not _is_folder(folder, name):
                _remove(folder, name)
                os.mkdir(name, 0o700, dir_fd=folder)
            fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            try:
                self._dress(fd, uid, gid, mode)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def new_file(
        self, path: str, *, mode: int, uid: int = 0, gid: int = 0, mtime: float | None = None
    ) -> Iterator[int]:
        """A new file's descriptor, to be written; what had its name is gone."""
        parents, name = _named(path)
        with self._parent(parents) as folder:
            _remove(folder, name)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
            try:
                yield fd
                self._dress(fd, uid, gid, mode)
                if mtime is not None:
                    os.utime(fd, (mtime, mtime))
            finally:
                os.close(fd)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """A file of ours, whole."""
        with self.new_file(path, mode=mode) as fd, open(fd, "wb", closefd=False) as file:
            file.write(data)

    def make_link(self, path: str, target: str, *, uid: int = 0, gid: int = 0) -> None:
        """A symbolic link, wherever it leads: nothing here follows it out."""
        parents, name = _named(path)
        with self._parent(parents) as folder:
            _remove(folder, name)
            os.symlink(target, name, dir_fd=folder)
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)

    def make_pipe(self, path: str, *, mode: int, uid: int = 0, gid: int = 0) -> None:
        """A named pipe."""
        parents, name = _named(path)
        with self._parent(parents) as folder:
            _remove(folder, name)
            os.mkfifo(name, 0o600, dir_fd=folder)
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(mode), dir_fd=folder)  # We have just made it: it is no link.

    def link(self, path: str, existing: str) -> None:
        """Another name for a file of the root."""
        parents, name = _named(path)
        other_parents, other = _named(existing)
        with self._parent(parents) as folder, self._parent(other_parents) as other_folder:
            if stat.S_ISDIR(os.stat(other, dir_fd=other_folder, follow_symlinks=False).st_mode):
                raise BadPath(f"{existing[:200]!r} is a folder, which has one name only")
            if parts_of(path) != parts_of(existing):
                _remove(folder, name)
                os.link(other, name, src_dir_fd=other_folder, dst_dir_fd=folder, follow_symlinks=False)

    def remove(self, path: str) -> None:
        """Remove a name and all below it; links are removed, not followed. No error where there is none."""
        parents, name = _named(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            fd = self._open(parents)
            try:
                _remove(fd, name)
            finally:
                os.close(fd)

    def names(self, path: str) -> list[str]:
        """What is in a folder; empty where there is none, or a link."""
        try:
            fd = self._open(parts_of(path), os.O_NOFOLLOW)
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return []
            raise
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def is_folder(self, path: str, *, follow: bool = True) -> bool:
        """Whether there is a folder; with `follow` also a link to one, as a program inside would see it."""
        try:
            os.close(self._open(parts_of(path), 0 if follow else os.O_NOFOLLOW))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def is_empty_file(self, path: str) -> bool:
        """Whether there is nothing of that name, or a file without a byte."""
        parents, name = _named(path)
        try:
            fd = self._open(parents)
        except (FileNotFoundError, NotADirectoryError):
            return True
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            return stat.S_ISREG(status.st_mode) and status.st_size == 0
        except FileNotFoundError:
            return True
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _parent(self, parents: list[str]) -> Iterator[int]:
        fd = self._reach(parents)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, parts: list[str], flags: int = 0) -> int:
        return _openat2(self._root, "/".join(parts) or ".", _FOLDER | flags, _IN_ROOT)

    def _reach(self, parts: list[str]) -> int:
        """A folder, with what is missing on the way made. A file in the way gives way to it."""
        try:
            return self._open(parts)
        except (FileNotFoundError, NotADirectoryError):
            if not parts:
                raise
        folder = self._reach(parts[:-1])
        try:
            # Here too where it is a link that leads nowhere, or to a file: the archive has a folder there.
            _remove(folder, parts[-1])
            os.mkdir(parts[-1], 0o755, dir_fd=folder)
        finally:
            os.close(folder)
        return self._open(parts)

    @staticmethod
    def _dress(fd: int, uid: int, gid: int, mode: int) -> None:
        os.fchown(fd, uid, gid)
        # After the owner, whose change takes the set-user-id bit away.
        os.fchmod(fd, stat.S_IMODE(mode))


def _named(path: str) -> tuple[list[str], str]:
    parts = parts_of(path)
    if not parts:
        raise BadPath(f"{path[:200]!r} is the root itself")
    return parts[:-1], parts[-1]


def _is_folder(folder: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(folder: int, name: str) -> None:
    if _is_folder(folder, name):
        try:
            shutil.rmtree(name, dir_fd=folder)
        except RecursionError:
            raise OSError(errno.ELOOP, "folders lie too deep to be removed", name) from None
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve | _NO_MAGICLINKS)
    fd = _LIBC.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(folder),
        ctypes.c_char_p(os.fsencode(path)),
        how,
        ctypes.c_size_t(len(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)
