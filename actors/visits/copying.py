"""Files between this machine and a sandbox. What comes out is a hostile tree: it lands below its destination, or not.

Nothing of a guest's is followed or believed: names are names of one folder each, links and devices are left out, no
set-user-id bit gets through, and the whole is bounded. A link that is below the destination already is not followed
either, but replaced, or refused where a folder should be.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from actors.guest import frames, trees
from actors.visits.client import find, lost, visit
from actors.visits.wire import CopyIn, CopyOut, VisitRefused, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.settings import Settings
    from actors.visits.client import Wire

MAX_BYTES = 4 * 1024**3
"""What a copy out of a sandbox may be, if nobody says."""
DEPTH_MAX = 200
"""Folders within folders."""
_NAMED_MAX = 100


@dataclass(slots=True)
class Copied:
    """A copy that was made."""

    sandbox_id: str
    size: int = 0
    """Bytes."""
    files: int = 0
    left_out: int = 0
    """Links, devices, sockets, and what can't be read."""
    named: list[str] = field(default_factory=list)
    """The first of those; hostile where they come out of a sandbox."""

    def leave_out(self, path: bytes) -> None:
        """One that is not copied."""
        self.left_out += 1
        if len(self.named) < _NAMED_MAX:
            self.named.append(path.decode(errors="replace"))


def copy_in(
    settings: Settings,
    target: str,
    source: Path,
    path: str,
    *,
    recursive: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> Copied:
    """Copy a file, or with `recursive` a folder, into a sandbox of a running service.

    It goes to `path`, or below it under its own name where that is a folder; a relative one begins in the work folder.
    `on_bytes` hears how many more have gone. Raises `CannotServe`, `VisitRefused`.
    """
    place = find(settings, target)
    copied = Copied(place.sandbox_id)
    name = source.name if source.name not in ("", "..") else source.resolve().name
    with visit(place) as wire:
        try:
            walk = trees.walk(os.fsencode(source), recursive=recursive)
            first = next(walk)
            wire.ask(checked(CopyIn, sandbox_id=place.sandbox_id, path=path, name=name or "root"))
            for frame in chain((first,), walk):
                _count(frame, copied)
                wire.send_raw(frame)
                if wire.deaf:
                    break
                if on_bytes:
                    on_bytes(len(frame))
        except OSError as error:
            raise _local(source, error) from error
        return _concluded(wire, copied)


def _count(frame: bytes, copied: Copied) -> None:
    if frame[0] == frames.OPEN:
        kind, _, path = trees.parse(frame[frames.HEADER_BYTES :])
        if kind == trees.LEFT_OUT:
            copied.leave_out(path)


def _concluded(wire: Wire, copied: Copied) -> Copied:
    kind, _, payload = wire.receive()
    if kind != frames.END:
        raise lost()
    told = json.loads(payload)
    copied.size, copied.files = int(told["bytes"]), int(told["files"])
    return copied


def copy_out(
    settings: Settings,
    target: str,
    path: str,
    destination: Path | IO[bytes],
    *,
    recursive: bool = False,
    max_bytes: int = MAX_BYTES,
    on_bytes: Callable[[int], None] | None = None,
) -> Copied:
    """Copy a file, or with `recursive` a folder, out of a sandbox of a running service.

    It goes to `destination`, or below it under its own name where that is a folder; a file may go to a binary stream.
    Raises `CannotServe`, and `VisitRefused` also where it is more than `max_bytes`: files that are whole by then stay.
    """
    place = find(settings, target)
    copied = Copied(place.sandbox_id)
    request = checked(CopyOut, sandbox_id=place.sandbox_id, path=path, recursive=recursive, max_bytes=max_bytes)
    if isinstance(destination, Path) and destination.is_dir():
        name = os.path.basename(path.rstrip("/"))
        destination = destination / name if name not in ("", ".", "..") else destination
    with visit(place) as wire:
        wire.ask(request)
        try:
            with Landing(destination, copied) if isinstance(destination, Path) else _Stream(destination) as landing:
                while True:
                    kind, _, payload = wire.receive()
                    if kind == frames.END:
                        break
                    landing.take(kind, payload)
                    if on_bytes:
                        on_bytes(len(payload))
                landing.finish()
        except OSError as error:
            raise _local(destination, error) from error
        told = json.loads(payload)
        copied.size, copied.files = int(told["bytes"]), int(told["files"])
        return copied


def _local(place: Path | IO[bytes], error: OSError) -> VisitRefused:
    if isinstance(error, IsADirectoryError):
        return VisitRefused(f"{place} is a folder", "Copy a folder with -r, to where there is no file.")
    cause = f"{place} here: {error.strerror or error}"
    return VisitRefused(cause, "See to its rights and to the room on its disk, or name another one.")


def _parsed(payload: bytes) -> tuple[str, int, list[bytes], bytes]:
    """Kind, mode, names and path of an entry. Raises `VisitRefused`."""
    try:
        kind, mode, path = trees.parse(payload)
        return kind, mode, trees.check_path(path), path
    except (ValueError, RecursionError) as error:
        raise VisitRefused(f"the sandbox sent a bad entry: {error}") from error


class _Stream:
    """Where one file goes that is to be no file here."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def take(self, kind: int, payload: bytes) -> None:
        """One frame."""
        if kind == frames.DATA:
            self._stream.write(payload)
        elif kind != frames.OPEN or _parsed(payload)[0] != trees.FILE:
            raise VisitRefused("a folder can't be written to a stream", "Name a folder to copy it to.")

    def finish(self) -> None:
        """Nothing is left to do."""


class Landing:
    """Writes a hostile tree at a destination. A context manager: what is half-written at its end is removed.

    `take` raises `OSError` of this machine, and `VisitRefused` for what is no tree.
    """

    def __init__(self, destination: Path, copied: Copied) -> None:
        self._destination = destination
        self._copied = copied
        self._root = -1
        self._chain: list[tuple[bytes, int]] = []
        """Folders that are open, from the root downwards."""
        self._file = -1
        self._folder = -1
        """That of the file; its own descriptor."""
        self._name = b""
        self._part = f".hourglass-{secrets.token_hex(6)}".encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            os.unlink(self._part, dir_fd=self._folder)
            os.close(self._folder)
        self._leave(0)
        if self._root >= 0:
            os.close(self._root)

    def take(self, kind: int, payload: bytes) -> None:
        """One frame."""
        if kind == frames.DATA and self._file >= 0:
            rest = memoryview(payload)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            return
        if kind != frames.OPEN:
            raise VisitRefused("the sandbox sent no tree")
        self.finish()
        what, mode, names, path = _parsed(payload)
        if len(names) > DEPTH_MAX:
            raise VisitRefused(f"its folders are more than {DEPTH_MAX} deep", "Copy it as an archive.")
        if bool(names) == (self._root < 0):
            raise VisitRefused("the sandbox sent a tree that does not begin with itself")
        if what == trees.LEFT_OUT:
            self._copied.leave_out(path)
        elif what == trees.FOLDER:
            self._make_folder(names, mode)
        else:
            self._begin_file(names, mode)

    def finish(self) -> None:
        """The file that was begun last is whole."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            try:
                os.replace(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except BaseException:
                os.unlink(self._part, dir_fd=self._folder)
                raise
            finally:
                os.close(self._folder)

    def _make_folder(self, names: list[bytes], mode: int) -> None:
        # It is to be written into, whatever it is called to allow.
        mode |= 0o700
        if not names:
            if not self._destination.is_dir():
                self._destination.mkdir(mode)
            self._root = os.open(self._destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return
        folder = self._enter(names[:-1])
        try:
            os.mkdir(names[-1], mode, dir_fd=folder)
        except FileExistsError:
            # Whatever it is, `_enter` goes into folders alone.
            self._enter(names)

    def _begin_file(self, names: list[bytes], mode: int) -> None:
        if names:
            folder, self._name = os.dup(self._enter(names[:-1])), names[-1]
        else:
            self._name = os.fsencode(self._destination.name)
            if self._destination.is_dir() or not self._name:
                raise IsADirectoryError(str(self._destination))
            folder = os.open(self._destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(self._part, flags, mode, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise
        self._folder = folder

    def _enter(self, names: list[bytes]) -> int:
        """The descriptor of a folder in the tree, no link on the way."""
        same = 0
        while same < min(len(names), len(self._chain)) and self._chain[same][0] == names[same]:
            same += 1
        self._leave(same)
        at = self._chain[-1][1] if self._chain else self._root
        for name in names[same:]:
            at = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            self._chain.append((name, at))
        return at

    def _leave(self, depth: int) -> None:
        while len(self._chain) > depth:
            os.close(self._chain.pop()[1])
