"""Packages that differ between two stored trees, read from what package managers leave behind, with no machine.

All of it is a guest's: no link is followed, what is too large, too many or malformed is counted and left out, and a
package is never anything but a name and a version. Only what differs between the listings is read.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from replay.history.trees import shown_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from events.entries import Entry
    from events.listing import Key, Listing

_MOST_FILES = 10_000
"""Of each tree, that differ."""
_STATUS_BYTES = 32 * 1024**2
"""Of dpkg's file, which has all of its packages; a thousand take 1 MiB."""
_FILE_BYTES = 1024**2
"""Of a file that has one package."""
_HEAD_BYTES = 64 * 1024
"""Of the headers that begin one of Python's; a description follows them."""
_DPKG = (b"var", b"lib", b"dpkg")
_DPKG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,199}")
_ARCHITECTURE = re.compile(r"[a-z0-9-]{0,40}")
_PYTHON_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")
_NPM_NAME = re.compile(r"(?:@[A-Za-z0-9._~-]{1,99}/)?[A-Za-z0-9._~-]{1,200}")
_VERSION = re.compile(r"[!-~]{1,200}")
_PYTHON_PLACES = (b"site-packages", b"dist-packages")

Manager = Literal["dpkg", "python", "npm"]


class Package(NamedTuple):
    """A package, whatever its version."""

    manager: Manager
    where: str
    """The folder that it is in, as in `FileChange`; of dpkg, which has one place alone, the architecture."""
    name: str
    """As its manager compares it: Python's in lower case with `-`."""


@dataclass(frozen=True, slots=True)
class PackageChange:
    """A package that only one tree has, or that has another version in the other."""

    manager: Manager
    where: str
    name: str
    change: Literal["added", "removed", "changed"]
    before: str | None
    """The version; several, with commas between, where traces of several lie in the same place."""
    after: str | None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Packages:
    """What differs between the packages of two trees."""

    changes: tuple[PackageChange, ...]
    left_out: int
    """Files that were not read, or name no package: too large, too many, malformed."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"changes": [one.plain() for one in self.changes], "left_out": self.left_out}


@dataclass
class _Side:
    """What is found in one of the trees."""

    listing: Listing
    found: dict[Package, set[str]] = field(default_factory=dict)
    files: int = 0
    left_out: int = 0

    def take(self, key: Key, line: str) -> None:
        """Read an entry, if it is a package manager's."""
        read = _reader(key)
        if read is None:
            return
        entry = self.listing.parse(line)
        if entry.kind != "file":
            return
        self.files += 1
        if self.files > _MOST_FILES:
            self.left_out += 1
            return
        for one in read(self.listing, key, entry):
            if one is None:
                self.left_out += 1
            else:
                self.found.setdefault(one[0], set()).add(one[1])


_Found = tuple[Package, str] | None
"""A package and its version; None where there is something that is none."""


def package_changes(old: Listing, new: Listing, differing: Iterable[tuple[Key, str, str]]) -> Packages:
    """What differs, by manager, place and name. Raises `StoreError`.

    Args:
        differing: keys of entries that differ, with their lines in both; "" where one has none.
    """
    before, after = _Side(old), _Side(new)
    for key, one, other in differing:
        if one:
            before.take(key, one)
        if other:
            after.take(key, other)
    return Packages(tuple(_changes(before.found, after.found)), before.left_out + after.left_out)


def _changes(before: dict[Package, set[str]], after: dict[Package, set[str]]) -> Iterator[PackageChange]:
    for one in sorted(before.keys() | after.keys()):
        old, new = before.get(one), after.get(one)
        if old == new:
            continue
        change: Literal["added", "removed", "changed"]
        change = "added" if old is None else "removed" if new is None else "changed"
        yield PackageChange(one.manager, one.where, one.name, change, _versions(old), _versions(new))


def _versions(found: set[str] | None) -> str | None:
    return None if found is None else ", ".join(sorted(found))


def _reader(key: Key) -> Callable[[Listing, Key, Entry], Iterator[_Found]] | None:
    """What reads the file of this path; None where it is no package manager's."""
    if key[:3] == _DPKG:
        single = len(key) == 5 and key[3] == b"status.d" and not key[4].endswith(b".md5sums")
        return _dpkg if key[3:] == (b"status",) or single else None
    if key[-1:] == (b"package.json",):
        scoped = len(key) >= 4 and key[-3][:1] == b"@" and key[-4] == b"node_modules"
        return _npm if scoped or (len(key) >= 3 and key[-3] == b"node_modules") else None
    if len(key) >= 3 and key[-3] in _PYTHON_PLACES:
        wheel = key[-1] == b"METADATA" and key[-2].endswith(b".dist-info")
        return _python if wheel or (key[-1] == b"PKG-INFO" and key[-2].endswith(b".egg-info")) else None
    return None


def _dpkg(listing: Listing, key: Key, entry: Entry) -> Iterator[_Found]:
    content = _content(listing, entry, _STATUS_BYTES)
    if content is None:
        yield None
        return
    for stanza in re.split(r"\n[ \t]*\n", content.decode(errors="replace")):
        fields = _headers(stanza)
        # In `status` removed ones leave their configuration; in `status.d` there is no such line.
        if not fields or fields.get("status", "install ok installed").split()[-1:] != ["installed"]:
            continue
        where, name, version = fields.get("architecture", ""), fields.get("package", ""), fields.get("version", "")
        yield _package("dpkg", where, name, version, _DPKG_NAME) if _ARCHITECTURE.fullmatch(where) else None


def _python(listing: Listing, key: Key, entry: Entry) -> Iterator[_Found]:
    head = _content(listing, entry, _HEAD_BYTES, cut=True)
    fields = _headers(re.split(r"\r?\n\r?\n", (head or b"").decode(errors="replace"), maxsplit=1)[0])
    name, version = fields.get("name", ""), fields.get("version", "")
    found = _package("python", shown_path(key[:-2]), name, version, _PYTHON_NAME)
    if found is None:
        yield None
        return
    package, version = found
    yield package._replace(name=re.sub(r"[-_.]+", "-", package.name).lower()), version


def _npm(listing: Listing, key: Key, entry: Entry) -> Iterator[_Found]:
    content = _content(listing, entry, _FILE_BYTES)
    try:
        said = orjson.loads(content or b"")
    except orjson.JSONDecodeError:
        yield None
        return
    name, version = (said.get("name"), said.get("version")) if isinstance(said, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(version, str):
        yield None
        return
    folders = 3 if key[-3][:1] == b"@" else 2
    yield _package("npm", shown_path(key[:-folders]), name, version, _NPM_NAME)


def _package(manager: Manager, where: str, name: str, version: str, names: re.Pattern[str]) -> _Found:
    if not names.fullmatch(name) or not _VERSION.fullmatch(version):
        return None
    return Package(manager, where, name), version


def _headers(text: str) -> dict[str, str]:
    """The fields of a header, the first of each name, in lower case; what continues one is left out."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon and not line[:1].isspace():
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _content(listing: Listing, entry: Entry, most: int, *, cut: bool = False) -> bytes | None:
    """A file's bytes; where it has more than `most`, None, or the first of them with `cut`."""
    size = listing.content_of(entry).size
    if size > most and not cut:
        return None
    found = bytearray()
    for block in listing.read(entry):
        found += block
        if len(found) >= most:
            break
    return bytes(found[:most])
