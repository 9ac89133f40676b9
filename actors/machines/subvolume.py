"""Btrfs subvolumes by the kernel's own calls: no process is started, so nothing of a busy host has to wait for one.

The numbers and layouts are those of `linux/btrfs.h`. All of it blocks, lets other threads run, and raises `OSError`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# _IOW(0x94, 23 / 15 / 1, 4096 bytes) and _IOR(0x94, 43, 48 bytes)
_SNAP_CREATE_V2 = 0x50009417
_SNAP_DESTROY = 0x5000940F
_QGROUP_LIMIT = 0x8030942B
_SYNC = 0x00009408
# fd, transaction, flags, four unused words, name
_VOLUME_V2 = struct.Struct("=qQQ4Q4040s")
# fd, name
_VOLUME_V1 = struct.Struct("=q4088s")
# group (0: the folder's own), flags, most referenced, most exclusive, two reservations
_LIMIT = struct.Struct("=QQQQQQ")
_READ_ONLY = 1 << 1
_LIMIT_REFERENCED = 1 << 0
_LIBC = ctypes.CDLL(None, use_errno=True)
_INODE = 256
"""Of every subvolume's root folder."""


def is_subvolume(path: Path) -> bool:
    """Whether there is a subvolume at `path`; False where there is nothing, or something else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return status.st_ino == _INODE


def snapshot(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Make `target` a snapshot of the subvolume `source`: there whole, or not at all."""
    origin, parent = _open(source), _open(target.parent)
    try:
        flags = _READ_ONLY if read_only else 0
        _call(parent, _SNAP_CREATE_V2, _VOLUME_V2.pack(origin, 0, flags, 0, 0, 0, 0, _name(target)))
    finally:
        os.close(origin)
        os.close(parent)


def delete(path: Path) -> None:
    """Delete a subvolume, read-only or not. What it alone holds is freed later, by the kernel."""
    parent = _open(path.parent)
    try:
        _call(parent, _SNAP_DESTROY, _VOLUME_V1.pack(0, _name(path)))
    finally:
        os.close(parent)


def limit(path: Path, referenced_bytes: int) -> None:
    """Bound what a subvolume may hold."""
    subvolume = _open(path)
    try:
        _call(subvolume, _QGROUP_LIMIT, _LIMIT.pack(0, _LIMIT_REFERENCED, referenced_bytes, 0, 0, 0))
    finally:
        os.close(subvolume)


def sync(path: Path) -> None:
    """Make everything of the file system that `path` is on durable."""
    folder = _open(path)
    try:
        _call(folder, _SYNC, b"")
    finally:
        os.close(folder)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _call(fd: int, number: int, arguments: bytes) -> None:
    # Not by `fcntl.ioctl`, which keeps the interpreter to itself for arguments of this size: a snapshot commits the
    # pool, and on a busy disk all of a host would wait for that.
    if _LIBC.ioctl(fd, ctypes.c_ulong(number), ctypes.create_string_buffer(arguments, max(len(arguments), 1))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _name(path: Path) -> bytes:
    name = os.fsencode(path.name)
    if len(name) > 255:
        raise OSError(f"{path.name!r} is too long for a name")
    return name
