"""User ids for machines: that ranges do not meet, and that a node which can't give any is told from one that can."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from actors.machines import idmap, mounts
from actors.machines.btrfs import BtrfsVolumes
from actors.machines.overlay import OverlayVolumes
from actors.machines.trial import check_ids, why_no_ids

CLAIMER = "from actors.machines import idmap; first, fd = idmap.claim(); print(first, flush=True); input()"


def begin_claimer(setting: str = "") -> subprocess.Popen[str]:
    program = [sys.executable, "-c", setting + CLAIMER]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_of(claimer: subprocess.Popen[str]) -> int:
    assert claimer.stdout is not None
    return int(claimer.stdout.readline())


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One whose file system translates owners, and an overlay, which does not."""
    lower, upper, work, tree = (tmp_path / name for name in ("lower", "upper", "work", "tree"))
    for folder in (lower, upper, work, tree):
        folder.mkdir()
    mounts.run(["mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "none", tree])
    yield lower, tree
    mounts.unmount(tree)


@pytest.mark.parametrize("number", [0, 1, idmap.RANGES - 1])
def test_ids_of_a_machine_do_not_meet_each_other_nor_those_of_users_and_containers(number: int) -> None:
    extents = idmap.ids(idmap.FIRST + number * idmap.RANGE)
    for at in (0, 1):  # inside, outside
        ends = sorted((extent[at], extent[at] + extent[2]) for extent in extents)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))
        assert ends[-1][1] <= 0xFFFFFFFF  # the last number is no id
    # systemd gives out containers' ids up to here, and knows foreign ones from there.
    assert all(outside > 0x6FFFFFFF for _, outside, _ in extents)
    assert extents[0][1] + extents[0][2] <= 0x7FFE0000


def test_a_range_is_one_machines_for_as_long_as_it_lives() -> None:
    claimers = [begin_claimer() for _ in range(8)]
    firsts = [first_of(claimer) for claimer in claimers]
    assert len(set(firsts)) == len(firsts)
    for claimer in claimers:
        claimer.communicate("\n")
    assert not any(claimer.returncode for claimer in claimers)


def test_a_node_that_is_out_of_ranges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmap, "_TAKEN", str(tmp_path / "ranges"))
    monkeypatch.setattr(idmap, "RANGES", 2)
    setting = f"from actors.machines import idmap; idmap.RANGES = 2; idmap._TAKEN = {str(tmp_path / 'ranges')!r}; "
    holders = [begin_claimer(setting) for _ in range(2)]
    firsts = {first_of(holder) for holder in holders}
    # Whichever of the two each tried first.
    assert firsts == {idmap.FIRST, idmap.FIRST + idmap.RANGE}
    with pytest.raises(OSError, match="all 2 ranges of user ids are in use"):
        idmap.claim()
    for holder in holders:
        holder.communicate("\n")
    first, fd = idmap.claim()
    os.close(fd)
    assert first in firsts


def test_whether_owners_are_translated_is_found_out_by_trying(folders: tuple[Path, Path]) -> None:
    plain, overlay = folders
    tried = [
        subprocess.run([sys.executable, "-I", "-S", "-E", idmap.__file__, str(folder)], capture_output=True, text=True)
        for folder in (plain, overlay, plain / "none")
    ]
    assert [one.returncode for one in tried] == [0, 1, 1]
    assert "Invalid argument" in tried[1].stdout
    assert "No such file" in tried[2].stdout
    # What was mounted is nowhere on the host.
    assert mounts.mounted_at(Path(idmap.ROOT)) is None


def test_the_doctor_says_why_machines_run_as_root(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = BtrfsVolumes(tmp_path, 0)
    volumes.slots, overlay = folders
    assert why_no_ids(volumes) == ""
    assert check_ids(volumes).ok
    volumes.slots = overlay
    finding = check_ids(volumes)
    assert (finding.ok, finding.required) == (False, False)
    assert "machines run as root of this node" in finding.detail
    assert "Invalid argument" in finding.detail
    assert finding.why
    assert "5.19" in finding.remedy
    # Before there are any trees.
    volumes.slots = tmp_path / "none"
    layered = OverlayVolumes(tmp_path)
    for release, *ok in (("5.10.0-30-amd64", False, False), ("5.15.0", True, False), ("6.1.0", True, True)):
        monkeypatch.setattr("platform.release", lambda release=release: release)
        assert [check_ids(volumes).ok, check_ids(layered).ok] == ok
    assert "6.1.0" not in check_ids(layered).detail


def test_an_overlay_is_tried_with_layers(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    volumes = OverlayVolumes(tmp_path / "storage")
    volumes.prepare()
    assert why_no_ids(volumes) == ""
    _, overlay = folders
    # What lies below can't be translated.
    assert "Invalid argument" in why_no_ids(OverlayVolumes(tmp_path / "storage", overlay))
    assert list(volumes.slots.iterdir()) == []
