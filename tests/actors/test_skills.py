"""Reading a skill's archive: third-party content, under limits (contract §13)."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from actors.skills import SkillRefused, read_archive


def zipped(members: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (content, mode) in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def tarred(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_the_wrapping_folder_is_stripped_and_modes_collapse() -> None:
    archive = zipped(
        {
            "pdf/": (b"", 0o040755),
            "pdf/SKILL.md": (b"# PDF", 0o100664),
            "pdf/scripts/run.sh": (b"#!/bin/sh", 0o104777),
        }
    )
    assert read_archive(archive) == {"SKILL.md": (b"# PDF", 0o644), "scripts/run.sh": (b"#!/bin/sh", 0o755)}


def test_files_at_the_top_are_left_there() -> None:
    archive = zipped({"SKILL.md": (b"a", 0o100644), "x/y": (b"b", 0o100644)})
    assert set(read_archive(archive)) == {"SKILL.md", "x/y"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/passwd", "..\\evil"])
def test_one_member_outside_refuses_the_whole_archive(name: str) -> None:
    with pytest.raises(SkillRefused, match="would leave"):
        read_archive(zipped({"s/SKILL.md": (b"", 0o100644), name: (b"x", 0o100644)}))


def test_links_and_devices_are_skipped() -> None:
    link = tarfile.TarInfo("s/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("s/null")
    device.type = tarfile.CHRTYPE
    archive = tarred([(tarfile.TarInfo("s/SKILL.md"), b"x"), (link, b""), (device, b"")])
    assert set(read_archive(archive)) == {"SKILL.md"}
    assert set(read_archive(zipped({"s/a": (b"x", 0o100644), "s/link": (b"/etc/passwd", 0o120777)}))) == {"a"}


def test_a_link_outside_still_refuses_the_archive() -> None:
    link = tarfile.TarInfo("../link")
    link.type, link.linkname = tarfile.SYMTYPE, "x"
    with pytest.raises(SkillRefused, match="would leave"):
        read_archive(tarred([(link, b"")]))


@pytest.mark.parametrize("archive", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(archive: bytes) -> None:
    with pytest.raises(SkillRefused, match="can't be read"):
        read_archive(archive)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s/bomb", bytes(257 * 1024**2))
    assert len(buffer.getvalue()) < 1024**2
    with pytest.raises(SkillRefused, match="larger than"):
        read_archive(buffer.getvalue())


def test_too_many_members_are_refused() -> None:
    with pytest.raises(SkillRefused, match="more than 10000"):
        read_archive(zipped({f"s/{number}": (b"", 0o100644) for number in range(10_001)}))
