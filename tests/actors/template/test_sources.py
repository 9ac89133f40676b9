from __future__ import annotations

from pathlib import Path

import pytest

from actors.template.manifest import TemplateError
from actors.template.sources import machine_sources, read_os_release, source_lines

LISTING = """\
http://mirror.invalid/debian/|bookworm|main|amd64|Debian
http://mirror.invalid/debian/|bookworm|contrib|amd64|Debian
http://mirror.invalid/debian/|bookworm|main|i386|Debian
http://mirror.invalid/debian/|bookworm-updates|main|amd64|Debian
http://mirror.invalid/debian/|bookworm-backports|main|amd64|Debian Backports
http://mirror.invalid/security/|bookworm-security|main|amd64|Debian
http://vendor.invalid/apt/|bookworm|stable|amd64|Vendor
http://vendor.invalid/node/|nodistro|main|amd64|. nodistro
broken
"""


def test_only_the_distributions_own_sources_of_this_release_are_taken(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.gpg"
    assert source_lines(LISTING, "bookworm", "Debian", keyring) == [
        "deb http://mirror.invalid/debian/ bookworm main contrib",
        "deb http://mirror.invalid/debian/ bookworm-updates main",
        "deb http://mirror.invalid/security/ bookworm-security main",
    ]
    keyring.touch()
    assert source_lines(LISTING, "bookworm", "Debian", keyring)[0].startswith(
        f"deb [signed-by={keyring}] http://mirror"
    )


def test_an_os_release(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    assert read_os_release(file) == {}
    file.write_text('ID=ubuntu\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04 LTS"\n# comment\n')
    assert read_os_release(file)["PRETTY_NAME"] == "Ubuntu 24.04 LTS"


def test_another_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "actors.template.sources.read_os_release", lambda: {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 42"}
    )
    with pytest.raises(TemplateError, match=r"this machine is Fedora Linux 42.*Debian or Ubuntu"):
        machine_sources()


def test_a_machine_whose_lists_were_never_read_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.template.sources.run", lambda _: "")
    monkeypatch.setattr(
        "actors.template.sources.read_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    )
    with pytest.raises(TemplateError, match="run `apt-get update` first"):
        machine_sources()
