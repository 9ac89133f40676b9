"""`read`, `write` and `edit`: text for text as the SDK's (contract §12).

Ours alone: what is at a path is opened before it is judged, so that a FIFO put there in between can't block the agent;
images are encoded piece by piece; an `edit` that would blow the file up beyond `EDIT_RESULT_MAX` is refused.
"""

from __future__ import annotations

import binascii
import os
import sys
from stat import S_ISREG

from actors.guest.errors import ToolFailure, reason
from actors.guest.paths import resolve, suffix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

TEXT_MAX = 256 * 1024
"""Bytes of a file that `read` and `edit` take whole, and of the lines that a `view_range` may select."""
IMAGE_BASE64_MAX = 5 * 1024 * 1024
PDF_MAX = 20 * 1024 * 1024
EDIT_RESULT_MAX = 64 * 1024 * 1024

_PDF = "application/pdf"
_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".pdf": _PDF,
}
# A multiple of three, so that the pieces of base64 join without padding between them.
_ENCODE_BYTES = 48 * 1024
_CHUNK_BYTES = 64 * 1024


class Media:
    """An image or a PDF, encoded."""

    def __init__(self, media_type: str, data: bytearray) -> None:
        self.media_type = media_type
        self.data = data
        """Base64."""

    @property
    def block_type(self) -> str:
        """The content block that carries it."""
        return "document" if self.media_type == _PDF else "image"


def _target(workdir: str, tool: str, path: str) -> str:
    try:
        return resolve(workdir, path)
    except ValueError as error:
        raise ToolFailure(f"{tool}: {error}") from error


def _open_regular(tool: str, target: str, path: str) -> tuple[BinaryIO, int]:
    """The open file and its size; raises `ToolFailure` where it is no regular file, `OSError` where there is none."""
    if not S_ISREG(os.stat(target).st_mode):
        raise ToolFailure(f"{tool}: {path}: not a regular file")
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode):
        os.close(fd)
        raise ToolFailure(f"{tool}: {path}: not a regular file")
    return open(fd, "rb", buffering=0), status.st_size


def _write(target: str, data: bytes) -> None:
    # Without waiting: on a FIFO that nobody reads this is an error, where a plain open would wait for ever.
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    with open(fd, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def read(workdir: str, file_path: str, view_range: list[int] | None, checkpoint: Callable[[], None]) -> str | Media:
    """The text of a file, some of its lines, or an image. `checkpoint` is called again and again and may raise."""
    target = _target(workdir, "read", file_path)
    if view_range and len(view_range) != 2:
        raise ToolFailure("read: view_range must be [start_line, end_line]")
    try:
        file, size = _open_regular("read", target, file_path)
        with file:
            if media_type := _MEDIA.get(suffix(target)):
                if view_range:
                    raise ToolFailure("read: view_range is not supported for image/PDF files")
                return _media(file, file_path, size, media_type)
            if size <= TEXT_MAX:
                text = file.read(TEXT_MAX + 1).decode()
                return _lines(text, *view_range) if view_range else text
            if not view_range:
                raise ToolFailure(
                    f"read: {file_path} is {size} bytes, exceeds {TEXT_MAX}-byte limit. "
                    "Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500]."
                )
            return _Selection(file_path, *view_range).read_from(file, checkpoint)
    except UnicodeDecodeError as error:
        raise ToolFailure(
            f"read: {file_path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
        ) from error
    except OSError as error:
        raise ToolFailure(f"read: {file_path}: {reason(error)}") from error


def _media(file: BinaryIO, file_path: str, size: int, media_type: str) -> Media:
    limit = PDF_MAX if media_type == _PDF else IMAGE_BASE64_MAX // 4 * 3
    data = bytearray()
    while size <= limit and (piece := file.read(_ENCODE_BYTES)):
        # A short read would put padding in the middle.
        while len(piece) % 3 and (more := file.read(3 - len(piece) % 3)):
            piece += more
        data += binascii.b2a_base64(piece, newline=False)
        # It may have grown since it was looked at.
        size = max(size, len(data) // 4 * 3 - 2)
    if size > limit:
        raise ToolFailure(f"read: {file_path} is {size} bytes, exceeds {limit}-byte limit for image/PDF files.")
    return Media(media_type, data)


def _lines(text: str, start: int, end: int) -> str:
    lines = text.split("\n")
    return "\n".join(lines[max(0, start - 1) : end if end > 0 else len(lines)])


class _Selection:
    """Some lines of a file that is too large to be taken whole: line by line, never more than `TEXT_MAX` held."""

    def __init__(self, file_path: str, first: int, last: int) -> None:
        self._path = file_path
        self._asked = [first, last]
        self._from = max(0, first - 1)
        self._to = last if last > 0 else sys.maxsize
        self._picked = bytearray()

    def read_from(self, file: BinaryIO, checkpoint: Callable[[], None]) -> str:
        """The lines, joined; raises `ToolFailure` where they are too much."""
        line = 0
        while self._from < self._to and line < self._to and (chunk := file.read(_CHUNK_BYTES)):
            checkpoint()
            at = 0
            while line < self._to:
                newline = chunk.find(b"\n", at)
                if line >= self._from:
                    self._pick(chunk[at : newline if newline >= 0 else None])
                    if newline >= 0 and line + 1 < self._to:
                        self._pick(b"\n")
                if newline < 0:
                    break
                line += 1
                at = newline + 1
        return self._picked.decode()

    def _pick(self, data: bytes) -> None:
        self._picked += data
        if len(self._picked) <= TEXT_MAX:
            return
        if self._to - self._from == 1:
            raise ToolFailure(
                f"read: line {self._from + 1} of {self._path} alone exceeds {TEXT_MAX}-byte limit. "
                "The read tool cannot return part of a line, so view_range cannot narrow this further."
            )
        raise ToolFailure(
            f"read: view_range {self._asked} of {self._path} exceeds {TEXT_MAX}-byte limit. "
            "Narrow the view_range to read a smaller portion."
        )


def write(workdir: str, file_path: str, content: str) -> str:
    """Make a file of `content`, and the folders above it."""
    target = _target(workdir, "write", file_path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _write(target, content.encode())
    except OSError as error:
        raise ToolFailure(f"write: {file_path}: {reason(error)}") from error
    return f"wrote {len(content)} bytes to {file_path}"


def edit(workdir: str, file_path: str, old_string: str, new_string: str, replace_all: bool | None) -> str:
    """Replace a text that is in the file once, or with `replace_all` wherever it is."""
    target = _target(workdir, "edit", file_path)
    try:
        file, size = _open_regular("edit", target, file_path)
        with file:
            if size > TEXT_MAX:
                raise ToolFailure(
                    f"edit: {file_path} is {size} bytes, exceeds {TEXT_MAX}-byte limit. "
                    "The edit tool loads the whole file and cannot modify a file this large."
                )
            text = file.read(TEXT_MAX + 1).decode()
    except UnicodeDecodeError as error:
        raise ToolFailure(f"edit: {file_path}: not valid UTF-8 text (cannot edit binary files)") from error
    except OSError as error:
        raise ToolFailure(f"edit: {file_path}: {reason(error)}") from error
    count = text.count(old_string)
    if count == 0:
        raise ToolFailure(f"edit: old_string not found in {file_path}")
    if count > 1 and not replace_all:
        raise ToolFailure(f"edit: old_string appears {count} times in {file_path} (must be unique)")
    times = count if replace_all else 1
    if (length := len(text) + times * (len(new_string) - len(old_string))) > EDIT_RESULT_MAX:
        raise ToolFailure(f"edit: {file_path} would have {length} characters, exceeds {EDIT_RESULT_MAX}")
    try:
        _write(target, text.replace(old_string, new_string, times).encode())
    except OSError as error:
        raise ToolFailure(f"edit: {file_path}: {reason(error)}") from error
    return f"edited {file_path} ({times} replacement(s))"
