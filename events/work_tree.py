"""A digest of a work tree: the same for the same files, however they lie on the disk and whenever they were written.

Of each entry counts all but its times, which no two runs have in common. Where a hole of a file ends is the file
system's affair, so content counts in whole blocks. Hostile, as every tree: no link is followed, `/workspace` itself
included.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from blake3 import blake3

from events.chunks import FILE_BYTES
from events.entries import Entry, parse, parts_of, path_of
from events.tree_reader import TooMuch, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from events.chunks import Piece

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD_BYTES = 256 * 1024**2
WORK = "workspace"
"""The folder of a sandbox's tree in which its agent works."""

Lines = dict[str, str]
"""By the encoded path of each entry, from the work folder, what counts of it."""


def digest_of(lines: Mapping[str, str]) -> str:
    """The digest of a work tree, of 64 hex digits."""
    hasher = hashlib.sha256()
    for path in sorted(lines):
        hasher.update(f"{path}\t{lines[path]}\n".encode())
    return hasher.hexdigest()


def lines_on_disk(tree: Path) -> Lines:
    """What counts of the work folder of a sandbox's tree, which nobody writes meanwhile.

    Empty where there is no such folder, or something else in its place.

    Raises:
        TooMuch: as `read_tree`.
        OSError: something can't be read.
    """
    held: dict[str, bytes] = {}

    def put(content: bytes) -> str:
        name = blake3(content).hexdigest()
        if len(content) < FILE_BYTES:
            held[name] = content
            if len(held) * FILE_BYTES > _HELD_BYTES and sum(map(len, held.values())) > _HELD_BYTES:
                raise TooMuch(f"a file has more than {_HELD_BYTES // 1024**2} MiB in pieces between holes")
        return name

    def entries() -> Iterator[Entry]:
        for _, seen in read_tree(tree / WORK, {}, put):
            yield parse(seen.line)
            held.clear()  # what was read of one file is needed for it alone

    try:
        return _lines(entries(), held.__getitem__)
    except OSError as error:
        # Of the folder itself; the errors of what lies in it have the name alone.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) and str(error.filename) == str(tree / WORK):
            return {}
        raise


def lines_in_listing(listing: Callable[[], Iterable[str]], get: Callable[[str], bytes]) -> Lines:
    """What counts of the work folder in the listing of a whole tree.

    Args:
        listing: its lines, parents first; may be called twice.
        get: a chunk by its name.

    Raises what these raise, and `ValueError` for a line that can't be read.
    """
    inside = [parse(line) for line in listing() if _is_work(path_of(line))]
    if not inside or inside[0].kind != "folder":
        return {}
    outside = {one.same_as for one in inside if one.same_as and not _is_work(one.same_as)}
    twins = {path_of(line): line for line in listing() if path_of(line) in outside} if outside else {}
    if outside - set(twins):
        raise ValueError(f"the listing has no {min(outside - set(twins))!r}, which a file of it is")
    return _lines(_from_work(inside, twins), get)


def text_on_disk(tree: Path, path: str, most: int) -> str | None:
    """The text of a plain file of the work folder, by its encoded path; None where it is none, or has more bytes.

    Raises `OSError`.
    """
    folder = os.open(tree / WORK, _FOLDER)
    try:
        *parents, name = parts_of(path)
        for parent in parents:
            inner = os.open(parent, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        fd = os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return _text(file.read(most + 1), most)


def text_in_listing(
    listing: Callable[[], Iterable[str]], get: Callable[[str], bytes], path: str, most: int
) -> str | None:
    """The same, from the listing of a whole tree; None for a file that has its content under another name, too."""
    wanted = f"{WORK}/{path}"
    entry = next((parse(line) for line in listing() if path_of(line) == wanted), None)
    if entry is None or entry.kind != "file" or entry.same_as or entry.size > most:
        return None
    content = bytearray(entry.size)
    for at, length, name in entry.pieces:
        content[at : at + length] = get(name)
    return _text(bytes(content), most)


def _text(content: bytes, most: int) -> str | None:
    if len(content) > most or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _is_work(path: str) -> bool:
    return path == WORK or path.startswith(f"{WORK}/")


def _from_work(inside: Iterable[Entry], twins: Mapping[str, str]) -> Iterator[Entry]:
    """The entries of the work folder, as a look at it alone would give them.

    Args:
        twins: lines of files outside that have names inside.
    """
    first: dict[str, str] = {}
    """By the names of these, their first names inside."""
    for entry in inside:
        path, same = _from(entry.path), entry.same_as
        if same in twins and same not in first:
            first[same] = path
            whole = parse(twins[same])
            kept = {"path": path, "same_as": "", "size": whole.size, "pieces": whole.pieces}
            yield entry.model_copy(update=kept | {"attributes": whole.attributes})
        else:
            same = first[same] if same in first else _from(same)
            yield entry.model_copy(update={"path": path, "same_as": same})


def _from(path: str) -> str:
    return path[len(WORK) + 1 :]


def _lines(entries: Iterable[Entry], get: Callable[[str], bytes]) -> Lines:
    found: Lines = {}
    for entry in entries:
        counts = entry.model_dump(exclude={"path", "mtime_ns", "pieces"}, exclude_defaults=True)
        content = list(_blocks(entry.size, entry.pieces, get))
        told = [f"{name}={counts[name]!r}" for name in sorted(counts)] + content
        found[entry.path] = " ".join(told)
    return found


def _blocks(size: int, pieces: Iterable[Piece], get: Callable[[str], bytes]) -> Iterator[str]:
    """The blocks of a file that are not all zeros: number and digest of each."""
    block: list[Piece] = []
    for piece in pieces:
        if block and piece[0] // FILE_BYTES != block[0][0] // FILE_BYTES:
            yield _block(size, block, get)
            block = []
        block.append(piece)
    if block:
        yield _block(size, block, get)


def _block(size: int, pieces: list[Piece], get: Callable[[str], bytes]) -> str:
    number = pieces[0][0] // FILE_BYTES
    begin = number * FILE_BYTES
    length = min(FILE_BYTES, size - begin)
    at, covered, name = pieces[0]
    if (at, covered) == (begin, length):
        return f"{number}:{name}"
    content = bytearray(length)
    for at, covered, name in pieces:
        content[at - begin : at - begin + covered] = get(name)
    return f"{number}:{blake3(content).hexdigest()}"
