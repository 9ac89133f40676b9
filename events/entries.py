"""The entries of a file tree, as the lines of its listing: portable over file systems, and readable with no machine.

A tree is a guest's, and hostile: a name may be any bytes, so in a line what is not printable UTF-8 stands as `%XX`, and
`%` as `%25`. A line never names anything outside the tree.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from events.chunks import Piece

Kind = Literal["file", "folder", "link", "pipe", "socket", "character", "block"]
KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
}
_Encoded = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*=*$")]


class Entry(BaseModel):
    """One entry of a tree. Names are encoded; `name_of` gives them back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """From the root of the tree; "" for the root itself."""
    kind: Kind
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    uid: Annotated[int, Field(ge=0, lt=2**32)]
    gid: Annotated[int, Field(ge=0, lt=2**32)]
    mtime_ns: int
    size: Annotated[int, Field(ge=0)] = 0
    """Of a file."""
    pieces: tuple[Piece, ...] = ()
    """Of a file; what none covers is zeros."""
    same_as: str = ""
    """Of a file: the path of the first entry that is the same file (a hard link), which has the pieces."""
    target: str = ""
    """Of a link."""
    device: Annotated[int, Field(ge=0)] = 0
    """Of a device."""
    attributes: dict[str, _Encoded] = {}
    """Extended attributes, in base64."""

    def line(self) -> str:
        """As it stands in a listing."""
        return self.model_dump_json(exclude_defaults=True)

    @property
    def parts(self) -> list[str]:
        """The names on the way to it. Raises `ValueError` for a path that leads anywhere else."""
        return parts_of(self.path)


def parts_of(path: str) -> list[str]:
    """The names of an encoded path, as `os` takes them. Raises `ValueError` where it could lead out of the tree."""
    names = [name_of(part) for part in path.split("/")] if path else []
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
            raise ValueError(f"{path!r} is no path of an entry")
    return names


def parse(line: str | bytes) -> Entry:
    """An entry from its line. Raises `ValueError`."""
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(f"a line of the listing can't be read: {str(error).splitlines()[-2:]}") from None


def encoded(name: str) -> str:
    """A name or a link's target, as `os` gives it, fit for a listing."""
    if "%" not in name and name.isprintable():
        return name
    return "".join(char if char.isprintable() and char != "%" else _escape(char) for char in name)


def name_of(text: str) -> str:
    """What `encoded` made it from."""
    return unquote(text, errors="surrogateescape") if "%" in text else text


def attribute(value: bytes) -> str:
    """An extended attribute's value, fit for a listing."""
    return base64.b64encode(value).decode()


def value_of(text: str) -> bytes:
    """What `attribute` made it from."""
    return base64.b64decode(text)


def path_of(line: str) -> str:
    """The path of a line that `Entry.line` made, without reading all of it."""
    found = re.match(r'\{"path":("(?:[^"\\]|\\.)*")', line)
    if found is None:
        raise ValueError("a line of the listing has no path")
    text = found[1]
    return text[1:-1] if "\\" not in text else parse(line).path


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(char))
