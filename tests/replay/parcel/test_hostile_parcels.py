"""A file from anybody: truncated, changed, with names that lead elsewhere, with claims that are too large."""

from __future__ import annotations

import io
import json
import os
import tarfile
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import zstandard
from blake3 import blake3

from events.errors import EventTooNew, HourglassError, UnknownEventType
from events.manifest import Tree, decode
from events.rows import Row
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from replay.parcel import layout
from replay.parcel.errors import ParcelBroken, ParcelTooNew
from replay.parcel.packing import export_session
from replay.parcel.unpacking import import_session
from tests.replay.history.boxes import A

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Members = list[tuple[str, bytes]]


@pytest.fixture
def members(home: Path, tmp_path: Path) -> Members:
    with SqliteLog(home / "log.db", read_only=True) as log:
        export_session(log, A, tmp_path / "good", SnapshotStore.open(str(home / "snapshots")))
    with tarfile.open(tmp_path / "good") as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def packed(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def refused(path: Path, into: Path, match: str = "", error: type[HourglassError] = ParcelBroken) -> None:
    """It is refused with an error of ours, and nothing is there afterwards."""
    with pytest.raises(error, match=match or None):
        import_session(path, into / "log.db", SnapshotStore.open(str(into / "snapshots")))
    assert not into.exists()


def changed(members: Members, name: str, change: Callable[[bytes], bytes]) -> Members:
    assert any(one.startswith(name) for one, _ in members)
    done = False
    result = []
    for one, content in members:
        hit = one.startswith(name) and not done
        done = done or hit
        result.append((one, change(content) if hit else content))
    return result


def header(**more: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | more).encode()


def lines(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[bytes], bytes]:
    """Change the rows, each proved anew: whoever makes a file can do so."""

    def edit(content: bytes) -> bytes:
        told = [orjson.loads(one) for one in unzstd(content).splitlines()]
        change(told)
        out = []
        for one in told:
            row = Row(**{name: value for name, value in one.items() if name != "previous"} | {"hash": b""})
            out.append(layout.to_line(row._replace(hash=row.expected_hash(bytes(32))), bytes(32)))
        return zstandard.compress(b"".join(out))

    return edit


def unzstd(content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(content).read()


def test_what_was_not_changed_is_taken(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "x", changed(members, layout.EVENTS, lines(lambda told: None)))
    done = import_session(path, tmp_path / "in/log.db", SnapshotStore.open(str(tmp_path / "in/snapshots")))
    assert done.added


def test_nothing_and_what_is_no_export(tmp_path: Path) -> None:
    into = tmp_path / "in"
    refused(tmp_path / "missing", into, "No such file")
    refused(tmp_path, into, "directory")
    for number, content in enumerate((b"", b"x", b"hello" * 1000, bytes(10240), os.urandom(5000))):
        path = tmp_path / f"bad{number}"
        path.write_bytes(content)
        refused(path, into)


def test_truncated_anywhere(members: Members, tmp_path: Path) -> None:
    content = packed(tmp_path / "whole", members).read_bytes()
    ends = range(1, len(content) - 11_000, len(content) // 40)
    for end in [*ends, 511, 512, 513, 1024]:
        path = tmp_path / "cut"
        path.write_bytes(content[:end])
        refused(path, tmp_path / "in")
    # Members that are missing, though the file is whole by itself.
    for number in range(len(members)):
        packed(tmp_path / "cut", members[:number] + members[number + 1 :])
        refused(tmp_path / "cut", tmp_path / "in")


def test_a_byte_that_was_flipped_anywhere(members: Members, tmp_path: Path) -> None:
    """Only what a tar says beside names, sizes and contents may be something else: it is not used."""
    content = bytearray(packed(tmp_path / "whole", members).read_bytes())
    at = 0
    for name, inner in members:
        for place in {0, len(inner) // 2, len(inner) - 1}:
            where = at + 512 + place
            content[where] ^= 0x01
            path = tmp_path / "flipped"
            path.write_bytes(content)
            if name == layout.HEADER:
                with pytest.raises((ParcelBroken, ParcelTooNew)):
                    import_session(path, tmp_path / "in/log.db", None)
            else:
                refused(path, tmp_path / "in")
            content[where] ^= 0x01
        content[at + 3] ^= 0x01
        path = tmp_path / "flipped"
        path.write_bytes(content)
        refused(path, tmp_path / "in")
        content[at + 3] ^= 0x01
        at += 512 + (len(inner) + 511) // 512 * 512


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "chunks/../../evil",
        "manifests/../evil.json",
        "blobs/" + "A" * 64,
        "chunks/" + "0" * 63,
        "manifests/a b.json",
        "manifests/.json",
        "hourglass.json/x",
        "evil",
        "chunks",
    ],
)
def test_names_that_lead_elsewhere(name: str, members: Members, tmp_path: Path) -> None:
    refused(packed(tmp_path / "x", [*members, (name, b"evil")]), tmp_path / "in", "a member of the name")
    refused(packed(tmp_path / "x", [(name, b"evil"), *members]), tmp_path / "in")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"x", b"L", b"g"],
)
def test_members_that_are_no_plain_files(kind: bytes, members: Members, tmp_path: Path) -> None:
    for first in (True, False):
        with tarfile.open(tmp_path / "x", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in [("blobs/" + "0" * 64, b"")] * first + members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name.startswith("blobs/"):
                    info.type, info.linkname = kind, "../../../etc/passwd"
                tar.addfile(info, io.BytesIO(content))
        refused(tmp_path / "x", tmp_path / "in", "no plain file")


def test_members_twice_or_out_of_order(members: Members, tmp_path: Path) -> None:
    into = tmp_path / "in"
    refused(packed(tmp_path / "x", members[::-1]), into)
    refused(packed(tmp_path / "x", [members[0], *members]), into)
    for name, content in members:
        again = sorted([*members, (name, content)], key=lambda one: layout.ORDER.index(layout.kind_of(one[0])))
        refused(packed(tmp_path / "x", again), into)


def test_claims_that_are_too_large(members: Members, tmp_path: Path) -> None:
    """Each is refused by what it claims: nothing of that size is ever read or made."""
    into = tmp_path / "in"
    size = 2**40
    path = packed(tmp_path / "x", members)
    content = bytearray(path.read_bytes())
    info = tarfile.TarInfo(layout.HEADER)
    info.size = size
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(content)
    refused(path, into, "more than any has")
    info.size = layout.LARGEST[layout.HEADER]
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(content)
    refused(path, into, "cut off")
    # A line, a chunk and a window that grow out of a few bytes.
    bomb = zstandard.compress(bytes(300 * 1024**2))
    refused(packed(path, changed(members, layout.EVENTS, lambda _: bomb)), into, "longer than any is")
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    ).compress(os.urandom(64) * 3_000_000)
    refused(packed(path, changed(members, layout.EVENTS, lambda _: wide)), into, "memory")
    refused(packed(path, changed(members, layout.CHUNKS, lambda _: bomb)), into, "larger than any chunk")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(200 * 1024**2))
    refused(packed(path, changed(members, layout.CHUNKS, lambda _: unsized)), into)
    for name in ("blobs", "snapshots", "chunks"):
        refused(packed(path, changed(members, layout.HEADER, header(**{name: 10**12}))), into, "says it has")
    many = {f"sandbox-{A}": 10**18}
    refused(packed(path, changed(members, layout.HEADER, header(streams=many))), into)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 0}, "format"),
        ({"more": 1}, "more"),
        ({"streams": {"sandbox-../../x": 1}}, "streams"),
        ({"streams": {"other-x": 1}}, "streams"),
        ({"session_id": "\x1b[2J"}, "session_id"),
        ({"streams": {}}, "not where it belongs"),
    ],
)
def test_what_it_says_of_itself(change: dict[str, Any], match: str, members: Members, tmp_path: Path) -> None:
    refused(packed(tmp_path / "x", changed(members, layout.HEADER, header(**change))), tmp_path / "in", match)


def test_a_newer_format_is_told_apart(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "x", changed(members, layout.HEADER, header(format=2)))
    refused(path, tmp_path / "in", "has format 2", ParcelTooNew)


def edit(number: int, **fields: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda told: told[number].update(fields)


def data(**fields: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Change the data of the first event, a `sandbox.created`."""

    def change(told: list[dict[str, Any]]) -> None:
        told[0]["data"] = orjson.dumps(orjson.loads(told[0]["data"]) | fields).decode()

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit(0, version=2), "not where it belongs"),
        (edit(1, version=7), "not where it belongs"),
        (edit(1, position=1), "not where it belongs"),
        (edit(0, stream="sandbox-../../../etc"), "stream"),
        (edit(0, stream="sandbox-elsewhere"), "not where it belongs"),
        (edit(0, event_id="x' OR 1"), "event_id"),
        (edit(0, recorded_at=2**60), "recorded_at"),
        (edit(0, metadata="[1]"), "no JSON object"),
        (edit(0, metadata="{"), ""),
        (edit(0, data=None), "its data twice, or not at all"),
        (edit(0, blob="0" * 64), "its data twice, or not at all"),
        (edit(0, blob="../../etc/passwd", data=None), "blob"),
        (edit(0, blob="0" * 64, data=None), "missing|says it has"),
        (edit(0, data="{}"), "not what its type promises"),
        (edit(0, data="[" * 5000), "not what its type promises"),
        (data(parent="../../x", parent_version=1), "a parent that is no name"),
        (data(template="/etc"), "a template that is no name"),
        (data(session_id=["x"]), "not what its type promises"),
        (lambda told: told.pop(), "has not the events|belongs to no event"),
        (lambda told: told.append(told[-1]), "not where it belongs"),
    ],
)
def test_rows_that_can_not_be(change: Callable[[Any], Any], match: str, members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "x", changed(members, layout.EVENTS, lines(change)))
    refused(path, tmp_path / "in", match)


def test_a_row_that_was_changed_without_its_hash(members: Members, tmp_path: Path) -> None:
    def change(content: bytes) -> bytes:
        return zstandard.compress(unzstd(content).replace(b"echo c6", b"echo c7"))

    refused(packed(tmp_path / "x", changed(members, layout.EVENTS, change)), tmp_path / "in", "not what its hash says")


def test_events_of_a_newer_hourglass(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "x", changed(members, layout.EVENTS, lines(edit(0, type="sandbox.teleported"))))
    refused(path, tmp_path / "in", "sandbox.teleported", UnknownEventType)
    path = packed(tmp_path / "x", changed(members, layout.EVENTS, lines(edit(0, schema_version=99))))
    refused(path, tmp_path / "in", "schema 99", EventTooNew)


def remade(content: bytes, **fields: Any) -> bytes:
    """A manifest with other fields, and a digest that fits."""
    manifest, _ = decode(content)
    return manifest.model_copy(update=fields).encode()[0]


def test_snapshots_that_do_not_belong(members: Members, tmp_path: Path) -> None:
    into = tmp_path / "in"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sandbox_id": "sbx-elsewhere", "stream": "sandbox-sbx-elsewhere"}, "none of its sandboxes"),
        ({"stream": "sandbox-x"}, "none of its sandboxes"),
        ({"snapshot_id": "another"}, "is that of another"),
        ({"kind": "template"}, "is of no template"),
        ({"tree": Tree(entries=0, bytes=0, pages=())}, "do not belong together"),
    ]
    for fields, match in cases:
        path = packed(tmp_path / "x", changed(members, "manifests/turn-1", partial(remade, **fields)))
        refused(path, into, match)
    refused(packed(tmp_path / "x", changed(members, "manifests/", lambda _: b"{}")), into, "no manifest")
    refused(packed(tmp_path / "x", changed(members, "manifests/", lambda _: b"[" * 100_000)), into)
    # One more, whole by itself, that no event names; a chunk that nothing needs.
    manifest = next(content for name, content in members if name == "manifests/turn-1.json")
    more = remade(manifest, snapshot_id="stray")
    place = next(number for number, (name, _) in enumerate(members) if name.startswith("manifests/"))
    stray = [*members[:place], ("manifests/stray.json", more), *members[place:]]
    refused(packed(tmp_path / "x", stray), into, "none of its sandboxes")
    content = b"of nobody"
    chunk = (f"chunks/{blake3(content).hexdigest()}", zstandard.compress(content))
    counted = json.loads(members[0][1])["chunks"] + 1
    path = packed(tmp_path / "x", changed([*members, chunk], layout.HEADER, header(chunks=counted)))
    refused(path, into, "do not belong together")


def test_blobs_that_do_not_belong(members: Members, tmp_path: Path) -> None:
    content = b'{"type":"x"}'
    blob = (f"blobs/{sha256(content).hexdigest()}", content)
    refused(packed(tmp_path / "x", [*members[:2], blob, *members[2:]]), tmp_path / "in", "belongs to no event")


def test_a_file_that_changes_while_it_is_read(members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "x", members)

    def touch(done: int, total: int) -> None:
        if done == total:
            os.utime(path, ns=(1, 1))

    with pytest.raises(ParcelBroken, match="changed while it was read"):
        import_session(path, tmp_path / "in/log.db", None, progress=touch)
    with SqliteLog(tmp_path / "in/log.db", read_only=True) as log:
        assert log.streams() == []
