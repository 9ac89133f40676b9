"""The template that `make setup` built, and what becomes of broken ones. As root, after `make setup`."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors.machines.overlay import OverlayVolumes
from actors.machines.volumes import open_volumes
from actors.settings import Settings
from actors.template import build
from actors.template.agent import AGENT_FOLDER, agent_digest, agent_files
from actors.template.build import Meter, build_template, ensure_agent
from actors.template.chroot import run_in_root
from actors.template.contents import PROGRAMS
from actors.template.manifest import Manifest, TemplateError, TemplateMissing, load_manifest, save_manifest


def manifest(root: str = "base-00000000", agent: str = "old") -> Manifest:
    return Manifest(
        name="base",
        root=root,
        built_at=datetime.now(UTC),
        distribution="Test",
        suite="test",
        architecture="amd64",
        agent_digest=agent,
        programs={},
        packages={},
        bytes=0,
        build_seconds=0,
    )


@pytest.fixture
def volumes(tmp_path: Path) -> OverlayVolumes:
    """File trees whose template is an empty root."""
    volumes = OverlayVolumes(tmp_path)
    volumes.prepare()
    (volumes.new_root("base-00000000") / "usr").mkdir()
    save_manifest(volumes.templates, manifest())
    return volumes


@pytest.mark.integration
def test_every_program_of_the_manifest_is_really_there() -> None:
    settings = Settings.load()
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    volumes.prepare()
    found = ensure_agent(volumes, "base")
    assert set(found.programs) == set(PROGRAMS)
    root = volumes.templates / found.root
    assert f"Python {found.programs['python3']}" in run_in_root(root, "python3", "--version")
    # What README says is in it.
    for program in ("bash", "ls", "python3", "git", "rg", "curl", "ps", "gcc", "make"):
        assert run_in_root(root, "sh", "-c", f"command -v {program}")
    assert {"bash", "coreutils", "git", "ripgrep", "build-essential"} <= set(found.packages)
    assert (root / "workspace").is_dir()
    assert found.agent_digest == agent_digest()


def test_a_missing_template_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(TemplateMissing, match="hourglass template build"):
        load_manifest(tmp_path, "base")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', "\0"])
def test_a_broken_manifest_is_an_error_with_a_next_step(volumes: OverlayVolumes, text: str) -> None:
    (volumes.templates / "base.json").write_text(text)
    with pytest.raises(TemplateError, match="--force"):
        load_manifest(volumes.templates, "base")


def test_a_template_whose_root_is_gone_is_broken(volumes: OverlayVolumes) -> None:
    volumes.drop_root("base-00000000")
    with pytest.raises(TemplateError, match=r"is broken.*--force"):
        ensure_agent(volumes, "base")


def test_half_a_root_is_none(volumes: OverlayVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    root = volumes.templates / "base-00000000"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # whoever removes it dies before it has begun
        volumes.drop_root(root.name)
    assert not root.exists()
    assert list(volumes.templates.glob(".gone-*"))
    volumes.drop_root(root.name)
    assert not list(volumes.templates.glob(".gone-*"))


def test_a_new_agent_makes_a_new_root_and_the_old_one_goes(
    volumes: OverlayVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The root has no Python to compile with.
    monkeypatch.setattr("actors.template.agent.run_in_root", lambda *_: "")
    (volumes.templates / "base-00000000/usr/file").write_text("kept")
    refreshed = ensure_agent(volumes, "base")
    assert refreshed.agent_digest == agent_digest()
    assert not (volumes.templates / "base-00000000").exists()
    root = volumes.templates / refreshed.root
    assert (root / "usr/file").read_text() == "kept"
    assert {str(path.relative_to(root / AGENT_FOLDER)) for path in (root / AGENT_FOLDER).rglob("*.py")} == set(
        agent_files()
    )
    assert ensure_agent(volumes, "base") == refreshed


def test_a_root_that_a_machine_runs_from_stays(volumes: OverlayVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.template.agent.run_in_root", lambda *_: "")
    machine = volumes.storage / "machines" / "sbx-1"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text(json.dumps({"template_root": "base-00000000"}))
    (volumes.templates / "base-11111111").mkdir()
    ensure_agent(volumes, "base")
    assert (volumes.templates / "base-00000000").exists()
    assert not (volumes.templates / "base-11111111").exists()


def test_a_refresh_that_dies_leaves_the_old_template(volumes: OverlayVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> str:
        raise OSError("the power went")

    monkeypatch.setattr("actors.template.agent.run_in_root", die)
    with pytest.raises(OSError, match="the power went"):
        ensure_agent(volumes, "base")
    assert load_manifest(volumes.templates, "base").root == "base-00000000"
    assert (volumes.templates / "base-00000000/usr").is_dir()


def test_a_build_without_its_tools_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(TemplateError, match=r"missing on this machine: mmdebstrap.*make setup"):
        build_template(OverlayVolumes(tmp_path), "base", lambda *_: None)


def test_a_build_that_fails_says_why_and_leaves_no_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\ncat >/dev/null\necho 'I: starting' >&2\necho 'E: no space left' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    volumes = OverlayVolumes(tmp_path / "storage")
    with pytest.raises(TemplateError, match=r"exit code 3: E: no space left"):
        build_template(volumes, "base", lambda *_: None)
    with pytest.raises(TemplateMissing):
        load_manifest(volumes.templates, "base")


def test_progress_never_goes_back_and_ends_before_the_end() -> None:
    heard: list[float] = []
    meter = Meter(lambda fraction, _: heard.append(fraction))
    lines = ["I: running apt-get update...", "I: downloading packages with apt...", "Setting up early"]
    lines += ["I: installing remaining packages inside the chroot...", "0 upgraded, 2 newly installed, 0 to remove"]
    lines += [f"{what} {name}" for what in ("Get:1", "Unpacking", "Setting up") for name in ("a", "b", "c")]
    for line in [*lines, "I: cleaning package lists and apt cache..."]:
        meter.hear(line)
    assert heard == sorted(heard)
    assert heard[-1] < 1
    assert heard[-2] == pytest.approx(build._REMAINING[1])
