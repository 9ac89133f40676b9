"""Version 2 on a plain folder in its place; version 1 or 2, whichever this node has, in the conformance suite."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from actors.machines import cgroups


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    parent = tmp_path / "hourglass"
    parent.mkdir()
    (parent / "cgroup.subtree_control").write_text("")
    machine = parent / "hg-1"
    machine.mkdir()
    (machine / "memory.swap.max").touch()
    return tmp_path


def test_version_2_is_told_its_limits(v2: Path) -> None:
    assert cgroups.version() == 2
    assert cgroups.missing_controllers() == []
    cgroups.create("hg-1", memory_bytes=1000, tasks=50, cpus=1.5)
    machine = v2 / "hourglass/hg-1"
    files = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    assert [(machine / name).read_text() for name in files] == ["1000", "0", "1", "50", "150000 100000"]
    assert (v2 / "cgroup.subtree_control").read_text() == "+cpu"
    assert (v2 / "hourglass/cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_version_2_says_who_ran_out_of_memory(v2: Path) -> None:
    assert cgroups.oom_kills("hg-1") == 0
    (v2 / "hourglass/hg-1/memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert cgroups.oom_kills("hg-1") == 3


def test_version_2_lists_processes_and_machines(v2: Path) -> None:
    (v2 / "hourglass/hg-1/cgroup.procs").write_text("12\n34\n")
    (v2 / "hourglass" / cgroups.SUPERVISORS).mkdir()
    assert cgroups.processes("hg-1") == {12, 34}
    assert cgroups.names() == {"hg-1"}


def test_version_2_lists_those_that_are_old_enough(v2: Path) -> None:
    os.utime(v2 / "hourglass/hg-1", (time.time() - 100, time.time() - 100))
    (v2 / "hourglass/hg-2").mkdir()
    assert cgroups.names(older=60) == {"hg-1"}


def test_version_2_lets_go_of_what_the_kernel_keeps_for_a_group(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = v2 / "hourglass/hg-1"
    (machine / "memory.reclaim").touch()
    (machine / "memory.current").write_text("4096\n")
    seen: list[str] = []
    # A real group has no files of its own, to the eye of `rmdir`.
    monkeypatch.setattr(os, "rmdir", lambda path: seen.append((Path(path) / "memory.reclaim").read_text()))
    cgroups.remove("hg-1")
    assert seen == ["4096"]


def test_what_is_missing_is_named(v2: Path) -> None:
    (v2 / "cgroup.controllers").write_text("cpu pids\n")
    assert cgroups.missing_controllers() == ["memory"]


def test_a_group_that_is_not_there_is_empty(v2: Path) -> None:
    assert cgroups.processes("hg-none") == set()
    cgroups.kill("hg-none")
    cgroups.remove("hg-none")


def test_no_groups_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    assert cgroups.version() == 0
