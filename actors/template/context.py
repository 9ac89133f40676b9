"""Copying from the folder of a file of steps into a root. What is copied belongs to root; links stay links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from actors.template.manifest import TemplateError
from actors.template.rooted import BadPath, Rooted, open_beneath

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.template.steps import Copied

_PIECE = 1024**2
_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


def copy_into(context: Path, copied: Copied, root: Rooted | None) -> str:
    """Copy, or only look where `root` is None; the digest of what was copied: names, modes, links and content.

    Raises `TemplateError` where it is not there, leads out of the folder, or is neither file, folder nor link.
    """
    what = f"{copied.source} in {context}"
    try:
        folder = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_beneath(folder, copied.source, _LOOK)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise TemplateError(f"{what} is a link out of that folder; copy what it names there") from None
        raise TemplateError(f"{what} can't be copied: {error.strerror}") from None
    copier = _Copier(what, root)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            if root is not None:
                with root.folder(copied.to):
                    pass
            copier.folder(fd, copied.to.rstrip("/"), "")
        else:
            copier.file(fd, _target(copied, root), "")
    except (BadPath, RecursionError) as error:
        raise TemplateError(f"{what} can't be copied to {copied.to}: {error}") from None
    except OSError as error:
        raise TemplateError(f"{what} can't be copied to {copied.to}: {error}") from error
    finally:
        os.close(fd)
    return copier.digest.hexdigest()


def _target(copied: Copied, root: Rooted | None) -> str:
    if copied.to.endswith("/"):
        return copied.to + Path(copied.source).name
    if root is not None and root.is_folder(copied.to):
        raise TemplateError(
            f"{copied.to} is a folder there; say {copied.to.rstrip('/')}/ to put {copied.source} into it"
        )
    return copied.to


class _Copier:
    def __init__(self, what: str, root: Rooted | None) -> None:
        self.digest = blake3()
        self._what = what
        self._root = root

    def folder(self, fd: int, to: str, name: str) -> None:
        """What is in an open folder."""
        for entry in sorted(os.listdir(fd), key=os.fsencode):
            inner, target = f"{name}/{entry}", f"{to}/{entry}"
            status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                link = os.readlink(entry, dir_fd=fd)
                self._note("link", inner, 0, link)
                self._do(lambda root, target=target, link=link: root.make_link(target, link))  # type: ignore[misc]
                continue
            below = os.open(entry, _LOOK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                if stat.S_ISDIR(os.fstat(below).st_mode):
                    self._note("folder", inner, status.st_mode, "")
                    if self._root is not None and not self._root.is_folder(target):
                        self._root.make_folder(target, mode=status.st_mode & 0o1777)
                    self.folder(below, target, inner)
                else:
                    self.file(below, target, inner)
            finally:
                os.close(below)

    def file(self, fd: int, to: str, name: str) -> None:
        """An open file."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise TemplateError(f"{self._what}{name} is neither a file nor a folder nor a link")
        self._note("file", name, status.st_mode, "")
        mode = status.st_mode & 0o777
        if self._root is None:
            self._content(fd, lambda _: None)
            return
        with (
            self._root.new_file(to, mode=mode, mtime=status.st_mtime) as target,
            open(target, "wb", closefd=False) as out,
        ):
            self._content(fd, lambda piece: out.write(piece))

    def _content(self, fd: int, take: Callable[[bytes], object]) -> None:
        count = 0
        while piece := os.read(fd, _PIECE):
            self.digest.update(piece)
            take(piece)
            count += len(piece)
        self._note("end", "", 0, str(count))

    def _note(self, kind: str, name: str, mode: int, more: str) -> None:
        for part in (kind, name, oct(stat.S_IMODE(mode)), more):
            data = os.fsencode(part)
            self.digest.update(len(data).to_bytes(8, "big") + data)

    def _do(self, make: Callable[[Rooted], None]) -> None:
        if self._root is not None:
            make(self._root)
