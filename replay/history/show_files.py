"""What `hourglass ls` and `hourglass cat` print. Names, links and contents are a guest's: shown, never obeyed."""

from __future__ import annotations

import base64
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from events.console import clean, print_json, print_table, say, size
from events.entries import encoded, name_of
from replay.history.errors import FileRefused, NoSuchFile
from replay.history.trees import in_memory, mode_of, shown_path

if TYPE_CHECKING:
    from events.entries import Entry
    from events.listing import Key
    from replay.history.trees import FileTree

_JSON_BYTES = 32 * 1024**2
_MOST_BYTES = 1024**4
"""A guest may make a file of 8 EiB that has nothing in it."""
_STYLES = {"folder": "blue", "link": "cyan", "file": ""}
_LATEST_NS = 253_402_300_799 * 10**9


def show_entries(tree: FileTree, path: str, *, as_json: bool) -> None:
    """List a folder, or one entry. Raises `NoSuchFile`, `StoreError`."""
    key, entry = _find(tree, path)
    rows = list(tree.listing.children(key)) if entry.kind == "folder" else [(key, entry)]
    if as_json:
        print_json(_told(tree) | {"path": shown_path(key), "entries": [_plain(tree, *one) for one in rows]})
        return
    _say_which(tree, key)
    print_table(["mode", ">uid", ">gid", ">size", "changed", "name"], [_row(tree, *one) for one in rows])


def show_content(tree: FileTree, path: str, *, as_json: bool) -> None:
    """Print a file: its bytes as they are, where no terminal shows them. Raises `NoSuchFile`, `FileRefused`."""
    key, entry = tree.find(path)

    def refused(detail: str, remedy: str) -> FileRefused:
        return FileRefused(path=encoded(path), target=str(tree.asked), detail=detail, remedy=remedy)

    if entry.kind != "file":
        raise refused(f"it is no file but a {entry.kind}", f"`hourglass ls {tree.asked}:PATH` shows it.")
    entry = tree.listing.content_of(entry)
    if entry.size > _MOST_BYTES:
        raise refused(f"it claims to have {entry.size:,} bytes", "Look at it in a sandbox that is rebuilt.")
    if as_json:
        if entry.size > _JSON_BYTES:
            raise refused(f"it has {size(entry.size)}, too many for JSON", "Leave out --json, and write it to a file.")
        told = _told(tree) | {"path": shown_path(key), "size": entry.size}
        print_json(told | _content(b"".join(tree.listing.read(entry))))
        return
    _say_which(tree, key)
    if sys.stdout.isatty():
        if entry.size > _JSON_BYTES:
            raise refused(f"it has {size(entry.size)}, too many for a terminal", "Write it to a file: `> FILE`.")
        content = b"".join(tree.listing.read(entry))
        if b"\0" in content[:8192]:
            raise refused("it is binary, and this is a terminal", "Write it to a file: `> FILE`.")
        for line in content.decode(errors="surrogateescape").splitlines():
            say(line.expandtabs())
        return
    out = sys.stdout.buffer
    for block in tree.listing.read(entry):
        out.write(block)
    out.flush()


def _find(tree: FileTree, path: str) -> tuple[Key, Entry]:
    """A folder where a link leads to one; a link that leads nowhere is itself."""
    key, entry = tree.find(path, follow=False)
    if entry.kind != "link":
        return key, entry
    try:
        behind = tree.find(path)
    except NoSuchFile:
        return key, entry
    return behind if behind[1].kind == "folder" else (key, entry)


def _say_which(tree: FileTree, key: Key) -> None:
    """On stderr, so that stdout has the files alone."""
    if tree.changed_by:
        note(f"of {tree.of}, the nearest snapshot; {tree.changed_by} may have changed it since")
    elif tree.of != tree.asked:
        note(f"of {tree.of}, the nearest snapshot; no call has changed it since")
    if in_memory(key):
        note("what a machine has here is its memory, and in no file tree")


def note(text: str) -> None:
    """A note on stderr."""
    sys.stderr.write(f"note: {clean(text)}\n")


def _row(tree: FileTree, key: Key, entry: Entry) -> tuple[object, ...]:
    name = Text(clean(os.fsdecode(key[-1]) if key else "/"), _STYLES.get(entry.kind, "yellow"))
    if entry.kind == "link":
        name.append(f" -> {clean(name_of(entry.target))}", "dim")
    if entry.same_as:
        name.append(f" = /{clean(name_of(entry.same_as))}", "dim")
    of_size = f"{tree.listing.content_of(entry).size:,}" if entry.kind == "file" else ""
    if entry.kind in ("character", "block"):
        of_size = f"{os.major(entry.device)}, {os.minor(entry.device)}"
    return mode_of(entry), entry.uid, entry.gid, of_size, _clock(entry.mtime_ns), name


def _clock(mtime_ns: int) -> str:
    # A guest may set any time.
    if not 0 <= mtime_ns <= _LATEST_NS:
        return f"{mtime_ns // 10**9:,} s"
    return datetime.fromtimestamp(mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _plain(tree: FileTree, key: Key, entry: Entry) -> dict[str, Any]:
    return {
        "path": shown_path(key),
        "kind": entry.kind,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "size": tree.listing.content_of(entry).size if entry.kind == "file" else None,
        "target": entry.target if entry.kind == "link" else None,
        "same_as": f"/{entry.same_as}" if entry.same_as else None,
        "device": [os.major(entry.device), os.minor(entry.device)] if entry.device else None,
    }


def _told(tree: FileTree) -> dict[str, Any]:
    return {
        "stream": tree.asked.stream,
        "version": tree.asked.version,
        "of": {"stream": tree.of.stream, "version": tree.of.version, "snapshot_id": tree.snapshot_id},
        "changed_by": tree.changed_by or None,
    }


def _content(content: bytes) -> dict[str, str]:
    try:
        return {"encoding": "utf-8", "content": content.decode()}
    except UnicodeDecodeError:
        return {"encoding": "base64", "content": base64.b64encode(content).decode()}
