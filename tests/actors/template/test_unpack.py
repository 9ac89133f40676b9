"""Archives into roots, hostile ones above all. As root: owners are set."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from actors.template import unpack as unpacking
from actors.template.archives import HEADER_BYTES_MAX
from actors.template.manifest import TemplateError
from actors.template.rooted import BadPath, Rooted
from actors.template.unpack import Unpacked, decompressed, unpack
from tests.actors.template.images import archive, files, member


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("untouched")
    return made


def put(root: Path, data: bytes, *, whiteouts: bool = False) -> Unpacked:
    with Rooted(root) as inside:
        return unpack(decompressed(io.BufferedReader(io.BytesIO(data))), inside, whiteouts=whiteouts, what="a.tar")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress, lzma.compress])
def test_everything_arrives(root: Path, pack: object) -> None:
    data = archive(
        (member("d", tarfile.DIRTYPE, mode=0o1777, mtime=5), b""),
        (member("d/f", mode=0o4755, uid=7, gid=8, mtime=1234.5), b"x" * 3_000_000),
        (member("d/same", tarfile.LNKTYPE, linkname="d/f"), b""),
        (member("d/link", tarfile.SYMTYPE, linkname="/usr/bin/x", uid=9), b""),
        (member("pipe", tarfile.FIFOTYPE, mode=0o600), b""),
        (member("./deep/er/f"), b"y"),
    )
    found = put(root, pack(data))  # type: ignore[operator]
    assert (found.entries, found.left_out) == (6, 0)
    status = (root / "d/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_size) == (0o4755, 7, 8, 3_000_000)
    assert status.st_mtime == 1234.5
    assert (root / "d/same").samefile(root / "d/f")
    assert (root / "d/link").readlink() == Path("/usr/bin/x")
    assert (root / "d/link").lstat().st_uid == 9
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "deep/er/f").read_text() == "y"
    assert (stat.S_IMODE((root / "d").stat().st_mode), (root / "d").stat().st_mtime) == (0o1777, 5)


def test_devices_are_left_out(root: Path) -> None:
    found = put(root, archive((member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""), *files(a="b")))
    assert found.left_out == 1
    assert os.listdir(root) == ["a"]


@pytest.mark.parametrize("name", ["../outside/secret", "a/../../outside/secret", "a/.."])
def test_a_path_that_leads_out_is_refused(root: Path, name: str) -> None:
    with pytest.raises(TemplateError, match=r"a.tar is refused: .* is no path inside a root; nothing of it is used"):
        put(root, archive((member(name), b"evil")))
    assert (root / "../outside/secret").read_text() == "untouched"


def test_an_absolute_path_is_one_of_the_root(root: Path) -> None:
    put(root, archive((member("/etc/hourglass-test"), b"inside")))
    assert (root / "etc/hourglass-test").read_text() == "inside"
    assert not Path("/etc/hourglass-test").exists()


@pytest.mark.parametrize("target", ["../outside", "{outside}", "../../../../../../../../../../tmp", "/proc/self/root"])
def test_what_is_written_through_a_link_stays_inside(root: Path, target: str) -> None:
    target = target.format(outside=root.parent / "outside")
    put(root, archive((member("way", tarfile.SYMTYPE, linkname=target), b""), (member("way/secret"), b"inside")))
    assert (root.parent / "outside/secret").read_text() == "untouched"
    found = [path for path in root.rglob("secret") if not path.is_symlink()]
    assert [path.read_text() for path in found] == ["inside"]
    assert not Path("/tmp/secret").exists()
    assert not Path("/secret").exists()


def test_a_link_is_replaced_and_not_written_through(root: Path) -> None:
    outside = str(root.parent / "outside/secret")
    put(root, archive((member("f", tarfile.SYMTYPE, linkname=outside), b""), (member("f"), b"inside")))
    assert (root.parent / "outside/secret").read_text() == "untouched"
    assert (root / "f").read_text() == "inside"
    assert not (root / "f").is_symlink()


def test_a_hard_link_reaches_nothing_outside(root: Path) -> None:
    outside = str(root.parent / "outside")
    entries = [(member("way", tarfile.SYMTYPE, linkname=outside), b"")]
    with pytest.raises(TemplateError, match="is a hard link to 'way/secret', which is not in it"):
        put(root, archive(*entries, (member("f", tarfile.LNKTYPE, linkname="way/secret"), b"")))
    with pytest.raises(TemplateError, match="no path inside a root"):
        put(root, archive((member("f", tarfile.LNKTYPE, linkname="../outside/secret"), b"")))
    # To a link itself: both are links then, and nothing was followed.
    put(root, archive(*entries, (member("g", tarfile.LNKTYPE, linkname="way"), b"")))
    assert (root / "g").is_symlink()


def test_a_hard_link_to_a_folder_is_refused(root: Path) -> None:
    with pytest.raises(TemplateError, match="is a folder, which has one name only"):
        put(root, archive((member("d", tarfile.DIRTYPE), b""), (member("e", tarfile.LNKTYPE, linkname="d"), b"")))


def test_what_is_too_much_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BYTES_MAX", 1000)
    with pytest.raises(TemplateError, match="unpacks to more than"):
        put(root, gzip.compress(archive((member("f"), b"\0" * 1001))))
    monkeypatch.setattr(unpacking, "ENTRIES_MAX", 2)
    with pytest.raises(TemplateError, match="unpacks to more than"):
        put(root, archive(*files(a="", b="", c="")))
    with pytest.raises(TemplateError, match="no path inside a root"):
        put(root, archive((member("d/" * 200), b"")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive at all" * 100,
        archive(*files(a="b" * 3000))[:2000],
        gzip.compress(archive(*files(a="b")))[:-20],
    ],
    ids=["empty", "text", "cut", "cut gzip"],
)
def test_what_is_no_archive_says_so(root: Path, data: bytes) -> None:
    with pytest.raises(TemplateError, match=r"a\.tar can't be read: .*; is it a whole tar archive"):
        put(root, data)


def test_owners_that_nobody_can_be_are_refused(root: Path) -> None:
    with pytest.raises(TemplateError, match=r"belongs to user -1"):
        put(root, archive((member("f", uid=-1), b"")))


def test_whiteouts_hide_what_lower_layers_had_and_no_more(root: Path) -> None:
    put(root, archive(*files(a="1", d__old="1", d__sub__old="1", o__old="1", o__sub__old="1", link__x="1")))
    upper = [
        (member(".wh.a"), b""),
        (member(".wh.gone"), b""),
        (member("d/.wh.sub"), b""),
        *files(o__new="2", o__sub__new="2"),
        (member("o/to", tarfile.SYMTYPE, linkname="/link"), b""),
        (member("o/.wh..wh..opq"), b""),
        (member(".wh..wh.plnk", tarfile.DIRTYPE), b""),
    ]
    put(root, archive(*upper), whiteouts=True)
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())
    # What the layer's own link names is not in the folder that is opaque.
    assert left == ["d/old", "link/x", "o/new", "o/sub/new", "o/to"]


def test_a_whiteout_leads_nowhere(root: Path) -> None:
    outside = str(root.parent / "outside")
    put(root, archive((member("way", tarfile.SYMTYPE, linkname=outside), b"")))
    put(root, archive((member("way/.wh.secret"), b""), (member("way/.wh..wh..opq"), b"")), whiteouts=True)
    assert (root.parent / "outside/secret").read_text() == "untouched"
    for name in (".wh...", ".wh..", ".wh."):
        with pytest.raises(TemplateError, match="hides nothing"):
            put(root, archive((member(name), b"")), whiteouts=True)


def test_a_name_of_whiteouts_is_a_name_in_a_tarball(root: Path) -> None:
    put(root, archive(*files(a="1", **{".wh.a": "2"})))
    assert sorted(os.listdir(root)) == [".wh.a", "a"]


def test_kinds_replace_each_other(root: Path) -> None:
    put(root, archive(*files(d__f="1", f="1")))
    put(root, archive(*files(d="2", f__f="2")))
    assert (root / "d").read_text() == "2"
    assert (root / "f/f").read_text() == "2"
    with Rooted(root) as inside, pytest.raises(BadPath):
        inside.write("/", b"")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("mtime", ["1e300", "inf", "nan", "100000000000000000000000"])
def test_a_time_that_can_not_be_is_an_error_of_the_archive(root: Path, kind: bytes, mtime: str) -> None:
    data = archive((member("x", kind, pax_headers={"mtime": mtime}), b""))
    with pytest.raises(TemplateError, match=r"a\.tar can't be"):
        put(root, data)


def test_headers_are_bounded_before_they_are_read(root: Path) -> None:
    data = archive((member("x", pax_headers={"comment": "x" * (HEADER_BYTES_MAX + 1)}), b""))
    with pytest.raises(TemplateError, match="a header of"):
        put(root, gzip.compress(data))
    with pytest.raises(TemplateError, match=r"a size of -1|a header of -1"):
        put(root, archive((member("x", pax_headers={"size": "-1"}), b"")))


def test_damaged_gzip_is_an_error_of_the_archive(root: Path) -> None:
    with pytest.raises(TemplateError, match=r"a\.tar can't be read"):
        put(root, b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 64)


def header(kind: bytes, size: int) -> bytes:
    """A header alone, which promises what does not follow."""
    return member("x", kind, size=size).tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_would_fill_the_memory_is_refused(root: Path, kind: bytes) -> None:
    with pytest.raises(TemplateError, match=r"is refused: it has a header of 8,000,000,000 bytes"):
        put(root, archive(*files(a="1"))[:1024] + header(kind, 8_000_000_000) + bytes(10_000))


def test_files_with_holes_are_refused(root: Path) -> None:
    with pytest.raises(TemplateError, match="is stored with holes; make the archive without --sparse"):
        put(root, header(tarfile.GNUTYPE_SPARSE, 0) + bytes(2048))
    for version in ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"GNU.sparse.map": "0,1"}):
        with pytest.raises(TemplateError, match="is stored with holes"):
            put(root, archive((member("f", pax_headers=version), b"x")))


def test_a_header_that_is_damaged_is_not_the_end(root: Path) -> None:
    data = bytearray(archive(*files(a="1", b="2", c="3")))
    data[1024 + 148] ^= 1  # the checksum of the second
    with pytest.raises(TemplateError, match="can't be read: a header is damaged"):
        put(root, bytes(data))


def test_names_that_no_file_can_have_are_refused(root: Path) -> None:
    for entry in (
        member("f", tarfile.SYMTYPE, linkname=""),
        member("f" * 300),
        member("f", tarfile.SYMTYPE, linkname="x" * 5000),
    ):
        with pytest.raises(TemplateError):
            put(root, archive((entry, b"")))
    with pytest.raises(TemplateError, match="can't be unpacked"):
        put(root, archive((member("a", tarfile.SYMTYPE, linkname="a"), b""), (member("a/f"), b"")))


def test_headers_are_not_kept(root: Path) -> None:
    data = archive(*((member(f"f{number}", pax_headers={"comment": "x" * 500_000}), b"") for number in range(60)))
    packed = gzip.compress(data)
    del data
    tracemalloc.start()
    try:
        assert put(root, packed).entries == 60
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end_are_refused(root: Path, kind: bytes) -> None:
    with pytest.raises(TemplateError, match="an entry has more than 16 headers"):
        put(root, header(kind, 0) * 400 + archive((member("f"), b"")))


def test_headers_for_all_entries_are_bounded(root: Path) -> None:
    entries = []
    for number in range(5):
        info = member(f"f{number}")
        told = info.create_pax_global_header({f"key{number}": "x" * 300_000})
        entries.append(told + info.tobuf())
    with pytest.raises(TemplateError, match="bytes of headers for all entries"):
        put(root, b"".join(entries) + bytes(1024))


def test_what_a_layer_brings_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "NAMES_MAX", 10)
    put(root, archive((member("/".join("abcdefghij")), b"")), whiteouts=True)
    put(root, archive((member("/".join("klmnopqrstuvw")), b"")))
    with pytest.raises(TemplateError, match="brings more than 10 names"):
        put(root, archive((member("/".join("abcdefghijk")), b"")), whiteouts=True)


def test_room_is_looked_for_at_every_entry(root: Path) -> None:
    heard: list[int] = []
    data = archive(*((member(f"d{number}", tarfile.DIRTYPE), b"") for number in range(5)))
    stream = decompressed(io.BufferedReader(io.BytesIO(data)))
    unpack(stream, Rooted(root), whiteouts=False, what="x", progress=heard.append)
    assert len(heard) == 5
