"""Files and whole folders in and out of the guest, piece by piece: a file may be larger than memory.

The bytes of the channel are frames again (`actors.guest.frames`, all on channel 0): OPEN begins an entry, DATA is the
content of the file that was begun last, END ends the tree. An entry is `{"kind", "mode"}` as JSON, a line feed, and the
raw bytes of its path relative to the tree, empty for the tree itself; a folder comes before what is in it.
"""

from __future__ import annotations

import errno
import json
import os
from stat import S_IMODE, S_ISDIR, S_ISREG

from actors.guest import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from actors.guest.channel import Channel

FILE = "file"
FOLDER = "folder"
LEFT_OUT = "left out"
"""A link, a device, a socket, what can't be read: named, and no more."""
PATH_MAX = 3500
"""Bytes of a path in a tree; the kernel takes 4095, with what stands before it."""
_MODE = 0o777
_CHUNK_BYTES = frames.MAX_PAYLOAD - 1024
"""So that a frame in a frame still fits."""


def entry(kind: str, mode: int, path: bytes) -> bytes:
    """The frame that begins an entry. Raises `frames.FrameError` for a path that is too long."""
    head = json.dumps({"kind": kind, "mode": mode & _MODE}).encode()
    return frames.encode(frames.OPEN, frames.CONTROL, head + b"\n" + path)


def parse(payload: bytes) -> tuple[str, int, bytes]:
    """(kind, mode, path) of an entry; raises `ValueError`."""
    head, newline, path = payload.partition(b"\n")
    said = json.loads(head)
    if not newline or not isinstance(said, dict) or set(said) != {"kind", "mode"}:
        raise ValueError("no entry of a tree")
    kind, mode = said["kind"], said["mode"]
    if kind not in (FILE, FOLDER, LEFT_OUT) or type(mode) is not int or not 0 <= mode <= _MODE:
        raise ValueError("no entry of a tree")
    return kind, mode, path


def check_path(path: bytes) -> list[bytes]:
    """The names of a relative path, none for the tree itself. Raises `ValueError` where it could lead elsewhere."""
    if not path:
        return []
    names = path.split(b"/")
    if b"\0" in path or len(path) > PATH_MAX or any(name in (b"", b".", b"..") or len(name) > 255 for name in names):
        raise ValueError("a path that leads out of its tree")
    return names


def content(fd: int) -> Iterator[bytes]:
    """The frames of an open file's content."""
    while data := os.read(fd, _CHUNK_BYTES):
        yield frames.encode(frames.DATA, frames.CONTROL, data)


def walk(top: bytes, *, recursive: bool) -> Iterator[bytes]:
    """The frames of a file, or of a folder and all below it. No link is followed but `top` itself.

    Raises `OSError` where `top` can't be read, or is a folder and `recursive` is not set.
    """
    status = os.stat(top)
    if S_ISDIR(status.st_mode):
        if not recursive:
            raise OSError(errno.EISDIR, "is a folder")
        yield from _walk_folder(top)
    elif S_ISREG(status.st_mode):
        yield from _file(top, b"", os.O_RDONLY)
    else:
        raise OSError(errno.EINVAL, "not a regular file")
    yield frames.encode(frames.END, frames.CONTROL)


def _walk_folder(top: bytes) -> Iterator[bytes]:
    yield entry(FOLDER, S_IMODE(os.stat(top).st_mode), b"")
    # No recursion: a hostile tree may be deeper than the interpreter's stack.
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        for name in _names(os.path.join(top, folder) if folder else top):
            path = os.path.join(folder, name)
            place = os.path.join(top, path)
            try:
                status = os.lstat(place)
                if len(path) > PATH_MAX:
                    yield entry(LEFT_OUT, 0, path[:PATH_MAX].rstrip(b"/"))
                elif S_ISDIR(status.st_mode):
                    yield entry(FOLDER, S_IMODE(status.st_mode), path)
                    waiting.append(path)
                elif S_ISREG(status.st_mode):
                    yield from _file(place, path, os.O_RDONLY | os.O_NOFOLLOW)
                else:
                    yield entry(LEFT_OUT, 0, path)
            except FileNotFoundError:
                # It went away meanwhile.
                continue
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
                    raise
                yield entry(LEFT_OUT, 0, path)


def _names(folder: bytes) -> list[bytes]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        # It went away, or is nobody's to read: it stays empty.
        return []


def _file(place: bytes, path: bytes, flags: int) -> Iterator[bytes]:
    # Not to wait for whoever would write to a pipe that took the file's place.
    fd = os.open(place, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if S_ISREG(status.st_mode):
            yield entry(FILE, S_IMODE(status.st_mode), path)
            yield from content(fd)
    finally:
        os.close(fd)


def pack(channel: Channel, workdir: str) -> None:
    """`{path, recursive}`: send a file, or a folder with all below it."""
    path = os.path.join(workdir, str(channel.params["path"]))
    for frame in walk(os.fsencode(path), recursive=channel.params["recursive"] is True):
        channel.wait_room()
        channel.send(frame)
    channel.send(b"", last=True)


def unpack(channel: Channel, workdir: str) -> None:
    """`{path, name}`: take a tree; into `path`, or below it under `name` where it is a folder. Answers `{"path"}`."""
    path, name = os.path.join(workdir, str(channel.params["path"])), str(channel.params["name"])
    if os.path.isdir(path):
        path = os.path.join(path, name)
    elif path.endswith("/"):
        raise OSError(errno.ENOTDIR, "no such folder")
    writer = Writer(os.fsencode(path), f"{channel.number}-{os.urandom(4).hex()}")
    decoder = frames.Decoder()
    try:
        while data := channel.take():
            for kind, _, payload in decoder.feed(data):
                writer.take(kind, payload)
        if not writer.complete:
            raise ValueError("the tree has no end")
    finally:
        writer.close()
    channel.send(json.dumps({"path": path}).encode(), last=True)


class Writer:
    """Writes a tree that the host sends. Each file is there whole, or as it was."""

    def __init__(self, top: bytes, mark: str) -> None:
        self._top = top
        self._part = f".hourglass-{mark}".encode()
        self._fd = -1
        self._mode = 0
        self._place = b""
        self._begun = b""
        self.complete = False

    def take(self, kind: int, payload: bytes) -> None:
        """One frame. Raises `OSError`, and `ValueError` for what is no tree."""
        if kind == frames.DATA and self._fd >= 0:
            rest = memoryview(payload)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        elif kind in (frames.OPEN, frames.END):
            self._finish()
            if kind == frames.OPEN:
                self._begin(*parse(payload))
            else:
                self.complete = True
        else:
            raise ValueError("no part of a tree")

    def _begin(self, kind: str, mode: int, path: bytes) -> None:
        names = check_path(path)
        place = os.path.join(self._top, *names) if names else self._top
        if kind == FOLDER:
            if not os.path.isdir(place):
                os.mkdir(place)
                os.chmod(place, mode)
        elif kind == FILE:
            if os.path.isdir(place):
                raise OSError(errno.EISDIR, "is a folder")
            self._begun = os.path.join(os.path.dirname(place), self._part)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._begun, flags, 0o600)
            self._mode, self._place = mode, place

    def _finish(self) -> None:
        if self._fd >= 0:
            os.fchmod(self._fd, self._mode)
            os.close(self._fd)
            self._fd = -1
            os.replace(self._begun, self._place)

    def close(self) -> None:
        """Leave nothing half-written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if os.path.lexists(self._begun):
                os.unlink(self._begun)
