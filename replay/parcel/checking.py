"""Reading an exported session that anybody may have made: each member by the rules, bounded, and proved by its digest.

`Parcel.check` reads the file from its beginning to its end and keeps names alone; only then may it be believed. It is
read again to be taken over, and `unchanged` says whether it is still the same.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self

import orjson
import zstandard
from pydantic import ValidationError

from events.chunks import unpacked
from events.codec import CODEC
from events.errors import EventTooNew, UnknownEventType
from events.manifest import Manifest, decode, template_id
from events.snapshots import pieces_of_image, pieces_of_page
from replay.parcel import layout
from replay.parcel.errors import ParcelBroken, ParcelTooNew
from replay.parcel.layout import BLOBS, EVENTS, FORMAT, HEADER, MANIFESTS, Header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from events.rows import Row

_BLOCK = 1024**2
_HEAD = 512
_TYPE_AT = 156
_PLAIN = (b"0", b"\0")
"""A member's type, for a plain file; and what is at that place in the zeros at the end."""


@dataclass(slots=True)
class _Seen:
    """What a check has come by, until now."""

    events: bool = False
    versions: Counter[str] = field(default_factory=Counter)
    snapshots: set[str] = field(default_factory=set)
    """That events name."""
    blobs_named: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By digest: type and schema version of the event whose data it is."""
    blobs: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    templates_needed: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    chunks_needed: set[str] = field(default_factory=set)
    chunks: set[str] = field(default_factory=set)


class Parcel:
    """An open file. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises `ParcelBroken` where nothing is there, or nothing that can be read."""
        self.path = path
        try:
            self._file = path.open("rb")
            self._stamp = self._look()
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _look(self) -> tuple[int, int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def unchanged(self) -> None:
        """Raises `ParcelBroken` where somebody wrote to the file since it was opened."""
        if self._look() != self._stamp:
            self._fail("it was changed while it was read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check(self, progress: Callable[[int, int], None] | None = None) -> Header:
        """Read all of it, and check all of it.

        Args:
            progress: called with how many chunks were checked, of how many.

        Raises:
            ParcelBroken: it is no export, truncated, changed, or says of itself what is not so.
            ParcelTooNew, UnknownEventType, EventTooNew: written by a newer Hourglass.
        """
        header: Header | None = None
        seen = _Seen()
        for kind, name, member in self._members():
            if header is None:
                header = self._header(name, member)
            elif kind == HEADER:
                self._fail("it has two beginnings")
            elif kind == EVENTS:
                if seen.events:
                    self._fail("it has its events twice")
                seen.events = True
                for row in self._rows(member):
                    self._see_row(row, header, seen)
            elif kind == BLOBS:
                self._see_blob(name, member.read(), seen)
            elif kind == MANIFESTS:
                self._see_manifest(self._manifest(name, member.read()), header, seen)
            else:
                self._see_chunk(name, member.read(), seen)
                if progress is not None:
                    progress(len(seen.chunks), header.chunks)
        if header is None:
            self._fail("it is empty")
        self._whole(header, seen)
        return header

    def rows(self) -> Iterator[Row]:
        """The events, in their log's order. Raises `ParcelBroken`."""
        for kind, _, member in self._members():
            if kind == EVENTS:
                yield from self._rows(member)
                return

    def members(self, *kinds: str) -> Iterator[tuple[str, str, bytes]]:
        """Kind, name and content of blobs, manifests or chunks; only blobs are checked. Raises `ParcelBroken`."""
        for kind, name, member in self._members():
            if kind in kinds:
                content = member.read()
                if kind == BLOBS and sha256(content).hexdigest() != name:
                    self._fail(f"the blob {name} is not what it was")
                yield kind, name, content

    # --- the file ---------------------------------------------------------------------------------------------------

    def _members(self) -> Iterator[tuple[str, str, IO[bytes]]]:
        """Kind, bare name and content of each member, in the order of the format."""
        size = self._stamp[0]
        last = 0
        try:
            self._plain(0)
            self._file.seek(0)
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    kind = self._allowed(info, size)
                    place = layout.ORDER.index(kind)
                    if place < last:
                        self._fail(f"{info.name!r} is not where it belongs")
                    last = place
                    member = tar.extractfile(info)
                    if member is None:
                        self._fail(f"{info.name!r} is no file")
                    yield kind, info.name.removeprefix(kind), member
                    # It remembers every one otherwise.
                    tar.members = []  # type: ignore[attr-defined]
                    self._plain(tar.offset)
        except (tarfile.TarError, EOFError) as error:
            self._fail(f"it is no export, or only the beginning of one ({error})")
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _plain(self, at: int) -> None:
        """Refuse what is no plain file before it is read: long names, for one, are read whole into memory."""
        self._file.seek(at)
        head = self._file.read(_HEAD)
        if len(head) == _HEAD and head[_TYPE_AT : _TYPE_AT + 1] not in _PLAIN:
            self._fail("it has a member that is no plain file")

    def _allowed(self, info: tarfile.TarInfo, size: int) -> str:
        """The kind of a member that may be in such a file."""
        if not layout.MEMBER.fullmatch(info.name):
            self._fail(f"it has a member of the name {info.name[:200]!r}")
        if not info.isfile():
            self._fail(f"{info.name!r} is no plain file")
        kind = layout.kind_of(info.name)
        if not 0 <= info.size <= layout.LARGEST[kind]:
            self._fail(f"{info.name!r} has {info.size:,} bytes, more than any has")
        if info.offset_data + info.size > size:
            self._fail(f"{info.name!r} is cut off: the file ends before it does")
        return kind

    def _header(self, name: str, member: IO[bytes]) -> Header:
        if name:
            self._fail("it does not begin as an export does")
        try:
            told = orjson.loads(member.read())
            found = told.get("format") if isinstance(told, dict) else None
            if isinstance(found, int) and found > FORMAT:
                raise ParcelTooNew(path=str(self.path), found=found, supported=FORMAT)
            return Header.model_validate(told)
        except (orjson.JSONDecodeError, ValidationError) as error:
            self._fail(f"what it says of itself can't be read: {_first(error)}")

    # --- rows and blobs ---------------------------------------------------------------------------------------------

    def _rows(self, member: IO[bytes]) -> Iterator[Row]:
        left = b""
        position = 0
        try:
            with zstandard.ZstdDecompressor(max_window_size=layout.WINDOW_BYTES).stream_reader(member) as reader:
                while block := reader.read(_BLOCK):
                    *lines, left = (left + block).split(b"\n")
                    if len(left) > layout.LINE_BYTES:
                        self._fail("an event is longer than any is")
                    for line in lines:
                        row = layout.to_row(line)
                        if row.position <= position:
                            self._fail(f"the event at position {row.position} is not where it belongs")
                        position = row.position
                        yield row
        except (zstandard.ZstdError, ValueError) as error:
            self._fail(_first(error))
        if left:
            self._fail("its events are cut off")

    def _see_row(self, row: Row, header: Header, seen: _Seen) -> None:
        if row.stream not in header.streams or row.version != seen.versions[row.stream] + 1:
            self._fail(f"version {row.version} of {row.stream} is not where it belongs")
        seen.versions[row.stream] += 1
        if row.blob is not None:
            of = (row.type, row.schema_version)
            if seen.blobs_named.setdefault(row.blob, of) != of:
                self._fail(f"the blob {row.blob} is the data of events of two types")
            self._known(row.type, row.schema_version, row.position)
            return
        told = self._decoded(row.type, row.schema_version, (row.data or "").encode(), row.position)
        name = told.get("snapshot_id")
        if isinstance(name, str):
            seen.snapshots.add(name)

    def _see_blob(self, name: str, content: bytes, seen: _Seen) -> None:
        if sha256(content).hexdigest() != name:
            self._fail(f"the blob {name} is not what it was")
        if name not in seen.blobs_named or name in seen.blobs:
            self._fail(f"the blob {name} belongs to no event")
        seen.blobs.add(name)
        self._decoded(*seen.blobs_named[name], content, 0)

    def _decoded(self, kind: str, schema: int, data: bytes, position: int) -> dict[str, Any]:
        """An event's data as plain JSON, after its type has taken it."""
        self._known(kind, schema, position)
        try:
            CODEC.decode(kind, schema, data, position)
            told: dict[str, Any] = orjson.loads(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._fail(f"a {kind} in it is not what its type promises: {_first(error)}")
        if odd := layout.odd_name(told):
            self._fail(f"a {kind} in it has a {odd} that is no name")
        return told

    @staticmethod
    def _known(kind: str, schema: int, position: int) -> None:
        newest = CODEC.versions.get(kind)
        if newest is None:
            raise UnknownEventType(type=kind, position=position)
        if schema > newest:
            raise EventTooNew(type=kind, position=position, found=schema, supported=newest)

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _manifest(self, name: str, content: bytes) -> Manifest:
        try:
            manifest, _ = decode(content)
        except (ValueError, RecursionError) as error:
            self._fail(f"the manifest {name} can't be read: {_first(error)}")
        if f"{manifest.snapshot_id}.json" != name:
            self._fail(f"the manifest {name} is that of {manifest.snapshot_id}")
        return manifest

    def _see_manifest(self, manifest: Manifest, header: Header, seen: _Seen) -> None:
        name = manifest.snapshot_id
        if manifest.kind == "template":
            if name != template_id(manifest.template_root) or manifest.image:
                self._fail(f"the manifest {name} is of no template")
        else:
            stream = f"sandbox-{manifest.sandbox_id}"
            if name not in seen.snapshots or manifest.stream != stream or stream not in header.streams:
                self._fail(f"the snapshot {name} belongs to none of its sandboxes")
            seen.templates_needed.add(template_id(manifest.template_root))
        if name in seen.manifests:
            self._fail(f"the manifest {name} is in it twice")
        seen.manifests.add(name)
        seen.pages.update(manifest.tree.pages)
        seen.chunks_needed.update(pieces_of_image(manifest), manifest.tree.pages)

    def _see_chunk(self, name: str, packed: bytes, seen: _Seen) -> None:
        try:
            content = unpacked(name, packed)
            if name in seen.pages:
                seen.chunks_needed.update(pieces_of_page(content))
        except ValueError as error:
            self._fail(f"the chunk {name}: {_first(error)}")
        if name in seen.chunks:
            self._fail(f"the chunk {name} is in it twice")
        seen.chunks.add(name)

    # --- the whole --------------------------------------------------------------------------------------------------

    def _whole(self, header: Header, seen: _Seen) -> None:
        """Whether all is there that belongs there, and nothing else."""
        if dict(seen.versions) != header.streams:
            self._fail("it has not the events that it says it has")
        counted = (len(seen.blobs), len(seen.manifests), len(seen.chunks))
        if counted != (header.blobs, header.snapshots, header.chunks):
            self._fail("it has not the blobs, snapshots and chunks that it says it has")
        if seen.blobs != set(seen.blobs_named):
            self._fail("an event's data is missing")
        if seen.chunks != seen.chunks_needed:
            self._fail("its snapshots and its chunks do not belong together")
        if {one for one in seen.manifests if one.startswith(template_id(""))} - seen.templates_needed:
            self._fail("it has a template that no snapshot in it is made from")

    def _fail(self, detail: str) -> NoReturn:
        raise ParcelBroken(path=str(self.path), detail=detail)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
