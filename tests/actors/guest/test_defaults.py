"""What a template says of its sandboxes' programs, read by an agent that trusts nothing in its tree."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from actors.guest.__main__ import usable_folder
from actors.guest.defaults import BYTES_MAX, read_defaults


def test_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "defaults.json"
    assert read_defaults(str(path)) == ({}, "")
    path.write_text(json.dumps({"env": {"A": "ö"}, "workdir": "/app"}))
    assert read_defaults(str(path)) == ({"A": "ö"}, "/app")
    path.write_text("{}")
    assert read_defaults(str(path)) == ({}, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("[]", "no JSON object"),
        (" " * (BYTES_MAX + 1), "no JSON object"),
        ('{"env": []}', "env is to be"),
        ('{"env": {"A": 1}}', "env is to be"),
        ('{"env": {"A=B": "1"}}', "env is to be"),
        ('{"env": {"": "1"}}', "env is to be"),
        ('{"env": {"A": "\\u0000"}}', "env is to be"),
        ('{"env": {"A": "\\ud800"}}', "env is to be"),
        ('{"workdir": 1}', "workdir is to be"),
        ('{"workdir": "app"}', "workdir is to be"),
        ('{"workdir": "/a\\u0000"}', "workdir is to be"),
    ],
)
def test_a_bad_file_counts_as_none_and_is_told(
    tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "defaults.json"
    path.write_text(text)
    assert read_defaults(str(path)) == ({}, "")
    assert why in capsys.readouterr().err


def test_what_is_no_file_holds_nothing_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "."):
        assert read_defaults(str(tmp_path / name)) == ({}, "")
    assert capsys.readouterr().err.count("is not used") == 3


def test_a_folder_that_can_not_be_made_gives_way_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert usable_folder(f"{tmp_path}/file", f"{tmp_path}/new") == f"{tmp_path}/new"
    assert usable_folder(f"{tmp_path}/file") == "/"
