from __future__ import annotations

from pathlib import Path

import pytest

from actors.machines.gvisor import GvisorDriver
from actors.machines.protocol import MachineSpec, MachineUnavailable
from actors.machines.runsc import find_runsc, parse_release
from events.types import Limits


def fake(tmp_path: Path, says: str, status: int = 0) -> str:
    program = tmp_path / "runsc"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", 20240729),
        ("runsc version release-20250113.0\nspec: 1.1.0-rc.1\n", 20250113),
        ("runsc version VERSION_MISSING\n", None),
        ("docker version 20240729", None),
        ("", None),
    ],
)
def test_the_release_is_read_from_what_runsc_says(text: str, release: int | None) -> None:
    assert parse_release(text) == release


def test_a_runsc_that_will_do(tmp_path: Path) -> None:
    assert find_runsc(fake(tmp_path, "runsc version release-20240729.0")).release == 20240729


@pytest.mark.parametrize(
    ("says", "status", "message"),
    [
        ("runsc version 0.0~20221219.0", 0, "older than 20240729"),
        ("hello", 0, "does not tell its release"),
        ("", 3, "exit status 3"),
    ],
)
async def test_no_machine_is_started_with_a_runsc_that_will_not_do(
    tmp_path: Path, says: str, status: int, message: str
) -> None:
    driver = GvisorDriver(tmp_path / "storage", runsc=fake(tmp_path, says, status))
    with pytest.raises(MachineUnavailable, match=message) as raised:
        await driver.start(MachineSpec("sbx-1", "base", Limits()))
    assert "make setup" in str(raised.value)
    assert not (tmp_path / "storage").exists()
    finding = next(finding for finding in await driver.check() if finding.name == "runsc")
    assert not finding.ok
    assert message in finding.detail
    assert finding.why
    assert finding.remedy == "make setup"


async def test_no_runsc(tmp_path: Path) -> None:
    driver = GvisorDriver(tmp_path, runsc="no-such-runsc")
    with pytest.raises(MachineUnavailable, match="there is no no-such-runsc"):
        await driver.start(MachineSpec("sbx-1", "base", Limits()))


async def test_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MachineUnavailable, match="run this as root"):
        await GvisorDriver(tmp_path).start(MachineSpec("sbx-1", "base", Limits()))
