"""What differs between two stored trees: the listings side by side, and the contents of what has changed.

Pages that both listings have are passed over unread, so that two snapshots of one sandbox are compared in the time of
what is between them. Times alone are no difference. Every name of a changed file is told, since its time stands with
each; where a guest has set the time back, at least the first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from replay.history.text_diff import TEXT_BYTES, as_text, unified
from replay.history.trees import mode_of, shown_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.entries import Entry
    from events.listing import Key, Listing

_BESIDES = ("mode", "uid", "gid", "target", "device", "attributes")
"""Fields that are a change of their own."""
_COMPARED_BYTES = 16 * 1024**2
"""Files of the same size that are cut differently are read again up to this size, and taken for changed beyond it."""


@dataclass(frozen=True, slots=True)
class Side:
    """An entry in one of the trees."""

    kind: str
    mode: str
    """As `ls -l` shows it."""
    uid: int
    gid: int
    size: int | None
    """Of a file."""
    target: str
    """Of a link."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that differs."""

    path: str
    """From the root; what is not printable UTF-8 stands as `%XX`, and `%` as `%25`."""
    change: Literal["added", "removed", "changed"]
    before: Side | None
    after: Side | None
    what: tuple[str, ...]
    """Of what changed: `kind`, `content`, `mode`, `uid`, `gid`, `target`, `device`, `attributes`."""
    diff: tuple[str, ...] | None
    """Of a file whose content changed: hunks of a unified diff; None where a side is no text, or too much differs."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"what": list(self.what), "diff": None if self.diff is None else list(self.diff)}


def differing_lines(old: Listing, new: Listing) -> Iterator[tuple[Key, str, str]]:
    """The lines that differ, by key, in the order of the listings; "" where one has none. Raises `StoreError`."""
    shared = set(old.manifest.tree.pages) & set(new.manifest.tree.pages)
    return (one for one in _paired(old.lines(shared), new.lines(shared)) if one[1] != one[2])


def tree_changes(old: Listing, new: Listing) -> Iterator[FileChange]:
    """Every path that differs, in the order of the listings. Raises `StoreError`."""
    for key, before, after in differing_lines(old, new):
        path = shown_path(key)
        if not after:
            yield FileChange(path, "removed", _side(old, old.parse(before)), None, (), None)
        elif not before:
            yield FileChange(path, "added", None, _side(new, new.parse(after)), (), None)
        else:
            a, b = old.parse(before), new.parse(after)
            what = tuple(_what(old, new, a, b))
            hunks = _text_diff(old, new, a, b) if "content" in what else None
            if what:
                yield FileChange(path, "changed", _side(old, a), _side(new, b), what, hunks)


def _paired(old: Iterator[tuple[Key, str]], new: Iterator[tuple[Key, str]]) -> Iterator[tuple[Key, str, str]]:
    """The lines of both, by key; "" where one has none."""
    a, b = next(old, None), next(new, None)
    while a is not None or b is not None:
        if a is not None and (b is None or a[0] < b[0]):
            yield a[0], a[1], ""
            a = next(old, None)
        elif b is not None and (a is None or b[0] < a[0]):
            yield b[0], "", b[1]
            b = next(new, None)
        elif a is not None and b is not None:
            yield a[0], a[1], b[1]
            a, b = next(old, None), next(new, None)


def _what(old: Listing, new: Listing, a: Entry, b: Entry) -> Iterator[str]:
    if a.kind != b.kind:
        yield "kind"
        return
    if a.kind == "file" and not _same_content(old, new, a, b):
        yield "content"
    yield from (name for name in _BESIDES if getattr(a, name) != getattr(b, name))


def _same_content(old: Listing, new: Listing, a: Entry, b: Entry) -> bool:
    first, second = old.content_of(a), new.content_of(b)
    if first.size != second.size or first.pieces == second.pieces:
        return first.size == second.size
    # The same bytes may be cut in two ways, where one file has a hole and the other zeros.
    return first.size <= _COMPARED_BYTES and b"".join(old.read(first)) == b"".join(new.read(second))


def _text_diff(old: Listing, new: Listing, a: Entry, b: Entry) -> tuple[str, ...] | None:
    if max(old.content_of(a).size, new.content_of(b).size) > TEXT_BYTES:
        return None
    before, after = as_text(b"".join(old.read(a))), as_text(b"".join(new.read(b)))
    hunks = unified(before, after) if before is not None and after is not None else None
    return tuple(hunks) if hunks is not None else None


def _side(listing: Listing, entry: Entry) -> Side:
    size = listing.content_of(entry).size if entry.kind == "file" else None
    return Side(entry.kind, mode_of(entry), entry.uid, entry.gid, size, entry.target)
