"""Writing a session into a file: its streams as they are, and its snapshots out of the store."""

from __future__ import annotations

import os
import re
import tarfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import orjson
import zstandard

from events.errors import FileNotWritten, LogCorrupt
from events.manifest import Manifest, template_id
from events.snapshots import pieces_of_image, pieces_of_page
from replay.parcel import layout
from replay.parcel.errors import NotExportable
from replay.parcel.layout import BLOBS, CHUNKS, EVENTS, FORMAT, HEADER, MANIFESTS, Header
from replay.timeline.source import find, sandboxes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog

_SESSION, _SANDBOX = "session-", "sandbox-"
_DISTRIBUTION = "hourglass-agents"
_BEGINNINGS = ("sandbox.created", "sandbox.branched")
_TAKEN = "sandbox.snapshotted"
_SNAPSHOTS = (_TAKEN, "sandbox.suspended", "sandbox.resumed", "sandbox.forked", "sandbox.branched")
"""Events that name one."""
_STREAM = re.compile(r"(session|sandbox)-[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Exported:
    """What is in a file."""

    path: Path
    bytes: int
    session_id: str
    streams: dict[str, int]
    """How many events of each."""
    events: int
    snapshots: tuple[str, ...]
    left_out: tuple[str, ...]
    """Snapshots that the log names and the store does not have, and so the file neither."""


@dataclass(slots=True)
class _Contents:
    """What is going to be in it."""

    streams: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, None] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    chunks: dict[str, str] = field(default_factory=dict)
    """By name: a snapshot that needs it."""


def export_session(
    log: SqliteLog,
    name: str,
    path: Path,
    store: SnapshotStore | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write a session, its sandboxes and what they came from into a file, which is there whole or not at all.

    Works beside a service: what is appended meanwhile is left out.

    Args:
        name: of a session or a sandbox, or the beginning of it; a sandbox's is taken for its session's.
        store: None: without snapshots.
        progress: called with how many chunks are written, of how many.

    Raises:
        NotInLog, Ambiguous: `name` is none, or several.
        NotExportable: a stream whose name no import would take.
        StoreError: the store failed, or what it has of a snapshot is damaged.
        FileNotWritten: no room, or no right to write.
        LogError: the log can't be read, or a row of it was changed.
    """
    until = log.position()
    session_id = find(log, name).session_id
    contents = _Contents(_streams(log, name, until))
    with _rewritten(path) as file, TemporaryFile(dir=path.parent) as rows:
        named = _write_rows(log, contents, rows)
        if store is not None:
            _choose(store, named, contents)
        header = Header(
            format=FORMAT,
            hourglass=version(_DISTRIBUTION),
            session_id=session_id,
            exported_at=time.time(),
            streams=contents.streams,
            blobs=len(contents.blobs),
            snapshots=len(contents.manifests),
            chunks=len(contents.chunks),
        )
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, HEADER, orjson.dumps(header.model_dump(), option=orjson.OPT_INDENT_2))
            _add_file(tar, EVENTS, rows)
            for digest in contents.blobs:
                _add(tar, BLOBS + digest, log.blobs.get(digest))
            if store is not None:
                _add_snapshots(tar, store, contents, progress)
    snapshots = tuple(one for one in contents.manifests if not one.startswith(template_id("")))
    left_out = tuple(contents.left_out)
    size = path.stat().st_size
    return Exported(path, size, session_id, contents.streams, header.events, snapshots, left_out)


def _add_snapshots(
    tar: tarfile.TarFile, store: SnapshotStore, contents: _Contents, progress: Callable[[int, int], None] | None
) -> None:
    for snapshot_id, content in contents.manifests.items():
        _add(tar, f"{MANIFESTS}{snapshot_id}.json", content)
    for number, (chunk, snapshot_id) in enumerate(contents.chunks.items(), start=1):
        _add(tar, CHUNKS + chunk, store.chunks.packed(chunk, snapshot_id))
        if progress is not None:
            progress(number, len(contents.chunks))


def _streams(log: SqliteLog, name: str, until: int) -> dict[str, int]:
    """Every stream that belongs to it, and how many of its events there are up to a position."""
    subject = find(log, name)
    if subject.session_id:
        names = [_SESSION + subject.session_id, *(_SANDBOX + one for one in sandboxes_of(log, subject.session_id))]
    else:
        names = [_SANDBOX + subject.sandbox_id]
    found = {one: last for one in names if (last := log.version_at(one, position=until))}
    left = [one for one in found if one.startswith(_SANDBOX)]
    while left:
        parent, needed = _parent(log, left.pop())
        if parent and found.get(parent, 0) < needed and (have := _recorded(log, parent, needed, until)):
            found[parent] = max(found.get(parent, 0), have)
            left.append(parent)
    for one in found:
        if not _STREAM.fullmatch(one):
            raise NotExportable(name=one, detail="no stream of a Hourglass has such a name")
    return found


def _parent(log: SqliteLog, stream: str) -> tuple[str, int]:
    """The stream that a sandbox's begins with, and up to which version; "" where it has a beginning of its own."""
    for row in log.rows(stream=stream, limit=1):
        told = log.json(row)
        if row.type in _BEGINNINGS and isinstance(told, dict) and told.get("parent"):
            return _SANDBOX + str(told["parent"]), int(told.get("parent_version") or 0)
    return "", 0


def _recorded(log: SqliteLog, stream: str, version: int, until: int) -> int:
    """Up to where a stream tells of a version and its snapshot: that is recorded after the state that it is of."""
    last = min(log.version_at(stream, position=until), version)
    for row in log.rows(version, stream=stream):
        if row.position > until:
            break
        if row.type == _TAKEN:
            told = log.json(row)
            of = told.get("of_version") if isinstance(told, dict) else None
            last = row.version if (of or row.version - 1) <= version else last
    return last


def _write_rows(log: SqliteLog, contents: _Contents, file: IO[bytes]) -> dict[str, None]:
    """Write the rows in the log's order; the snapshots that they name."""
    positions = sorted(
        (position, stream)
        for stream, last in contents.streams.items()
        for (position,) in log.query("SELECT position FROM events WHERE stream = ? AND version <= ?", (stream, last))
    )
    readers = {stream: log.rows(stream=stream) for stream in contents.streams}
    named: dict[str, None] = {}
    with zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False) as packed:
        for position, stream in positions:
            row = next(readers[stream])
            before = _hash_before(log, position)
            if row.position != position or row.expected_hash(before) != row.hash:
                raise LogCorrupt(path=log.path, detail=f"the row at position {position} is not what its hash says")
            packed.write(layout.to_line(row, before))
            if row.blob is not None:
                contents.blobs[row.blob] = None
            if row.type in _SNAPSHOTS:
                told = log.json(row)
                named[str(told.get("snapshot_id", "")) if isinstance(told, dict) else ""] = None
    named.pop("", None)
    return named


def _hash_before(log: SqliteLog, position: int) -> bytes:
    rows = log.query("SELECT hash FROM events WHERE position < ? ORDER BY position DESC LIMIT 1", (position,))
    return bytes(rows[0][0]) if rows else bytes(32)


def _choose(store: SnapshotStore, named: dict[str, None], contents: _Contents) -> None:
    """The snapshots that there are, the templates that they are made from, and every chunk of both."""
    pages: set[str] = set()
    for snapshot_id in named:
        if not store.has(snapshot_id):
            contents.left_out.append(snapshot_id)
            continue
        manifest, content = _manifest(store, snapshot_id)
        contents.manifests[snapshot_id] = content
        _note(store, manifest, contents, pages)
        template = template_id(manifest.template_root)
        if template not in contents.manifests and store.has(template):
            root, content = _manifest(store, template)
            contents.manifests[template] = content
            _note(store, root, contents, pages)


def _manifest(store: SnapshotStore, snapshot_id: str) -> tuple[Manifest, bytes]:
    manifest, _ = store.manifest(snapshot_id)
    return manifest, manifest.encode()[0]


def _note(store: SnapshotStore, manifest: Manifest, contents: _Contents, pages: set[str]) -> None:
    name = manifest.snapshot_id
    for chunk in pieces_of_image(manifest):
        contents.chunks.setdefault(chunk, name)
    for page in manifest.tree.pages:
        contents.chunks.setdefault(page, name)
        # Not by `chunks`: a guest can have a file that is, byte for byte, a page.
        if page not in pages:
            pages.add(page)
            for chunk in pieces_of_page(store.chunks.get(page, name)):
                contents.chunks.setdefault(chunk, name)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, BytesIO(content))


def _add_file(tar: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = file.seek(0, os.SEEK_END), 0o644
    file.seek(0)
    tar.addfile(info, file)


@contextmanager
def _rewritten(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the path's place once it is whole. Raises `FileNotWritten`."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FileNotWritten(path=path, detail=error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
