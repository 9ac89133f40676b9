from __future__ import annotations

from pathlib import Path

import pytest

from actors import doctor
from actors.machines import mounts
from actors.machines.btrfs import BtrfsVolumes
from actors.machines.overlay import OverlayVolumes
from actors.machines.protocol import Finding
from actors.machines.volumes import open_volumes
from actors.settings import Settings


def assert_helpful(finding: Finding) -> None:
    assert not finding.ok
    assert finding.detail
    assert finding.why
    assert finding.remedy


def test_each_thing_that_is_missing_comes_with_a_reason_and_a_remedy(tmp_path: Path) -> None:
    assert_helpful(doctor.check_python((3, 10, 4)))
    assert_helpful(doctor.check_root(1000))
    assert_helpful(doctor.check_loop(tmp_path / "none"))
    assert_helpful(doctor.check_room("disk", tmp_path / "not/there/yet", 1 << 60))
    assert_helpful(doctor.check_template(OverlayVolumes(tmp_path), "base", 0))
    assert_helpful(doctor.check_template(OverlayVolumes(tmp_path), "base", 1000))


def test_what_is_there_is_said(tmp_path: Path) -> None:
    assert doctor.check_python((3, 13, 0)).ok
    assert doctor.check_root(0).ok
    assert doctor.check_room("disk", tmp_path, 1).ok
    assert doctor.check_ray().ok


def test_a_key_is_never_shown_and_never_open_to_others(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-ant-env-secret\n")
    file.chmod(0o644)
    finding = doctor.check_key(Settings.load(environment_key_file=file))
    assert_helpful(finding)
    assert finding.remedy == f"chmod 600 {file}"
    file.chmod(0o600)
    finding = doctor.check_key(Settings.load(environment_key_file=file))
    assert finding.ok
    assert "secret" not in str(finding)
    file.unlink()
    assert_helpful(doctor.check_key(Settings.load(environment_key_file=file)))


def test_a_node_without_btrfs_falls_back_and_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supports = mounts.supports
    monkeypatch.setattr(mounts, "supports", lambda name: name != "btrfs" and supports(name))
    volumes = open_volumes(tmp_path, "auto", 1 << 30)
    assert volumes.kind == "overlay"
    finding = volumes.check()[0]
    assert_helpful(finding)
    assert not finding.required
    assert "copies" in finding.why


def test_no_room_for_the_pool_is_an_error_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = BtrfsVolumes(tmp_path, 1 << 30)
    monkeypatch.setattr("actors.machines.btrfs._ROOM_TO_START", 1 << 60)
    with pytest.raises(OSError, match="no room on the disk"):
        volumes.prepare()
    assert not volumes.image.exists()


@pytest.mark.integration
async def test_on_a_machine_that_was_set_up_nothing_that_is_required_is_missing() -> None:
    findings = await doctor.check(Settings.load())
    assert [finding for finding in findings if finding.required and not finding.ok] == []
    assert {"python", "root", "runsc", "cgroups", "template", "ray", "disk"} <= {finding.name for finding in findings}
